"""Rules of waiting that no test held until a mutant went unnoticed. The process clock is put forward by hand."""

import time
from datetime import timedelta
from typing import Any

import pytest
from tenacity import RetryCallState, stop_after_attempt, stop_after_delay, stop_never, wait_fixed
from tenacity.wait import wait_base

from idempo.errors import ConfigurationError
from idempo.waiting import Patience, completion_policy, retry_policy, wait_policy
from tests.tokens.support import Clock

DAY = 86_400


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@pytest.mark.parametrize("wait", [0, 0.5, DAY, timedelta(days=1)], ids=str)
def test_a_wait_may_be_of_nothing_and_of_a_whole_day(wait: Any) -> None:
    seconds = wait.total_seconds() if isinstance(wait, timedelta) else wait
    policy = wait_policy(wait)
    # Half a minute at a time: a connection that says nothing for a minute is taken for a dead one.
    assert (policy.limit, policy.at_once) == (seconds, min(seconds, 30))


@pytest.mark.parametrize("wait", [-0.1, DAY + 0.5, timedelta(days=1, milliseconds=1)], ids=str)
def test_a_wait_is_no_shorter_than_nothing_and_no_longer_than_a_day(wait: Any) -> None:
    with pytest.raises(ConfigurationError, match="every wait has a limit"):
        wait_policy(wait)


def test_a_database_waits_for_a_second_at_the_most_before_a_stop_of_ones_own_is_asked_again(
    clock: Clock,
) -> None:
    assert Patience(wait_policy((wait_fixed(0.1), stop_never))).at_once == 1


def test_a_database_waits_for_no_longer_than_the_caller(clock: Clock) -> None:
    patience = Patience(wait_policy(10))
    clock.now += 4
    assert (patience.left, patience.at_once) == (6, 6)
    clock.now += 7
    assert (patience.left, patience.at_once) == (0, 0)


def test_nobody_who_waits_for_nothing_pauses(clock: Clock) -> None:
    assert Patience(wait_policy(0)).next_pause(30) is None


def test_a_pause_ends_with_the_time_to_wait_and_with_the_lease_of_the_owner(clock: Clock) -> None:
    patience = Patience(wait_policy((wait_fixed(100), stop_never)))
    before = patience.first
    assert patience.next_pause(30) == 30
    assert (before, patience.first) == (True, False)
    clock.now += DAY - 7
    assert patience.next_pause(30) == 7


def test_no_pause_is_shorter_than_a_millisecond(clock: Clock) -> None:
    patience = Patience(wait_policy((wait_fixed(0.5), stop_never)))
    assert patience.next_pause(0) == 0.001
    assert Patience(wait_policy((wait_fixed(0), stop_never))).next_pause(30) == 0.001
    assert Patience(completion_policy(0.0001)).next_pause(30) == 0.001


def test_a_stop_of_ones_own_has_its_limit_in_a_day(clock: Clock) -> None:
    patience = Patience(wait_policy((wait_fixed(100), stop_never)))
    clock.now += DAY - 0.5
    assert patience.next_pause(30) == 0.5
    clock.now += 0.5
    assert patience.next_pause(30) is None


def test_a_stop_of_ones_own_is_told_of_the_questions_and_of_the_time_since_the_first(clock: Clock) -> None:
    counted = Patience(wait_policy((wait_fixed(0.1), stop_after_attempt(4))))
    assert [counted.next_pause(30) for _ in range(4)] == [0.1, 0.1, 0.1, None]
    timed = Patience(wait_policy((wait_fixed(0.1), stop_after_delay(5))))
    clock.now += 4.5
    assert timed.next_pause(30) == 0.1
    clock.now += 0.5
    assert timed.next_pause(30) is None


def test_a_rhythm_of_ones_own_is_told_how_long_it_has_paused_already(clock: Clock) -> None:
    told: list[float] = []

    class Telling(wait_base):
        def __call__(self, retry_state: RetryCallState) -> float:
            told.append(retry_state.idle_for)
            return 2.0

    patience = Patience(wait_policy((Telling(), stop_never)))
    for _ in range(3):
        patience.next_pause(1.5)
    assert told == [0, 1.5, 3]


def test_a_duplicate_asks_again_after_ten_milliseconds_and_then_five_times_a_second_at_the_least(
    clock: Clock,
) -> None:
    for _ in range(20):
        patience = Patience(wait_policy(10))
        pauses = [patience.next_pause(30) or 0 for _ in range(20)]
        assert 0.005 <= pauses[0] <= 0.01
        assert 0.005 <= min(pauses) <= max(pauses) <= 0.2


def test_a_completion_is_tried_again_for_as_long_as_a_lease(clock: Clock) -> None:
    patience = Patience(completion_policy(30))
    clock.now += 29.5
    assert patience.next_pause(30) is not None
    clock.now += 0.5
    assert patience.next_pause(30) is None


@pytest.mark.parametrize("retries", [0, 1, 1000])
def test_a_run_is_retried_as_often_as_it_is_told(retries: int, clock: Clock) -> None:
    patience = Patience(retry_policy(retries))
    pauses = [patience.next_pause(30) for _ in range(retries + 1)]
    assert None not in pauses[:-1]
    assert pauses[-1] is None


@pytest.mark.parametrize("retries", [-1, 1001, True, 1.0, "3"], ids=repr)
def test_what_is_no_number_of_retries_is_refused(retries: Any) -> None:
    with pytest.raises(ConfigurationError, match="not a number between 0 and 1000"):
        retry_policy(retries)
