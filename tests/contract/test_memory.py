"""The promises, kept by `Memory`."""

import time

import pytest

from idempo import Memory
from idempo.contracts import Strategy
from idempo.records import Claimed, InProgress, Orphan
from idempo.steps import run
from idempo.testing import LedgerContract, new_call


class TestMemory(LedgerContract):
    def make(self) -> Strategy:
        return Memory()


class TestMemoryAsync(TestMemory):
    colour = "async"


def test_a_lease_begins_anew_where_the_clock_was_set_back_since_it_began() -> None:
    """Neither is the living owner taken for dead, nor does a dead one hold the key for an hour."""
    now = [10_000.0]
    memory = Memory(clock=lambda: now[0])
    run(memory.claim(new_call(lease=30.0), None))
    now[0] -= 3600
    asked = new_call()
    answer = run(memory.claim(asked, None))
    assert answer == InProgress(b"", 30.0)
    now[0] += 31
    orphan = run(memory.claim(asked, None))
    assert isinstance(orphan, Orphan)
    assert isinstance(run(memory.claim(asked, orphan.fence)), Claimed)


def test_a_lease_that_its_owner_ended_is_over_whatever_the_clock_says() -> None:
    now = [10_000.0]
    memory = Memory(clock=lambda: now[0])
    first = new_call()
    run(memory.claim(first, None))
    run(memory.renew(first, 0.0))
    now[0] -= 3600
    assert isinstance(run(memory.claim(new_call(), None)), Orphan)


def test_the_clock_of_memory_goes_on_whatever_the_systems_is_set_to(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, first = Memory(), new_call()
    run(memory.claim(first, None))
    monkeypatch.setattr(time, "time", lambda: time.monotonic() + 10**10)
    assert isinstance(run(memory.claim(new_call(), None)), InProgress)
    record = run(memory.lookup(first.digest))
    assert record is not None
    assert record.state == "running"
