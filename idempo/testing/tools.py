"""What the suites are made of: steps in a colour, effects that are counted, gates, calls."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

from idempo.assembly import operation_of
from idempo.contracts import Colour, Ledger, Strategy
from idempo.decorator import idempotent
from idempo.records import Call, replace
from idempo.steps import Steps, arun, run

__all__ = ["CALLERS", "Effects", "Gate", "drive", "driven", "ledger_of", "new_call", "together"]

CALLERS = 12
"""How many call at once where a test wants a crowd."""


def drive(colour: Colour, steps: Steps[Any]) -> Any:
    """Take steps to their end in a colour, in an event loop of their own if async."""
    return run(steps) if colour == "sync" else asyncio.run(arun(steps))


def driven(test: Callable[..., Steps[None]]) -> Callable[..., None]:
    """Make a test method out of steps."""

    @functools.wraps(test)
    def method(self: Any, *args: Any, **kwargs: Any) -> None:
        def whole() -> Steps[None]:
            try:
                yield from test(self, *args, **kwargs)
            finally:
                yield from self.closing()

        drive(self.colour, whole())

    return method


def new_call(key: str = "A-1", **changes: Any) -> Call:
    """Return a call as the decorator would make it, with an owner of its own."""
    call = Call(
        operation="contract",
        scope="",
        key=key,
        digest=key.encode().ljust(32, b"\0")[:32],
        fingerprint=b"",
        owner=os.urandom(16),
        lease=30.0,
        keep=3600.0,
        arguments={},
    )
    return replace(call, **changes)


def ledger_of(strategy: Strategy, colour: Colour) -> Ledger:
    """Return the ledger of a strategy that claims under a lease."""

    def probe(order: str) -> int:
        return 0

    async def aprobe(order: str) -> int:
        return 0

    decorated: Any = idempotent(key="{order}", using=strategy)(probe if colour == "sync" else aprobe)
    layer: Any = operation_of(decorated).layers[-1]
    ledger: Ledger = layer.ledger
    return ledger


def together(colour: Colour, calls: Iterable[Callable[[], Any]]) -> Steps[list[Any]]:
    """Call all at once, in threads or tasks; return values and exceptions in order."""
    calls = list(calls)
    if colour == "async":
        results: list[Any] = yield asyncio.gather(*(call() for call in calls), return_exceptions=True)
        return results
    found: list[Any] = [None] * len(calls)
    start = threading.Barrier(len(calls))

    def work(index: int) -> None:
        start.wait()
        try:
            found[index] = calls[index]()
        except BaseException as error:
            found[index] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


class Effects:
    """What the functions under test have done, counted over threads and tasks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done: list[str] = []

    def add(self, effect: str) -> int:
        """Note one effect; return how many there are."""
        with self._lock:
            self._done.append(effect)
            return len(self._done)

    def __len__(self) -> int:
        return len(self._done)

    def of(self, effect: str) -> int:
        """How often this one happened."""
        return self._done.count(effect)


class Gate:
    """Holds a function until it is opened, in either colour."""

    def __init__(self, colour: Colour) -> None:
        self._event: Any = threading.Event() if colour == "sync" else asyncio.Event()

    def open(self) -> None:
        self._event.set()

    def wait(self) -> Any:
        return self._event.wait()
