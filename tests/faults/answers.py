"""What a call came to, whichever way it ends; and waiting beside the calls that go on."""

import asyncio
from collections.abc import Callable
from typing import Any

from idempo.contracts import Colour
from idempo.steps import Steps

__all__ = ["meanwhile", "seen", "tried"]


def seen(f: Any, key: str) -> Steps[Any]:
    """The outcome, or the error, of a call."""
    return (yield from tried(lambda: f.outcome(key)))


def tried(call: Callable[[], Any]) -> Steps[Any]:
    """Its value, or its error."""
    try:
        return (yield call())
    except Exception as error:
        return error


def meanwhile(colour: Colour, work: Callable[[], None]) -> Steps[None]:
    """Wait in a thread where there is an event loop: it has calls to go on with."""
    if colour == "sync":
        work()
    else:
        yield asyncio.to_thread(work)
