"""The retention against the schedules of those who repeat, and clocks against ours."""

import time
import types
from datetime import timedelta

import pytest

from idempo import ConfigurationError
from idempo.doctor import Finding
from idempo.doctor.clocks import offset, offset_finding
from idempo.doctor.retries import SCHEDULES, as_text, retention, seconds_of

DAY = 86_400


def only(keep: float | timedelta, *over: str) -> Finding:
    (found,) = retention(keep, over)
    return found


@pytest.mark.parametrize(
    ("keep", "over", "expected"),
    [
        (timedelta(days=7), ("stripe",), "ok"),
        (timedelta(days=3), ("stripe",), "ok"),
        (timedelta(days=3) - timedelta(seconds=1), ("stripe",), "danger"),
        (timedelta(days=7), ("stripe", "adyen"), "danger"),
        (30 * DAY, ("Adyen",), "ok"),
        (7 * DAY, ("8d",), "danger"),
        (7 * DAY, ("168h",), "ok"),
        (7 * DAY, (), "warning"),
        (max(one.lasts for one in SCHEDULES), (), "ok"),
    ],
)
def test_a_repeat_after_the_retention_is_found(
    keep: float | timedelta, over: tuple[str, ...], expected: str
) -> None:
    assert only(keep, *over).level == expected


def test_it_names_who_comes_too_late_and_how_long_to_keep() -> None:
    found = only(7 * DAY, "stripe", "adyen")
    assert "Adyen webhooks: 30 days" in found.says
    assert "Stripe" not in found.says
    assert "at least 30 days" in found.mend


@pytest.mark.parametrize("word", ["nobody", "", "7x", "-1", "0"])
def test_a_schedule_that_is_none_is_refused(word: str) -> None:
    with pytest.raises(ConfigurationError, match="stripe"):
        list(retention(DAY, [word]))


def test_durations_are_read_and_told() -> None:
    assert [seconds_of(text) for text in ("90", "90s", "30m", "12h", "7d", "2w", " 1.5 H ")] == [
        *(90, 90, 1800, 43_200, 604_800, 1_209_600),
        5400,
    ]
    assert [as_text(one) for one in (1.5, 60, 5400, DAY, 7 * DAY)] == [
        *("1.5 seconds", "1 minute", "90 minutes", "1 day", "7 days"),
    ]
    for text in ("", "d", "1 day", "nan", "1e3"):
        with pytest.raises(ConfigurationError):
            seconds_of(text)


def test_each_schedule_has_a_name_of_its_own_and_a_source() -> None:
    assert len({one.name for one in SCHEDULES}) == len(SCHEDULES)
    assert all(one.source and one.lasts > 0 for one in SCHEDULES)


@pytest.mark.parametrize(
    ("ahead", "expected"), [(0.0, "ok"), (0.9, "ok"), (5.0, "warning"), (-5.0, "warning")]
)
def test_a_clock_that_is_off_is_found(ahead: float, expected: str) -> None:
    found = offset_finding(lambda: time.time() + ahead)
    assert found.level == expected
    assert expected == "ok" or ("ahead of" if ahead > 0 else "behind") in found.says


def test_the_reading_with_the_shortest_round_trip_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply that comes late would make the store's clock look slow."""
    ours = types.SimpleNamespace(now=1000.0)
    ours.time = ours.monotonic = lambda: ours.now
    monkeypatch.setattr("idempo.doctor.clocks.time", ours)
    late = iter([8.0, 4.0, 0.2, 6.0, 2.0])

    def ask() -> float:
        theirs = ours.now + 100
        ours.now += next(late)
        return float(theirs)

    assert offset(ask) == pytest.approx((99.9, 0.1))
