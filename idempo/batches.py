"""`f.many(calls)`: many calls of one function, claimed in one request and completed in one.

What happens to each call is what `protocol` says of one call. Only what is usual goes in the batch: a key that is free,
and a first result that is there. Whoever has to wait, or meets an orphan, is asked for alone, afterwards.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from idempo import rooms
from idempo.asking import attempt
from idempo.contracts import BatchingLedger, Inner, Terms
from idempo.errors import LedgerUnavailableError
from idempo.events import tell
from idempo.leases import KeepAlive
from idempo.protocol import once, renewal, run_first, winner
from idempo.records import Answer, Call, Claimed, Completed, Done, Payload, replace
from idempo.steps import Pause, Repeated, Shielded, Steps
from idempo.verdicts import check_arguments, first_result, lost, replay, unavailable, unwritten
from idempo.waiting import Patience

__all__ = ["MOST", "Came", "batched", "each"]

MOST = 1000
"""Calls that are claimed in one request; more are taken in turns."""
_BYTES = 4 * 1024 * 1024  # of results in one request: servers bound how long one may be
_AWAY = 3  # so many calls in a row that find the ledger away say that it is, for the others too

Came: TypeAlias = "Done | Exception"
"""What became of one call: its answer, or what it raises."""


def batched(
    ledger: BatchingLedger, calls: Sequence[Call], terms: Terms, function: Inner
) -> Steps[list[Came]]:
    """Answer each call, in order. A key that stands in the batch twice is asked for once."""
    came: dict[bytes, Came] = {}
    leading: dict[bytes, Call] = {}
    for call in calls:
        leading.setdefault(call.digest, call)
    patience = Patience(terms.wait)
    for some in _parts(list(leading.values()), lambda _: 0):
        yield from _some(ledger, some, terms, function, patience, came)
    return [
        came[call.digest]
        if call is leading[call.digest]
        else _repeat(came, leading[call.digest], call, terms)
        for call in calls
    ]


def each(inner: Inner, calls: Sequence[Call]) -> Steps[list[Came]]:
    """Answer each call alone, in order, where the strategies in front of the function cannot be asked about many."""
    came: list[Came] = []
    for call in calls:
        try:
            came.append((yield from inner(call)))
        except Exception as error:
            came.append(error)
    return came


def _some(
    ledger: BatchingLedger,
    calls: Sequence[Call],
    terms: Terms,
    function: Inner,
    patience: Patience,
    came: dict[bytes, Came],
) -> Steps[None]:
    asked = time.monotonic()
    answers = yield from _claim(ledger, calls, terms)
    mine: list[Call] = []
    others: list[Call] = []
    for call, answer in zip(calls, answers, strict=True):
        match answer:
            case Claimed(fence, number):
                claimed = replace(call, fence=fence, attempt=number, deadline=asked + call.lease)
                tell(terms.hooks, "claimed", claimed)
                mine.append(claimed)
            case Completed():
                try:
                    came[call.digest] = replay(answer, call, terms)
                except Exception as error:
                    came[call.digest] = error
            case _:
                others.append(call)
    yield from _first_runs(ledger, mine, terms, function, came)
    yield from _one_by_one(ledger, others, terms, function, patience, came)


def _claim(ledger: BatchingLedger, calls: Sequence[Call], terms: Terms) -> Steps[Sequence[Answer | None]]:
    """Claim all. Where that fails nobody knows whose fault it is, so each is asked for alone.

    A caller that is cancelled meanwhile leaves no claim behind: nothing has started.
    """
    try:
        return (yield from ledger.claim_many(calls))
    except Exception as error:
        tell(terms.hooks, "unavailable", calls[0], f"claims of {len(calls)} calls: {type(error).__name__}")
        return [None] * len(calls)
    except GeneratorExit:
        raise
    except BaseException:
        yield Shielded(lambda: _release(ledger, calls, terms), late=True)
        raise


def _first_runs(
    ledger: BatchingLedger, calls: Sequence[Call], terms: Terms, function: Inner, came: dict[bytes, Came]
) -> Steps[None]:
    """The claims are ours: run the function for each, in order, all of them under leases that are kept alive."""
    beats: list[Any] = []
    done: list[tuple[Call, Done]] = []
    started = 0
    try:
        for call in calls:
            beats.append((yield KeepAlive(ledger, call.lease / 3, partial(renewal, ledger, call, terms))))
        for call, beat in zip(calls, beats, strict=True):
            started += 1
            try:
                done.append((call, (yield from run_first(ledger, call, terms, function))))
            except Exception as error:
                beat.stop()
                came[call.digest] = error
                rooms.tell(ledger, call.digest, None)
        yield from _record(ledger, done, terms, came)
    except GeneratorExit:
        raise
    except BaseException:
        # What has run is recorded, what has not begun is free, and the one in between is left to its lease.
        if started:
            yield Shielded(lambda: _complete(ledger, done, terms), late=True)
        yield Shielded(lambda: _release(ledger, calls[started:], terms), late=True)
        raise
    finally:
        for beat in beats:
            beat.stop()


def _record(
    ledger: BatchingLedger, done: Sequence[tuple[Call, Done]], terms: Terms, came: dict[bytes, Came]
) -> Steps[None]:
    kept = yield Repeated(lambda: _complete(ledger, done, terms))
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


def _complete(
    ledger: BatchingLedger, done: Sequence[tuple[Call, Done]], terms: Terms
) -> Steps[list[bool | Exception]]:
    """Record the first results; try again, one by one, while the ledger is away and the leases are kept alive."""
    kept: dict[bytes, bool | Exception] = {}
    patience = Patience(terms.completing)
    left = list(_parts([(call, first.payload) for call, first in done], _length))
    while left:
        failed: list[list[tuple[Call, Payload]]] = []
        for some in left:
            try:
                answers = yield from ledger.complete_many(some)
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


def _release(ledger: BatchingLedger, calls: Sequence[Call], terms: Terms) -> Steps[None]:
    for call in calls:
        if (yield from attempt(ledger.release(call), call, terms)) is None:
            return  # the ledger is away: their leases end by themselves


def _one_by_one(
    ledger: BatchingLedger,
    calls: Sequence[Call],
    terms: Terms,
    function: Inner,
    patience: Patience,
    came: dict[bytes, Came],
) -> Steps[None]:
    """Those that have to wait, each as if it were called alone; together they wait for as long as one would."""
    away: list[Exception] = []
    for call in calls:
        if len(away) >= _AWAY:
            came[call.digest] = unavailable(call, terms, away[-1])
            continue
        mine = dataclasses.replace(terms, wait=terms.wait.within(patience.left))
        try:
            came[call.digest] = yield from once(ledger, call, mine, function)
            away.clear()
        except Exception as error:
            came[call.digest] = error
            if isinstance(error, LedgerUnavailableError):
                away.append(error)
            else:
                away.clear()


def _repeat(came: Mapping[bytes, Came], leading: Call, call: Call, terms: Terms) -> Came:
    """The answer for a call whose key stands in the batch before."""
    first = came[call.digest]
    try:
        check_arguments(leading.fingerprint, call, terms)
        if isinstance(first, Exception):
            return first
        known = Completed(first.payload, leading.fingerprint, first.fence, first.attempt, first.keep_left)
        return replay(known, call, terms)
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
