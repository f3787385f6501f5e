"""Clocks that jump by an hour, forwards and back: of the server, which decides, and of the application, which must not.

What the store's clock says of a record is asked for: `lease_until` against its own now.
"""

import functools
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from idempo import (
    InProgressError,
    LeaseLostError,
    OneTimeToken,
    OutcomeUnknownError,
    Record,
    RedisCache,
    UniqueInsert,
    current,
)
from idempo.contracts import Colour
from idempo.steps import Pause, Steps, run
from idempo.testing import Gate, drive
from tests.faults.stalled import LEDGERS, Unsure, Worker, leased
from tests.servers import Clock, Server, fresh_database, start
from tests.traps.support import Running, calling, caught, until

colours = pytest.mark.parametrize("colour", ["sync", "async"])
jumps = pytest.mark.parametrize("jump", [3600, -3600], ids=["forwards", "back"])

HOUR, DAY = 3600, 86_400
QUICK, LONG = 0.6, 30.0  # leases: one that is renewed in between, and one that is not
KEEP = 7 * DAY


def lease_end(record: Record) -> float:
    assert record.lease_until is not None
    return record.lease_until


def lease_left(record: Record) -> float:
    """Seconds, by the store's clock."""
    return lease_end(record) - (record.keep_until - record.keep_left)


def until_so(f: Any, key: str, fact: Callable[[Record], bool]) -> Steps[Record]:
    """Ask the store until this is so of the record, and return it."""
    deadline = time.monotonic() + LONG
    while True:
        record: Record = yield f.lookup(key)
        if fact(record):
            return record
        assert time.monotonic() < deadline, record
        yield Pause(0.02)


# ------------------------------------------------------------------------ the server's clock

SERVERS = {"postgres": ["wheel"], "mariadb": None, "valkey": None, "redis62": None}


@dataclass(frozen=True)
class Moved:
    """A server under a clock of its own."""

    server: Server
    clock: Clock

    def move(self, seconds: int) -> None:
        """Returns when the server knows: Valkey looks at the machine's clock only now and then."""
        self.clock.move(seconds)
        if self.server.url.startswith("redis"):
            client: Any
            with redis.Redis.from_url(self.server.url) as client:
                run(until(lambda: abs(self._now(client) - time.time() - seconds) < 60, "the clock has moved"))

    def _now(self, client: Any) -> int:
        return int(client.eval("return redis.call('TIME')", 0)[0])


@pytest.fixture(scope="module", params=list(SERVERS))
def moved(request: pytest.FixtureRequest) -> Iterator[Moved]:
    with Clock() as clock, start(request.param, places=SERVERS[request.param], clock=clock) as server:
        yield Moved(server, clock)


@pytest.fixture
def clock(moved: Moved) -> Iterator[Moved]:
    yield moved
    moved.move(0)


@pytest.fixture
def url(clock: Moved) -> str:
    """A database on that server."""
    url = fresh_database(clock.server)
    if not url.startswith("redis"):
        UniqueInsert(create_engine(url, poolclass=NullPool)).create_schema()
    return url


@pytest.fixture
def ledger(url: str) -> Iterator[Any]:
    """A ledger on that server. It serves both colours."""
    ledger = another(url)
    yield ledger
    ledger.close()


def another(url: str) -> Any:
    """A ledger that has not heard of the server's clock yet, as that of another process."""
    return RedisCache(url) if url.startswith("redis") else UniqueInsert(url)


class Owner:
    """A call that is inside its function until it is let go."""

    def __init__(self, ledger: Any, colour: Colour, lease: float) -> None:
        self.inside, self.gate = Gate(colour), Gate(colour)
        self.f = leased(ledger, colour, "clocks", self._body, lease=lease, keep=KEEP, wait=0)
        self.running = Running(colour, [calling(lambda: self.f("A-1"))])

    def _body(self, key: str) -> Steps[str]:
        self.inside.open()
        yield self.gate.wait()
        return "first"

    def end(self) -> Steps[Any]:
        self.gate.open()
        (found,) = yield from self.running.results()
        return found


def second(ledger: Any, colour: Colour, **terms: Any) -> Any:
    def body(key: str) -> Steps[str]:
        yield from ()
        return f"second {current().fence}"

    return leased(ledger, colour, "clocks", body, **({"lease": LONG, "keep": KEEP, "wait": 0} | terms))


@colours
def test_a_server_clock_put_forward_lets_nobody_take_over_from_the_living(
    ledger: Any, url: str, clock: Moved, colour: Colour
) -> None:
    """Neither the process of the owner nor another one that has spoken to the server before."""

    def test() -> Steps[None]:
        other = another(url)
        owner, f, g = Owner(ledger, colour, LONG), second(ledger, colour), second(other, colour)
        yield g("B-1")
        yield owner.inside.wait()
        clock.move(HOUR)
        for duplicate in (f, g, f, g):
            error = yield from caught(InProgressError, functools.partial(duplicate, "A-1"))
            assert 0 < error.retry_after <= LONG
        assert (yield from owner.end()) == "first"
        for duplicate in (f, g):
            outcome = yield duplicate.outcome("A-1")
            assert (outcome.value, outcome.attempt, outcome.replayed) == ("first", 1, True)
        yield other.close()
        yield ledger.close()

    drive(colour, test())


@colours
def test_a_stranger_takes_over_after_a_jump_forwards_and_the_first_is_told(
    ledger: Any, url: str, clock: Moved, colour: Colour
) -> None:
    """Who speaks to the server for the first time knows no other clock. One of them is the owner then."""

    def test() -> Steps[None]:
        stranger = another(url)
        owner, f = Owner(ledger, colour, LONG), second(stranger, colour)
        yield owner.inside.wait()
        before = second(ledger, colour)
        fence = (yield before.lookup("A-1")).fence
        clock.move(HOUR)
        value = yield f("A-1")
        assert int(value.split()[1]) > fence
        error = yield from owner.end()
        assert isinstance(error, LeaseLostError)
        assert (error.result, error.stored) == ("first", value)
        outcome = yield f.outcome("A-1")
        assert (outcome.value, outcome.attempt, outcome.replayed) == (value, 2, True)
        yield stranger.close()
        yield ledger.close()

    drive(colour, test())


@colours
@jumps
def test_an_owner_whose_heartbeat_comes_after_the_jump_keeps_its_claim(
    ledger: Any, clock: Moved, colour: Colour, jump: int
) -> None:
    def test() -> Steps[None]:
        owner, f = Owner(ledger, colour, QUICK), second(ledger, colour)
        yield owner.inside.wait()
        clock.move(jump)
        yield from until_so(f, "A-1", lambda record: 0 < lease_left(record) <= QUICK)
        yield from caught(InProgressError, lambda: f("A-1"))
        assert (yield from owner.end()) == "first"
        outcome = yield f.outcome("A-1")
        assert (outcome.value, outcome.attempt, outcome.replayed) == ("first", 1, True)
        yield ledger.close()

    drive(colour, test())


def test_a_server_clock_put_back_lets_nobody_take_over_from_the_living(ledger: Any, clock: Moved) -> None:
    """Nor is the first result kept for less than `keep` says."""

    def test() -> Steps[None]:
        owner, f = Owner(ledger, "sync", LONG), second(ledger, "sync")
        yield owner.inside.wait()
        clock.move(-HOUR)
        yield from caught(InProgressError, lambda: f("A-1"))
        assert (yield from owner.end()) == "first"
        record = yield f.lookup("A-1")
        assert (record.state, record.attempt) == ("completed", 1)
        assert KEEP - 60 < record.keep_left <= KEEP
        assert (yield f("A-1")) == "first"
        yield ledger.close()

    drive("sync", test())


@jumps
def test_a_first_result_is_replayed_after_the_jump(ledger: Any, clock: Moved, jump: int) -> None:
    """Its retention is shorter by the jump, or longer; it is never gone."""
    f = second(ledger, "sync")
    value = f("A-1")
    clock.move(jump)
    outcome = f.outcome("A-1")
    assert (outcome.value, outcome.attempt, outcome.replayed) == (value, 1, True)
    assert abs(f.lookup("A-1").keep_left - (KEEP - jump)) < 60
    ledger.close()


def test_fences_grow_although_the_clock_goes_back(ledger: Any, clock: Moved) -> None:
    """The second claim finds the record of a first one that failed."""
    fences = []

    def body(key: str) -> Steps[str]:
        yield from ()
        fences.append(current().fence)
        if len(fences) < 3:
            raise ZeroDivisionError
        return key

    f = leased(ledger, "sync", "clocks", body, keep=KEEP)
    for jump in (0, -HOUR, -2 * HOUR):
        clock.move(jump)
        if jump > -2 * HOUR:
            with pytest.raises(ZeroDivisionError):
                f("A-1")
    f("A-1")
    assert fences[0] < fences[1] < fences[2]
    ledger.close()


@jumps
def test_a_token_is_good_after_the_jump(ledger: Any, clock: Moved, jump: int) -> None:
    tokens = OneTimeToken(ledger)
    f = second(tokens, "sync")
    token = tokens.issue(keep=DAY)
    clock.move(jump)
    value = f(token)
    assert f.outcome(token).replayed
    assert f(token) == value
    ledger.close()


def test_the_claim_of_a_dead_owner_is_taken_over_after_a_jump_forwards_when_its_lease_is_over(
    ledger: Any, clock: Moved
) -> None:
    f = second(ledger, "sync", wait=LONG)
    with pytest.raises(SystemExit):
        leased(ledger, "sync", "clocks", dies, lease=QUICK, keep=KEEP)("A-1")
    clock.move(HOUR)
    assert f.lookup("A-1").state == "orphan"
    assert f.outcome("A-1").attempt == 2


def dies(key: str) -> Steps[str]:
    yield from ()
    raise SystemExit  # leaves the claim to its lease


def test_the_claim_of_a_dead_owner_is_not_honoured_until_a_clock_put_back_has_made_up_for_it(
    ledger: Any, clock: Moved
) -> None:
    with pytest.raises(SystemExit):
        leased(ledger, "sync", "clocks", dies, lease=QUICK, keep=DAY)("A-1")
    clock.move(-HOUR)
    assert second(ledger, "sync", wait=LONG).outcome("A-1").attempt == 2


def test_a_lease_that_its_owner_ended_is_over_though_the_clock_goes_back(ledger: Any, clock: Moved) -> None:
    def vanishes(key: str) -> Steps[str]:
        yield from ()
        raise Unsure

    first = leased(ledger, "sync", "clocks", vanishes, lease=LONG, keep=DAY)
    with pytest.raises(OutcomeUnknownError):
        first("A-1")
    clock.move(-HOUR)
    assert second(ledger, "sync", wait=0).outcome("A-1").attempt == 2


# ------------------------------------------------------------------------ the application's clock

LEDGERS_ON = {
    "unique insert, postgres": ("unique", "postgres"),
    "unique insert, mariadb": ("unique", "mariadb"),
    "redis cache, redis": ("redis", "redis_server"),
    "redis cache, valkey": ("redis", "valkey"),
    "one time token, redis": ("token", "redis_server"),
    "monotonic version, postgres": ("version", "postgres"),
}


@pytest.fixture(scope="module", params=["sync", "async"])
def worker(request: pytest.FixtureRequest) -> Iterator[tuple[Worker, Clock, Colour]]:
    """A worker under a clock of its own."""
    with Clock() as clock:
        worker = Worker(request.param, clock.environment)
        yield worker, clock, request.param
        worker.end()


@pytest.mark.parametrize(
    ("worker", "store"),
    [(("sync", "async")[number % 2], store) for number, store in enumerate(LEDGERS_ON)],
    indirect=["worker"],
)
def test_an_application_clock_that_jumps_changes_nothing(
    request: pytest.FixtureRequest, worker: tuple[Worker, Clock, Colour], store: str
) -> None:
    """It is an hour behind at the claim, an hour ahead in the function, and behind again before the completion."""
    (program, clock, colour), (kind, fixture) = worker, LEDGERS_ON[store]
    url = fresh_database(request.getfixturevalue(fixture))
    if not url.startswith("redis"):
        UniqueInsert(create_engine(url, poolclass=NullPool)).create_schema()

    def test() -> Steps[None]:
        using = LEDGERS[kind](url)
        f = second(using, colour, keep=DAY)
        key = (yield using.issue()) if isinstance(using, OneTimeToken) else f"A-{uuid.uuid4()}"
        about = {"call": key, "ending": "returns", "ledger": kind, "url": url, "stock": "", "name": "clocks"}
        clock.move(-HOUR)
        program.tell(**about, lease=QUICK, keep=DAY)
        yield from program.hear(key, "inside")
        record = yield f.lookup(key)
        assert 0 < lease_left(record) <= QUICK
        first, at_once = lease_end(record), functools.partial(f, key)
        yield from caught(InProgressError, at_once)
        clock.move(HOUR)
        record = yield from until_so(f, key, lambda record: lease_end(record) > first + QUICK)
        assert (record.state, record.attempt) == ("running", 1)
        assert lease_left(record) <= QUICK
        yield from caught(InProgressError, at_once)
        clock.move(-HOUR)
        first = lease_end(record)
        yield from until_so(f, key, lambda record: lease_end(record) > first)
        program.tell(go=key)
        assert (yield from program.hear(key, "end")) == {"key": key, "value": "first"}
        record = yield f.lookup(key)
        assert DAY - 60 < record.keep_left <= DAY
        assert abs(time.time() - record.completed_at) < 60
        outcome = yield f.outcome(key)
        assert (outcome.value, outcome.attempt, outcome.replayed) == ("first", 1, True)
        clock.move(HOUR)
        program.tell(**about, keep=DAY)  # would wait at its gate if it ran
        assert (yield from program.hear(key, "end")) == {"key": key, "value": "first"}
        yield using.close()

    drive(colour, test())


@jumps
def test_a_file_keeps_its_first_results_while_the_machines_clock_jumps(
    worker: tuple[Worker, Clock, Colour], tmp_path: Any, jump: int
) -> None:
    """The clock of SQLite is that of whoever asks. The one that runs is not taken over from when it goes back."""
    program, clock, colour = worker
    url = f"sqlite:///{tmp_path}/idempo.db"
    about = {"ending": "returns", "ledger": "unique", "url": url, "stock": "", "name": "clocks", "keep": DAY}

    def test() -> Steps[None]:
        clock.move(0)
        program.tell(call="A-1", **about)
        yield from program.hear("A-1", "inside")
        program.tell(go="A-1")
        yield from program.hear("A-1", "end")
        program.tell(call="A-2", **about, lease=LONG)
        yield from program.hear("A-2", "inside")
        clock.move(jump)
        program.tell(call="A-1", **about)
        assert (yield from program.hear("A-1", "end")) == {"key": "A-1", "value": "first"}
        if jump < 0:
            other = Worker(colour, clock.environment)
            other.tell(call="A-2", **about, wait=0)
            assert (yield from other.hear("A-2", "end"))["error"] == "InProgressError"
            other.end()
        program.tell(go="A-2")
        assert (yield from program.hear("A-2", "end")) == {"key": "A-2", "value": "first"}

    drive("sync", test())
