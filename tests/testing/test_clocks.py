"""The clock that stands still until it is moved."""

from datetime import UTC, datetime, timedelta

import pytest

from idempo import ConfigurationError, LocalCache, Memory, idempotent
from idempo.testing import Clock


def test_it_stands_still_until_it_is_moved() -> None:
    clock = Clock(100)
    assert clock() == clock() == 100.0
    assert clock.advance(2.5) == clock() == 102.5
    assert clock.advance(timedelta(minutes=1)) == 162.5
    assert clock.set_back(timedelta(seconds=60)) == clock() == 102.5


def test_it_begins_where_it_is_told_to() -> None:
    assert Clock(datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC))() == Clock()() == 1_000_000_000


def test_a_time_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        Clock(datetime(2001, 9, 9))
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ConfigurationError):
            Clock().advance(wrong)


def test_memory_and_local_cache_go_by_it() -> None:
    clock, runs = Clock(), []

    @idempotent(
        key="{order}",
        using=[LocalCache(clock=clock, fresh=7200), Memory(clock=clock)],
        name="clocks",
        keep=3600,
    )
    def f(order: str) -> int:
        runs.append(order)
        return len(runs)

    assert f("A-1") == 1
    clock.advance(3599)
    assert f("A-1") == 1
    clock.advance(2)
    assert f("A-1") == 2
