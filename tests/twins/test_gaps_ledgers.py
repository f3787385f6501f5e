"""Rules of ledgers that no test held until a mutant of one went unnoticed; see docs/explanation/mutation.md."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from idempo import Memory, RedisCache, UniqueInsert
from idempo.records import Call, Claimed, Completed, Done, InProgress, Issued, Payload, Record
from idempo.steps import Steps, run
from idempo.testing import ledger_of, new_call
from tests.servers import Server, fresh_database
from tests.tokens.support import Clock

LEASE, KEEP = 1e9, 3e9
"""Seconds, so long that a record shows each of them exactly."""
ABOUT = 60.0
"""Seconds that a request and the two clocks of this machine may take, and more."""


@pytest.fixture(params=["memory", "sqlite", "redis"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    strategy: Any = Memory()
    if request.param == "sqlite":
        strategy = UniqueInsert(f"sqlite:///{tmp_path / 'records.db'}")
    if request.param == "redis":
        server: Server = request.getfixturevalue("redis_server")
        strategy = RedisCache(fresh_database(server))
    yield ledger_of(strategy, "sync")
    if request.param != "memory":
        strategy.close()


def test_a_record_tells_its_times_in_seconds_since_1970(ledger: Any) -> None:
    call = new_call(lease=LEASE, keep=KEEP)

    def steps() -> Steps[Any]:
        yield from ledger.claim(call, None)
        running = yield from ledger.lookup(call.digest)
        yield from ledger.complete(call, Payload("completed", b"1"))
        return running, (yield from ledger.lookup(call.digest))

    running, completed = run(steps())
    now = time.time()
    assert running.created_at == pytest.approx(now, abs=ABOUT)
    assert running.lease_until == pytest.approx(now + LEASE, abs=ABOUT)
    assert running.completed_at is None
    assert completed.created_at == running.created_at
    assert completed.completed_at == pytest.approx(now, abs=ABOUT)
    for record in (running, completed):
        assert record.keep_until == pytest.approx(now + KEEP, abs=ABOUT)
        assert record.keep_left == pytest.approx(KEEP, abs=ABOUT)


def test_a_claim_tells_how_much_is_left_of_the_lease_and_of_the_retention(ledger: Any) -> None:
    call = new_call(lease=LEASE, keep=KEEP)

    def steps() -> Steps[Any]:
        yield from ledger.claim(call, None)
        waits = yield from ledger.claim(new_call(), None)
        yield from ledger.complete(call, Payload("completed", b"1"))
        return waits, (yield from ledger.claim(new_call(), None))

    waits, replays = run(steps())
    assert isinstance(waits, InProgress)
    assert waits.lease_left == pytest.approx(LEASE, abs=ABOUT)
    assert isinstance(replays, Completed)
    assert replays.keep_left == pytest.approx(KEEP, abs=ABOUT)


@pytest.mark.parametrize(("lease", "keep"), [(LEASE, 1.0), (1.0, LEASE)], ids=["lease", "keep"])
def test_a_claim_is_kept_for_as_long_as_its_lease_and_its_retention_say(
    ledger: Any, lease: float, keep: float
) -> None:
    call = new_call(lease=lease, keep=keep)

    def steps() -> Steps[Any]:
        assert isinstance((yield from ledger.claim(call, None)), Claimed)
        return (yield from ledger.lookup(call.digest))

    assert run(steps()).keep_left == pytest.approx(LEASE, abs=ABOUT)


def test_a_claim_whose_lease_has_ended_is_shown_as_an_orphan(ledger: Any) -> None:
    call = new_call(lease=0.001)
    assert isinstance(run(ledger.claim(call, None)), Claimed)
    bound = time.monotonic() + 30
    while run(ledger.lookup(call.digest)).state == "running":
        assert time.monotonic() < bound
    assert run(ledger.lookup(call.digest)).state == "orphan"


# ------------------------------------------------------------------------ by the clock of `Memory`, to the instant

DONE = Done("v", None, Payload("completed", b"v"), False, 1, fence=0, keep_left=60.0, durable=True)

REQUESTS: dict[str, tuple[str, Callable[[Any, Call], Steps[Any]], Any, Any]] = {
    "lookup": ("completed", lambda m, c: m.lookup(c.digest), "completed", None),
    "forget": ("completed", lambda m, c: m.forget(c.digest), True, False),
    "complete": ("completed", lambda m, c: m.complete(c, DONE.payload), True, False),
    "complete a claim": ("running", lambda m, c: m.complete(c, DONE.payload), True, False),
    "renew": ("running", lambda m, c: m.renew(c, 5.0), True, False),
    "release": ("running", lambda m, c: m.release(c), True, False),
    "release again": ("released", lambda m, c: m.release(c), True, False),
    "issue": ("completed", lambda m, c: m.issue(c), False, True),
    "issue again": ("issued", lambda m, c: m.issue(c), False, True),
    "revoke": ("issued", lambda m, c: m.revoke(c.digest), True, False),
    "claim": ("completed", lambda m, c: m.claim(new_call(), None), "Completed", "attempt 1"),
    "claim a token": ("issued", lambda m, c: m.claim(_spending(), None), "attempt 1", "NotIssued"),
    "claim again": ("released", lambda m, c: m.claim(new_call(), None), "attempt 2", "attempt 1"),
}  # state of the record, request, answer until its time is over, answer from then on


def _spending() -> Call:
    return new_call(demand=Issued("replay"))


def _said(answer: Any) -> Any:
    match answer:
        case Record(state=state):
            return state
        case Claimed(attempt=attempt):
            return f"attempt {attempt}"
        case bool() | None:
            return answer
        case _:
            return type(answer).__name__


def _kept(state: str, clock: Clock) -> tuple[Memory, Call]:
    """A record in this state that is kept for 100 seconds, whose lease has 100 seconds, too."""
    memory, call = Memory(clock=clock), new_call(lease=100.0, keep=100.0)
    if state == "issued":
        run(memory.issue(call))
        return memory, call
    run(memory.claim(call, None))
    if state == "completed":
        run(memory.complete(call, DONE.payload))
    if state == "released":
        run(memory.release(call))
    return memory, call


@pytest.mark.parametrize("over", [False, True], ids=["until then", "over"])
@pytest.mark.parametrize("name", REQUESTS)
def test_a_record_is_there_until_the_instant_at_which_its_retention_ends(name: str, over: bool) -> None:
    state, request, until, then = REQUESTS[name]
    clock = Clock()
    memory, call = _kept(state, clock)
    clock.now += 100 if over else 99.5
    assert _said(run(request(memory, call))) == (then if over else until)


@pytest.mark.parametrize("over", [False, True], ids=["until then", "over"])
def test_a_lease_is_honoured_until_the_instant_at_which_it_ends(over: bool) -> None:
    clock = Clock()
    memory, call = Memory(clock=clock), new_call(lease=5.0)
    run(memory.claim(call, None))
    clock.now += 5 if over else 4.5
    record = run(memory.lookup(call.digest))
    assert record is not None
    assert record.state == ("orphan" if over else "running")
    assert run(memory.forget(call.digest)) is over


def test_a_result_fills_what_is_older_or_over_and_nothing_else() -> None:
    clock = Clock()
    memory, call = _kept("completed", clock)

    def kept(fence: int, data: bytes) -> bytes | None:
        run(memory.fill(call, replace(DONE, fence=fence, payload=Payload("completed", data))))
        record = run(memory.lookup(call.digest))
        assert record is not None
        assert record.payload is not None
        return record.payload.data

    assert kept(0, b"older") == b"v"
    assert kept(99, b"newer") == b"newer"
    clock.now += 60
    assert kept(1, b"older") == b"older"


def test_a_lease_that_its_owner_ended_may_be_forgotten_whatever_the_clock_says() -> None:
    clock = Clock()
    memory, call = _kept("running", clock)
    run(memory.renew(call, 0.0))
    clock.now -= 3600
    record = run(memory.lookup(call.digest))
    assert record is not None
    assert record.state == "orphan"
    assert run(memory.forget(call.digest))


def test_a_renewed_claim_is_kept_for_longer_than_its_lease(ledger: Any) -> None:
    """Else the record of a function that runs for longer than keep= would end under it."""
    call = replace(new_call(), lease=10.0, keep=20.0)

    def steps() -> Steps[Any]:
        yield from ledger.claim(call, None)
        assert (yield from ledger.renew(call, 1000.0))
        return (yield from ledger.lookup(call.digest))

    assert run(steps()).keep_left > 1000


def test_a_first_result_cannot_be_released_by_its_owner(ledger: Any) -> None:
    call = new_call()

    def steps() -> Steps[Any]:
        yield from ledger.claim(call, None)
        assert (yield from ledger.complete(call, Payload("completed", b"1")))
        assert not (yield from ledger.release(call))
        return (yield from ledger.lookup(call.digest))

    assert run(steps()).payload == Payload("completed", b"1")
