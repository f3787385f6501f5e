"""Owners that stall: a process stopped past its lease, or in its transaction, while somebody else takes over or waits.

Whether a lease is over is the store's to say: the tests ask it until it does.
"""

import asyncio
import functools
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from idempo import (
    Event,
    InProgressError,
    LeaseLostError,
    OneTimeToken,
    UniqueInsert,
    current,
    idempotent,
)
from idempo.contracts import Colour
from idempo.steps import Pause, Steps
from idempo.testing import Effects, Gate, drive
from tests.faults.stalled import GUARDS, LATE, LEDGERS, Worker, engine_for, joined, leased, stopped
from tests.guards.support import Shop, create_tables
from tests.servers import Server, async_url, fresh_database
from tests.traps.support import Running, calling, caught, until

colours = pytest.mark.parametrize("colour", ["sync", "async"])

LONG = 30.0  # the lease of the one that takes over
ENDINGS = ("returns", "fails", "is unsure", "is rejected", "renews", "writes")
TOLD = {
    "fails": "Declined",
    "is unsure": "OutcomeUnknownError",
}  # the others hear that they have lost their lease
STORES = {
    "unique insert, postgres": ("unique", "postgres"),
    "unique insert, mariadb": ("unique", "mariadb"),
    "unique insert, sqlite": ("unique", "sqlite"),
    "redis cache, redis": ("redis", "redis_server"),
    "redis cache, valkey": ("redis", "valkey"),
    "one time token, redis": ("token", "redis_server"),
    "monotonic version, postgres": ("version", "postgres"),
}


@dataclass(frozen=True)
class Store:
    """A ledger on a store of its own, and a business database beside it."""

    ledger: str
    url: str
    stock: str

    def rows(self) -> Any:
        """All that is recorded, byte for byte."""
        if self.url.startswith("redis"):
            client: Any
            with redis.Redis.from_url(self.url) as client:
                return {name: client.hgetall(name) for name in client.keys("*")}
        return self._ask(self.url, "SELECT * FROM idempo_records ORDER BY digest")

    def notes(self) -> list[Any]:
        return self._ask(self.stock, "SELECT id, note, fence FROM stock ORDER BY id")

    def _ask(self, url: str, sql: str) -> list[Any]:
        engine = create_engine(url, poolclass=NullPool)
        with engine.connect() as connection:
            found = [tuple(row) for row in connection.execute(text(sql))]
        engine.dispose()
        return found


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    ledger, kind = STORES[request.param]
    beside = f"sqlite:///{tmp_path}/stock.db"
    url = beside if kind == "sqlite" else fresh_database(request.getfixturevalue(kind))
    stock = beside if url.startswith("redis") else url
    engine = create_engine(stock, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE stock (id VARCHAR(100) PRIMARY KEY, note TEXT, fence BIGINT)"))
    UniqueInsert(engine).create_schema()
    return Store(ledger, url, stock)


stores = pytest.mark.parametrize("store", list(STORES), indirect=True)


def by_turns(*two: Colour) -> pytest.MarkDecorator:
    """Each store in one colour."""
    pairs = [(name, two[number % 2]) for number, name in enumerate(STORES)]
    return pytest.mark.parametrize(("store", "colour"), pairs, indirect=["store"])


@pytest.fixture(scope="module")
def workers() -> Iterator[Callable[[Colour], Worker]]:
    made: dict[Colour, Worker] = {}

    def worker(colour: Colour) -> Worker:
        if colour not in made:
            made[colour] = Worker(colour)
        return made[colour]

    yield worker
    for one in made.values():
        one.end()


def decorated(store: Store, colour: Colour, body: Callable[[str], Steps[str]], **terms: Any) -> Any:
    """The second owner's function, and its strategy."""
    using = LEDGERS[store.ledger](store.url)
    return leased(using, colour, "stalled", body, **({"lease": LONG, "wait": 0} | terms)), using


def keys(using: Any) -> Steps[dict[str, str]]:
    """A key for each ending: a token must be one that was issued."""
    found = {}
    for ending in ENDINGS:
        issued = isinstance(using, OneTimeToken)
        found[ending] = (yield using.issue()) if issued else f"{ending} {uuid.uuid4()}"
    return found


def takes_stock(store: Store, key: str, note: str) -> int:
    engine = create_engine(store.stock, poolclass=NullPool)
    with engine.begin() as connection:
        words = {"note": note, "mine": current().fence, "id": key}
        return connection.execute(text(LATE), words).rowcount


def enter_all(worker: Worker, store: Store, using: Any) -> Steps[tuple[dict[str, str], dict[str, int]]]:
    """Let the worker enter one call for each ending; their keys and fences."""
    named = yield from keys(using)
    engine = create_engine(store.stock, poolclass=NullPool)
    with engine.begin() as connection:
        for key in named.values():
            connection.execute(text("INSERT INTO stock VALUES (:id, '', 0)"), {"id": key})
    for ending, key in named.items():
        about = {"ledger": store.ledger, "url": store.url, "stock": store.stock, "name": "stalled"}
        worker.tell(call=key, ending=ending, **about)
    fences = {}
    for key in named.values():
        fences[key] = (yield from worker.hear(key, "inside"))["inside"]
    return named, fences


def until_orphans(f: Any, keys: Any) -> Steps[None]:
    """Ask the store until it calls all these keys orphans."""
    deadline = time.monotonic() + LONG
    for key in keys:
        while (yield f.lookup(key)).state != "orphan":
            assert time.monotonic() < deadline, f"{key} is no orphan"
            yield Pause(0.02)


def ends_of(worker: Worker, named: dict[str, str]) -> Steps[dict[str, Any]]:
    ends = {}
    for key in named.values():
        worker.tell(go=key)
    for ending, key in named.items():
        ends[ending] = yield from worker.hear(key, "end")
    return ends


# ------------------------------------------------------------------------ a claim with a lease


@colours
@stores
def test_an_owner_that_wakes_after_the_second_has_completed_changes_nothing(
    store: Store, colour: Colour, workers: Callable[[Colour], Worker]
) -> None:
    """However it ends: it is told, with its own result and the winner's, or its own exception passes untouched."""
    worker = workers(colour)

    def test() -> Steps[None]:
        effects = Effects()

        def body(key: str) -> Steps[str]:
            yield from ()
            effects.add(key)
            assert takes_stock(store, key, "second") == 1
            return "second"

        f, using = decorated(store, colour, body)
        named, fences = yield from enter_all(worker, store, using)
        with stopped(worker):
            yield from until_orphans(f, named.values())
            for key in named.values():
                outcome = yield f.outcome(key)
                assert (outcome.value, outcome.attempt, outcome.replayed) == ("second", 2, False)
                assert (yield f.lookup(key)).fence > fences[key]
            rows, notes = store.rows(), store.notes()
        ends = yield from ends_of(worker, named)
        for ending, end in ends.items():
            assert end.get("error") == TOLD.get(ending, "LeaseLostError"), ending
        for ending in ("returns", "renews", "writes"):
            assert (ends[ending]["ran"], ends[ending]["stored"]) == (True, "second"), ending
            assert ends[ending]["result"].startswith("first"), ending
        assert (ends["is rejected"]["result"], ends["is rejected"]["stored"]) == ("MISSING", "second")
        assert (ends["fails"]["text"], ends["is unsure"]["ran"]) == (named["fails"], None)
        assert ends["writes"]["result"] == "first changed 0 rows"
        assert store.rows() == rows
        assert store.notes() == notes
        for key in named.values():
            outcome = yield f.outcome(key)
            assert (outcome.value, outcome.attempt, outcome.replayed) == ("second", 2, True)
        assert len(effects) == len(ENDINGS)
        yield using.close()

    drive(colour, test())


@by_turns("sync", "async")
def test_an_owner_that_wakes_while_the_second_runs_changes_nothing(
    store: Store, colour: Colour, workers: Callable[[Colour], Worker]
) -> None:
    """Its release frees the key for no third, its completion is not the second's, its renewal prolongs nothing."""
    worker = workers(colour)

    def test() -> Steps[None]:
        gate, effects = Gate(colour), Effects()

        def body(key: str) -> Steps[str]:
            changed = takes_stock(store, key, "second")
            effects.add(key)
            yield gate.wait()
            return f"second changed {changed} row"

        f, using = decorated(store, colour, body)
        named, _ = yield from enter_all(worker, store, using)
        with stopped(worker):
            yield from until_orphans(f, named.values())
            second = Running(colour, [calling(functools.partial(f, key)) for key in named.values()])
            yield from until(lambda: len(effects) == len(named), "the second has entered all")
            rows, notes = store.rows(), store.notes()
        ends = yield from ends_of(worker, named)
        for ending, end in ends.items():
            assert end.get("error") == TOLD.get(ending, "LeaseLostError"), ending
            assert end.get("stored", "MISSING") == "MISSING", ending
        assert (ends["fails"]["text"], ends["writes"]["result"]) == (named["fails"], "first changed 0 rows")
        assert store.rows() == rows
        assert store.notes() == notes
        for key in named.values():
            yield from caught(InProgressError, functools.partial(f, key))
        gate.open()
        assert (yield from second.results()) == ["second changed 1 row"] * len(named)
        for key in named.values():
            assert (yield f.outcome(key)).replayed
        assert len(effects) == len(named)
        yield using.close()

    drive(colour, test())


# ------------------------------------------------------------------------ a record in the business transaction

KILL = {
    "postgres": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND state = 'idle in transaction'",
    "mariadb": "SELECT trx_mysql_thread_id FROM information_schema.innodb_trx t JOIN "
    "information_schema.processlist p ON p.id = t.trx_mysql_thread_id WHERE p.db = DATABASE()",
}


@pytest.fixture
def shop(request: pytest.FixtureRequest, colour: Colour, tmp_path: Path) -> Shop:
    """A shop with an order for each guard; the same one for the worker and for the test."""
    kind: str = request.param
    sqlite = f"sqlite:///{tmp_path}/shop.db"
    url = sqlite if kind == "sqlite" else fresh_database(request.getfixturevalue(kind))
    create_tables(url)
    shop = Shop(url, colour)
    shop.add(*range(len(GUARDS)))
    return shop


def on(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("shop", kinds, indirect=True)


def enter_each(worker: Worker, shop: Shop, guards: list[str]) -> Steps[None]:
    for order, guard in enumerate(guards):
        worker.tell(call=guard, guard=guard, order=order, url=shop.url)
    for guard in guards:
        yield from worker.hear(guard, "inside")


def seconds(shop: Shop, guards: list[str], **terms: Any) -> list[Callable[[], Steps[Any]]]:
    """The second's call for each guard."""

    def nothing() -> Steps[None]:
        yield from ()

    made = [joined(shop.engine, shop.colour, guard, nothing, **terms) for guard in guards]
    return [calling(functools.partial(f, order)) for order, f in enumerate(made)]


def payments(shop: Shop, guards: list[str]) -> list[int]:
    return [shop.payments(order) for order in range(len(guards))]


@colours
@on("postgres", "mariadb", "sqlite")
def test_a_stopped_owner_keeps_what_its_transaction_holds(
    shop: Shop, colour: Colour, workers: Callable[[Colour], Worker]
) -> None:
    """Nobody takes over from an open transaction: the wait is bounded, and the first result is the stopped one's."""
    worker = workers(colour)
    guards = ["insert"] if shop.server == "sqlite" else list(GUARDS)  # SQLite has one writer at a time

    def test() -> Steps[None]:
        yield from enter_each(worker, shop, guards)
        with stopped(worker):
            refused = yield from Running(colour, seconds(shop, guards, wait=0.3)).results()
            assert [type(one) for one in refused] == [InProgressError] * len(guards)
            assert payments(shop, guards) == [0] * len(guards)
        for guard in guards:
            worker.tell(go=guard)
        for order, guard in enumerate(guards):
            assert (yield from worker.hear(guard, "end")) == {"key": guard, "value": order}
        again = yield from Running(colour, seconds(shop, guards)).results()
        assert again == list(range(len(guards)))
        assert payments(shop, guards) == [1] * len(guards)
        yield from shop.close()

    drive(colour, test())


@colours
@on("postgres", "mariadb")
def test_a_stopped_owner_whose_connection_the_server_ends_has_no_effect(
    shop: Shop, colour: Colour, workers: Callable[[Colour], Worker]
) -> None:
    worker, guards = workers(colour), list(GUARDS)

    def test() -> Steps[None]:
        yield from enter_each(worker, shop, guards)
        with stopped(worker):
            with shop.outside.connect() as connection:
                ended = connection.execute(text(KILL[shop.server])).scalars().all()
                for number in ended if shop.server == "mariadb" else ():
                    connection.exec_driver_sql(f"KILL {int(number)}")
            assert len(ended) == len(guards)
            second = yield from Running(colour, seconds(shop, guards)).results()
            assert second == list(range(len(guards)))
        for guard in guards:
            worker.tell(go=guard)
        for guard in guards:
            assert "error" in (yield from worker.hear(guard, "end"))
        assert payments(shop, guards) == [1] * len(guards)
        again = yield from Running(colour, seconds(shop, guards)).results()
        assert again == second
        yield from shop.close()

    drive(colour, test())


# ------------------------------------------------------------------------ slow but alive

SLOW = 2.0  # a lease that the living outlast


def outlasting(f: Any, key: str, done: Gate, again: Any) -> Steps[None]:
    """Open the gate when the lease has moved past the end of the next one; refused meanwhile, time and again."""
    first = (yield f.lookup(key)).lease_until
    deadline = time.monotonic() + LONG
    while True:
        record = yield f.lookup(key)
        assert (record.state, record.attempt) == ("running", 1)
        yield from caught(InProgressError, lambda: again(key))
        if record.lease_until > first + SLOW:
            done.open()
            return
        assert time.monotonic() < deadline, "the lease does not move"
        yield Pause(0.02)


@by_turns("async", "sync")
def test_a_slow_owner_that_lives_keeps_its_claim(store: Store, colour: Colour) -> None:
    def test() -> Steps[None]:
        inside, done, effects = Gate(colour), Gate(colour), Effects()

        def body(key: str) -> Steps[str]:
            effects.add(key)
            inside.open()
            yield done.wait()
            return "slow"

        f, using = decorated(store, colour, body, lease=SLOW)
        again, other = decorated(store, colour, body, lease=SLOW)
        key = (yield from keys(using))["returns"]
        owner = Running(colour, [calling(lambda: f(key))])
        yield inside.wait()
        yield from outlasting(f, key, done, again)
        assert (yield from owner.results()) == ["slow"]
        outcome = yield again.outcome(key)
        assert (outcome.value, outcome.attempt, outcome.replayed) == ("slow", 1, True)
        assert len(effects) == 1
        yield using.close()
        yield other.close()

    drive(colour, test())


two = pytest.mark.parametrize("store", ["unique insert, postgres", "redis cache, redis"], indirect=True)


@two
def test_an_owner_that_blocks_its_event_loop_is_a_stalled_one(store: Store) -> None:
    """No timer of a blocked loop fires: another process or thread takes over, and the owner is told."""
    inside, blocked = threading.Event(), threading.Event()

    def second(key: str) -> Steps[str]:
        yield from ()
        return "second"

    def first(key: str) -> Steps[str]:
        yield from ()
        inside.set()
        blocked.wait(LONG)
        return "first"

    def take_over() -> None:
        f, using = decorated(store, "sync", second)
        inside.wait(LONG)
        drive("sync", until_orphans(f, ["A-1"]))
        f("A-1")
        using.close()
        blocked.set()

    def test() -> Steps[None]:
        f, using = decorated(store, "async", first, lease=SLOW)
        error = yield from caught(LeaseLostError, lambda: f("A-1"))
        assert (error.result, error.stored) == ("first", "second")
        assert (yield f("A-1")) == "second"
        yield using.close()

    other = threading.Thread(target=take_over)
    other.start()
    drive("async", test())
    other.join()


@two
def test_an_owner_in_a_thread_keeps_its_claim_while_the_main_thread_computes(store: Store) -> None:
    inside, done, ended = threading.Event(), Gate("sync"), threading.Event()

    def body(key: str) -> Steps[str]:
        inside.set()
        yield done.wait()
        ended.set()
        return "slow"

    f, using = decorated(store, "sync", body, lease=SLOW)
    again, other = decorated(store, "sync", body, lease=SLOW)
    owner = Running("sync", [calling(lambda: f("A-1"))])
    inside.wait(LONG)
    watch = Running("sync", [lambda: outlasting(f, "A-1", done, again)])
    numbers = 0
    while not ended.is_set():
        numbers += sum(range(1000))
    assert drive("sync", watch.results()) == [None]
    assert drive("sync", owner.results()) == ["slow"]
    assert again.outcome("A-1").attempt == 1
    using.close()
    other.close()


@colours
@pytest.mark.parametrize(
    "store", ["unique insert, postgres", "unique insert, mariadb", "unique insert, sqlite"], indirect=True
)
def test_more_calls_than_the_pool_has_connections_keep_their_claims(store: Store, colour: Colour) -> None:
    def test() -> Steps[None]:
        done, effects = Gate(colour), Effects()

        def body(key: str) -> Steps[str]:
            effects.add(key)
            yield done.wait()
            return key

        engine = engine_for(store.url, colour, pool_size=1, max_overflow=0)
        f: Any = leased(UniqueInsert(engine), colour, "stalled", body, lease=SLOW)
        again, other = decorated(store, colour, body)
        several = [f"A-{number}" for number in range(5)]
        owners = Running(colour, [calling(functools.partial(f, key)) for key in several])
        yield from until(lambda: len(effects) == len(several), "all are inside")
        yield from outlasting(again, several[-1], done, again)
        assert (yield from owners.results()) == several
        yield other.close()
        yield engine.dispose()

    drive(colour, test())


@pytest.mark.parametrize("server", ["postgres", "mariadb"])
def test_a_function_that_holds_the_only_connection_of_its_pool_keeps_its_claim(
    server: str, request: pytest.FixtureRequest
) -> None:
    place: Server = request.getfixturevalue(server)
    url = fresh_database(place)
    UniqueInsert(create_engine(url, poolclass=NullPool)).create_schema()

    async def main() -> int:
        renewals, often = list[str](), asyncio.Event()

        def hook(event: Event) -> None:
            renewals.extend([event.kind] * (event.kind == "renewed"))
            if len(renewals) == 4:
                often.set()

        engine = create_async_engine(async_url(url), pool_size=1, max_overflow=0)

        async def body(key: str) -> int:
            async with engine.connect():
                await asyncio.wait_for(often.wait(), 60)
            return current().attempt

        f = idempotent(key="{key}", using=UniqueInsert(engine), lease=SLOW, name="pool", hooks=[hook])(body)
        try:
            return await f("A-1")
        finally:
            await engine.dispose()

    assert asyncio.run(main()) == 1
