"""`LocalCache`: first results in this process, in front of the ledger that keeps the record."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from idempo.contracts import Inner, Layer, Site, Terms
from idempo.errors import CompositionError, ConfigurationError
from idempo.guarantees import Part
from idempo.records import Call, Completed, Done, Payload, Record
from idempo.steps import Steps
from idempo.terms import Duration, seconds_of
from idempo.verdicts import replay

__all__ = ["LocalCache"]

_CENTURY = 100 * 365 * 86_400.0
_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def seconds() -> float:
    """Return the seconds of a clock that nobody sets; those of a suspended machine count where the system has them."""
    return time.monotonic() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)


class LocalCache:
    """Replays from the memory of this process, in front of another ledger: `using=[LocalCache(), UniqueInsert(...)]`.

    It never claims, and never outlives the record behind it: losing an entry costs speed only. `forget` is seen at
    once in this process, and in another one after `fresh` seconds at the latest. Serves both colours.

    Args:
        size: entries that are kept at most; the least recently used goes first.
        max_bytes: bytes of encoded results that are kept at most; a larger result is not kept.
        fresh: for how long an entry is used at most, in seconds or as a timedelta.
        clock: seconds; the clock by which entries end.

    Raises:
        ConfigurationError: for a size, bytes or time that is none.
    """

    def __init__(
        self,
        size: int = 1024,
        *,
        max_bytes: int = 16 * 1024 * 1024,
        fresh: Duration = 60.0,
        clock: Callable[[], float] = seconds,
    ) -> None:
        self._entries = _Entries(_count("size", size), _count("max_bytes", max_bytes))
        self._fresh = seconds_of("fresh", fresh, most=_CENTURY)
        self._clock = clock

    def bind(self, site: Site) -> Layer:
        if not site.tier:
            raise CompositionError(
                f"{site.operation}: LocalCache only stands in front of a ledger that keeps the record, as in "
                "using=[LocalCache(), UniqueInsert(...)]"
            )
        note = f"LocalCache sees a forget in another process after at most {self._fresh:g} seconds"
        part = Part("LocalCache", "tier", notes=(note,))
        return _Replaying(self._entries, self._fresh, self._clock, site.terms, part)


class _Entry(msgspec.Struct, frozen=True):
    payload: Payload
    length: int
    fingerprint: bytes
    fence: int
    attempt: int
    until: float


class _Entries:
    """What is kept, the least recently used first. Safe over threads and forks."""

    def __init__(self, size: int, max_bytes: int) -> None:
        self._size = size
        self._max_bytes = max_bytes
        # One count for all digests with the same first byte: to share one costs an entry now and then, and no more.
        self._forgets = [0] * 256
        self.begin_anew()
        _living.add(self)

    def begin_anew(self) -> None:
        """Let go of everything, the lock too: in a forked child the thread that may hold it is not there.

        The counts stay, for the call that forks from inside the function and goes on in the child.
        """
        self._one_at_a_time = threading.Lock()
        self._by_digest: OrderedDict[bytes, _Entry] = OrderedDict()
        self._bytes = 0

    def find(self, digest: bytes, now: float) -> _Entry | None:
        """Return what can be used at `now`."""
        with self._one_at_a_time:
            entry = self._by_digest.get(digest)
            if entry is None:
                return None
            if entry.until <= now:
                self._drop(digest)
                return None
            self._by_digest.move_to_end(digest)
            return entry

    def forgets(self, digest: bytes) -> int:
        """Return a number that changes when the digest is forgotten."""
        return self._forgets[digest[0]]

    def keep(self, digest: bytes, entry: _Entry, forgets: int) -> None:
        """Keep the entry, unless the digest was forgotten since `forgets`."""
        with self._one_at_a_time:
            if forgets != self._forgets[digest[0]] or entry.length > self._max_bytes:
                return
            self._drop(digest)
            self._by_digest[digest] = entry
            self._bytes += entry.length
            while len(self._by_digest) > self._size or self._bytes > self._max_bytes:
                self._drop(next(iter(self._by_digest)))

    def forget(self, digest: bytes, now: float) -> bool:
        """True if there was something that could be used at `now`."""
        with self._one_at_a_time:
            self._forgets[digest[0]] += 1
            entry = self._drop(digest)
            return entry is not None and entry.until > now

    def _drop(self, digest: bytes) -> _Entry | None:
        entry = self._by_digest.pop(digest, None)
        if entry is not None:
            self._bytes -= entry.length
        return entry


_living: weakref.WeakSet[_Entries] = weakref.WeakSet()


def _begin_anew() -> None:
    for entries in _living:
        entries.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


@dataclass(frozen=True, slots=True)
class _Replaying:
    """`LocalCache` bound to one function."""

    entries: _Entries
    fresh: float
    clock: Callable[[], float]
    terms: Terms
    part: Part
    injects: frozenset[str] = frozenset()

    def around(self, call: Call, inner: Inner) -> Steps[Done]:
        asked = self.clock()  # before the record is: what it says of its retention is true from here on
        entry = self.entries.find(call.digest, asked)
        # The record decides about other arguments: it may have been made with fewer of them, or anew by now.
        if entry is not None and entry.fingerprint == call.fingerprint:
            left = entry.until - asked
            first = Completed(entry.payload, entry.fingerprint, entry.fence, entry.attempt, left)
            return replay(first, call, self.terms)
        forgets = self.entries.forgets(call.digest)
        done = yield from inner(call)
        data, until = done.payload.data, asked + min(done.keep_left, self.fresh)
        if done.durable and data is not None and until > self.clock():
            entry = _Entry(done.payload, len(data), call.fingerprint, done.fence, done.attempt, until)
            self.entries.keep(call.digest, entry, forgets)
        return done

    def lookup(self, call: Call) -> Steps[Record | None]:
        yield from ()  # nothing to wait for
        return None  # what is kept here is a result, not the record of it

    def forget(self, call: Call) -> Steps[bool]:
        yield from ()  # nothing to wait for
        return self.entries.forget(call.digest, self.clock())


def _count(what: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"{what}={value!r} is not a whole number from 1 on")
    return value
