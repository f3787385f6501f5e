"""Leases: renewed while the function runs, so that a slow but living owner keeps its claim.

A call shorter than a third of its lease sends no renewal. A blocking call is watched by one daemon thread per store,
which starts with the first lease and ends after a minute without one; a call in an event loop by a timer of that loop.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass

from idempo.steps import Request, Steps, arun, run

__all__ = ["Beat", "Ended", "KeepAlive", "end"]

_IDLE = 60.0
_LAST = 5.0  # seconds that a call waits for a renewal under way; a store that is there answers in less
_FEW = 256


def _nothing() -> Steps[bool]:
    yield from ()
    return False


class Beat:
    """One watched lease. `renew` is called every `every` seconds until it answers False or the beat is stopped."""

    __slots__ = ("every", "renew", "stopped", "task", "timer")

    def __init__(self, every: float, renew: Callable[[], Steps[bool]]) -> None:
        self.every = every
        self.renew = renew
        self.stopped = False
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None
        """The renewal that is under way in an event loop."""

    def stop(self) -> None:
        """No further renewal starts. One that is under way may end; the ledger refuses it if it comes late."""
        self.stopped = True
        self.renew = _nothing  # the beat may lie in a queue for a while; the call must not
        if self.timer is not None:
            self.timer.cancel()


@dataclass(frozen=True, slots=True)
class Ended(Request):
    """Wait for the last renewals: an event loop that ends meanwhile would break off their conversation."""

    tasks: Collection[asyncio.Task[None]]

    def blocking(self) -> None:
        pass  # what a thread renews does not end with the call

    async def awaiting(self) -> None:
        await asyncio.wait(self.tasks, timeout=_LAST)


def end(*beats: Beat) -> Ended | None:
    """Stop `beats`. What comes back is to be waited for."""
    for beat in beats:
        beat.stop()
    under_way = {beat.task for beat in beats if beat.task is not None}
    return Ended(under_way) if under_way else None


@dataclass(frozen=True, slots=True)
class KeepAlive(Request):
    """Ask the driver to renew a lease of `ledger` from now on; answers the `Beat` that ends it."""

    ledger: object
    every: float
    renew: Callable[[], Steps[bool]]

    def blocking(self) -> Beat:
        beat = Beat(self.every, self.renew)
        _tickers.of(getattr(self.ledger, "store", self.ledger)).add(beat)
        return beat

    async def awaiting(self) -> Beat:
        beat = Beat(self.every, self.renew)
        _tick_in_loop(beat, asyncio.get_running_loop())
        return beat


_renewing: set[Beat] = set()  # a loop keeps only weak references to its tasks


def _tick_in_loop(beat: Beat, loop: asyncio.AbstractEventLoop) -> None:
    async def renew() -> None:
        if await arun(beat.renew()) and not beat.stopped:
            _tick_in_loop(beat, loop)

    def over(_: object) -> None:
        beat.task = None
        _renewing.discard(beat)

    def due() -> None:
        if not beat.stopped:
            beat.task = loop.create_task(renew())
            _renewing.add(beat)
            beat.task.add_done_callback(over)

    beat.timer = loop.call_later(beat.every, due)


class _Ticker:
    """A thread that renews the leases of one ledger, the next due first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, Beat]] = []
        self._order = itertools.count()
        self._thread: threading.Thread | None = None
        self._wakes_at = 0.0
        """The thread sleeps until then: only a lease that is due earlier wakes it. Most calls are over by then."""
        self._prune_at = _FEW

    def add(self, beat: Beat) -> None:
        with self._changed:
            at = time.monotonic() + beat.every
            if len(self._due) >= self._prune_at:
                self._due = [due for due in self._due if not due[2].stopped]
                heapq.heapify(self._due)
                self._prune_at = 2 * len(self._due) + _FEW
            heapq.heappush(self._due, (at, next(self._order), beat))
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=self._renew_forever, name="idempo-leases", daemon=True)
                thread.start()
                self._thread = thread
            elif at < self._wakes_at:
                self._changed.notify()

    def _next(self) -> Beat | None:
        """Wait for the next lease that is due; None after a minute without any."""
        with self._changed:
            while True:
                while self._due and self._due[0][2].stopped:
                    heapq.heappop(self._due)
                if not self._due:
                    if not self._sleep(_IDLE) and not self._due:
                        self._thread = None
                        return None
                    continue
                left = self._due[0][0] - time.monotonic()
                if left <= 0:
                    return heapq.heappop(self._due)[2]
                self._sleep(left)

    def _sleep(self, seconds: float) -> bool:
        """True if it was woken before."""
        self._wakes_at = time.monotonic() + seconds
        woken = self._changed.wait(seconds)
        self._wakes_at = 0.0  # awake: whatever is added is looked at
        return woken

    def _renew_forever(self) -> None:
        while (beat := self._next()) is not None:
            if run(beat.renew()) and not beat.stopped:
                self.add(beat)


class _Tickers:
    """The tickers of this process, by ledger."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew in a forked child: threads do not follow, and the lock may have been held by one of them."""
        self._lock = threading.Lock()
        self._of: weakref.WeakKeyDictionary[object, _Ticker] = weakref.WeakKeyDictionary()

    def of(self, ledger: object) -> _Ticker:
        with self._lock:
            ticker = self._of.get(ledger)
            if ticker is None:
                ticker = self._of[ledger] = _Ticker()
            return ticker


_tickers = _Tickers()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tickers.forget)
