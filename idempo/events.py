"""What happened: one frozen `Event`, handed to every hook of `hooks=`; logging is built in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from idempo.records import Call

__all__ = ["Event", "Hook", "Kind", "tell"]

Kind: TypeAlias = Literal[
    "claimed",  # this call runs the function
    "took over",  # this call runs after an orphan
    "completed",  # the first result is recorded
    "failed",  # an exception that is a result is recorded
    "released",  # the function failed; the key is free again
    "replayed",  # answered from the first result
    "waited",  # a duplicate waits for the first run; told once a call
    "refused",  # refused before anything ran
    "renewed",  # the lease was extended
    "lost",  # somebody else took over while this call ran
    "unknown",  # nobody can say whether the effect happened
    "unstorable",  # it ran, and its result could not be stored
    "unavailable",  # a ledger did not answer
]

_LEVELS: dict[Kind, int] = {
    "took over": logging.WARNING,
    "lost": logging.ERROR,
    "unknown": logging.ERROR,
    "unstorable": logging.ERROR,
    "unavailable": logging.WARNING,
}

logger = logging.getLogger("idempo")


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to one call. Carries no arguments and no results, so that it is safe to log."""

    kind: Kind
    operation: str
    scope: str
    key: str
    attempt: int
    fence: int
    detail: str = ""


Hook: TypeAlias = Callable[[Event], object]


def tell(hooks: Iterable[Hook], kind: Kind, call: Call, detail: str = "") -> None:
    """Log what happened and hand it to the hooks. A hook that raises is logged and changes nothing."""
    level = _LEVELS.get(kind, logging.DEBUG)
    if not hooks and not logger.isEnabledFor(level):
        return
    event = Event(kind, call.operation, call.scope, call.key, call.attempt, call.fence, detail)
    logger.log(level, "%s: %s %r attempt %d %s", kind, call.operation, call.key, call.attempt, detail)
    for hook in hooks:
        try:
            hook(event)
        except Exception:
            logger.exception("a hook of %s raised", call.operation)
