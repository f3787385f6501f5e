"""`f.many(calls)`: many calls of one function, claimed in one request and completed in one.

What happens to each call is what `protocol` says of one call. Only what is usual goes in the batch: a key that is free,
and a first result that is there. Whoever has to wait, or meets an orphan, is asked for alone, afterwards.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from idempo import rooms
from idempo.asking import attempt
from idempo.contracts import BatchingLedger, Inner, Terms
from idempo.errors import LedgerUnavailableError
from idempo.events import tell
from idempo.leases import Beat, KeepAlive, end
from idempo.protocol import once, renewal, run_first, winner
from idempo.records import Answer, Call, Claimed, Completed, Done, Payload, replace
from idempo.steps import Pause, Repeated, Shielded, Steps, ending
from idempo.verdicts import check_arguments, first_result, lost, replay, unavailable, unwritten
from idempo.waiting import Patience

__all__ = ["MOST", "Came", "batched", "each"]

MOST = 1000
"""Calls that are claimed in one request; more are taken in turns."""
_BYTES = 4 * 1024 * 1024  # of results in one request: servers bound how long one may be
_AWAY = 3  # so many calls in a row that find the ledger away say that it is, for the others too

Came: TypeAlias = "Done | Exception"
"""What became of one call: its answer, or what it raises."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """What the calls of one batch share, and what came of them so far, by the digests of their keys."""

    ledger: BatchingLedger
    terms: Terms
    function: Inner
    patience: Patience
    came: dict[bytes, Came] = field(default_factory=dict)


def batched(
    ledger: BatchingLedger, calls: Sequence[Call], terms: Terms, function: Inner
) -> Steps[list[Came]]:
    """Answer each call, in order. A key that stands in the batch twice is asked for once."""
    leading: dict[bytes, Call] = {}
    for call in calls:
        leading.setdefault(call.digest, call)
    batch = _Batch(ledger, terms, function, Patience(terms.wait))
    for some in _parts(list(leading.values()), lambda _: 0):
        yield from _some(batch, some)
    return [_answer(batch, leading[call.digest], call) for call in calls]


def each(inner: Inner, calls: Sequence[Call]) -> Steps[list[Came]]:
    """Answer each call alone, in order, where the strategies in front of the function cannot be asked about many."""
    came: list[Came] = []
    for call in calls:
        try:
            came.append((yield from inner(call)))
        except Exception as error:
            came.append(error)
    return came


def _some(batch: _Batch, calls: Sequence[Call]) -> Steps[None]:
    asked = time.monotonic()
    answers = yield from _claim(batch, calls)
    mine: list[Call] = []
    others: list[Call] = []
    for call, answer in zip(calls, answers, strict=True):
        match answer:
            case Claimed(fence, number):
                claimed = replace(call, fence=fence, attempt=number, deadline=asked + call.lease)
                tell(batch.terms.hooks, "claimed", claimed)
                mine.append(claimed)
            case Completed():
                try:
                    batch.came[call.digest] = replay(answer, call, batch.terms)
                except Exception as error:
                    batch.came[call.digest] = error
            case _:
                others.append(call)
    yield from _first_runs(batch, mine)
    yield from _one_by_one(batch, others)


def _claim(batch: _Batch, calls: Sequence[Call]) -> Steps[Sequence[Answer | None]]:
    """Claim all. Where that fails nobody knows whose fault it is, so each is asked for alone.

    A caller that is cancelled meanwhile leaves no claim behind: nothing has started.
    """
    try:
        return (yield from batch.ledger.claim_many(calls))
    except Exception as error:
        said = f"claims of {len(calls)} calls: {type(error).__name__}"
        tell(batch.terms.hooks, "unavailable", calls[0], said)
        return [None] * len(calls)
    except GeneratorExit:
        raise
    except BaseException:
        yield Shielded(lambda: _release(batch, calls), late=True)
        raise


def _first_runs(batch: _Batch, calls: Sequence[Call]) -> Steps[None]:
    """The claims are ours: run the function for each, in order, all of them under leases that are kept alive."""
    beats: list[Beat] = []
    return (yield from ending(_run_and_record(batch, calls, beats), lambda: end(*beats)))


def _run_and_record(batch: _Batch, calls: Sequence[Call], beats: list[Beat]) -> Steps[None]:
    ledger, terms = batch.ledger, batch.terms
    done: list[tuple[Call, Done]] = []
    started = 0
    try:
        for call in calls:
            beats.append((yield KeepAlive(ledger, call.lease / 3, partial(renewal, ledger, call, terms))))
        for call, beat in zip(calls, beats, strict=True):
            started += 1
            try:
                done.append((call, (yield from run_first(ledger, call, terms, batch.function))))
            except Exception as error:
                beat.stop()
                batch.came[call.digest] = error
                rooms.tell(ledger, call.digest, None)
        yield from _record(batch, done)
    except GeneratorExit:
        raise
    except BaseException:
        # What has run is recorded, what has not begun is free, and the one in between is left to its lease.
        if started:
            yield Shielded(lambda: _complete(batch, done), late=True)
        yield Shielded(lambda: _release(batch, calls[started:]), late=True)
        raise
    finally:
        for beat in beats:
            beat.stop()


def _record(batch: _Batch, done: Sequence[tuple[Call, Done]]) -> Steps[None]:
    ledger, terms, came = batch.ledger, batch.terms, batch.came
    kept = yield Repeated(lambda: _complete(batch, done))
    for (call, first), was_kept in zip(done, kept, strict=True):
        if isinstance(was_kept, Exception):
            told = unwritten(call, terms, first.value)
            told.__cause__ = was_kept
            came[call.digest] = told
        elif was_kept:
            came[call.digest] = first
            tell(terms.hooks, "completed" if first.error is None else "failed", call)
            rooms.tell(ledger, call.digest, first_result(first, call))
        else:
            came[call.digest] = lost(call, terms, first.value, (yield from winner(ledger, call, terms)))


def _complete(batch: _Batch, done: Sequence[tuple[Call, Done]]) -> Steps[list[bool | Exception]]:
    """Record the first results; try again, one by one, while the ledger is away and the leases are kept alive."""
    kept: dict[bytes, bool | Exception] = {}
    terms = batch.terms
    patience = Patience(terms.completing)
    left = list(_parts([(call, first.payload) for call, first in done], _length))
    while left:
        failed: list[list[tuple[Call, Payload]]] = []
        for some in left:
            try:
                answers = yield from batch.ledger.complete_many(some)
            except Exception as error:
                call = some[0][0]
                tell(terms.hooks, "unavailable", call, f"completion: {type(error).__name__}")
                kept |= dict.fromkeys([one.digest for one, _ in some], error)
                failed += [[one] for one in some]
            else:
                kept |= {call.digest: answer for (call, _), answer in zip(some, answers, strict=True)}
        left = failed
        seconds = patience.next_pause(terms.lease) if left else None
        if seconds is None:
            break
        yield Pause(seconds)
    return [kept[call.digest] for call, _ in done]


def _release(batch: _Batch, calls: Sequence[Call]) -> Steps[None]:
    for call in calls:
        if (yield from attempt(batch.ledger.release(call), call, batch.terms)) is None:
            return  # the ledger is away: their leases end by themselves


def _one_by_one(batch: _Batch, calls: Sequence[Call]) -> Steps[None]:
    """Those that have to wait, each as if it were called alone; together they wait for as long as one would."""
    away: list[Exception] = []
    terms, came = batch.terms, batch.came
    for call in calls:
        if len(away) >= _AWAY:
            came[call.digest] = unavailable(call, terms, away[-1])
            continue
        mine = dataclasses.replace(terms, wait=terms.wait.within(batch.patience.left))
        try:
            came[call.digest] = yield from once(batch.ledger, call, mine, batch.function)
            away.clear()
        except Exception as error:
            came[call.digest] = error
            if isinstance(error, LedgerUnavailableError):
                away.append(error)
            else:
                away.clear()


def _answer(batch: _Batch, leading: Call, call: Call) -> Came:
    """What came of a call; of a repeat within the batch, what came of the first one with its key."""
    first = batch.came[call.digest]
    if call is leading:
        return first
    try:
        check_arguments(leading.fingerprint, call, batch.terms)
        if isinstance(first, Exception):
            return first
        known = Completed(first.payload, leading.fingerprint, first.fence, first.attempt, first.keep_left)
        return replay(known, call, batch.terms)
    except Exception as error:
        return error


def _parts(items: list[Any], length: Callable[[Any], int]) -> Iterator[list[Any]]:
    """The items in parts that fit into one request each."""
    part: list[Any] = []
    total = 0
    for item in items:
        if part and (len(part) >= MOST or total + length(item) > _BYTES):
            yield part
            part, total = [], 0
        part.append(item)
        total += length(item)
    if part:
        yield part


def _length(one: tuple[Call, Payload]) -> int:
    return len(one[1].data or b"")
