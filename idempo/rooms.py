"""Waiting rooms: the duplicates of one key in this process wait together.

One of them asks the ledger, in the rhythm of its policy; what it learns it tells the others. A call that runs in this
process tells them itself how it ended, so that nobody asks at all. Whoever hears nothing asks by itself after a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from idempo.records import Completed
from idempo.steps import Pause

__all__ = ["Ticket", "Waiting", "enter", "tell"]


class Ticket:
    """One duplicate that waits for a key of a ledger. It leaves the room at the end, whatever happened."""

    __slots__ = ("_in", "_key", "_ledger", "_wake", "_woken", "answer", "heard")

    def __init__(self, ledger: object, key: tuple[int, bytes]) -> None:
        self.answer: Completed | None = None
        """The first result, as somebody else in this process has learned it."""
        self.heard = False
        """True if the store woke it last time."""
        self._ledger = ledger  # its identity is the room's as long as somebody is in it
        self._key = key
        self._in = True
        self._woken = False
        self._wake: Callable[[], None] | None = None

    @property
    def leads(self) -> bool:
        """True for the one who asks the ledger for all of them."""
        with _rooms.lock:
            return self._in and _rooms.of.get(self._key, [self])[0] is self

    def leave(self) -> None:
        """Let the next one ask. Once is enough."""
        with _rooms.lock:
            if not self._in:
                return
            self._in = False
            room = _rooms.of.get(self._key)
            if room is None or self not in room:
                return  # we are in a forked child, and the room was the parent's
            led = room[0] is self
            room.remove(self)
            if not room:
                del _rooms.of[self._key]
            following = room[0] if led and room else None
        if following is not None:
            following.wake()

    def wake(self) -> None:
        with _rooms.lock:
            self._woken = True
            wake, self._wake = self._wake, None
        if wake is not None:
            wake()

    def sleep(self, wake: Callable[[], None]) -> bool:
        """Have `wake` called when there is news. False if there is already."""
        with _rooms.lock:
            woken, self._woken = self._woken, False
            self._wake = None if woken else wake
        return not woken

    def rise(self) -> None:
        """The time is over, or there was news."""
        with _rooms.lock:
            self._wake, self._woken = None, False


class _Rooms:
    """The rooms of this process."""

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """In a forked child nobody waits, and the lock may have been held by a thread that is not there."""
        self.lock = threading.RLock()
        self.of: dict[tuple[int, bytes], list[Ticket]] = {}


_rooms = _Rooms()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_rooms.begin_anew)


def enter(ledger: object, digest: bytes) -> Ticket:
    """Wait with those who wait for this key of this ledger; the first one leads."""
    key = (id(ledger), digest)
    ticket = Ticket(ledger, key)
    with _rooms.lock:
        _rooms.of.setdefault(key, []).append(ticket)
    return ticket


def tell(ledger: object, digest: bytes, answer: Completed | None) -> None:
    """Tell those who wait the first result; without one, let the first of them ask at once: the key may be free."""
    if not _rooms.of:
        return
    with _rooms.lock:
        room = list(_rooms.of.get((id(ledger), digest), ()))
        for ticket in room:
            ticket.answer = answer
    for ticket in room if answer is not None else room[:1]:
        ticket.wake()


@dataclass(frozen=True, slots=True)
class Waiting(Pause):
    """Wait for news in the room, and no longer than the pause."""

    ticket: Ticket

    def blocking(self) -> None:
        news = threading.Event()
        if self.ticket.sleep(news.set):
            try:
                news.wait(self.seconds)
            finally:
                self.ticket.rise()

    async def awaiting(self) -> None:
        loop = asyncio.get_running_loop()
        news = loop.create_future()

        def told() -> None:
            if not news.done():
                news.set_result(None)

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and its tasks with it
                loop.call_soon_threadsafe(told)

        if self.ticket.sleep(wake):
            timer = loop.call_later(self.seconds, told)
            try:
                await news
            finally:
                timer.cancel()
                self.ticket.rise()
