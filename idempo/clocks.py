"""`StoreClock`: what a process has heard of a store's clock, beside its own that nobody can set.

A store judges leases by its clock, and has no other one. Where that is put forward, the leases of the living seem to be
over. A process that has spoken to the store before sees by how much it jumped, and counts without the jump for the
leases that began before it.
"""

from __future__ import annotations

import time
from typing import NamedTuple

__all__ = ["StoreClock"]

_MICROSECONDS = 1_000_000
_SLACK = 0.5  # seconds: servers look at the machine's clock only now and then
_DRIFT = 0.001  # of the time between two answers: clocks are slewed by half of it at the most (adjtime(3))
_REMEMBERED = 8  # jumps


class _Heard(NamedTuple):
    """An answer, and the bounds of what the store's clock is ahead of ours: it was read in between."""

    now: int
    asked: float
    answered: float
    least: float
    most: float


class _Jump(NamedTuple):
    before: float
    """The latest that it may have been when the clock jumped, as it went until then."""
    by: float


class StoreClock:
    """The clock of one store, as this process knows it. Times in microseconds since 1970, by the store."""

    __slots__ = ("_heard", "_jumps")

    def __init__(self) -> None:
        self._heard: _Heard | None = None
        self._jumps: tuple[_Jump, ...] = ()

    def hear(self, now: int, asked: float) -> None:
        """Take note of the store's time, in answer to what was `asked` then, by `time.monotonic()`.

        A slow answer only widens the bounds. So a jump is told from a delay, however long that is.
        """
        answered = time.monotonic()
        heard, new = self._heard, _bounds(now, asked, answered)
        if heard is None:
            self._heard = new
            return
        if asked < heard.asked:
            return  # an older question, answered late
        self._heard = new
        slack = (_SLACK + _DRIFT * (answered - heard.answered)) * _MICROSECONDS
        if new.least - heard.most > slack:
            before = heard.now + (answered - heard.asked) * _MICROSECONDS
            self._jumps = (*self._jumps[1 - _REMEMBERED :], _Jump(before, new.most - heard.least))
        elif heard.least - new.most > slack:
            self._jumps = ()  # set back: times from before the jump and after it cannot be told apart any more

    def lease_left(self, now: int, since: int, until: int) -> float:
        """Microseconds that are left of a lease which the store takes for over; 0 or less if it is."""
        jumped = sum(jump.by for jump in self._jumps if since <= jump.before)
        return min(until - now + jumped, until - since)


def _bounds(now: int, asked: float, answered: float) -> _Heard:
    return _Heard(now, asked, answered, now - answered * _MICROSECONDS, now - asked * _MICROSECONDS)
