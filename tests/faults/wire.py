"""Every request of a program, over all of its servers: the point at which one thing happens, once.

    with Wire(database.port, redis.port) as wire:
        wire.at(Point(3, "reply"), lambda: os.kill(pid, signal.SIGKILL))

Points are walked, not chosen: `points()` goes on until the program has ended before the next one is reached.
"""

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sqlalchemy import make_url

from tests.faults.proxy import Moment, Proxy

__all__ = ["Moment", "Point", "Wire", "points"]


@dataclass(frozen=True)
class Point:
    """The request with this number, counted from 1: before the server has it, or after it has acted on it."""

    number: int
    moment: Moment

    def __str__(self) -> str:
        return f"{'before' if self.moment == 'request' else 'after'}-{self.number}"


def points() -> Iterator[Point]:
    """All points there can be, in order, without end."""
    for number in itertools.count(1):
        yield Point(number, "request")
        yield Point(number, "reply")


class Wire:
    """Proxies in front of several servers that count together. The program asks one request at a time."""

    def __init__(self, *ports: int) -> None:
        self._proxies = {port: Proxy(port) for port in dict.fromkeys(ports)}
        self._open = contextlib.ExitStack()
        self._lock = threading.Lock()
        self._count = 0
        self._point: Point | None = None
        self._act: Callable[[], object] = lambda: None
        self.reached = False

    def __enter__(self) -> Self:
        for proxy in self._proxies.values():
            proxy.watch = self._passing
            self._open.enter_context(proxy)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._open.close()

    def through(self, url: str) -> str:
        """The same URL, by way of the proxy."""
        parts = make_url(url)
        assert parts.port is not None
        return parts.set(port=self._proxies[parts.port].port).render_as_string(hide_password=False)

    @property
    def ways(self) -> tuple[tuple[int, int], ...]:
        """Each server's port, and the proxy's."""
        return tuple((port, proxy.port) for port, proxy in self._proxies.items())

    def at(self, point: Point, act: Callable[[], object] = lambda: None) -> None:
        """Count from here. At `point`, once: `act`, lose what was to pass, and cut that connection."""
        with self._lock:
            self._count, self._point, self._act, self.reached = 0, point, act, False

    def disarm(self) -> None:
        with self._lock:
            self._point = None

    def _passing(self, moment: Moment) -> bool:
        with self._lock:
            self._count += moment == "request"
            if Point(self._count, moment) != self._point:
                return False
            self._point, self.reached = None, True
            self._act()
            return True
