"""Every interleaving of a few callers, by stepping their generators by hand: no threads, no I/O, no clock but ours.

A schedule is a list of choices: which caller takes its next step, whether that step's request or reply is lost, whether
the caller dies before it, whether all leases end now. `explore` walks them all, within a number of faults.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from idempo.contracts import Ledger
from idempo.decorator import idempotent
from idempo.errors import IdempoError, LeaseLostError, LedgerUnavailableError
from idempo.records import MISSING
from idempo.testing.stepping import LEASE, Caller, Fault, Stepping, World

__all__ = ["FAULTS", "Failed", "Schedules", "check_promises", "explore"]

Start: TypeAlias = Callable[[World], list[Caller]]
Check: TypeAlias = Callable[[World, list[Caller]], None]

FAULTS: tuple[Fault, ...] = ("lost request", "lost reply", "crash", "leases end")
"""What befalls callers of a ledger that claims under a lease."""


class Failed(Exception):
    """What the function raises where it fails."""


@dataclass(frozen=True)
class Schedules:
    """Callers of one key of a ledger that claims under a lease: the `start` of an `explore`.

    Each is a caller of a function with the arguments of its number, which is the value, too.

    Args:
        ledger: makes the ledger under test, given the clock by which it judges leases and retention.
        callers: how many call.
        first_fails: True if the first run raises `Failed`.
        on_orphan: what becomes of orphans, as the decorator takes it.
    """

    ledger: Callable[[Callable[[], float]], Ledger]
    callers: int = 2
    first_fails: bool = False
    on_orphan: Any = "rerun"

    def __call__(self, world: World) -> list[Caller]:
        def body(order: str, number: int) -> int:
            world.effect(number)
            if self.first_fails and len(world.effects) == 1:
                raise Failed
            return number

        decorated = idempotent(
            key="{order}",
            using=Stepping(self.ledger(world.clock), world),
            name="schedules",
            fingerprint=None,
            lease=LEASE,
            keep=10_000,
            wait=3600,
            on_orphan=self.on_orphan,
        )(body)
        return [Caller.of(number, decorated, "A-1", number) for number in range(self.callers)]


def check_promises(world: World, callers: Sequence[Caller]) -> None:
    """Raise `AssertionError` where callers of `Schedules` were lied to; the `check` of an `explore`.

    One first result, which somebody has made; fences that grow; nothing ran where it was said not to; an owner is told
    that its lease is lost only where somebody took over; every caller came to an end.
    """
    values = {caller.value.value for caller in callers if caller.ended == "value"}
    assert len(values) <= 1, f"two first results: {values}"
    ran = {number for number, _ in world.effects}
    fences = [fence for _, fence in world.effects]
    assert fences == sorted(set(fences)), f"fences do not grow: {fences}"
    for caller in callers:
        assert caller.ended, f"{caller.number} waits for ever"
        if caller.ended == "value":
            assert caller.value.value in ran, "a value that nobody has made"
            assert caller.value.replayed == (caller.value.value != caller.number), (
                "who made it is told wrongly"
            )
        if isinstance(caller.error, LedgerUnavailableError):
            assert caller.number not in ran, "it ran although the ledger could not decide"
        if isinstance(caller.error, IdempoError) and caller.error.ran is False:
            assert caller.number not in ran, "refused, and yet it ran"
        if isinstance(caller.error, LeaseLostError):
            _check_lost(world, caller, caller.error, ran)


def _check_lost(world: World, caller: Caller, error: LeaseLostError, ran: set[int]) -> None:
    assert caller.number in ran, "a lease was lost, and the function had not run"
    assert error.result == caller.number, "the result of another run"
    assert error.stored is MISSING or error.stored in ran - {caller.number}, "a winner that did not run"
    mine = max(fence for number, fence in world.effects if number == caller.number)
    assert any(fence > mine for fence in world.claims), "told that its lease is lost, though nobody took over"


def explore(start: Start, check: Check, *, faults: int = 0, kinds: tuple[Fault, ...] = FAULTS) -> int:
    """Walk all schedules with up to `faults` faults, checking each at its end; return how many there were.

    The logger `idempo` is silent meanwhile.

    Args:
        start: makes the callers, in a world that is new for each schedule: `Schedules(...)`, or a function of the
            `World` that returns `Caller.of(number, f, *args)` for each.
        check: raises `AssertionError` where something is wrong: `check_promises`, or a function of your own.
        faults: how many faults befall one schedule at the most. Each multiplies the number of schedules.
        kinds: which faults.

    Raises:
        AssertionError: as `check` does, with the schedule that led there.
    """
    found = 0
    pending: list[list[_Choice]] = [[]]
    with _silent():
        while pending:
            choices = pending.pop()
            world, callers, following = _play(start, choices, faults, kinds)
            if following:
                pending.extend([*choices, choice] for choice in following)
                continue
            found += 1
            try:
                check(world, callers)
            except AssertionError as error:
                said = str(error).partition("\n")[0]  # without what pytest adds
                raise AssertionError(f"{said}\nschedule: {'; '.join(world.trace)}") from error
    return found


@dataclass(frozen=True)
class _Choice:
    caller: int
    fault: Fault = ""


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Each schedule would log its faults, tens of thousands of times."""
    logger = logging.getLogger("idempo")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _play(
    start: Start, choices: list[_Choice], faults: int, kinds: tuple[Fault, ...]
) -> tuple[World, list[Caller], list[_Choice]]:
    """Replay `choices` from the start; return the world, the callers, and what may come next."""
    world = World()
    callers = start(world)
    for caller in callers:
        caller.advance(world)
    for choice in choices:
        _apply(world, callers, choice)
    left = faults - sum(choice.fault != "" for choice in choices)
    return world, callers, list(_next(world, callers, left, kinds))


def _apply(world: World, callers: list[Caller], choice: _Choice) -> None:
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


def _next(world: World, callers: list[Caller], left: int, kinds: tuple[Fault, ...]) -> Iterator[_Choice]:
    live = [caller for caller in callers if not caller.ended]
    awake = [caller for caller in live if caller.sleeps_until <= world.changes]
    if live and not awake:
        yield _Choice(-1, "leases end")  # all wait for an owner that is gone: time passes
        return
    for caller in awake:
        yield _Choice(caller.number)
        if left > 0:
            for kind in kinds:
                if _possible(kind, caller.at.name if caller.at is not None else ""):
                    yield _Choice(caller.number, kind)
    if left > 0 and live and "leases end" in kinds:
        yield _Choice(-1, "leases end")


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
