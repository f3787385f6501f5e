"""Rules of leases that no test held until a mutant went unnoticed; see docs/explanation/mutation.md."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from idempo import Event, Memory, idempotent, leases
from idempo.leases import Beat, KeepAlive, _renewing, _tickers
from idempo.records import Call
from idempo.steps import Steps
from tests.twins.mutation import ROOT

SECONDS = 30


@dataclass
class Order:
    number: str


def watched(ledger: object, every: float, renewed: Callable[[], object]) -> Beat:
    """A lease that is renewed once."""

    def renew() -> Steps[bool]:
        yield from ()
        renewed()
        return False

    return KeepAlive(ledger, every, renew).blocking()


def test_a_short_lease_is_renewed_while_a_long_one_waits() -> None:
    ledger = Memory()
    long = watched(ledger, 1000, lambda: None)
    for _ in range(5):  # after the first, the thread waits for the long one
        renewed = threading.Event()
        watched(ledger, 0.03, renewed.set)
        assert renewed.wait(SECONDS)
    long.stop()


def test_the_next_due_is_renewed_first_after_leases_that_have_ended_were_cleared_away() -> None:
    ledger, renewed = Memory(), threading.Event()
    ended = [watched(ledger, 0.5, lambda: None)]
    living = [watched(ledger, 3000, lambda: None), watched(ledger, 0.8, renewed.set)]
    ended += [watched(ledger, 4000, lambda: None) for _ in range(300)]
    for beat in ended:
        beat.stop()
    living += [watched(ledger, 5000, lambda: None) for _ in range(1000)]
    assert len(_tickers.of(ledger)._due) <= len(living), "nothing was cleared away"
    assert renewed.wait(SECONDS)
    for beat in living:
        beat.stop()


def test_a_lease_is_renewed_after_one_that_was_due_before_it_has_ended() -> None:
    ledger, renewed = Memory(), threading.Event()
    watched(ledger, 0.05, lambda: None).stop()
    beat = watched(ledger, 0.1, renewed.set)
    assert renewed.wait(SECONDS)
    beat.stop()


def test_no_renewal_comes_before_its_time() -> None:
    times: list[float] = []
    renewed = threading.Event()

    def noting() -> None:
        times.append(time.monotonic())
        renewed.set()

    began = time.monotonic()
    beat = watched(Memory(), 0.2, noting)
    assert renewed.wait(SECONDS)
    assert times[0] >= began + 0.2
    beat.stop()


def test_a_thread_ends_when_it_was_idle_for_a_while_and_the_next_lease_starts_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leases, "_IDLE", 0.05)
    ledger, threads = Memory(), list[threading.Thread]()
    for _ in range(2):
        renewed = threading.Event()

        def noting(renewed: threading.Event = renewed) -> None:
            threads.append(threading.current_thread())
            renewed.set()

        watched(ledger, 0.01, noting)
        assert renewed.wait(SECONDS)
        threads[-1].join(SECONDS)
        assert not threads[-1].is_alive()
    assert threads[0] is not threads[1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_was_ended_by_a_renewal_is_replaced_at_the_next_lease() -> None:
    ledger, ended, renewed = Memory(), threading.Event(), threading.Event()

    def exiting() -> None:
        before.append(threading.current_thread())
        ended.set()
        raise SystemExit

    before: list[threading.Thread] = []
    watched(ledger, 0.01, exiting)
    assert ended.wait(SECONDS)
    before[0].join(SECONDS)
    beat = watched(ledger, 0.01, renewed.set)
    assert renewed.wait(SECONDS)
    beat.stop()


def test_a_call_that_is_over_is_not_held_until_its_renewal_would_have_been_due() -> None:
    ledger = Memory()
    earlier = watched(ledger, 1000, lambda: None)

    @idempotent(key="{order.number}", using=ledger, fingerprint=None, lease=36_000)
    def place(order: Order) -> None: ...

    order = Order("A-1")
    held = weakref.ref(order)
    place(order)
    del order
    gc.collect()
    assert held() is None
    earlier.stop()


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_lease_that_is_lost_is_renewed_no_more(colour: str) -> None:
    """A later lease tells that the time for it has passed."""
    ledger, asked, over, over_in_loop = Memory(), list[str](), threading.Event(), asyncio.Event()

    def lost() -> Steps[bool]:
        yield from ()
        asked.append("again")
        return False

    def later() -> Steps[bool]:
        yield from ()
        over.set()
        over_in_loop.set()
        return False

    async def main() -> None:
        await KeepAlive(ledger, 0.05, lost).awaiting()
        await KeepAlive(ledger, 0.3, later).awaiting()
        await asyncio.wait_for(over_in_loop.wait(), SECONDS)

    if colour == "async":
        asyncio.run(main())
    else:
        KeepAlive(ledger, 0.05, lost).blocking()
        KeepAlive(ledger, 0.3, later).blocking()
        assert over.wait(SECONDS)
    assert asked == ["again"]


def test_an_event_loop_keeps_no_timer_of_a_call_that_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[asyncio.TimerHandle] = []

    @idempotent(key="{order}", using=Memory(), lease=3600)
    async def place(order: str) -> None: ...

    async def main() -> None:
        loop = asyncio.get_running_loop()
        call_later = loop.call_later

        def noting(*given: Any) -> asyncio.TimerHandle:
            timers.append(call_later(*given))
            return timers[-1]

        monkeypatch.setattr(loop, "call_later", noting)
        await place("A-1")

    asyncio.run(main())
    assert [timer.cancelled() for timer in timers] == [True]


def test_a_renewal_under_way_is_not_lost_to_the_garbage_collector_and_not_kept_afterwards() -> None:
    gates: list[weakref.ref[asyncio.Event]] = []
    asked, renewed = asyncio.Event(), asyncio.Event()

    class Slow(Memory):
        def renew(self, call: Call, lease: float) -> Steps[bool]:
            gate = asyncio.Event()
            gates.append(weakref.ref(gate))
            asked.set()
            yield gate.wait()
            return (yield from super().renew(call, lease))

    def hook(event: Event) -> None:
        if event.kind == "renewed":
            renewed.set()

    @idempotent(key="{order}", using=Slow(), lease=0.6, hooks=[hook])
    async def place(order: str) -> bool:
        await asyncio.wait_for(asked.wait(), SECONDS)
        gc.collect()
        gate = gates[0]()
        assert gate is not None, "the renewal has vanished"
        gate.set()
        return await asyncio.wait_for(renewed.wait(), SECONDS)

    assert asyncio.run(place("A-1"))
    assert not _renewing


FORKED = """
import os, signal, threading
from idempo import Memory
from idempo.leases import KeepAlive, _tickers

ledger, held, over = Memory(), threading.Event(), threading.Event()

def hold():
    with _tickers.of(ledger)._changed:
        held.set()
        over.wait()

threading.Thread(target=hold, daemon=True).start()
held.wait()
child = os.fork()
if child == 0:
    signal.alarm(10)
    KeepAlive(ledger, 1000.0, lambda: iter(())).blocking()
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
over.set()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_that_was_forked_while_a_lease_was_being_added_may_add_its_own() -> None:
    """In the child the thread that held the lock is not there to let it go."""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stdout == "0\n", ended.stderr
