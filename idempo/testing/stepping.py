"""A world that is stepped by hand: callers as generators, a ledger whose every request is a step, its own clock."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

from idempo.assembly import operation_of
from idempo.contracts import Ledger, Site
from idempo.errors import ColourMismatchError
from idempo.layers import Leased
from idempo.leases import Beat, KeepAlive
from idempo.records import Answer, Call, Claimed, Done, InProgress, Orphan, Payload, Record
from idempo.running import current
from idempo.steps import Pause, Shielded, Steps

T = TypeVar("T")

Fault: TypeAlias = Literal["", "lost request", "lost reply", "crash", "leases end", "deadlock"]

__all__ = ["LEASE", "Blocked", "Caller", "Fault", "Step", "Stepping", "World"]

LEASE = 10.0
"""Seconds of a lease in a world: give `lease=LEASE` to the function under test."""


@dataclass(frozen=True)
class Step:
    """A point at which another caller may go first. Its answer, a `Fault`, says what is lost there."""

    name: str


@dataclass(frozen=True)
class Blocked:
    """Wait inside the store until something changes there."""


class World:
    """One run of a schedule: a clock, the effects, and who did what."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.changes = 0
        """How often something changed in the store; those who wait ask again when it does."""
        self.effects: list[tuple[int, int]] = []
        """Of each effect its caller and the fence it had, in order."""
        self.claims: list[int] = []
        """The fences that were given out."""
        self.trace: list[str] = []
        """The schedule so far, in words."""
        self.on_crash: Callable[[int], None] = lambda caller: None
        """Told of each caller that dies: undo here what a server undoes when a connection is gone."""

    def clock(self) -> float:
        """The time of this world, in seconds, for a ledger to judge by."""
        return self.now

    def effect(self, caller: int) -> None:
        """Note that the function of this caller, which is running, did what it does."""
        self.effects.append((caller, current().fence))


class Stepping:
    """A strategy around a ledger that claims under a lease: each of its requests is a step, and can be lost."""

    def __init__(self, ledger: Ledger, world: World) -> None:
        self._ledger = ledger
        self._world = world

    def bind(self, site: Site) -> Leased:
        return Leased.at(site, self, "Stepping")

    def _request(self, name: str, steps: Steps[T]) -> Steps[T]:
        fault = yield Step(name)
        if fault == "lost request":
            raise ConnectionError(f"{name} was lost")
        answer = yield from steps
        if isinstance(answer, Claimed):
            self._world.claims.append(answer.fence)
        if not isinstance(answer, InProgress | Orphan):
            self._world.changes += 1
        if fault == "lost reply":
            raise ConnectionError(f"the reply to {name} was lost")
        return answer

    def claim(self, call: Call, over: int | None) -> Steps[Answer]:
        return (yield from self._request("claim", self._ledger.claim(call, over)))

    def complete(self, call: Call, payload: Payload) -> Steps[bool]:
        return (yield from self._request("complete", self._ledger.complete(call, payload)))

    def release(self, call: Call) -> Steps[bool]:
        return (yield from self._request("release", self._ledger.release(call)))

    def renew(self, call: Call, lease: float) -> Steps[bool]:
        return (yield from self._request("renew", self._ledger.renew(call, lease)))

    def lookup(self, digest: bytes) -> Steps[Record | None]:
        return (yield from self._request("lookup", self._ledger.lookup(digest)))

    def forget(self, digest: bytes) -> Steps[bool]:
        return (yield from self._request("forget", self._ledger.forget(digest)))

    def fill(self, call: Call, done: Done) -> Steps[None]:
        return (yield from self._request("fill", self._ledger.fill(call, done)))


@dataclass
class Caller:
    """One caller: its generator, what it waits for, and how it ended."""

    number: int
    stack: list[Steps[Any]]
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    at: Step | None = None
    sleeps_until: int = -1
    """A count of changes: asking again before would be answered the same."""
    ended: Literal["", "value", "error", "crash"] = ""
    value: Any = None
    """The `Outcome`, if it ended with one."""
    error: BaseException | None = None

    @classmethod
    def of(cls, number: int, f: Any, *args: Any, **kwargs: Any) -> Caller:
        """A caller of the decorated function `f`, which is no coroutine function. Raises `ColourMismatchError`."""
        operation = operation_of(f)
        if operation.colour != "sync":
            raise ColourMismatchError(
                f"{operation.name} is async, and callers are stepped without a loop: the rules are the same for a "
                "plain function"
            )
        return cls(number, [operation.outcome(args, kwargs)])

    def advance(self, world: World, answer: Any = None) -> None:
        """Run to the next step, or to the end."""
        error: BaseException | None = None
        while True:
            steps = self.stack[-1]
            try:
                if error is not None:
                    asked, error = self.context.run(steps.throw, error), None
                else:
                    asked = self.context.run(steps.send, answer)
                answer = None
            except StopIteration as stop:
                answer = stop.value
                if self._left(value=answer):
                    return
                continue
            except Exception as raised:
                error = raised
                if self._left(error=error):
                    return
                continue
            match asked:
                case Step():
                    self.at = asked
                    return
                case Blocked():
                    self.sleeps_until = world.changes + 1
                    self.at = Step("wait")
                    return
                case Pause():
                    if self.at is not None and self.at.name == "claim":
                        self.sleeps_until = world.changes + 1
                    self.at = Step("pause")
                    return
                case KeepAlive():
                    answer = Beat(asked.every, asked.renew)
                case Shielded():
                    self.stack.append(asked.steps())
                case _:
                    answer = asked

    def _left(self, value: Any = None, error: Exception | None = None) -> bool:
        """The innermost steps are over. True if they were the last."""
        self.stack.pop()
        if self.stack:
            return False
        self.ended, self.value, self.error, self.at = (
            "value" if error is None else "error",
            value,
            error,
            None,
        )
        return True
