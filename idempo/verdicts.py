"""What a call is told: the first result in its two directions, and the typed errors with what to do about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from idempo import keys
from idempo.codec import UnstorableError, decode_error, encode_error
from idempo.contracts import Terms
from idempo.errors import (
    FingerprintMismatchError,
    InProgressError,
    LeaseLostError,
    LedgerUnavailableError,
    OutcomeUnknownError,
    ResultUnavailableError,
    TokenSpentError,
    TokenUnknownError,
)
from idempo.events import tell
from idempo.records import MISSING, Call, Completed, Done, Issued, Payload
from idempo.rooms import Ticket, Waiting
from idempo.steps import Pause
from idempo.waiting import Patience

__all__ = [
    "check_arguments",
    "first_error",
    "first_result",
    "first_value",
    "lost",
    "never_issued",
    "orphaned",
    "pause",
    "replay",
    "unavailable",
    "unknown",
    "unwritten",
    "value_of",
    "waiting",
]

_NET = 3.0  # seconds without news after which a duplicate asks by itself


def first_value(value: Any, call: Call, terms: Terms) -> Done:
    """The function returned `value`. What cannot be stored is completed without a result: it must not run again."""
    data = _encoded(terms.codec.encode, value, call, terms)
    return _done(value, None, Payload("completed", data), call, terms)


def first_error(error: BaseException, call: Call, terms: Terms) -> Done:
    """The function raised one of `replay_errors`: the exception is the result."""
    data = _encoded(encode_error, error, call, terms)
    return _done(MISSING, error, Payload("failed", data), call, terms)


def _encoded(encode: Callable[[Any], bytes], result: Any, call: Call, terms: Terms) -> bytes | None:
    try:
        data = encode(result)
        if not isinstance(data, bytes):
            raise UnstorableError(f"the codec made a {type(data).__name__} of it, not bytes")
        if len(data) > terms.max_result:
            raise UnstorableError(f"{len(data)} bytes are more than max_result={terms.max_result}")
    except Exception as error:
        tell(terms.hooks, "unstorable", call, f"{type(error).__name__}: {error}")
        return None
    return data


def _done(value: Any, error: BaseException | None, payload: Payload, call: Call, terms: Terms) -> Done:
    return Done(value, error, payload, False, call.attempt, call.fence, keep_left=terms.keep, durable=True)


def first_result(done: Done, call: Call) -> Completed:
    """What the ledger answers now that `done` is recorded."""
    return Completed(done.payload, call.fingerprint, call.fence, call.attempt, done.keep_left, call.owner)


def replay(answer: Completed, call: Call, terms: Terms) -> Done:
    """Answer from the first result.

    Raises `FingerprintMismatchError` for other arguments, `ResultUnavailableError` where there is nothing to give,
    `TokenSpentError` where a second use is refused.
    """
    if call.demand == Issued("refuse"):
        raise _spent(call, terms)
    check_arguments(answer.fingerprint, call, terms)
    value, error = value_of(answer.payload, call, terms)
    tell(terms.hooks, "replayed", call)
    return Done(
        value, error, answer.payload, True, answer.attempt, answer.fence, answer.keep_left, answer.durable
    )


def never_issued(call: Call, terms: Terms) -> TokenUnknownError:
    """The error for a token that the ledger does not know."""
    tell(terms.hooks, "refused", call, "token unknown")
    return TokenUnknownError(
        "this token was not issued for this operation and scope, or its time is over; issue a new one, with .issue()",
        operation=call.operation,
        key=call.key,
    )


def _spent(call: Call, terms: Terms) -> TokenSpentError:
    tell(terms.hooks, "refused", call, "token spent")
    return TokenSpentError(
        "this token was used before, and a second use is refused; issue a new one, with .issue()",
        operation=call.operation,
        key=call.key,
    )


def value_of(payload: Payload, call: Call, terms: Terms) -> tuple[Any, BaseException | None]:
    """Decode a first result: a value, or an exception that is a result."""
    if payload.data is None:
        raise ResultUnavailableError(
            "the function ran, but its result could not be stored, so there is nothing to give back. It will not run "
            "again; look at the effect itself, or let it return something that can be stored",
            operation=call.operation,
            key=call.key,
        )
    try:
        if payload.state == "failed":
            return MISSING, decode_error(payload.data, terms.replay_errors)
        return terms.codec.decode(payload.data), None
    except ResultUnavailableError as error:
        raise ResultUnavailableError(str(error), operation=call.operation, key=call.key) from error
    except Exception as error:
        raise ResultUnavailableError(
            "the stored first result cannot be read any more; has its type changed since it was stored?",
            operation=call.operation,
            key=call.key,
        ) from error


def check_arguments(stored: bytes, call: Call, terms: Terms) -> None:
    """Raise `FingerprintMismatchError` if the key was first used with other arguments."""
    if stored == call.fingerprint or not stored or not call.fingerprint:
        return
    names = keys.differing(stored, call.fingerprint)
    if not names:
        return
    tell(terms.hooks, "refused", call, "other arguments: " + ", ".join(names))
    raise FingerprintMismatchError(
        f"this key was first used with another {' and another '.join(names)}; use a new key for a new operation, or, "
        "if what differs does not matter (a send time, a signature), name what does in fingerprint=(...)",
        operation=call.operation,
        key=call.key,
        differing=names,
    )


def pause(patience: Patience, call: Call, terms: Terms, lease_left: float) -> Pause:
    """Another call runs: return how long to wait before asking again.

    Raises `InProgressError` when the time to wait is over.
    """
    if patience.first:
        tell(terms.hooks, "waited", call)
    seconds = patience.next_pause(lease_left)
    if seconds is None:
        tell(terms.hooks, "refused", call, "in progress")
        raise InProgressError(
            "another call with this key is still running; repeat it later to get its result, or give a longer wait=",
            operation=call.operation,
            key=call.key,
            retry_after=lease_left,
        )
    return Pause(seconds)


def waiting(ticket: Ticket, patience: Patience, call: Call, terms: Terms, lease_left: float) -> Waiting:
    """The same for one of several duplicates in this process, of whom one asks for all."""
    seconds = pause(patience, call, terms, lease_left).seconds
    if terms.wait.together and not ticket.leads:
        seconds = max(seconds, min(patience.left, _NET))
    return Waiting(seconds, ticket)


def orphaned(call: Call, terms: Terms) -> OutcomeUnknownError:
    """The error for an orphan under `on_orphan="refuse"`."""
    tell(terms.hooks, "unknown", call, "an orphan")
    return OutcomeUnknownError(
        "an earlier call claimed this key and vanished, so nobody can say whether its effect happened. Find out, then "
        "forget(...) the key to let it run, or decide it by code: on_orphan=probe",
        operation=call.operation,
        key=call.key,
        result=MISSING,
    )


def unknown(call: Call, terms: Terms, why: str, result: object = MISSING) -> OutcomeUnknownError:
    """The error for a run that ended without anybody knowing whether its effect happened."""
    tell(terms.hooks, "unknown", call, why)
    return OutcomeUnknownError(
        f"nobody can say whether the effect happened: {why}. Repeat the call with the same key: it is answered or run "
        "as on_orphan says",
        operation=call.operation,
        key=call.key,
        result=result,
    )


def unwritten(call: Call, terms: Terms, result: object) -> OutcomeUnknownError:
    """The error for a completion that could not be written."""
    return unknown(
        call, terms, "the function ran, but its completion could not be written to the ledger", result
    )


def lost(call: Call, terms: Terms, result: object, stored: object) -> LeaseLostError:
    """The error for an owner that is none any more."""
    tell(terms.hooks, "lost", call)
    return LeaseLostError(
        "the function ran, but its claim was gone at the end: it was silent for longer than its lease and another call "
        "took over, or its record or transaction was removed. `.stored` is the first result where there is one; undo "
        "or reconcile the effect of this run, and give a longer lease=",
        operation=call.operation,
        key=call.key,
        result=result,
        stored=stored,
    )


def unavailable(
    call: Call, terms: Terms, error: BaseException, *, ran: bool = False
) -> LedgerUnavailableError:
    """The error for a ledger that did not answer before the function could start, or a database that did not when a
    guard asked it afterwards (`ran`)."""
    tell(terms.hooks, "unavailable", call, type(error).__name__)
    told = LedgerUnavailableError(
        f"the database did not answer ({type(error).__name__}) after the function had run: what it wrote in this "
        "transaction is undone, what it did elsewhere is done; repeat the call when the database is back"
        if ran
        else f"the ledger did not answer ({type(error).__name__}), so the function did not run; repeat the call when "
        "the ledger is back",
        operation=call.operation,
        key=call.key,
    )
    told.ran = ran
    return told
