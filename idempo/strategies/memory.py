"""`Memory`: the reference ledger, in this process. The file to copy for a new one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from idempo.contracts import KeySpec, Layer, Site
from idempo.layers import Leased
from idempo.records import (
    Above,
    Answer,
    Call,
    Claimed,
    Completed,
    Done,
    InProgress,
    Issued,
    NotIssued,
    Orphan,
    Payload,
    Record,
    replace,
)
from idempo.steps import Steps

__all__ = ["Memory"]

_PURGE_EVERY = 1024
_BEGAN = time.time() - time.monotonic()


def _seconds() -> float:
    return _BEGAN + time.monotonic()


class _Row(msgspec.Struct, frozen=True):
    """A record as it is kept. `payload` is set once completed; `owner` is b"" while issued, and once released."""

    call: Call
    owner: bytes
    fence: int
    attempt: int
    leased_at: float
    lease_until: float
    created_at: float
    keep_until: float
    completed_at: float | None = None
    payload: Payload | None = None
    issued: bool = False
    released_by: bytes = b""

    def lease_left(self, now: float) -> float:
        """Seconds; never more than the lease is long, where the clock was set back since it began."""
        return self.lease_until - max(now, self.leased_at)


class Memory:
    """Remembers in a dictionary of this process: for tests, and for operations that need no more.

    Nothing is shared with other processes, and nothing survives this one. Serves both colours.

    Args:
        clock: seconds; the ledger's own clock, by which leases and retention are judged. The default begins at the
            system's time, and goes on whatever that is set to.
        key: a key of its own, where it differs from the decorator's.
    """

    def __init__(self, *, clock: Callable[[], float] = _seconds, key: KeySpec | None = None) -> None:
        self._clock = clock
        self._key = key
        self._rows: dict[bytes, _Row] = {}
        self._fence = 0
        self._purge_at = _PURGE_EVERY
        self._one_at_a_time = threading.Lock()

    def bind(self, site: Site) -> Layer:
        return Leased.at(site, self, "Memory", key=self._key, notes=("lives and dies with this process",))

    def claim(self, call: Call, over: int | None) -> Steps[Answer]:
        yield from ()  # nothing to wait for
        with self._one_at_a_time:
            now = self._clock()
            row = self._rows.get(call.digest)
            if row is not None and row.keep_until <= now:
                row = None
            if row is not None and row.leased_at > now:
                row = self._rows[call.digest] = _begun_anew(row, now)
            answer = _judge(row, call, over, now)
            if answer is not None:
                return answer
            self._purge(now)
            self._fence += 1  # one count for all keys: it grows for each of them
            attempt = 1 if row is None or row.payload is not None else row.attempt + 1
            kept = replace(call, arguments={})  # the record must not hold the caller's objects alive
            keep_until = now + max(call.keep, call.lease)
            self._rows[call.digest] = _Row(
                kept, call.owner, self._fence, attempt, now, now + call.lease, now, keep_until
            )
            return Claimed(self._fence, attempt)

    def complete(self, call: Call, payload: Payload) -> Steps[bool]:
        yield from ()  # nothing to wait for
        with self._one_at_a_time:
            row = self._owned(call)
            if row is None:
                return False
            if row.payload is None:
                now = self._clock()
                keep_until = now + call.keep
                self._rows[call.digest] = replace(
                    row, payload=payload, completed_at=now, keep_until=keep_until
                )
            return True

    def claim_many(self, calls: Sequence[Call]) -> Steps[list[Answer]]:
        answers = []
        for call in calls:
            answers.append((yield from self.claim(call, None)))
        return answers

    def complete_many(self, firsts: Sequence[tuple[Call, Payload]]) -> Steps[list[bool]]:
        kept = []
        for call, payload in firsts:
            kept.append((yield from self.complete(call, payload)))
        return kept

    def release(self, call: Call) -> Steps[bool]:
        yield from ()  # nothing to wait for
        with self._one_at_a_time:
            row = self._rows.get(call.digest)
            if row is not None and row.released_by == call.owner and row.keep_until > self._clock():
                return True  # the same request, sent again
            row = self._owned(call)
            if row is None or row.payload is not None:
                return False
            # The row stays for its count of attempts; without an owner it is free.
            issued = isinstance(call.demand, Issued)
            self._rows[call.digest] = replace(row, owner=b"", issued=issued, released_by=call.owner)
            return True

    def issue(self, call: Call) -> Steps[bool]:
        yield from ()  # nothing to wait for
        with self._one_at_a_time:
            now = self._clock()
            row = self._rows.get(call.digest)
            if row is not None and row.keep_until > now:
                return False
            self._purge(now)
            kept, until = replace(call, arguments={}), now + call.keep
            self._rows[call.digest] = _Row(kept, b"", 0, 0, now, now, now, until, issued=True)
            return True

    def revoke(self, digest: bytes) -> Steps[bool]:
        yield from ()  # nothing to wait for
        with self._one_at_a_time:
            row = self._rows.get(digest)
            if row is None or row.keep_until <= self._clock() or not row.issued or row.owner:
                return False
            del self._rows[digest]
            return True

    def renew(self, call: Call, lease: float) -> Steps[bool]:
        yield from ()  # nothing to wait for
        with self._one_at_a_time:
            row = self._owned(call)
            if row is None or row.payload is not None:
                return False
            now = self._clock()
            until = now + lease
            keep_until = max(row.keep_until, until + call.keep)
            self._rows[call.digest] = replace(row, leased_at=now, lease_until=until, keep_until=keep_until)
            return True

    def lookup(self, digest: bytes) -> Steps[Record | None]:
        yield from ()  # nothing to wait for
        with self._one_at_a_time:
            now = self._clock()
            row = self._rows.get(digest)
            if row is None or row.keep_until <= now or not (row.owner or row.issued):
                return None
            return _record(row, now)

    def forget(self, digest: bytes) -> Steps[bool]:
        yield from ()  # nothing to wait for
        with self._one_at_a_time:
            row = self._rows.get(digest)
            now = self._clock()
            if row is None or row.keep_until <= now or not row.owner:
                return False
            if row.payload is None and row.lease_left(now) > 0:
                return False
            del self._rows[digest]
            return True

    def fill(self, call: Call, done: Done) -> Steps[None]:
        yield from ()  # nothing to wait for
        with self._one_at_a_time:
            now = self._clock()
            known = self._rows.get(call.digest)
            if known is not None and known.keep_until > now and known.fence > done.fence:
                return None  # a newer result
            until = now + done.keep_left
            kept = replace(call, arguments={})
            self._rows[call.digest] = _Row(
                kept,
                call.owner,
                done.fence,
                done.attempt,
                now,
                now,
                now,
                until,
                completed_at=now,
                payload=done.payload,
            )
            return None

    def _owned(self, call: Call) -> _Row | None:
        row = self._rows.get(call.digest)
        return row if row is not None and row.owner == call.owner and row.keep_until > self._clock() else None

    def _purge(self, now: float) -> None:
        if len(self._rows) >= self._purge_at:
            self._rows = {digest: row for digest, row in self._rows.items() if row.keep_until > now}
            self._purge_at = 2 * len(self._rows) + _PURGE_EVERY


def _judge(row: _Row | None, call: Call, over: int | None, now: float) -> Answer | None:
    """How the key stands for this call; None: it is free to claim."""
    match row:
        case None:
            return NotIssued() if isinstance(call.demand, Issued) else None
        case _Row(owner=b""):
            return None
        case _Row(payload=Payload()) if call.demand == Above(row.fence):
            return None
        case _Row(payload=Payload() as payload):
            keep_left = row.keep_until - now
            return Completed(payload, row.call.fingerprint, row.fence, row.attempt, keep_left, row.owner)
        case _Row(owner=call.owner):
            return Claimed(row.fence, row.attempt)
        case _ if row.lease_left(now) > 0:
            return InProgress(row.call.fingerprint, row.lease_left(now))
        case _ if row.fence != over:
            return Orphan(row.call.fingerprint, row.fence)
        case _:
            return None


def _begun_anew(row: _Row, now: float) -> _Row:
    """A lease that seems to begin in the future, since the clock was set back: how much of it is over, nobody knows."""
    return replace(row, leased_at=now, lease_until=now + (row.lease_until - row.leased_at))


def _record(row: _Row, now: float) -> Record:
    call = row.call
    live: Literal["running", "orphan"] = "running" if row.lease_left(now) > 0 else "orphan"
    return Record(
        call.digest,
        call.operation,
        call.scope,
        call.key,
        row.payload.state if row.payload is not None else live if row.owner else "issued",
        row.attempt,
        row.fence,
        call.fingerprint,
        row.created_at,
        row.completed_at,
        row.lease_until,
        row.keep_until,
        row.keep_until - now,
        row.payload,
    )
