"""A ledger that remembers, for one entity, the highest version that was applied, with its result.

It stands in front of another ledger for one call, and speaks its language: the record of the entity is claimed for a
version, and completed with it. A claim replaces the result of a lower version; if the function fails, that one is put
back. What is stored is framed: the version and the fingerprint, then the result.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, assert_never

from idempo.contracts import JoinedLedger, Ledger, Unit
from idempo.errors import VersionConflictError
from idempo.records import (
    Above,
    Answer,
    Call,
    Claimed,
    Completed,
    Done,
    InProgress,
    NotIssued,
    Orphan,
    Payload,
    Record,
    replace,
)
from idempo.steps import Steps

__all__ = ["MOST", "SupersededError", "Versioned", "VersionedJoined"]

MOST = 2**63 - 1
"""The highest version; the lowest is its negative."""

_HEAD = struct.Struct(">qIB")  # version, bytes of the fingerprint, what follows
_NOTHING, _RESULT, _MAYBE = range(3)
_NUMBER = struct.Struct(">q")
_RACES = 50


class SupersededError(VersionConflictError):
    """A higher version was applied before. Carries the ledger that says so, to tell it from one further inside."""

    source: object = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Applied:
    version: int
    fingerprint: bytes
    payload: Payload
    certain: bool
    """False if a call with this version vanished, so that nobody knows whether it was applied."""


class _Judge:
    """Judges the answers of a ledger for one call with one version."""

    def __init__(self, version: int, *, too_old: bool) -> None:
        self.version = version
        self.before: Payload | None = None
        """The result of the lower version that our claim has replaced."""
        self.orphan: int | None = None
        """The version of the orphan that our claim has taken over: what was applied before it is not known any more."""
        self._too_old = too_old

    def marked(self, call: Call) -> Call:
        """The call with its version in the fingerprint, where those who wait for it see it."""
        return replace(call, fingerprint=_NUMBER.pack(self.version) + call.fingerprint)

    def claim(
        self, call: Call, over: int | None, ask: Callable[[Call, int | None], Steps[Answer]]
    ) -> Steps[Answer]:
        call = self.marked(call)
        for _ in range(_RACES):
            answer = yield from ask(call, over)
            match answer:
                case Completed():
                    applied = _opened(answer.payload)
                    if not applied.certain and applied.version <= self.version:
                        # An orphan that is kept as a version; it is replaced only by who has accepted to take it over.
                        self.before, self.orphan = None, applied.version
                        if answer.fence != over:
                            return Orphan(b"", answer.fence)
                    elif applied.version >= self.version:
                        return self.replayed(answer, applied, call)
                    else:
                        self.before = answer.payload
                    call = replace(call, demand=Above(answer.fence))
                case Claimed():
                    if over is None:
                        self.orphan = None
                    return answer
                case InProgress(fingerprint=b""):
                    return answer  # a transaction that has not committed: nobody sees for which version
                case InProgress(fingerprint, lease_left):
                    self.before = None
                    version, own = _parted(fingerprint)
                    return InProgress(own if version == self.version else b"", lease_left)
                case Orphan(fingerprint, fence):
                    version, own = _parted(fingerprint)
                    self.before, self.orphan = None, version
                    if version > self.version:
                        # It may have been applied: never go back behind it.
                        raise self.superseded(call, version)
                    return Orphan(own if version == self.version else b"", fence)
                case NotIssued():
                    return answer
                case _:
                    assert_never(answer)
        return InProgress(b"", 0.0)

    def is_too_old(self, answer: Answer, over: int | None) -> bool:
        """True for a change of an entity without record that is so old that its tombstone may have been purged."""
        return isinstance(answer, Claimed) and over is None and self.before is None and self._too_old

    def replayed(self, answer: Completed, applied: _Applied, call: Call) -> Completed:
        if applied.version > self.version:
            raise self.superseded(call, applied.version)
        return replace(answer, payload=applied.payload, fingerprint=applied.fingerprint)

    def superseded(self, call: Call, found: int | None) -> SupersededError:
        there = (
            "its tombstone may have been purged" if found is None else f"version {found} was applied before"
        )
        reason = f"version {self.version} comes too late: {there}. Nothing was done; give stale= to answer such a call"
        error = SupersededError(
            reason,
            operation=call.operation,
            key=call.key,
            expected=self.version,
            found=found,
        )
        error.source, error.reason = self, reason
        return error

    def framed(self, call: Call, payload: Payload) -> Payload:
        follows = _NOTHING if payload.data is None else _RESULT
        head = _HEAD.pack(self.version, len(call.fingerprint), follows)
        return Payload(payload.state, head + call.fingerprint + (payload.data or b""))

    def after_failure(self) -> Payload | None:
        """What is put back when the function fails: what was there before, as far as it is known."""
        if self.before is not None or self.orphan is None:
            return self.before
        return Payload("completed", _HEAD.pack(self.orphan, 0, _MAYBE))


@dataclass(frozen=True)
class Versioned:
    """A ledger that claims under a lease, for one call with one version."""

    keeps_order: ClassVar[bool] = True
    ledger: Ledger
    judge: _Judge

    @classmethod
    def of(cls, ledger: Ledger, version: int, *, too_old: bool) -> Versioned:
        return cls(ledger, _Judge(version, too_old=too_old))

    @property
    def store(self) -> object:
        """What all ledgers on this server share."""
        return getattr(self.ledger, "store", self.ledger)

    def claim(self, call: Call, over: int | None) -> Steps[Answer]:
        answer = yield from self.judge.claim(call, over, self.ledger.claim)
        if self.judge.is_too_old(answer, over):
            yield from self.ledger.release(call)
            raise self.judge.superseded(call, None)
        return answer

    def complete(self, call: Call, payload: Payload) -> Steps[bool]:
        return (yield from self.ledger.complete(call, self.judge.framed(call, payload)))

    def release(self, call: Call) -> Steps[bool]:
        before = self.judge.after_failure()
        if before is not None:
            return (yield from self.ledger.complete(call, before))
        return (yield from self.ledger.release(call))

    def renew(self, call: Call, lease: float) -> Steps[bool]:
        return (yield from self.ledger.renew(call, lease))

    def lookup(self, digest: bytes) -> Steps[Record | None]:
        """The record, unless it is the first result of another version."""
        record = yield from self.ledger.lookup(digest)
        payload = None if record is None else record.payload
        if payload is not None and _opened(payload).version != self.judge.version:
            return None
        return unframed(record)

    def forget(self, digest: bytes) -> Steps[bool]:
        return (yield from self.ledger.forget(digest))

    def fill(self, call: Call, done: Done) -> Steps[None]:
        yield from ()  # it claims, wherever it stands


@dataclass(frozen=True)
class VersionedJoined:
    """A ledger in the business transaction, for one call with one version."""

    ledger: JoinedLedger
    judge: _Judge

    @classmethod
    def of(cls, ledger: JoinedLedger, version: int, *, too_old: bool) -> VersionedJoined:
        return cls(ledger, _Judge(version, too_old=too_old))

    def open(self, call: Call) -> Steps[Unit | Completed | NotIssued]:
        while True:
            opened = yield from self.ledger.open(call)
            if isinstance(opened, NotIssued):
                return opened
            if not isinstance(opened, Completed):
                return _VersionedUnit(opened, self.judge)
            applied = _opened(opened.payload)
            if applied.version >= self.judge.version:
                return self.judge.replayed(opened, applied, call)
            call = replace(call, demand=Above(opened.fence))

    def recall(self, call: Call) -> Steps[Completed | None]:
        return (yield from self.ledger.recall(call))


@dataclass(frozen=True)
class _VersionedUnit:
    unit: Unit
    judge: _Judge

    @property
    def owned(self) -> bool:
        return self.unit.owned

    @property
    def arguments(self) -> Mapping[str, Any]:
        return self.unit.arguments

    def enter(self) -> Steps[None]:
        return self.unit.enter()

    def claim(self, call: Call, over: int | None, wait: float) -> Steps[Answer]:
        answer = yield from self.judge.claim(call, over, lambda one, over: self.unit.claim(one, over, wait))
        if self.judge.is_too_old(answer, over):
            raise self.judge.superseded(call, None)  # and the transaction, or its savepoint, is undone
        return answer

    def complete(self, call: Call, payload: Payload) -> Steps[bool]:
        return self.unit.complete(call, self.judge.framed(call, payload))

    def undo_writes(self) -> Steps[bool]:
        return self.unit.undo_writes()

    def abandon(self, call: Call) -> Steps[None]:
        return self.unit.abandon(call)

    def close(self) -> Steps[None]:
        return self.unit.close()

    def again(self, error: BaseException) -> bool:
        return self.unit.again(error)

    def ambiguous(self, error: BaseException) -> bool:
        return self.unit.ambiguous(error)


def unframed(record: Record | None) -> Record | None:
    """The record of an entity as its function made it, without the version around the result."""
    if record is None:
        return None
    if record.payload is None:
        return replace(record, fingerprint=_parted(record.fingerprint)[1])
    applied = _opened(record.payload)
    return replace(record, payload=applied.payload, fingerprint=applied.fingerprint)


def _opened(payload: Payload) -> _Applied:
    data = payload.data or b""
    version, length, follows = _HEAD.unpack_from(data)
    body = data[_HEAD.size :]
    result = body[length:] if follows == _RESULT else None
    return _Applied(version, body[:length], Payload(payload.state, result), follows != _MAYBE)


def _parted(fingerprint: bytes) -> tuple[int, bytes]:
    """The version that a claim was made for, and the fingerprint of its call."""
    version: int = _NUMBER.unpack_from(fingerprint)[0]
    return version, fingerprint[_NUMBER.size :]
