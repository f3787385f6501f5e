"""`Watched`: a decorated function with a tap on its ledgers and a count of its runs, beside the one it is made from."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from idempo.contracts import Colour
from idempo.errors import ConfigurationError
from idempo.functions import wrap
from idempo.operation import Operation, function_steps
from idempo.protocol import compose
from idempo.records import Call
from idempo.testing.layers import tapped
from idempo.testing.tapping import Tap

__all__ = ["Crowd", "Watched"]

_SECONDS = 5.0


class Crowd:
    """Callers of one key: the one who runs goes on when all the others have asked, or have ended."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._asked: set[bytes] = set()
        self._changed = threading.Condition()
        self._all_here = asyncio.Event()

    def saw(self, call: Call) -> None:
        with self._changed:
            self._asked.add(call.owner)
            self._tell()

    def gone(self) -> None:
        with self._changed:
            self._left -= 1
            self._tell()

    def _tell(self) -> None:
        if self._complete():
            self._changed.notify_all()
            self._all_here.set()  # only waited for in the loop that all its callers are in

    def _complete(self) -> bool:
        return len(self._asked) >= self._left

    def wait(self) -> None:
        with self._changed:
            self._changed.wait_for(self._complete, _SECONDS)

    async def waited(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_here.wait(), _SECONDS)


class Watched:
    """A decorated function whose requests and runs are seen. The function it is made from is left as it was.

    Raises:
        ConfigurationError: for a function that is not decorated.
    """

    def __init__(self, f: Any) -> None:
        operation = getattr(f, "__idempo__", None)
        if not isinstance(operation, Operation):
            raise ConfigurationError(
                f"assert_runs_once takes a function decorated with @idempotent, not {f!r:.100}"
            )
        self.tap = Tap()
        self._crowd: Crowd | None = None
        self._one_at_a_time = threading.Lock()
        self.begin()
        layers = tuple(tapped(layer, self.tap) or layer for layer in operation.layers)
        body = (
            self._awaiting(operation.function)
            if operation.colour == "async"
            else self._blocking(operation.function)
        )
        innermost = function_steps(body, operation.binder, operation.terms, operation.colour)
        inner = compose(layers, innermost)
        self.operation = replace(operation, layers=layers, inner=inner, innermost=innermost)
        self._bound = (f.__self__,) if hasattr(f, "__self__") else ()
        self.f = wrap(self.operation, self._bound)

    @property
    def colour(self) -> Colour:
        return self.operation.colour

    @property
    def joined(self) -> bool:
        """True if the record is part of the function's own transaction."""
        return self.operation.record.part.joined

    def identity(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """The call that such arguments make."""
        return self.operation.call((*self._bound, *args), dict(kwargs))

    def begin(self) -> None:
        """Count from here."""
        self.runs = 0
        self.longest = 0.0
        """Seconds of the longest run."""

    def gather(self, size: int) -> Crowd:
        """Hold the function until so many callers have asked."""
        self._crowd = Crowd(size)
        self.tap.asked = self._crowd.saw
        return self._crowd

    def disperse(self) -> None:
        self._crowd = None
        self.tap.asked = lambda call: None

    def _entered(self) -> None:
        with self._one_at_a_time:
            self.runs += 1

    def _blocking(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def body(*args: Any, **kwargs: Any) -> Any:
            self._entered()
            if self._crowd is not None:
                self._crowd.wait()
            began = time.monotonic()
            try:
                return function(*args, **kwargs)
            finally:
                self.longest = max(self.longest, time.monotonic() - began)

        return body

    def _awaiting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def body(*args: Any, **kwargs: Any) -> Any:
            self._entered()
            if self._crowd is not None:
                await self._crowd.waited()
            began = time.monotonic()
            try:
                return await function(*args, **kwargs)
            finally:
                self.longest = max(self.longest, time.monotonic() - began)

        return body
