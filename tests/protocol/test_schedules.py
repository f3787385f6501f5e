"""All schedules of two and three callers of one key, with crashes, ended leases and lost messages in between."""

from typing import Any

import pytest

from idempo import Memory
from idempo.records import Call
from idempo.steps import Steps
from idempo.testing import Caller, Failed, Schedules, World, check_promises, explore


def setting(callers: int, twin: type[Memory] = Memory, **options: Any) -> Schedules:
    return Schedules(lambda clock: twin(clock=clock), callers, **options)


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
    assert explore(setting(callers), check_once, faults=0) >= callers


@pytest.mark.parametrize("callers", [2, 3])
def test_if_the_first_run_fails_exactly_one_waiter_runs(callers: int) -> None:
    assert explore(setting(callers, first_fails=True), check_failure, faults=0) > callers


def test_two_callers_keep_the_promises_through_any_three_faults() -> None:
    assert explore(setting(2), check_promises, faults=3) > 10_000


def test_two_callers_of_a_failing_first_run_keep_the_promises_through_any_two_faults() -> None:
    assert explore(setting(2, first_fails=True), check_promises, faults=2) > 500


def test_three_callers_keep_the_promises_through_any_fault() -> None:
    assert explore(setting(3), check_promises, faults=1) > 3_000


def test_under_refuse_it_runs_at_most_once_through_any_three_faults() -> None:
    assert explore(setting(2, on_orphan="refuse"), check_at_most_once, faults=3) > 1_000


def test_a_lost_reply_alone_never_doubles_the_effect() -> None:
    """Without a crash and without an ended lease, nothing that is lost on the way makes it run twice."""

    def check(world: World, callers: list[Caller]) -> None:
        check_promises(world, callers)
        assert len(world.effects) <= 1 + sum("leases end" in line for line in world.trace)

    explore(setting(2), check, faults=2, kinds=("lost request", "lost reply"))


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
        explore(setting(2, twin=twin), check_once, faults=0)
        explore(setting(2, twin=twin, first_fails=True), check_promises, faults=2)
        explore(setting(2, twin=twin), check_promises, faults=2)

    with pytest.raises(AssertionError):
        explore_it()
