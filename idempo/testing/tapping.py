"""A tap on the requests between a call and its ledgers: it counts them, and lets a caller die, or a message be lost, at
one of them.

Who is dead says nothing more: no release, no renewal, no completion.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

from idempo.contracts import Ledger
from idempo.records import Answer, Call, Done, Payload, Record
from idempo.steps import Steps

T = TypeVar("T")

How: TypeAlias = Literal["die before", "die after", "lose request", "lose reply"]

__all__ = ["Crashed", "Fault", "LostError", "Tap", "Tapped"]


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


@dataclass(frozen=True, eq=False)
class Tapped:
    """A ledger that claims under a lease. Heartbeats come by the clock and are not counted; those of the dead stop."""

    ledger: Ledger
    tap: Tap

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
