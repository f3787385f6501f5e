"""A tap on the requests between a call and its ledgers: it counts them, and lets a caller die, or a message be lost, at
one of them.

Who is dead says nothing more: no release, no renewal, no completion. What a database does by itself when a connection
is gone, to undo the transaction, is done here in its place.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any, Literal, TypeAlias, TypeVar, cast

from idempo.contracts import JoinedLedger, Layer, Ledger, Unit
from idempo.records import Answer, Call, Completed, Done, NotIssued, Payload, Record
from idempo.steps import Steps

T = TypeVar("T")

How: TypeAlias = Literal["die before", "die after", "lose request", "lose reply"]

__all__ = ["Crashed", "Fault", "LostError", "Tap", "tapped"]


class Crashed(BaseException):
    """The caller died here, as a killed process does: nothing that it would still have sent reaches the store.

    No `Exception`, so that nothing on the way up takes it for a failure of the function.
    """


class LostError(ConnectionError):
    """A request, or the reply to it, was lost on purpose."""


@dataclass
class Fault:
    """One fault, which strikes once."""

    how: How
    at: int | str
    """The number of the request, counted from 1, or its name."""
    request: str = ""
    """The name of the request that it struck; "" as long as it has not."""
    count: int = 0

    @property
    def reached(self) -> bool:
        """False if there were fewer requests, or none of that name."""
        return self.request != ""

    def strikes(self, name: str) -> bool:
        """Count one request; True if it is the one."""
        self.count += 1
        if self.reached or self.at not in (name, self.count):
            return False
        self.request = name
        return True


_last_owner: ContextVar[bytes] = ContextVar(
    "idempo_last_owner", default=b""
)  # a lookup does not say who asks


@dataclass(eq=False)
class Tap:
    """What the ledgers of one or more functions are asked."""

    requests: list[str] = field(default_factory=list)
    fault: Fault | None = None
    asked: Callable[[Call], None] = lambda call: None
    """Told of each call that sends a request, before it is sent."""
    _dead: set[bytes] = field(default_factory=set)
    _claims: dict[tuple[bytes, bytes], tuple[Ledger, Call]] = field(default_factory=dict)
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def is_dead(self, call: Call) -> bool:
        return call.owner in self._dead

    def claiming(self, ledger: Ledger, call: Call) -> None:
        """Note that this call may hold a claim from now on."""
        with self._one_at_a_time:
            self._claims[call.owner, call.digest] = ledger, call

    def over(self, call: Call) -> None:
        """Note that this call holds no claim any more."""
        with self._one_at_a_time:
            self._claims.pop((call.owner, call.digest), None)

    def end_leases(self) -> Steps[int]:
        """Make orphans of the claims of the dead. How many there were."""
        with self._one_at_a_time:
            left = [key for key in self._claims if key[0] in self._dead]
            claims = [self._claims.pop(key) for key in left]
        ended = 0
        for ledger, call in claims:
            ended += yield from ledger.renew(call, 0.0)
        return ended

    def request(self, name: str, call: Call | None, steps: Steps[T]) -> Steps[T]:
        """Take the steps of one request, unless a fault strikes there. Raises `Crashed` and `LostError`."""
        how = self._strike(name, call)
        if how == "die before":
            raise self._death(call, f"before {name}")
        if how == "lose request":
            raise LostError(f"the request {name} was lost, on purpose")
        answer = yield from steps
        if how == "die after":
            raise self._death(call, f"after {name}")
        if how == "lose reply":
            raise LostError(f"the reply to {name} was lost, on purpose")
        return answer

    def _strike(self, name: str, call: Call | None) -> How | None:
        if call is not None:
            if self.is_dead(call):
                raise Crashed(f"a dead caller sends no {name}")
            _last_owner.set(call.owner)
            self.asked(call)
        with self._one_at_a_time:
            self.requests.append(name)
            return self.fault.how if self.fault is not None and self.fault.strikes(name) else None

    def _death(self, call: Call | None, where: str) -> Crashed:
        self._dead.add(_last_owner.get() if call is None else call.owner)
        return Crashed(f"the caller died {where}, on purpose")


def tapped(layer: Layer, tap: Tap) -> Layer | None:
    """The same layer, with a tap between it and its ledger. None where it has no ledger."""
    inside = getattr(layer, "layer", None)
    if inside is not None and (found := tapped(inside, tap)) is not None:
        return cast(Layer, replace(cast(Any, layer), layer=found))
    ledger = getattr(layer, "ledger", None)
    if ledger is None or not is_dataclass(cast(Any, layer)):
        return None
    kind: Any = TappedJoined if layer.part.joined else Tapped
    return cast(Layer, replace(cast(Any, layer), ledger=kind(ledger, tap, layer.injects)))


@dataclass(frozen=True, eq=False)
class Tapped:
    """A ledger that claims under a lease. Heartbeats come by the clock and are not counted; those of the dead stop."""

    ledger: Ledger
    tap: Tap
    injects: frozenset[str]

    @property
    def store(self) -> object:
        return getattr(self.ledger, "store", self.ledger)

    def claim(self, call: Call, over: int | None) -> Steps[Answer]:
        if not self.tap.is_dead(call):
            self.tap.claiming(self.ledger, call)
        return (yield from self.tap.request("claim", call, self.ledger.claim(call, over)))

    def complete(self, call: Call, payload: Payload) -> Steps[bool]:
        kept = yield from self.tap.request("complete", call, self.ledger.complete(call, payload))
        self.tap.over(call)
        return kept

    def release(self, call: Call) -> Steps[bool]:
        freed = yield from self.tap.request("release", call, self.ledger.release(call))
        self.tap.over(call)
        return freed

    def renew(self, call: Call, lease: float) -> Steps[bool]:
        if self.tap.is_dead(call):
            return False
        if lease > 0:
            return (yield from self.ledger.renew(call, lease))
        return (yield from self.tap.request("renew", call, self.ledger.renew(call, lease)))

    def lookup(self, digest: bytes) -> Steps[Record | None]:
        return (yield from self.tap.request("lookup", None, self.ledger.lookup(digest)))

    def fill(self, call: Call, done: Done) -> Steps[None]:
        return (yield from self.tap.request("fill", call, self.ledger.fill(call, done)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ledger, name)  # forget, issue, revoke: no part of a call


@dataclass(frozen=True, eq=False)
class TappedJoined:
    """A ledger in the business transaction."""

    ledger: JoinedLedger
    tap: Tap
    injects: frozenset[str]

    def open(self, call: Call) -> Steps[Unit | Completed | NotIssued]:
        opened: list[Unit | Completed | NotIssued] = []
        try:
            yield from self.tap.request("open", call, _kept(self.ledger.open(call), opened))
        except (Crashed, LostError):
            for one in opened:
                if not isinstance(one, Completed | NotIssued):
                    yield from _drop(one, self.injects)
            raise
        [answer] = opened
        if isinstance(answer, Completed | NotIssued):
            return answer
        return TappedUnit(answer, self.tap, call, self.injects)

    def recall(self, call: Call) -> Steps[Completed | None]:
        return (yield from self.tap.request("recall", call, self.ledger.recall(call)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ledger, name)


@dataclass(eq=False)
class TappedUnit:
    """One transaction. Its connection is gone with the caller, and with a message that is lost."""

    unit: Unit
    tap: Tap
    call: Call
    injects: frozenset[str]
    gone: bool = False

    @property
    def owned(self) -> bool:
        return self.unit.owned

    @property
    def arguments(self) -> Mapping[str, Any]:
        return self.unit.arguments

    def _request(self, name: str, steps: Steps[T]) -> Steps[T]:
        try:
            return (yield from self.tap.request(name, self.call, steps))
        except (Crashed, LostError):
            self.gone = True
            raise

    def enter(self) -> Steps[None]:
        if not self.owned:  # nothing is sent in a transaction that was just begun
            yield from self._request("enter", self.unit.enter())

    def claim(self, call: Call, over: int | None, wait: float) -> Steps[Answer]:
        return (yield from self._request("claim", self.unit.claim(call, over, wait)))

    def complete(self, call: Call, payload: Payload) -> Steps[bool]:
        return (yield from self._request("complete", self.unit.complete(call, payload)))

    def undo_writes(self) -> Steps[None]:
        return (yield from self._request("undo", self.unit.undo_writes()))

    def abandon(self, call: Call) -> Steps[None]:
        return (yield from self._request("abandon", self.unit.abandon(call)))

    def close(self) -> Steps[None]:
        """The end of the transaction, which the database brings about by itself if the caller does not."""
        if not (self.gone or self.tap.is_dead(self.call)):
            try:
                yield from self._request("close", self.unit.close())
            except LostError:
                pass  # nobody waits for that answer
            except Crashed:
                yield from _drop(self.unit, self.injects)
                raise
            else:
                return
        yield from _drop(self.unit, self.injects)

    def again(self, error: BaseException) -> bool:
        return not isinstance(error, LostError) and self.unit.again(error)

    def ambiguous(self, error: BaseException) -> bool:
        return self.owned if isinstance(error, LostError) else self.unit.ambiguous(error)


def _nothing() -> Steps[None]:
    yield from ()


def _kept(steps: Steps[T], answers: list[T]) -> Steps[None]:
    """Take the steps, and keep their answer for whoever does not live to see it."""
    answers.append((yield from steps))


def _drop(unit: Unit, injects: frozenset[str]) -> Steps[None]:
    """What the database does when the connection of a transaction is gone: it undoes it, the caller's writes too."""
    yield from unit.close()
    if unit.owned:
        return
    for name in injects:
        undo = getattr(unit.arguments.get(name), "rollback", None)
        if undo is not None:
            yield undo()
