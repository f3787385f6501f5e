"""The benchmarks: their arithmetic on made-up numbers, and that each of them runs through. No speed is judged."""

import contextlib
import importlib
import json
import random
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as runner
from benchmarks import compare, memory, plots, report, stores
from benchmarks.method import (
    Measured,
    Plan,
    Subject,
    added,
    fresh_keys,
    interleave,
    interleave_async,
    ordered,
    percentile,
    summed_up,
    turns,
)
from benchmarks.stores import Stores
from idempo.steps import run
from tests.servers import Server

TINY = Plan(
    rounds=1,
    block=2,
    name="tiny",
    sizes=(40, 80),
    calls=60,
    workers=(1, 3),
    duplicates=(2, 66),
    hold=0.0,
    purged=2500,
    batch=4,
)


def row(
    ratio: float | None = None, low: float | None = None, high: float | None = None, **given: Any
) -> Measured:
    floor = "" if ratio is None else "by hand"
    return Measured("one", 10, given.pop("median", 1.0), 2.0, floor, ratio, low, high, **given)


# ---- the method


def test_the_interval_of_a_median_leaves_out_the_outliers_on_both_sides() -> None:
    values = [1000.0, *map(float, range(1, 29)), -1000.0]
    middle, low, high = ordered(values)
    assert (middle, low, high) == (14.5, 9.0, 20.0)


def test_the_interval_of_one_value_is_that_value() -> None:
    assert ordered([3.0]) == (3.0, 3.0, 3.0)


def test_the_interval_holds_the_true_median_about_19_times_in_20() -> None:
    chance = random.Random(1)
    held = 0
    for _ in range(2000):
        _, low, high = ordered([chance.random() for _ in range(30)])
        held += low <= 0.5 <= high
    assert 0.93 <= held / 2000 <= 0.98


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([float(number) for number in range(200)], 0.99) == 198.0
    assert percentile([5.0], 0.99) == 5.0


def test_a_ratio_is_that_of_the_same_round_and_the_first_round_does_not_count() -> None:
    base = [[500.0], [100.0], [1.0, 1.0, 9.0], [10.0]]
    mine = [[1.0], [200.0], [2.0, 2.0, 2.0], [20.0]]  # twice the floor, however the machine's mood is
    found = summed_up(Subject("one", str, str, "floor"), mine, base)
    assert (found.ratio, found.low, found.high) == (2.0, 2.0, 2.0)
    assert (found.calls, found.median, found.p99, found.rounds) == (5, 2.0, 200.0, (200.0, 2.0, 20.0))


def test_a_floor_that_was_not_measured_is_an_error() -> None:
    with pytest.raises(ValueError, match="not measured beside it"):
        summed_up(Subject("one", str, str, "floor"), [[1.0], [1.0]], None)


def test_what_is_added_is_the_difference_of_each_round_as_a_share_of_the_floor() -> None:
    whole = row(median=7.0, rounds=(7.0, 14.0), requests=5)
    without = row(median=4.0, rounds=(4.0, 8.0), requests=3)
    floor = replace(row(rounds=(6.0, 12.0)), name="floor")
    found = added("added", whole, without, floor, 0.6)
    assert (found.ratio, found.rounds, found.requests, found.floor) == (0.5, (3.0, 6.0), 2, "floor")
    assert found.verdict == "met"


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        (row(1.1, 1.0, 1.2), ""),
        (row(1.1, 1.0, 1.2, target=1.15), "met"),
        (row(1.2, 1.1, 1.3, target=1.15), "open"),
        (row(1.2, 1.16, 1.3, target=1.15), "missed"),
        (row(0.9, 0.7, 1.0, target=0.85, at_least=True), "met"),
        (row(0.8, 0.7, 0.9, target=0.85, at_least=True), "open"),
        (row(0.8, 0.7, 0.84, target=0.85, at_least=True), "missed"),
        (row(median=3.0, rounds=(2.0, 3.0, 9.0), target=3.0), "met"),
        (row(median=9.0, rounds=(4.0, 9.0, 9.5), target=3.0), "missed"),
        (row(median=9.0, rounds=(2.0, 9.0, 9.5), target=3.0), "open"),
        (row(median=9.0, target=3.0), "missed"),
    ],
)
def test_a_target_is_missed_only_if_the_whole_interval_is_beyond_it(given: Measured, verdict: str) -> None:
    assert (given.verdict, given.missed) == (verdict, verdict == "missed")


def test_a_missed_target_says_by_how_much() -> None:
    assert row(1.38, 1.3, 1.4, target=1.15).beyond == pytest.approx(0.2)
    assert row(0.68, 0.6, 0.7, target=0.85, at_least=True).beyond == pytest.approx(0.2)
    assert report.judged(row(1.38, 1.3, 1.4, target=1.15)) == "missed by 20%"


def test_every_subject_has_one_block_a_round_in_an_order_that_is_drawn_anew() -> None:
    taken = "".join(turns("abcdef", Plan(rounds=5)))
    rounds = [taken[at : at + 6] for at in range(0, len(taken), 6)]
    assert [sorted(one) for one in rounds] == [list("abcdef")] * 6
    assert len(set(rounds)) > 1


def test_interleaved_subjects_are_called_with_keys_of_their_own() -> None:
    seen: dict[str, list[str]] = {"floor": [], "one": []}
    subjects = [
        Subject("floor", seen["floor"].append, fresh_keys()),
        Subject("one", seen["one"].append, lambda: "known", "floor"),
    ]
    floor, one = interleave(subjects, Plan(rounds=3, block=4))
    assert len(set(seen["floor"])) == 16
    assert seen["one"] == ["known"] * 16
    assert (floor.calls, one.calls, floor.ratio, one.ratio is None) == (12, 12, None, False)


def test_keys_of_coroutine_functions_may_be_awaitable() -> None:
    seen: list[str] = []

    async def key() -> str:
        return "made"

    async def call(key: str) -> None:
        seen.append(key)

    assert interleave_async([Subject("one", call, key)], Plan(rounds=1, block=3))[0].calls == 3
    assert seen == ["made"] * 6


def test_a_leak_of_one_object_a_call_is_seen() -> None:
    left: list[object] = []
    blocks, _ = run(memory.growth(lambda key: left.append([key]), 3000))
    assert blocks > 0.9
    blocks, _ = run(memory.growth(lambda key: None, 3000))
    assert blocks < memory.TARGET


# ---- comparing


@pytest.mark.parametrize(
    ("before", "now", "direction"),
    [
        (row(1.0, 0.9, 1.1), row(1.5, 1.4, 1.6), "slower"),
        (row(1.5, 1.4, 1.6), row(1.0, 0.9, 1.1), "faster"),
        (row(1.0, 0.9, 1.1), row(1.5, 1.05, 1.6), None),  # the intervals overlap
        (row(1.0, 0.99, 1.01), row(1.04, 1.03, 1.05), None),  # real, and too little to matter
        (row(1.0, 0.99, 1.01), row(1.06, 1.05, 1.07), "slower"),
        (row(0.9, 0.85, 0.95, at_least=True), row(0.5, 0.4, 0.6, at_least=True), "slower"),
        (row(0.5, 0.4, 0.6, at_least=True), row(0.9, 0.85, 0.95, at_least=True), "faster"),
        (row(median=1.0), row(median=100.0), None),  # no ratio: the machine's mood
    ],
)
def test_a_change_is_real_if_the_intervals_are_apart_and_it_is_more_than_5_percent(
    before: Measured, now: Measured, direction: str | None
) -> None:
    found = compare.change("one", before, now)
    assert [one.direction for one in found] == ([] if direction is None else [direction])


def test_one_request_more_is_a_change_where_requests_are_counted() -> None:
    before, now = row(requests=2), row(requests=3)
    assert [one.direction for one in compare.change("one", before, now, counted=True)] == ["slower"]
    assert compare.change("one", before, now) == []


def test_a_comparison_tells_both_directions_and_the_slower_ones_first() -> None:
    slow, fast = row(1.0, 0.9, 1.1), row(2.0, 1.9, 2.1)
    before = {"latency": {"Redis": [replace(slow, name="a"), replace(fast, name="b")]}}
    now = {
        "latency": {"Redis": [replace(fast, name="a"), replace(slow, name="b"), replace(slow, name="new")]}
    }
    words, slower = compare.worded(before, now)
    assert slower
    assert words.splitlines() == [
        "2 rows compared, 2 real changes",
        "  slower: latency / Redis / a: ratio 1.00 -> 2.00 (+100%)",
        "  faster: latency / Redis / b: ratio 2.00 -> 1.00 (-50%)",
    ]
    assert compare.worded(now, now) == ("3 rows compared, 0 real changes", False)


# ---- the report


def test_results_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    results = {
        "latency": {"Redis": [row(1.2, 1.1, 1.3, target=1.15, rounds=(1.0, 2.0), requests=2, note="x|y")]}
    }
    report.saved(tmp_path, {"plan": {"sizes": (1, 2)}}, results)
    about, found = report.loaded(tmp_path / "results.json")
    assert (about, found) == ({"plan": {"sizes": [1, 2]}}, results)
    assert "| one | by hand | 1.00 us | 2.00 us | 1.20 | 1.10 to 1.30 | <= 1.15 | open, +4% | 2 | x/y |" in (
        (tmp_path / "results.md").read_text().splitlines()
    )


def test_without_matplotlib_a_run_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    runner.draw(tmp_path, {})
    assert "no pictures: No module named 'matplotlib'" in capsys.readouterr().out


def test_pictures_are_drawn_of_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is only in the environment of the benchmarks")
    timed = [replace(row(requests=2), name=f"Memory: {word}") for word in ("first run", "replay")]
    rates = [replace(row(unit="calls/s"), name=f"Memory: replay, {count} threads") for count in (1, 8)]
    sizes = [
        replace(row(), name=f"{size} records: {word}")
        for size in ("10", "1 000")
        for word in ("first run", "replay")
    ]
    results = {
        "latency": {"in this process": timed},
        "concurrency": {"calls per second": rates},
        "tables": {"Redis by records kept": sizes, "bytes per stored key": [row(unit="bytes")]},
    }
    names = {path.name for path in plots.drawn(tmp_path, results)}
    stems = ("latency", "throughput", "table_size", "round_trips")
    assert names == {f"{stem}.{ending}" for stem in stems for ending in ("png", "svg")}
    assert all((tmp_path / name).stat().st_size > 1000 for name in names)


@pytest.mark.parametrize(("ratio", "status"), [(1.0, 0), (0.5, 0), (2.0, 1)])
def test_a_run_that_is_really_slower_than_its_baseline_ends_with_1(
    ratio: float, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report.saved(tmp_path, {"plan": {}}, {"latency": {"Redis": [row(1.0, 0.99, 1.01)]}})
    now = runner.Benchmark("latency", "", lambda *_: {"Redis": [row(ratio, ratio * 0.99, ratio * 1.01)]})
    monkeypatch.setattr(runner, "BENCHMARKS", (now,))
    monkeypatch.setattr(runner, "opened", lambda: contextlib.nullcontext(Stores("", "", "", "")))
    monkeypatch.setattr(runner, "draw", lambda *_: None)
    given = ["--out", str(tmp_path / "now"), "--compare", str(tmp_path / "results.json")]
    assert runner.main(given) == status


def test_the_baseline_is_of_a_quick_run_and_of_benchmarks_that_are_there() -> None:
    path = Path(runner.__file__).with_name("baseline.json")
    about, found = report.loaded(path)
    assert about["plan"] == report.jsonable(asdict(runner.QUICK))
    assert set(found) == {one.name for one in runner.BENCHMARKS}
    assert compare.worded(found, found)[1] is False
    assert not re.search(r'"/\w', path.read_text())  # no path of the machine that measured it


# ---- the runs


@pytest.fixture(scope="module")
def prepared(redis_server: Server, postgres: Server, mariadb: Server) -> Iterator[Stores]:
    with stores.prepared(redis_server, postgres, mariadb) as found:
        yield found


@pytest.mark.parametrize(
    "benchmark", [one for one in runner.BENCHMARKS if one.name != "peers"], ids=lambda one: one.name
)
def test_a_benchmark_runs_through(benchmark: runner.Benchmark, prepared: Stores) -> None:
    found = benchmark.measure(prepared, TINY)
    assert found
    for rows in found.values():
        names = [one.name for one in rows]
        assert len(set(names)) == len(names)
        for one in rows:
            assert not one.floor or one.floor in names
            json.dumps(report.cells(one))
            if one.ratio is not None and one.low is not None and one.high is not None:
                assert one.low <= one.ratio <= one.high


README = Path(runner.__file__).with_name("README.md").read_text()


@pytest.mark.parametrize("words", re.findall(r"^\$ python3 dev.py bench ?([^#\n]*)", README, re.MULTILINE))
def test_the_commands_of_the_readme_are_understood(words: str) -> None:
    assert runner.arguments(words.split()).out


def test_the_readme_names_every_benchmark() -> None:
    section = README.partition("## What is measured")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [one.name for one in runner.BENCHMARKS]
