"""The schedules as users have them: right ledgers pass, wrong ones are found out, and the schedule says how."""

import logging
from typing import Any

import pytest

from idempo import ColourMismatchError, Memory, idempotent
from idempo.records import Call
from idempo.steps import Steps
from idempo.testing import LEASE, Caller, Schedules, Stepping, World, check_promises, explore


class AnybodyReleases(Memory):
    """A wrong ledger: release does not compare the owner."""

    def release(self, call: Call) -> Steps[bool]:
        row = self._rows.get(call.digest)
        return (yield from super().release(row.call if row is not None else call))


def right(clock: Any) -> Memory:
    return Memory(clock=clock)


def wrong(clock: Any) -> Memory:
    return AnybodyReleases(clock=clock)


def test_a_wrong_ledger_is_found_out_with_the_schedule_that_shows_it() -> None:
    with pytest.raises(
        AssertionError, match=r"(?s)nobody took over\nschedule: .*takes claim.*leases end.*release"
    ):
        explore(Schedules(wrong, first_fails=True), check_promises, faults=2)


def test_a_right_one_passes() -> None:
    assert explore(Schedules(right, first_fails=True), check_promises, faults=1) > 50


def test_a_function_of_ones_own_is_walked() -> None:
    def start(world: World) -> list[Caller]:
        using = Stepping(Memory(clock=world.clock), world)

        @idempotent(key="{order}", using=using, name="own", lease=LEASE, wait=3600, on_orphan="refuse")
        def f(order: str) -> str:
            world.effect(0)
            return order

        return [Caller.of(number, f, "A-1") for number in range(2)]

    def check(world: World, callers: list[Caller]) -> None:
        assert len(world.effects) <= 1

    assert explore(start, check, faults=2) > 100


def test_async_functions_are_refused() -> None:
    @idempotent(key="{order}", using=Memory(), name="async")
    async def f(order: str) -> str:
        return order

    with pytest.raises(ColourMismatchError, match="stepped without a loop"):
        Caller.of(0, f, "A-1")


def test_the_log_is_silent_meanwhile_and_as_it_was_afterwards(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("idempo")
    level = logger.level
    explore(Schedules(right), check_promises, faults=1)
    assert not caplog.records
    assert logger.level == level
