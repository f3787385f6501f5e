"""Steps: the rules are written once, as generators that do no I/O of their own.

In such a generator `yield x` means *wait for x, if it needs waiting*: SQLAlchemy and redis-py give both colours the
same method names, so `connection.execute(...)` is a result or an awaitable of one, and the same line serves both.
`run` and `arun` drive the steps; what must be done differently in the two colours is a `Request`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")

Steps: TypeAlias = Generator[Any, Any, T]

__all__ = ["Pause", "Repeated", "Request", "Shielded", "Steps", "arun", "ending", "run"]


class Request:
    """Something a step asks its driver for, done in one way when blocking and in another when awaiting."""

    __slots__ = ()

    def blocking(self) -> Any:
        raise NotImplementedError

    async def awaiting(self) -> Any:
        raise NotImplementedError


def run(steps: Steps[T]) -> T:
    """Drive `steps` to their end in this thread and return their result."""
    try:
        asked = steps.send(None)
        while True:
            if isinstance(asked, Request):
                try:
                    answer = asked.blocking()
                except BaseException as error:
                    asked = steps.throw(error)
                    continue
            else:
                answer = asked
            asked = steps.send(answer)
    except StopIteration as stop:
        result: T = stop.value
        return result


async def arun(steps: Steps[T]) -> T:
    """Drive `steps` to their end in this task and return their result."""
    try:
        asked = steps.send(None)
        while True:
            try:
                if isinstance(asked, Request):
                    answer = await asked.awaiting()
                elif inspect.isawaitable(asked):
                    answer = await asked
                else:
                    answer = asked
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as error:
                asked = steps.throw(error)
            else:
                asked = steps.send(answer)
    except StopIteration as stop:
        result: T = stop.value
        return result


def ending(steps: Steps[T], end: Callable[[], Any]) -> Steps[T]:
    """Take `steps`, and wait for `end()` however they end, like a `finally`.

    Only where nobody drives the steps any more there is nobody to wait: then what they held is left to its owner.
    """
    try:
        result = yield from steps
    except GeneratorExit:
        raise
    except BaseException:
        yield end()
        raise
    yield end()
    return result


@dataclass(frozen=True, slots=True)
class Pause(Request):
    """Wait for so many seconds."""

    seconds: float

    def blocking(self) -> None:
        time.sleep(self.seconds)

    async def awaiting(self) -> None:
        await asyncio.sleep(self.seconds)


@dataclass(frozen=True, slots=True)
class Shielded(Request):
    """Take these steps to their end even if the caller is cancelled or interrupted meanwhile; then say so.

    The steps must be safe to repeat: a blocking driver that was interrupted takes them once more. In an event loop, a
    store that does not answer holds a cancellation up for `patience` seconds; then the steps go on by themselves.
    """

    steps: Callable[[], Steps[Any]]
    patience: float = 30.0
    late: bool = False
    """True if the caller was cancelled before these steps: its patience counts from their beginning."""

    def blocking(self) -> Any:
        try:
            return run(self.steps())
        except (KeyboardInterrupt, SystemExit):
            with contextlib.suppress(Exception):  # what counts now is the interrupt
                run(self.steps())
            raise

    async def awaiting(self) -> Any:
        task = asyncio.ensure_future(arun(self.steps()))
        cancelled: asyncio.CancelledError | None = None
        until = time.monotonic() + self.patience if self.late else None
        while not task.done() and (until is None or time.monotonic() < until):
            try:
                await asyncio.wait({task}, timeout=None if until is None else until - time.monotonic())
            except asyncio.CancelledError as error:
                cancelled, until = error, until or time.monotonic() + self.patience
        if cancelled is None and task.done():
            return task.result()
        _left_to_themselves.add(task)
        task.add_done_callback(_seen)  # what counts now is that the caller was cancelled
        if cancelled is not None:
            raise cancelled
        return None


class Repeated(Shielded):
    """The same, at less cost while nobody cancels: only then the steps are taken once more, behind the shield.

    For steps that may be broken off anywhere: a request whose reply is lost, and which is sent again.
    """

    __slots__ = ()

    async def awaiting(self) -> Any:
        try:
            return await arun(self.steps())
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):  # what counts now is that the caller was cancelled
                await Shielded(self.steps, self.patience, late=True).awaiting()
            raise


_left_to_themselves: set[asyncio.Future[Any]] = set()  # a loop keeps only weak references to its tasks


def _seen(task: asyncio.Future[Any]) -> None:
    _left_to_themselves.discard(task)
    if not task.cancelled():
        task.exception()
