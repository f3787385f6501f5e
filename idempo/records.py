"""The frozen values that pass between the decorator, the protocol and the strategies.

They are msgspec Structs, because a call makes a dozen of them, and a frozen dataclass of this size costs ten times as
much. `replace` makes a changed copy.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar

import msgspec
from msgspec.structs import replace

T = TypeVar("T")

__all__ = [
    "INJECTED",
    "MISSING",
    "RERUN",
    "Above",
    "Answer",
    "Call",
    "Claimed",
    "Completed",
    "Done",
    "Found",
    "InProgress",
    "Issued",
    "Missing",
    "NotIssued",
    "Orphan",
    "Outcome",
    "Payload",
    "Record",
    "replace",
]


class Missing(enum.Enum):
    """The type of `MISSING`: no value at all, as opposed to the value `None`."""

    MISSING = "missing"

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing.MISSING


class _Rerun(enum.Enum):
    RERUN = "rerun"

    def __repr__(self) -> str:
        return "RERUN"


RERUN: Final = _Rerun.RERUN
"""What an `on_orphan` probe returns when the effect did not happen and the function should run again."""


INJECTED: Final[Any] = None
"""The default of a parameter that callers may leave out because a strategy fills it in: `session: Session = INJECTED`.
To type checkers it fits every annotation; it is `None`."""


def _shown(value: object, *names: str) -> str:
    return f"{type(value).__name__}({', '.join(f'{name}={getattr(value, name)!r}' for name in names)})"


class Found(msgspec.Struct, Generic[T], frozen=True):
    """What an `on_orphan` probe returns when the effect happened: `value` becomes the first result."""

    value: T


class Issued(msgspec.Struct, frozen=True):
    """What a claim may demand: that the key was issued beforehand, as a token is."""

    reuse: Literal["replay", "refuse"]
    """What a key that is spent already gives: its first result, or a refusal."""


class Above(msgspec.Struct, frozen=True):
    """What a claim may accept: to replace the completed record with this fence."""

    fence: int


class Call(msgspec.Struct, frozen=True, eq=False):
    """One call of a decorated function: its identity, its claim, its terms.

    `idempo.current()` hands it to the running function; `on_orphan` probes get it as their argument.
    """

    operation: str
    """Which function, by `name=` or by module and qualified name."""
    scope: str
    """Tenant or principal, as people read it; "" without one."""
    key: str
    """The business key as people read it."""
    digest: bytes
    """32 bytes over operation, scope and key: the identity under which ledgers keep the record."""
    fingerprint: bytes
    """A short digest per argument, or b"" where fingerprints are switched off."""
    owner: bytes
    """16 random bytes, new for each call: who asks for the claim."""
    lease: float
    """Seconds for which a claim is honoured without a sign of life."""
    keep: float
    """Seconds for which the first result is kept."""
    arguments: Mapping[str, Any]
    """The bound arguments of this call, by parameter name."""
    attempt: int = 0
    """How many claims of this key there have been, this one included; 0 before the claim."""
    fence: int = 0
    """Grows with each claim of the key: hand it to the systems you write to, to let them refuse a stale owner."""
    deadline: float | None = None
    """`time.monotonic()` until which this claim was honoured when the function started; renewal moves the real end
    on. `None` where the claim lives in a transaction and has no lease."""
    demand: Issued | Above | None = None
    """What the claim of this key demands or accepts beyond a free key; strategies set it."""

    def __repr__(self) -> str:
        return _shown(
            self, "operation", "scope", "key", "digest", "owner", "attempt", "fence"
        )  # no arguments: secrets

    def downstream_key(self, system: str) -> str:
        """Return a key for the next system (a payment provider, another API), stable over all repeats of this call.

        32 lower-case hexadecimal digits, different for each `system`.
        """
        named = len(system.encode()).to_bytes(4, "big") + system.encode()
        return hashlib.blake2b(self.digest + named, digest_size=16, person=b"idempo-downstrm").hexdigest()


State: TypeAlias = Literal["completed", "failed"]


class Payload(msgspec.Struct, frozen=True):
    """A first result as it is stored: a value, an exception that is a result, or nothing that could be stored."""

    state: State
    data: bytes | None
    """The encoded value or exception; None: it ran, but the result could not be stored."""


class Claimed(msgspec.Struct, frozen=True):
    """The ledger's answer: you are the one who runs."""

    fence: int
    attempt: int


class Completed(msgspec.Struct, frozen=True):
    """The ledger's answer: it has run, and this is the first result."""

    payload: Payload
    fingerprint: bytes
    fence: int
    attempt: int
    keep_left: float
    """Seconds until the retention of this record is over."""
    owner: bytes = b""
    durable: bool = True
    """False while the record is part of a transaction that has not been committed."""


class InProgress(msgspec.Struct, frozen=True):
    """The ledger's answer: another owner is running."""

    fingerprint: bytes
    lease_left: float
    """Seconds until the claim is an orphan, if its owner gives no sign of life."""
    asked_at: int = 0
    """When the store said so, by its clock, in microseconds; for a `WakingLedger`, which tells what came later."""


class Orphan(msgspec.Struct, frozen=True):
    """The ledger's answer: it was claimed, the lease is over, and nothing tells how far the owner came."""

    fingerprint: bytes
    fence: int


class NotIssued(msgspec.Struct, frozen=True):
    """The ledger's answer to a claim that demands an issued key: this one was never issued, or its time is over."""


Answer: TypeAlias = Claimed | Completed | InProgress | Orphan | NotIssued


class Done(msgspec.Struct, frozen=True):
    """What comes back from the inside of a composition: the answer of this call, and what tiers outside may keep."""

    value: Any
    error: BaseException | None
    """An exception that is a result (`replay_errors`): raised to the caller, after the ledgers have kept it."""
    payload: Payload
    replayed: bool
    attempt: int
    fence: int
    keep_left: float
    durable: bool
    """False while the record could still vanish with the caller's transaction: nothing outside may keep it."""


class Outcome(msgspec.Struct, Generic[T], frozen=True):
    """The answer of `f.outcome(...)`: the value, and how it came about."""

    value: T
    replayed: bool
    """True if this call was answered from the first result; False if it made it, by the function or by a probe."""
    key: str
    """The business key as people read it."""
    attempt: int
    """Which attempt at this key brought the result: 1 unless earlier ones failed or were orphaned."""


class Record(msgspec.Struct, frozen=True):
    """One record of a ledger, as `f.lookup(...)` and `idempo show` present it. Times are the store's clock, in
    seconds since 1970-01-01 UTC."""

    digest: bytes
    operation: str
    scope: str
    key: str
    state: Literal["issued", "running", "orphan", "completed", "failed"]
    attempt: int
    fence: int
    fingerprint: bytes
    created_at: float
    completed_at: float | None
    lease_until: float | None
    keep_until: float
    keep_left: float
    """Seconds until the retention is over, by the store's clock."""
    payload: Payload | None
    """The stored first result, encoded; None while it runs."""
    value: Any = MISSING
    """The decoded first result, for a failed record its exception; `MISSING` while it runs, and where there is none."""

    def __repr__(self) -> str:
        return _shown(self, "operation", "scope", "key", "state", "attempt", "fence", "keep_left", "value")
