"""The soak as a test: what it finds in idempo, nothing; and what it finds in libraries that are wrong on purpose.

`IDEMPO_TEST_SOAK_MINUTES` and `IDEMPO_TEST_SOAK_SEED` make it longer, and another one.
"""

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.checker import Violation
from tests.faults.soak import Load, Report, soak
from tests.faults.soaking.twins import TWINS

MINUTES = float(os.environ.get("IDEMPO_TEST_SOAK_MINUTES", "0.7"))
SEED = int(os.environ.get("IDEMPO_TEST_SOAK_SEED", "1"))

AROUND = 400
"""Seconds for servers to start, last calls to end and the checker to decide, on a machine that does other things."""
FOUND_IN = {
    "believes": {"two_values", "no_order_explains_it"},
    "unclaimed": {"two_values", "overtaken_too_early"},
    "forgetful": {"two_values", "ran_after_success"},
    "not-joined": {"rows_not_exactly_one", "effect_of_a_failure"},
}

FAULTS = {"believes": ("stall",)}
"""What it takes for a mistake to show within seconds."""


@pytest.mark.timeout(MINUTES * 60 + AROUND)
def test_whatever_breaks_each_composition_keeps_what_it_promises(tmp_path: Path) -> None:
    report = soak(Load(MINUTES * 60, SEED, folder=tmp_path))  # where pytest keeps the history for a while
    assert report.right, str(report)


@pytest.mark.timeout(AROUND)
@pytest.mark.parametrize("twin", TWINS)
def test_a_wrong_library_is_found_out(twin: str) -> None:
    report = soak(Load(20, SEED, faults=FAULTS.get(twin, ()), twin=twin))
    rules = {violation.rule for violation in report.violations}
    assert rules & FOUND_IN[twin], str(report)
    text = str(report)
    assert f"seed {SEED}" in text
    assert any(f"VIOLATION {rule}" in text for rule in FOUND_IN[twin])


def test_a_run_in_which_nothing_was_broken_is_not_right() -> None:
    report = Report(7, Counter(calls=100), [], idle=["takeovers"])
    assert not report.right
    assert "SEEN NO takeovers" in str(report)


def test_a_process_that_fails_beside_its_calls_is_told_with_the_seed() -> None:
    report = Report(7, Counter(), [Violation("process_failed", "", (), "w3 ended with status 1: why")])
    assert "VIOLATION process_failed, 1 times, seed 7" in str(report)
    assert "w3 ended with status 1: why" in str(report)
