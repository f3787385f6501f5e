"""`Clock`: a clock that stands still until a test moves it."""

from __future__ import annotations

import threading
from datetime import datetime

from idempo.terms import Duration, seconds_of

__all__ = ["Clock"]

_CENTURY = 100 * 365 * 86_400.0


class Clock:
    """A clock that stands still until it is moved: `Memory(clock=clock)`, `LocalCache(clock=clock)`.

    Calling it gives the seconds since 1970-01-01 UTC that it shows. Safe over threads.

    Args:
        start: what it shows at first, in seconds or as an aware datetime.

    Raises:
        ValueError: for a datetime without a time zone.
    """

    def __init__(self, start: float | datetime = 1_000_000_000.0) -> None:
        if isinstance(start, datetime):
            if start.tzinfo is None:
                raise ValueError("start= has no time zone, so nobody can say which second it is")
            start = start.timestamp()
        self._now = float(start)
        self._one_at_a_time = threading.Lock()

    def __call__(self) -> float:
        """Return the seconds that it shows."""
        return self._now

    def advance(self, by: Duration) -> float:
        """Move it on, by seconds or a timedelta above 0; return what it shows then. Raises `ConfigurationError`."""
        return self._move(seconds_of("by", by, most=_CENTURY))

    def set_back(self, by: Duration) -> float:
        """Set it back, as an administrator or a time server does; returns and raises as `advance` does."""
        return self._move(-seconds_of("by", by, most=_CENTURY))

    def _move(self, seconds: float) -> float:
        with self._one_at_a_time:
            self._now += seconds
            return self._now

    def __repr__(self) -> str:
        return f"Clock({self._now!r})"
