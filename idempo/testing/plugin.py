"""Fixtures for pytest, there wherever idempo is installed: a clock, ledgers, and a place for the embedded default.

Nothing is imported before a test asks for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from idempo.contracts import Strategy
    from idempo.strategies.memory import Memory
    from idempo.testing.clocks import Clock
    from idempo.testing.crashes import CrashingLedger

__all__ = ["assert_runs_once", "idempo_clock", "idempo_crashing", "idempo_memory", "idempo_url"]


@pytest.fixture
def idempo_clock() -> Clock:
    """A clock that stands still until the test moves it."""
    from idempo.testing.clocks import Clock

    return Clock()


@pytest.fixture
def idempo_memory(idempo_clock: Clock) -> Memory:
    """An empty `Memory` that goes by `idempo_clock`."""
    from idempo.strategies.memory import Memory

    return Memory(clock=idempo_clock)


@pytest.fixture
def idempo_crashing(idempo_memory: Memory) -> Callable[..., CrashingLedger]:
    """Makes a `CrashingLedger` around a strategy, or around `idempo_memory`."""
    from idempo.testing.crashes import CrashingLedger

    def around(strategy: Strategy | None = None) -> CrashingLedger:
        return CrashingLedger(idempo_memory if strategy is None else strategy)

    return around


@pytest.fixture
def assert_runs_once() -> Callable[..., Any]:
    """`idempo.testing.assert_runs_once`."""
    from idempo.testing.assertions import assert_runs_once as asserting

    return asserting


@pytest.fixture
def idempo_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a SQLite file of this test, in `IDEMPO_URL`: functions that are decorated meanwhile, without `using=`,
    keep their records there."""
    url = f"sqlite:///{tmp_path / 'idempo.db'}"
    monkeypatch.setenv("IDEMPO_URL", url)
    yield url
    if "idempo.strategies.unique_insert" in sys.modules:
        from idempo.embedded import from_url

        strategy: Any = from_url(url)
        strategy.close()
