"""All schedules of two and three callers of one key, with crashes, ended leases and lost messages in between."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from idempo import (
    MISSING,
    IdempoError,
    LeaseLostError,
    LedgerUnavailableError,
    Memory,
    idempotent,
)
from idempo.assembly import operation_of
from idempo.contracts import Ledger
from idempo.records import Call, Outcome
from idempo.running import current
from idempo.steps import Steps
from tests.protocol.schedules import LEASE, Caller, Stepping, World, explore


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Each schedule would log its faults, tens of thousands of times."""
    logging.getLogger("idempo").setLevel(logging.CRITICAL + 1)
    yield
    logging.getLogger("idempo").setLevel(logging.NOTSET)


class Failed(Exception):
    """What the function raises where it fails."""


@dataclass
class Setting:
    """How many call, how the first of them fares, and what becomes of orphans."""

    callers: int
    first_fails: bool = False
    on_orphan: Any = "rerun"
    twin: type[Ledger] | None = None

    def __call__(self, world: World) -> list[Caller]:
        memory: Any = (self.twin or Memory)(clock=world.clock)  # type: ignore[call-arg]

        def body(order: str, number: int) -> Any:
            world.effects.append((number, current().fence))
            if self.first_fails and len(world.effects) == 1:
                raise Failed
            return number

        decorated: Any = idempotent(
            key="{order}",
            using=Stepping(memory, world),
            name="schedules",
            fingerprint=None,
            lease=LEASE,
            keep=10_000,
            wait=3600,
            on_orphan=self.on_orphan,
        )(body)
        operation = operation_of(decorated)

        def steps(number: int) -> Steps[Outcome[Any]]:
            return (yield from operation.outcome(("A-1", number), {}))

        return [Caller(number, [steps(number)]) for number in range(self.callers)]


def values_of(callers: list[Caller]) -> set[Any]:
    return {caller.value.value for caller in callers if caller.ended == "value"}


def check_promises(world: World, callers: list[Caller]) -> None:
    values = values_of(callers)
    assert len(values) <= 1, f"two first results: {values}"
    ran = {number for number, _ in world.effects}
    fences = [fence for _, fence in world.effects]
    assert fences == sorted(set(fences)), f"fences do not grow: {fences}"
    for caller in callers:
        if caller.ended == "value":
            assert caller.value.value in ran, "a value that nobody has made"
            assert caller.value.replayed == (caller.value.value != caller.number)
        if isinstance(caller.error, LedgerUnavailableError):
            assert caller.number not in ran, "it ran although the ledger could not decide"
        if isinstance(caller.error, IdempoError) and caller.error.ran is False:
            assert caller.number not in ran, "refused, and yet it ran"
        if isinstance(caller.error, LeaseLostError):
            assert caller.number in ran
            assert caller.error.result == caller.number
            assert caller.error.stored is MISSING or caller.error.stored in ran - {caller.number}
            mine = max(fence for number, fence in world.effects if number == caller.number)
            assert any(fence > mine for fence in world.claims), "called lost, though nobody took over"
    assert all(caller.ended for caller in callers)


def check_once(world: World, callers: list[Caller]) -> None:
    check_promises(world, callers)
    assert len(world.effects) == 1
    assert all(caller.ended == "value" for caller in callers)


def check_at_most_once(world: World, callers: list[Caller]) -> None:
    check_promises(world, callers)
    assert len(world.effects) <= 1, f"it ran {len(world.effects)} times"


def check_failure(world: World, callers: list[Caller]) -> None:
    check_promises(world, callers)
    assert len(world.effects) == min(2, len(callers))
    assert [caller.ended for caller in callers].count("error") == 1
    assert [type(caller.error) for caller in callers if caller.error] == [Failed]


@pytest.mark.parametrize("callers", [1, 2, 3, 4])
def test_without_faults_it_runs_once_and_all_get_the_first_result(callers: int) -> None:
    assert explore(Setting(callers), check_once, faults=0) >= callers


@pytest.mark.parametrize("callers", [2, 3])
def test_if_the_first_run_fails_exactly_one_waiter_runs(callers: int) -> None:
    assert explore(Setting(callers, first_fails=True), check_failure, faults=0) > callers


def test_two_callers_keep_the_promises_through_any_three_faults() -> None:
    assert explore(Setting(2), check_promises, faults=3) > 10_000


def test_two_callers_of_a_failing_first_run_keep_the_promises_through_any_two_faults() -> None:
    assert explore(Setting(2, first_fails=True), check_promises, faults=2) > 500


def test_three_callers_keep_the_promises_through_any_fault() -> None:
    assert explore(Setting(3), check_promises, faults=1) > 3_000


def test_under_refuse_it_runs_at_most_once_through_any_three_faults() -> None:
    assert explore(Setting(2, on_orphan="refuse"), check_at_most_once, faults=3) > 1_000


def test_a_lost_reply_alone_never_doubles_the_effect() -> None:
    """Without a crash and without an ended lease, nothing that is lost on the way makes it run twice."""

    def check(world: World, callers: list[Caller]) -> None:
        check_promises(world, callers)
        assert len(world.effects) <= 1 + sum("leases end" in line for line in world.trace)

    explore(Setting(2), check, faults=2, kinds=("lost request", "lost reply"))


# ------------------------------------------------------------------------ the checker sees what is wrong


class AnybodyCompletes(Memory):
    """A wrong twin: completion does not compare the owner."""

    def complete(self, call: Call, payload: Any) -> Steps[bool]:
        row = self._rows.get(call.digest)
        return (yield from super().complete(row.call if row is not None else call, payload))


class AnybodyReleases(Memory):
    """A wrong twin: release does not compare the owner."""

    def release(self, call: Call) -> Steps[bool]:
        row = self._rows.get(call.digest)
        return (yield from super().release(row.call if row is not None else call))


class FenceStartsAgain(Memory):
    """A wrong twin: the fence is reset."""

    def claim(self, call: Call, over: int | None) -> Steps[Any]:
        self._fence = 0
        return (yield from super().claim(call, over))


class ClaimsBesideTheOwner(Memory):
    """A wrong twin: a claim is granted although somebody runs."""

    def claim(self, call: Call, over: int | None) -> Steps[Any]:
        row = self._rows.get(call.digest)
        if row is not None and row.payload is None:
            self._rows.pop(call.digest)
        return (yield from super().claim(call, over))


@pytest.mark.parametrize("twin", [AnybodyCompletes, AnybodyReleases, FenceStartsAgain, ClaimsBesideTheOwner])
def test_a_wrong_ledger_is_found_out(twin: Any) -> None:
    def explore_it() -> None:
        explore(Setting(2, twin=twin), check_once, faults=0)
        explore(Setting(2, twin=twin, first_fails=True), check_promises, faults=2)
        explore(Setting(2, twin=twin), check_promises, faults=2)

    with pytest.raises(AssertionError):
        explore_it()
