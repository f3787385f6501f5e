"""Does the ledger agree with the input? Judged by the two of them, line by line, not by what idempo says it did."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, localcontext

from idempo.demo.callbacks import Callback, Feed, money, plain
from idempo.demo.crew import Handled
from idempo.demo.postings import Entry
from idempo.demo.worker import Answer

__all__ = ["Report", "reconcile"]


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a run. Always: received = malformed + executed + replayed + refused."""

    received: int
    malformed: int
    payments: int
    executed: int
    """Entries that this run has written to the ledger."""
    replayed: int
    refused: int
    kills: int
    ledger_total: Decimal
    """The sum of all entries of the payments in the input, those of earlier runs included."""
    problems: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        return not self.problems


def reconcile(
    feed: Feed, handled: Handled, entries: Sequence[Entry], run: str, times_run: int | None
) -> Report:
    """Compare the input, what was answered, and the ledger."""
    with localcontext(prec=60):
        payments: dict[str, list[Callback]] = defaultdict(list)
        for callback in feed.callbacks:
            payments[callback.payment_no].append(callback)
        posted: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            posted[entry.payment_no].append(entry)
        executed = sum(entry.run == run for entry in entries)
        refused = sum(answer.kind == "refused" for answer in handled.answers.values())
        problems = [
            *_entries(payments, posted, run),
            *_answers(feed, handled, posted),
            *_counts(payments, handled, posted, executed, times_run),
        ]
        return Report(
            received=feed.received,
            malformed=feed.malformed,
            payments=len(payments),
            executed=executed,
            replayed=len(feed.callbacks) - executed - refused,
            refused=refused,
            kills=handled.kills,
            ledger_total=_total(payments, posted),
            problems=tuple(problems),
        )


def _total(payments: Iterable[str], posted: dict[str, list[Entry]]) -> Decimal:
    return money(sum((entry.amount for number in payments for entry in posted.get(number, ())), Decimal(0)))


def _entries(payments: dict[str, list[Callback]], posted: dict[str, list[Entry]], run: str) -> Iterator[str]:
    """Each payment stands in the ledger once, and each entry of this run stands for a line of the input."""
    for number in payments:
        if number not in posted:
            yield f"payment {number} was never posted"
    for number, entries in posted.items():
        if len(entries) > 1:
            yield f"payment {number} was posted {len(entries)} times"
        lines = {(line.event_id, line.amount) for line in payments.get(number, ())}
        for entry in entries:
            if entry.run == run and (entry.event_id, entry.amount) not in lines:
                yield f"payment {number} was posted with {plain(entry.amount)}, which no callback says"


def _answers(feed: Feed, handled: Handled, posted: dict[str, list[Entry]]) -> Iterator[str]:
    """Each line was answered, by the amount that stands in the ledger: refused if the line's is another one."""
    for line in feed.callbacks:
        answer = handled.answers.get(line.line)
        if answer is None:
            yield f"line {line.line} was never answered"
            continue
        for entry in posted.get(line.payment_no, ())[:1]:
            if (problem := _judged(line, answer, entry)) is not None:
                yield f"line {line.line}, payment {line.payment_no}: {problem}"


def _judged(line: Callback, answer: Answer, entry: Entry) -> str | None:
    if answer.kind == "refused":
        return "refused, although the ledger has its amount" if line.amount == entry.amount else None
    if answer.amount != line.amount:
        return f"{answer.kind} with the amount {answer.amount}, although it says {plain(line.amount)}"
    if entry.amount != line.amount:
        return f"{answer.kind} with {plain(line.amount)}, but the ledger has {plain(entry.amount)}"
    return None


def _counts(
    payments: dict[str, list[Callback]],
    handled: Handled,
    posted: dict[str, list[Entry]],
    executed: int,
    times_run: int | None,
) -> Iterator[str]:
    """The sums agree, and nothing ran more often than workers were killed."""
    taken = {line for line, answer in handled.answers.items() if answer.kind != "refused"}
    amounts = {
        line.payment_no: line.amount for lines in payments.values() for line in lines if line.line in taken
    }
    # A payment of an earlier run may have nothing but forged lines here: then no line says what it should be.
    total, told = _total(amounts, posted), money(sum(amounts.values(), Decimal(0)))
    if total != told:
        yield f"the ledger totals {plain(total)} where the accepted amounts total {plain(told)}"
    rows = sum(len(posted.get(number, ())) for number in payments)
    if rows != len(payments):
        yield f"{len(payments)} payments, but {rows} entries in the ledger"
    said = sum(answer.kind == "executed" for answer in handled.answers.values())
    unsaid = handled.redone + handled.retries  # a worker that was killed after the commit could not tell
    if not said <= executed <= said + unsaid:
        yield f"{executed} new entries in the ledger, but {said} callbacks were answered as executed"
    if times_run is not None and times_run > said + unsaid:
        yield f"the function ran {times_run} times for {said} executions, with {unsaid} interrupted"
