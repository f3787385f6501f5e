"""The seams: what a strategy is, what a ledger answers for, what the decorator hands to both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from idempo.codec import Codec
from idempo.events import Hook
from idempo.guarantees import Part
from idempo.records import Answer, Call, Completed, Done, InProgress, NotIssued, Payload, Record
from idempo.steps import Steps
from idempo.waiting import WaitPolicy

KeySpec: TypeAlias = str | Callable[..., object] | tuple[str, ...]
"""How a key is had from the arguments: a template, a callable of them, names of parameters."""

__all__ = [
    "BatchingLedger",
    "Carried",
    "Colour",
    "Guard",
    "Inner",
    "IssuingLedger",
    "JoinedLedger",
    "KeySpec",
    "Layer",
    "Ledger",
    "Probe",
    "Site",
    "Strategy",
    "Terms",
    "Unit",
    "WakingLedger",
]

Colour: TypeAlias = Literal["sync", "async"]
Inner: TypeAlias = Callable[[Call], Steps[Done]]
Probe: TypeAlias = Callable[[Call], Any]
"""Judges an orphan: returns `Found(value)` or `RERUN`, or an awaitable of one under an `async def`."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the decorator was told: the same for every call of one function."""

    lease: float
    keep: float
    wait: WaitPolicy
    completing: WaitPolicy
    """How a completion that cannot be written, and a transaction that the database undid, is tried again."""
    on_orphan: Literal["rerun", "refuse"] | Probe
    replay_errors: tuple[type[Exception], ...]
    unknown_errors: tuple[type[Exception], ...]
    codec: Codec
    max_result: int
    """Bytes of an encoded result."""
    hooks: tuple[Hook, ...]
    final: bool = True
    """False for a ledger outside another one: what is recorded inside decides."""


class Carried(Protocol):
    """The transaction that a strategy works in: the one that a parameter of the function carries."""

    @property
    def join(self) -> str:
        """The parameter."""
        ...

    def differs(self, other: Carried) -> str:
        """Say why `other` is another transaction; "" if it is the same."""
        ...


@dataclass(frozen=True, slots=True)
class Site:
    """What a strategy learns, while decorating, about the function it will stand in front of."""

    operation: str
    colour: Colour
    parameters: tuple[str, ...]
    hints: Mapping[str, Any]
    """The resolved annotations of the parameters that have one."""
    terms: Terms
    tier: bool
    """True if another ledger inside keeps the record: this one may then only replay or refuse."""
    rekeyed: Callable[[KeySpec, str], Callable[[Call], Call]] = field(repr=False)
    """For a strategy with a key of its own: of its spec and its role, in a word, makes what turns a call into the same
    call under that key. Keys of different roles are never the same."""
    named: bool = True
    """False if the function was given guards only, so that a guard brings the ledger."""
    carried: Carried | None = None
    """The transaction that the record is part of, if it is; guards work in that one."""
    key: KeySpec = ""
    """What the decorator was told, and so is the scope."""
    scope: KeySpec | None = None


class Ledger(Protocol):
    """A store that remembers who runs a key and what came of it.

    Each method is one atomic request, decided by the store: by its clock, by its comparison of owner and fence.
    Repeating a request of the same owner changes nothing, so that a driver may send it again after a lost reply.
    Once the retention of a record is over, everybody may claim its key anew. Until somebody does, or it is purged, a
    ledger that still has it may honour its last owner.
    A method raises whatever its driver raises; the protocol makes a typed error of it.
    """

    def claim(self, call: Call, over: int | None) -> Steps[Answer]:
        """Make `call.owner` the one who runs, if the key is free; otherwise say how it stands.

        `over` is the fence of an orphan that the caller accepts to take over; an orphan is never taken otherwise.
        """
        ...

    def complete(self, call: Call, payload: Payload) -> Steps[bool]:
        """Record the first result. False, and no change, if `call.owner` is not the owner any more."""
        ...

    def release(self, call: Call) -> Steps[bool]:
        """Free the key after a failure. False, and no change, if `call.owner` is not the owner any more."""
        ...

    def renew(self, call: Call, lease: float) -> Steps[bool]:
        """Let the lease end `lease` seconds from now; 0 makes it an orphan at once. False if not the owner."""
        ...

    def lookup(self, digest: bytes) -> Steps[Record | None]:
        """Return the record, or None if there is none within its retention."""
        ...

    def forget(self, digest: bytes) -> Steps[bool]:
        """Delete the record unless it is running under a lease. True if there was one to delete."""
        ...

    def fill(self, call: Call, done: Done) -> Steps[None]:
        """Keep the result that a ledger inside has recorded, for `done.keep_left` seconds at the most."""
        ...


class IssuingLedger(Ledger, Protocol):
    """A ledger that can also issue keys beforehand, which then are claimed by `Call.demand == Issued(...)`."""

    def issue(self, call: Call) -> Steps[bool]:
        """Keep `call.digest` as issued for `call.keep` seconds. False, and no change, if the key is known already."""
        ...

    def revoke(self, digest: bytes) -> Steps[bool]:
        """Delete an issued key that nobody has claimed. False, and no change, for any other."""
        ...


class BatchingLedger(Ledger, Protocol):
    """A ledger that can also be asked about many keys in one request."""

    def claim_many(self, calls: Sequence[Call]) -> Steps[Sequence[Answer | None]]:
        """Claim each key that is free, as `claim` with no orphan to take over. No two of the calls have one digest.

        Returns the answers in the order of the calls; None for one that has to be asked for alone.
        """
        ...

    def complete_many(self, firsts: Sequence[tuple[Call, Payload]]) -> Steps[Sequence[bool]]:
        """Record each first result, as `complete` does, and answer in their order."""
        ...


class WakingLedger(Ledger, Protocol):
    """A ledger whose store wakes those who wait for a key. That is a hint: they ask all the same."""

    def hear(self, call: Call, told: InProgress, seconds: float) -> Steps[bool | None]:
        """Wait until something became of the key since it was `told`, for so many seconds at the most.

        True: something did, or may have. False: the time is over. None: this ledger cannot tell at the moment.
        """
        ...


class Unit(Protocol):
    """One transaction that carries a record and the business writes together."""

    @property
    def owned(self) -> bool:
        """True if the transaction is ours to commit, False if it is the caller's."""
        ...

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments of the call, the session or connection among them."""
        ...

    def enter(self) -> Steps[None]:
        """Send the caller's pending writes, so that they are not undone together with the function's."""
        ...

    def claim(self, call: Call, over: int | None, wait: float) -> Steps[Answer]:
        """Insert the record, waiting `wait` seconds at the most for another transaction that has done so."""
        ...

    def complete(self, call: Call, payload: Payload) -> Steps[bool]:
        """Record the first result, and commit if the transaction is ours. False if the claim is gone."""
        ...

    def undo_writes(self) -> Steps[bool]:
        """Undo what the function has written since the claim, and keep the claim. False if it has ended the transaction
        by itself, so that there is no claim to keep."""
        ...

    def abandon(self, call: Call) -> Steps[None]:
        """Undo what the function has written, and leave its claim behind as an orphan."""
        ...

    def close(self) -> Steps[None]:
        """Undo the claim and the function's writes unless completed; let go of what is ours. Once is enough."""
        ...

    def again(self, error: BaseException) -> bool:
        """True if the database undid our own transaction for the sake of another, so that it can run once more."""
        ...

    def ambiguous(self, error: BaseException) -> bool:
        """True if `error` leaves open whether our own commit took place."""
        ...


class JoinedLedger(Protocol):
    """A store whose record is part of the business transaction."""

    def open(self, call: Call) -> Steps[Unit | Completed | NotIssued]:
        """Take part in the caller's transaction, or begin one of our own, unless the key is completed already, or was
        not issued though the call demands it."""
        ...

    def recall(self, call: Call) -> Steps[Completed | None]:
        """Read the committed record, outside any transaction of the call."""
        ...


class Layer(Protocol):
    """A strategy bound to one function.

    Parameters that say nothing about the operation, such as a token, it names in an attribute `ignores`; they are no
    part of the fingerprint. Where the decorator's key is a secret, a callable `shown` says what people may see of it.
    """

    @property
    def part(self) -> Part:
        """What it does in the composition, for `explain()`."""
        ...

    @property
    def injects(self) -> frozenset[str]:
        """Parameters that the strategy may fill in; they are no part of the fingerprint."""
        ...

    def around(self, call: Call, inner: Inner) -> Steps[Done]:
        """Answer the call, by asking `inner` where it has to run."""
        ...

    def lookup(self, call: Call) -> Steps[Record | None]:
        """Return what this strategy remembers of the call."""
        ...

    def forget(self, call: Call) -> Steps[bool]:
        """Forget the first result. True if there was one."""
        ...


class Strategy(Protocol):
    """What `using=` takes.

    One that works in a transaction of the function says so in an attribute `carried`. One that nothing may stand
    around has a true attribute `outermost`.
    """

    def bind(self, site: Site) -> Layer:
        """Return the layer for the function at `site`. Raises `ConfigurationError` if the two do not fit."""
        ...


class Guard(Strategy, Protocol):
    """A strategy that admits: it stands inside the ledgers, next to the function."""

    @property
    def carried(self) -> Carried | None:
        """The transaction that it works in."""
        ...

    def record(self) -> Strategy | None:
        """Return the ledger to bring along where none is part of that transaction. None: the guard needs none."""
        ...
