"""The protocol of a record in the business transaction: it commits with the business writes, or not at all.

There is no lease: the database lets go of a claim when its transaction ends, however that comes about.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, assert_never

from idempo.asking import NotAdmitted, RunAgain, ask, attempt, judge
from idempo.contracts import Inner, JoinedLedger, Terms, Unit
from idempo.errors import IdempoError
from idempo.events import tell
from idempo.records import (
    MISSING,
    Answer,
    Call,
    Claimed,
    Completed,
    Done,
    InProgress,
    NotIssued,
    Orphan,
    replace,
)
from idempo.steps import Pause, Shielded, Steps, ending
from idempo.verdicts import (
    check_arguments,
    lost,
    never_issued,
    orphaned,
    pause,
    replay,
    unavailable,
    unknown,
)
from idempo.waiting import Patience, WaitPolicy

T = TypeVar("T")

__all__ = ["joined"]


def joined(ledger: JoinedLedger, call: Call, terms: Terms, inner: Inner) -> Steps[Done]:
    """The same in the business transaction: record, business writes and result commit together or not at all."""
    patience = Patience(terms.wait)
    again: dict[WaitPolicy, Patience] = {}
    over: int | None = None
    started = False
    while True:
        try:
            unit = yield from ask(ledger.open(call), call, terms)
            if isinstance(unit, Completed):
                return replay(unit, call, terms)
            if isinstance(unit, NotIssued):
                raise never_issued(call, terms)
            once_in = _once_in(ledger, unit, call, terms, inner, over, patience.at_once)
            answer = yield from ending(once_in, _closing(unit))
            match answer:
                case Done():
                    return answer
                case InProgress(_, lease_left):
                    waiting = pause(patience, call, terms, lease_left)
                case Orphan(_, fence):
                    over, waiting = fence, Pause(0.0)
                case _:
                    assert_never(answer)
        except RunAgain as undone:
            started = started or undone.started
            policy = undone.policy or terms.completing
            seconds = again.setdefault(policy, Patience(policy)).next_pause(call.lease)
            if seconds is None:
                raise undone.otherwise from undone.otherwise.__cause__
            waiting = Pause(seconds)
        except IdempoError as error:
            if started and error.ran is False:
                error.ran = None  # not this time, but before: what it did elsewhere is done
            raise
        yield waiting


def _closing(unit: Unit) -> Callable[[], Shielded]:
    return lambda: _to_the_end(unit.close)


def _to_the_end(steps: Callable[[], Steps[Any]]) -> Shielded:
    """However long it takes: two things at once cannot be done with one transaction."""
    return Shielded(steps, patience=math.inf)


def _once_in(
    ledger: JoinedLedger, unit: Unit, call: Call, terms: Terms, inner: Inner, over: int | None, wait: float
) -> Steps[Done | InProgress | Orphan]:
    """Claim, run, complete in one transaction; what cannot be done in this one is answered."""
    yield from unit.enter()
    answer = yield from ask(_claim_in(unit, call, terms, over, wait), call, terms)
    match answer:
        case Claimed(fence, attempt):
            mine = replace(call, fence=fence, attempt=attempt, arguments=unit.arguments)
            tell(terms.hooks, "claimed" if over is None else "took over", mine)
            return (yield from _run_in(ledger, unit, mine, terms, inner, orphan=over is not None))
        case Completed():
            return replay(answer, call, terms)
        case InProgress():
            check_arguments(answer.fingerprint, call, terms)
        case Orphan():
            check_arguments(answer.fingerprint, call, terms)
            if terms.on_orphan == "refuse":
                raise orphaned(call, terms)
        case NotIssued():
            raise never_issued(call, terms)
        case _:
            assert_never(answer)
    return answer


def _undone(unit: Unit, call: Call, terms: Terms) -> Steps[bool]:
    """Undo what the function wrote before it raised a result. False: it has ended the transaction by itself."""
    try:
        return (yield from unit.undo_writes())
    except Exception as error:
        told = unavailable(call, terms, error, ran=True)
        told.__cause__ = error
        raise NotAdmitted(told) from error


def _claim_in(unit: Unit, call: Call, terms: Terms, over: int | None, wait: float) -> Steps[Answer]:
    try:
        return (yield from unit.claim(call, over, wait))
    except Exception as error:
        if unit.again(error):
            raise RunAgain(unavailable(call, terms, error), started=False) from error
        raise


def _run_in(
    ledger: JoinedLedger, unit: Unit, call: Call, terms: Terms, inner: Inner, *, orphan: bool
) -> Steps[Done]:
    try:
        # An orphan here is a function that committed by itself, half way, and vanished.
        done = (yield from judge(call, terms)) if orphan else None
        if done is None:
            done = yield from inner(call)
        if done.error is not None and not (yield from _undone(unit, call, terms)):
            raise done.error  # the function has ended the transaction by itself: there is nothing to record it in
    except NotAdmitted as refused:
        tell(terms.hooks, "released", call)
        raise refused.otherwise from refused.otherwise.__cause__
    except RunAgain as undone:
        tell(terms.hooks, "released", call)
        if not unit.owned:
            raise undone.otherwise from undone.otherwise.__cause__  # only the caller can begin a new transaction
        raise
    except terms.unknown_errors as error:
        # What the function wrote is undone, but not what it did elsewhere: an orphan stays, for on_orphan to decide.
        yield from attempt(unit.abandon(call), call, terms)
        raise unknown(call, terms, type(error).__name__) from error
    except Exception as error:
        tell(terms.hooks, "released", call)
        if unit.again(error):
            raise RunAgain(error, started=True) from error
        raise
    payload = done.payload
    try:
        kept = yield _to_the_end(lambda: unit.complete(call, payload))
    except Exception as error:
        if unit.again(error):
            raise RunAgain(error, started=True) from error
        if not unit.ambiguous(error):
            raise
        yield _to_the_end(unit.close)  # its connection may be the only one there is
        first = yield from attempt(ledger.recall(call), call, terms)
        if first is None or first.owner != call.owner:
            raise unknown(call, terms, "the reply to the commit was lost", done.value) from error
        kept = True
    if not kept:
        raise lost(call, terms, done.value, MISSING)
    tell(terms.hooks, "completed" if done.error is None else "failed", call)
    return replace(done, durable=unit.owned)
