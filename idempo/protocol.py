"""The heart: what happens on the first call, on a replay, under contention and on failure.

A strategy is asked from outside inwards, the function is innermost, and completion runs inside out. `once` is the
protocol of a ledger that claims under a lease, `tier` that of a ledger in front of another one; that of a record in the
business transaction is in `joining`. They are generators without I/O (see `steps`): tests step through every schedule.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TypeVar, assert_never

from idempo import rooms
from idempo.asking import ask, attempt, judge, news
from idempo.contracts import Inner, Layer, Ledger, Terms
from idempo.errors import IdempoError
from idempo.events import tell
from idempo.leases import Beat, KeepAlive, end
from idempo.records import (
    MISSING,
    Answer,
    Call,
    Claimed,
    Completed,
    Done,
    InProgress,
    Issued,
    NotIssued,
    Orphan,
    replace,
)
from idempo.steps import Pause, Repeated, Shielded, Steps, ending
from idempo.verdicts import (
    check_arguments,
    first_result,
    lost,
    never_issued,
    orphaned,
    replay,
    unknown,
    unwritten,
    value_of,
    waiting,
)
from idempo.waiting import Patience

T = TypeVar("T")

__all__ = ["compose", "once", "renewal", "run_first", "tier", "winner"]


def compose(layers: Sequence[Layer], function: Inner) -> Inner:
    """Nest `layers`, outermost first, around `function`."""
    inner = function
    for layer in reversed(layers):
        inner = _nest(layer, inner)
    return inner


def _nest(layer: Layer, inner: Inner) -> Inner:
    return lambda call: layer.around(call, inner)


def once(ledger: Ledger, call: Call, terms: Terms, inner: Inner) -> Steps[Done]:
    """Claim, run, complete; or replay, or wait, or refuse."""
    patience = Patience(terms.wait)
    over: int | None = None
    ticket: rooms.Ticket | None = None
    try:
        while True:
            asked = time.monotonic()
            answer = yield from _claim(ledger, call, terms, over)
            match answer:
                case Claimed(fence, attempt):
                    break
                case Completed():
                    rooms.tell(ledger, call.digest, answer)
                    return replay(answer, call, terms)
                case InProgress(fingerprint, lease_left):
                    check_arguments(fingerprint, call, terms)
                    ticket = ticket or rooms.enter(ledger, call.digest)
                    pausing = waiting(ticket, patience, call, terms, lease_left)
                    yield from news(ledger, call, terms, answer, pausing, patience)
                    if ticket.answer is not None:
                        return replay(ticket.answer, call, terms)
                case Orphan(fingerprint, fence):
                    check_arguments(fingerprint, call, terms)
                    if terms.on_orphan == "refuse":
                        raise orphaned(call, terms)
                    over = fence
                case NotIssued():
                    raise never_issued(call, terms)
                case _:
                    assert_never(answer)
    finally:
        if ticket is not None:
            ticket.leave()
    mine = replace(call, fence=fence, attempt=attempt, deadline=asked + call.lease)
    tell(terms.hooks, "claimed" if over is None else "took over", mine)
    return (yield from _first_run(ledger, mine, terms, inner, orphan=over is not None))


def _claim(ledger: Ledger, call: Call, terms: Terms, over: int | None) -> Steps[Answer]:
    """Ask for the claim. A caller that is cancelled meanwhile does not leave it behind: nothing has started."""
    try:
        return (yield from ask(ledger.claim(call, over), call, terms))
    except (Exception, GeneratorExit):
        raise
    except BaseException:
        yield Shielded(
            lambda: attempt(ledger.release(call) if over is None else ledger.renew(call, 0), call, terms),
            late=True,
        )
        raise


def _first_run(ledger: Ledger, call: Call, terms: Terms, inner: Inner, *, orphan: bool) -> Steps[Done]:
    """The claim is ours: run the function under a lease that is kept alive, then record what came of it."""
    beat = yield KeepAlive(ledger, call.lease / 3, lambda: renewal(ledger, call, terms))
    running = _run_and_record(ledger, call, terms, inner, beat, orphan=orphan)
    return (yield from ending(running, lambda: end(beat)))


def _run_and_record(
    ledger: Ledger, call: Call, terms: Terms, inner: Inner, beat: Beat, *, orphan: bool
) -> Steps[Done]:
    first: Completed | None = None
    try:
        done = (yield from _probe(ledger, call, terms)) if orphan else None
        if done is None:
            done = yield from run_first(ledger, call, terms, inner)
        yield from _record(ledger, call, terms, done)
        if terms.final:
            first = first_result(done, call)
    finally:
        beat.stop()
        rooms.tell(ledger, call.digest, first)
    tell(terms.hooks, "completed" if done.error is None else "failed", call)
    return done


def run_first(ledger: Ledger, call: Call, terms: Terms, inner: Inner) -> Steps[Done]:
    """Run the function. A failure frees the key; what leaves the outcome open makes its claim an orphan."""
    try:
        return (yield from inner(call))
    except terms.unknown_errors as error:
        yield from attempt(ledger.renew(call, 0), call, terms)
        raise unknown(call, terms, type(error).__name__) from error
    except Exception as error:
        # Cancellation and interrupts are no failures: they pass by, and the claim is left to its lease.
        if not terms.final and isinstance(error, IdempoError) and error.ran is not False:
            # The ledger inside does not say that nothing happened: the next call has to ask it, and no other.
            yield Shielded(lambda: attempt(ledger.renew(call, 0), call, terms))
            raise
        yield Shielded(lambda: attempt(ledger.release(call), call, terms))
        tell(terms.hooks, "released", call)
        raise


def _record(ledger: Ledger, call: Call, terms: Terms, done: Done) -> Steps[None]:
    if not terms.final:
        yield from _record_outside(ledger, call, terms, done)
        return
    kept = yield Repeated(lambda: _complete(ledger, call, terms, done))
    if not kept:
        raise lost(call, terms, done.value, (yield from winner(ledger, call, terms)))


def _record_outside(ledger: Ledger, call: Call, terms: Terms, done: Done) -> Steps[None]:
    """What the ledger inside recorded decides; here it is kept for no longer than there.

    Where that is not committed yet, the next call has to ask it again; only what must not be used twice counts as used,
    whatever becomes of the caller's transaction.
    """
    once_only = call.demand == Issued("refuse")
    if not (done.durable or once_only):
        yield Shielded(lambda: attempt(ledger.renew(call, 0), call, terms))
        return
    mine = call if once_only else replace(call, keep=max(0.001, min(call.keep, done.keep_left)))
    kept = yield Shielded(lambda: attempt(ledger.complete(mine, done.payload), call, terms))
    if kept is False and getattr(ledger, "keeps_order", False):
        raise lost(call, terms, done.value, MISSING)  # a later version may have been applied before this one


def _complete(ledger: Ledger, call: Call, terms: Terms, done: Done) -> Steps[bool]:
    """Record the first result; try again while the ledger is away and the lease is kept alive."""
    patience = Patience(terms.completing)
    while True:
        try:
            return (yield from ledger.complete(call, done.payload))
        except Exception as error:
            tell(terms.hooks, "unavailable", call, f"completion: {type(error).__name__}")
            seconds = patience.next_pause(call.lease)
            if seconds is None:
                raise unwritten(call, terms, done.value) from error
        yield Pause(seconds)


def renewal(ledger: Ledger, call: Call, terms: Terms) -> Steps[bool]:
    """One heartbeat. A ledger that does not answer is asked again at the next one."""
    try:
        alive = yield from ledger.renew(call, call.lease)
    except Exception as error:
        tell(terms.hooks, "unavailable", call, f"renewal: {type(error).__name__}")
        return True
    if alive:
        tell(terms.hooks, "renewed", call)
    return alive


def _probe(ledger: Ledger, call: Call, terms: Terms) -> Steps[Done | None]:
    """We took over an orphan: let the user's probe judge whether its effect happened. None: run the function."""
    try:
        return (yield from judge(call, terms))
    except Exception:
        # Nothing is known yet: an orphan again, for the next call to judge.
        yield from attempt(ledger.renew(call, 0), call, terms)
        raise


def winner(ledger: Ledger, call: Call, terms: Terms) -> Steps[Any]:
    """The first result as the ledger has it, for an owner that lost its lease; MISSING if there is none to give."""
    record = yield from attempt(ledger.lookup(call.digest), call, terms)
    if record is None or record.payload is None:
        return MISSING
    try:
        value, error = value_of(record.payload, call, terms)
    except IdempoError:
        return MISSING
    return value if error is None else error


def tier(ledger: Ledger, call: Call, terms: Terms, inner: Inner, *, required: bool) -> Steps[Done]:
    """Replay what is known here, otherwise ask inside; keep what comes from there once it is durable."""
    lookup = ledger.lookup(call.digest)
    record = yield from (ask(lookup, call, terms) if required else attempt(lookup, call, terms))
    if record is not None and record.payload is not None and record.payload.data is not None:
        first = Completed(record.payload, record.fingerprint, record.fence, record.attempt, record.keep_left)
        return replay(first, call, terms)
    asked = time.monotonic()
    done = yield from inner(call)
    left = done.keep_left - (time.monotonic() - asked)
    if done.durable and left > 0:
        yield from attempt(ledger.fill(call, replace(done, keep_left=left)), call, terms)
    return done
