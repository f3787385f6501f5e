"""Drivers of MariaDB and MySQL give up a database that says nothing: after a minute, or when a URL says so."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from idempo import Event, LedgerUnavailableError, OutcomeUnknownError
from idempo.connections import Database
from idempo.contracts import Colour
from idempo.steps import Steps
from tests.faults.paused import Place, Shop, driven
from tests.faults.proxy import Proxy
from tests.servers import start
from tests.traps.support import caught

AFTERWARDS = 0.5  # a lease that is over when the server goes on
NAMED = "?read_timeout=2"
LOST = 2013  # lost connection during query

colours = pytest.mark.parametrize("colour", ["sync", "async"])
kinds = pytest.mark.parametrize("kind", ["leased", "joined"])


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with start("mariadb") as server, Proxy(server.port) as proxy:
        yield Place(server, proxy)


@colours
@pytest.mark.parametrize(("kind", "connected"), [("leased", True), ("leased", False), ("joined", True)])
def test_a_claim_that_a_stopped_database_does_not_answer_is_refused_when_the_time_is_over(
    place: Place, colour: Colour, kind: str, connected: bool
) -> None:
    """Whether the claim was sent, so that the database finds it when it goes on, or there was no connection yet."""

    def test(shop: Shop) -> Steps[None]:
        f, order = shop.function(kind), shop.new()
        if connected:
            yield f(shop.new())
        place.stop()
        error = yield from caught(LedgerUnavailableError, lambda: f(order))
        assert (error.ran, shop.ran(order)) == (False, 0)
        assert error.__cause__.orig.args[0] == LOST
        place.go_on()
        outcome = yield f.outcome(order)
        assert (outcome.value, outcome.replayed) == (order * 10 + 1, False)
        assert (yield f.outcome(order)).replayed
        assert (shop.ran(order), shop.effects(kind, order)) == (1, 1)

    driven(place, colour, test, NAMED, lease=AFTERWARDS)


@colours
def test_a_late_answer_is_never_taken_for_that_to_the_next_question(place: Place, colour: Colour) -> None:
    """The connection is given up: what the database still says on it is heard by nobody."""

    def test(shop: Shop) -> Steps[None]:
        f, orders = shop.function("leased"), [shop.new(), shop.new()]
        for order in orders:
            yield f(order)
        before = place.connections
        place.stop()
        yield from caught(LedgerUnavailableError, lambda: f(orders[0]))
        place.go_on()
        for order in reversed(orders):
            outcome = yield f.outcome(order)
            assert (outcome.value, outcome.replayed, outcome.key) == (order * 10 + 1, True, str(order))
        assert place.connections > before
        assert len(shop.runs) == 2

    driven(place, colour, test, NAMED)


@kinds
@colours
def test_a_completion_that_a_stopped_database_does_not_answer_has_one_effect(
    place: Place, colour: Colour, kind: str
) -> None:
    """Leased it is tried again until the database goes on; joined there is no commit yet, and the repeat runs."""

    def test(shop: Shop) -> Steps[None]:
        def hook(event: Event) -> None:
            if event.detail.startswith("completion"):
                place.go_on()

        f, order = shop.function(kind, place.stop, hooks=[hook]), shop.new()
        if kind == "leased":
            assert (yield f(order)) == order * 10 + 1
        else:
            error = yield from caught(OutcomeUnknownError, lambda: f(order))
            assert (error.ran, error.result) == (None, order * 10 + 1)
            place.go_on()
        outcome = yield shop.function(kind).outcome(order)
        assert (outcome.value, outcome.replayed) == (order * 10 + shop.ran(order), kind == "leased")
        assert (shop.ran(order), shop.effects(kind, order)) == (1 if kind == "leased" else 2, 1)

    driven(place, colour, test, NAMED)


@colours
def test_a_table_is_made_or_purged_by_the_repeat_of_what_a_stopped_database_cut_short(
    place: Place, colour: Colour
) -> None:
    """It ends with the driver's error, whatever became of it; what is to be kept is kept."""

    def test(shop: Shop) -> Steps[None]:
        records, f, orders = shop.records["leased"], shop.function("leased"), [shop.new(), shop.new()]
        for order in orders:
            yield f(order)
        with shop.orders.outside.connect() as connection:
            connection.execute(text("UPDATE idempo_records SET keep_until = 1 WHERE business_key = '1'"))
        place.stop()
        for work in (records.create_schema, records.purge):
            error = yield from caught(OperationalError, work)
            assert error.orig.args[0] == LOST
        place.go_on()
        yield records.create_schema()
        while (yield records.purge()):
            pass
        assert shop.orders.scalar("SELECT count(*) FROM idempo_records WHERE business_key = '1'") == 0
        assert (yield f.outcome(orders[1])).replayed
        assert not (yield f.outcome(orders[0])).replayed

    driven(place, colour, test, NAMED)


def asked_for(url: str, colour: Colour) -> dict[str, Any]:
    """What the driver is asked for, by the engine that idempo makes from a URL."""

    class Enough(Exception):
        pass

    async def in_loop() -> dict[str, Any]:
        found: dict[str, Any] = {}
        engine: Any = Database(url).engine(colour)
        engine = getattr(engine, "sync_engine", engine)

        @event.listens_for(engine, "do_connect")
        def connecting(dialect: Any, record: Any, args: Any, parameters: Any) -> None:
            found.update(parameters)
            raise Enough

        with pytest.raises(Enough):
            engine.raw_connection()
        return found

    return asyncio.run(in_loop())


@pytest.mark.parametrize("driver", ["mysql", "mysql+pymysql", "mariadb+pymysql", "mysql+asyncmy"])
@pytest.mark.parametrize(
    ("query", "seconds"), [("", (60, 60)), ("?read_timeout=5", (5, 60)), ("?write_timeout=7", (60, 7))]
)
def test_a_plain_functions_driver_has_a_bound_of_a_minute_or_what_the_url_names(
    driver: str, query: str, seconds: tuple[int, int]
) -> None:
    asked = asked_for(f"{driver}://root@localhost/shop{query}", "sync")
    assert (asked["read_timeout"], asked["write_timeout"]) == seconds


@pytest.mark.parametrize("driver", ["mysql", "mysql+pymysql", "mysql+asyncmy"])
@pytest.mark.parametrize(("query", "seconds"), [("", 60), ("?read_timeout=5", 5), ("?write_timeout=7", 60)])
def test_a_coroutine_functions_driver_has_the_same_bound_for_answers(
    driver: str, query: str, seconds: int
) -> None:
    """asyncmy knows no other."""
    asked = asked_for(f"{driver}://root@localhost/shop{query}", "async")
    assert asked["read_timeout"] == seconds
    assert "write_timeout" not in asked


@pytest.mark.parametrize("url", ["postgresql://localhost/shop", "postgresql+asyncpg://localhost/shop"])
def test_psycopg_has_no_bound_for_answers_and_gives_up_a_host_that_has_vanished(url: str) -> None:
    asked = asked_for(url, "sync")
    assert "read_timeout" not in asked
    assert asked["tcp_user_timeout"] == 60_000


def test_a_driver_that_is_not_known_to_have_a_bound_is_not_asked_for_one() -> None:
    assert set(asked_for("postgresql+asyncpg://localhost/shop", "async")) == {"host", "database"}
