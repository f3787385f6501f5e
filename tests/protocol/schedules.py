"""Every interleaving of a few callers, by stepping their generators by hand: no threads, no I/O, no clock but ours.

A schedule is a list of choices: which caller takes its next step, whether that step's request or reply is lost, whether
the caller dies before it, whether all leases end now. `explore` walks them all, within a number of faults.
"""

import contextvars
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from idempo.contracts import Ledger, Site
from idempo.layers import Leased
from idempo.leases import Beat, KeepAlive
from idempo.records import Answer, Call, Claimed, Done, InProgress, Orphan, Payload, Record
from idempo.steps import Pause, Shielded, Steps

T = TypeVar("T")
Fault = Literal["", "lost request", "lost reply", "crash", "leases end", "deadlock"]
LEASE = 10.0


@dataclass(frozen=True)
class Step:
    """A point at which another caller may go first. Its answer says whether the request, or the reply, is lost."""

    name: str


@dataclass(frozen=True)
class Blocked:
    """Wait inside the store until something changes there."""


@dataclass(frozen=True)
class Choice:
    caller: int
    fault: Fault = ""


class World:
    """One run: a clock, the effects, and who did what."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.changes = 0
        self.effects: list[tuple[int, int]] = []  # (caller, fence), in order
        self.claims: list[int] = []  # the fences that were given out
        self.trace: list[str] = []
        self.on_crash: Callable[[int], None] = lambda caller: None

    def clock(self) -> float:
        return self.now


class Stepping:
    """A ledger whose every request is a step, and can be lost."""

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
    sleeps_until: int = -1  # a count of changes: asking again before one would be answered the same
    ended: Literal["", "value", "error", "crash"] = ""
    value: Any = None
    error: BaseException | None = None

    def advance(self, world: World, answer: Any = None, error: BaseException | None = None) -> None:
        """Run to the next step, or to the end."""
        while True:
            steps = self.stack[-1]
            try:
                if error is not None:
                    asked, error = self.context.run(steps.throw, error), None
                else:
                    asked = self.context.run(steps.send, answer)
                answer = None
            except StopIteration as stop:
                self.stack.pop()
                if not self.stack:
                    self.ended, self.value, self.at = "value", stop.value, None
                    return
                answer = stop.value
                continue
            except Exception as raised:
                self.stack.pop()
                if not self.stack:
                    self.ended, self.error, self.at = "error", raised, None
                    return
                error = raised
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


def play(
    start: Callable[[World], list[Caller]], choices: list[Choice], faults: int, kinds: tuple[Fault, ...]
) -> tuple[World, list[Caller], list[Choice]]:
    """Replay `choices` from the start; return the world, the callers, and what may come next."""
    world = World()
    callers = start(world)
    for caller in callers:
        caller.advance(world)
    for choice in choices:
        _apply(world, callers, choice)
    left = faults - sum(choice.fault != "" for choice in choices)
    return world, callers, list(_next(world, callers, left, kinds))


def _apply(world: World, callers: list[Caller], choice: Choice) -> None:
    if choice.fault == "leases end":
        world.trace.append("leases end")
        world.now += LEASE + 1
        world.changes += 1
        return
    caller = callers[choice.caller]
    world.trace.append(f"{choice.caller} {choice.fault or 'takes'} {caller.at.name if caller.at else ''}")
    if choice.fault == "crash":
        caller.ended, caller.at = "crash", None
        world.on_crash(caller.number)
        return
    caller.advance(world, choice.fault)


def _next(world: World, callers: list[Caller], left: int, kinds: tuple[Fault, ...]) -> Iterator[Choice]:
    live = [caller for caller in callers if not caller.ended]
    awake = [caller for caller in live if caller.sleeps_until <= world.changes]
    if live and not awake:
        yield Choice(-1, "leases end")  # all wait for an owner that is gone: time passes
        return
    for caller in awake:
        yield Choice(caller.number)
        if left > 0:
            for kind in kinds:
                if _possible(kind, caller.at.name if caller.at is not None else ""):
                    yield Choice(caller.number, kind)
    if left > 0 and live and "leases end" in kinds:
        yield Choice(-1, "leases end")


def _possible(kind: Fault, step: str) -> bool:
    match kind:
        case "crash":
            return True
        case "lost request" | "lost reply":
            return step not in ("pause", "wait")
        case "deadlock":
            return step in ("claim", "complete and commit")
        case _:
            return False


def explore(
    start: Callable[[World], list[Caller]],
    check: Callable[[World, list[Caller]], None],
    *,
    faults: int,
    kinds: tuple[Fault, ...] = ("lost request", "lost reply", "crash", "leases end"),
) -> int:
    """Walk all schedules with up to `faults` faults, checking each at its end; return how many there were."""
    found = 0
    pending: list[list[Choice]] = [[]]
    while pending:
        choices = pending.pop()
        world, callers, following = play(start, choices, faults, kinds)
        if following:
            pending.extend([*choices, choice] for choice in following)
            continue
        found += 1
        try:
            check(world, callers)
        except AssertionError as error:
            raise AssertionError(f"{error}\nschedule: {'; '.join(world.trace)}") from error
    return found
