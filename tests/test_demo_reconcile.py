"""The demo's reconciliation finds what is wrong, by the input and the ledger alone."""

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal

import pytest

from idempo.demo.callbacks import Callback, Feed
from idempo.demo.crew import Handled
from idempo.demo.postings import Entry
from idempo.demo.reconcile import Report, reconcile
from idempo.demo.worker import Answer

ONE, TWO, FORGED = Decimal("1.00"), Decimal("2.00"), Decimal("9.00")
LINES = [
    Callback(1, "A", "e1", ONE),
    Callback(2, "A", "e2", ONE),
    Callback(3, "A", "e3", FORGED),
    Callback(4, "B", "e4", TWO),
]
ANSWERS = [
    Answer(1, "executed", ONE),
    Answer(2, "replayed", ONE),
    Answer(3, "refused"),
    Answer(4, "executed", TWO),
]
ENTRIES = [Entry("A", "e1", ONE, "now"), Entry("B", "e4", TWO, "now")]


def judged(
    answers: list[Answer] = ANSWERS,
    entries: list[Entry] = ENTRIES,
    *,
    redone: int = 0,
    times_run: int | None = None,
    malformed: int = 0,
) -> Report:
    handled = Handled({answer.line: answer for answer in answers}, kills=redone, redone=redone)
    return reconcile(Feed(LINES, malformed), handled, entries, "now", times_run)


def test_a_right_ledger() -> None:
    report = judged(malformed=3, times_run=2)
    assert report.ok
    assert (report.received, report.malformed, report.payments) == (7, 3, 2)
    assert (report.executed, report.replayed, report.refused) == (2, 1, 1)
    assert report.ledger_total == Decimal("3.00")


def test_a_killed_worker_could_not_say_that_it_had_executed() -> None:
    answers = [replace(ANSWERS[0], kind="replayed"), *ANSWERS[1:]]
    report = judged(answers, redone=1, times_run=2)
    assert report.ok
    assert (report.executed, report.replayed) == (2, 1)
    assert not judged(answers, redone=0).ok


def test_entries_of_earlier_runs_are_not_executed_now() -> None:
    entries = [replace(entry, run="then") for entry in ENTRIES]
    answers = [replace(answer, kind=answer.kind.replace("executed", "replayed")) for answer in ANSWERS]
    report = judged(answers, [*entries, Entry("C", "e", FORGED, "then")], times_run=0)
    assert report.ok
    assert (report.executed, report.replayed, report.ledger_total) == (0, 3, Decimal("3.00"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda: judged(entries=ENTRIES[:1]), "payment B was never posted"),
        (lambda: judged(entries=[*ENTRIES, ENTRIES[0]]), "payment A was posted 2 times"),
        (lambda: judged(entries=[*ENTRIES, Entry("Z", "e", ONE, "now")]), "payment Z was posted with 1.00, which no"),
        (lambda: judged(entries=[replace(ENTRIES[0], amount=TWO), ENTRIES[1]]), "the ledger has 2.00"),
        (lambda: judged(entries=[replace(ENTRIES[0], amount=Decimal("NaN")), ENTRIES[1]]), "the ledger has NaN"),
        (lambda: judged(entries=[replace(ENTRIES[0], amount=FORGED), ENTRIES[1]]), "the ledger totals 11.00"),
        (lambda: judged(ANSWERS[:3]), "line 4 was never answered"),
        (lambda: judged([*ANSWERS[:3], replace(ANSWERS[3], amount=ONE)]), "executed with the amount 1.00"),
        (lambda: judged([*ANSWERS[:3], Answer(4, "refused")]), "refused, although the ledger has its amount"),
        (lambda: judged([*ANSWERS[:2], Answer(3, "replayed", ONE), ANSWERS[3]]), "although it says 9.00"),
        (lambda: judged([replace(answer, kind="executed", amount=ONE) for answer in ANSWERS]), "2 new entries"),
        (lambda: judged(times_run=3), "the function ran 3 times"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(change: Callable[[], Report], problem: str) -> None:
    report = change()
    assert not report.ok
    assert any(problem in one for one in report.problems), report.problems
    assert report.received == report.malformed + report.executed + report.replayed + report.refused
