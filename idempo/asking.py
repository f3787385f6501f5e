"""Asking a ledger, and what its silence means before the function has started or beside the answer; asking a probe, or
the user's answer for a call that does not run."""

from __future__ import annotations

import copy
import inspect
import logging
from typing import Any, TypeVar, cast

from idempo.contracts import Ledger, Site, Terms, WakingLedger
from idempo.errors import ConfigurationError, IdempoError
from idempo.events import tell
from idempo.records import MISSING, RERUN, Call, Done, Found, InProgress
from idempo.rooms import Waiting
from idempo.steps import Steps
from idempo.verdicts import first_value, unavailable
from idempo.waiting import Patience, WaitPolicy

T = TypeVar("T")

logger = logging.getLogger("idempo")

__all__ = [
    "NotAdmitted",
    "RunAgain",
    "answered",
    "ask",
    "attempt",
    "check_answer",
    "check_colour",
    "judge",
    "news",
]


class RunAgain(Exception):
    """Our own transaction came to nothing, for the sake of another one: the call starts over in a new one."""

    def __init__(self, otherwise: Exception, *, started: bool, policy: WaitPolicy | None = None) -> None:
        super().__init__(otherwise)
        self.otherwise = otherwise
        """What is raised if it happens again and again, and where the transaction is the caller's."""
        self.started = started
        """True if the function was entered."""
        self.policy = policy
        """How often to start over; without one, for as long as a lease lasts."""


class NotAdmitted(Exception):
    """A guard refuses, for good: carries its error past what the decorator was told about the function's own."""

    def __init__(self, otherwise: Exception) -> None:
        super().__init__(otherwise)
        self.otherwise = otherwise


def ask(steps: Steps[T], call: Call, terms: Terms) -> Steps[T]:
    """Take steps of a ledger before the function has started: if it cannot answer, nothing runs."""
    try:
        return (yield from steps)
    except (IdempoError, RunAgain):
        raise
    except Exception as error:
        raise unavailable(call, terms, error) from error


def attempt(steps: Steps[T], call: Call, terms: Terms) -> Steps[T | None]:
    """Take steps of a ledger whose failure changes nothing about the answer."""
    try:
        return (yield from steps)
    except Exception as error:
        tell(terms.hooks, "unavailable", call, type(error).__name__)
        return None


def news(
    ledger: Ledger, call: Call, terms: Terms, told: InProgress, pausing: Waiting, patience: Patience
) -> Steps[None]:
    """Wait before asking again: for the store to tell that something happened, where it does; else for the pause.

    Whoever was woken for nothing pauses the next time: no store can make a duplicate ask without end.
    """
    ticket, woken = pausing.ticket, None
    if terms.wait.together and hasattr(ledger, "hear") and not ticket.heard and ticket.leads:
        seconds = min(patience.left, told.lease_left)
        try:
            woken = yield from cast(WakingLedger, ledger).hear(call, told, seconds)
        except Exception as error:
            logger.debug("not woken, so asking: %r", error)  # only a hint is lost
    ticket.heard = bool(woken)
    if woken is None:
        yield pausing


def judge(call: Call, terms: Terms) -> Steps[Done | None]:
    """Ask the user's probe whether the effect of an orphan happened. None: run the function."""
    if not callable(terms.on_orphan):
        return None
    verdict = yield terms.on_orphan(call)
    if isinstance(verdict, Found):
        return first_value(verdict.value, call, terms)
    if verdict is RERUN:
        return None
    raise ConfigurationError(
        f"an on_orphan probe returns Found(value) or RERUN, not {type(verdict).__name__}",
        operation=call.operation,
        key=call.key,
    )


def answered(answer: Any, about: Any, call: Call, terms: Terms) -> Steps[Done]:
    """Make the first result of `answer`, a value or a callable of what was found: the function does not run."""
    value = (yield answer(about)) if callable(answer) else copy.deepcopy(answer)
    return first_value(value, call, terms)


def check_colour(what: str, given: Any, site: Site) -> None:
    """Raise `ConfigurationError` for an async callable that a plain function would have to await."""
    if inspect.iscoroutinefunction(given) and site.colour == "sync":
        raise ConfigurationError(f"{site.operation}: an async {what}= needs an async function")


def check_answer(what: str, answer: Any, site: Site) -> None:
    """Raise `ConfigurationError` for an answer that could not be stored, or not be had by a plain function."""
    check_colour(what, answer, site)
    if answer is MISSING or callable(answer):
        return
    codec = site.terms.codec
    try:
        stored = codec.decode(codec.encode(answer))
    except Exception as error:
        raise ConfigurationError(
            f"{site.operation}: {what}={answer!r:.100} cannot be stored: {error}"
        ) from error
    if type(stored) is not type(answer):
        raise ConfigurationError(
            f"{site.operation}: {what}={answer!r:.100} does not fit the return annotation: a repeat would get a "
            f"{type(stored).__name__}"
        )
