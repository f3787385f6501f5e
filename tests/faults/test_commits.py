"""Faults around a commit: its reply or request lost, its server gone, its caller cancelled."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import make_url

from idempo import IdempoError, OutcomeUnknownError
from idempo.contracts import Colour
from idempo.steps import Steps
from idempo.testing import Effects, Gate
from tests.faults.drivers import server_by
from tests.faults.proxy import Proxy
from tests.servers import Server, start
from tests.traps.support import Running, Shop, calling, driven, in_session, place, shop_database

COMMIT = {
    "psycopg": b"COMMIT\x00",
    "asyncpg": b"COMMIT;",
    "pymysql": b"\x03COMMIT",
    "asyncmy": b"\x03COMMIT",
    "psycopg2": b"COMMIT\x00",
    "pg8000": b"commit\x00",  # announces it in a request of its own: then it is never made
    "mysqlconnector": b"\x03COMMIT",
}
BLOCKING = ("psycopg", "psycopg2", "pymysql", "mysqlconnector")
LOSSES = ("reply", "request")
AWAITED = ("psycopg", "asyncpg", "asyncmy")
colours = pytest.mark.parametrize(
    ("driver", "colour"),
    [*((driver, "sync") for driver in BLOCKING), *((driver, "async") for driver in AWAITED)],
)
awaited = pytest.mark.parametrize("driver", AWAITED)
WAITING = {
    "postgres": "SELECT count(*) FROM pg_stat_activity "
    "WHERE datname = current_database() AND wait_event_type = 'Lock'",
    "mariadb": "SELECT count(*) FROM information_schema.processlist WHERE db = DATABASE() "
    "AND info LIKE 'SELECT%FOR UPDATE%' AND command <> 'Sleep' AND time_ms > 20",
}


@pytest.fixture
def server(driver: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Server:
    return server_by(driver, request, monkeypatch)


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


def database(server: Server, proxy: Proxy | None = None) -> str:
    url = shop_database(server)
    if proxy is None:
        return url
    behind = make_url(url).set(host="127.0.0.1", port=proxy.port)
    if server.kind == "postgres" and "+pg8000" not in url:  # that one does not ask for encryption
        behind = behind.update_query_dict({"sslmode": "disable"})
    return behind.render_as_string(hide_password=False)


@pytest.mark.parametrize(
    ("driver", "colour", "loss"),
    [
        *((driver, "sync", loss) for driver in BLOCKING for loss in LOSSES),
        *((driver, "async", loss) for driver in AWAITED for loss in LOSSES),
        ("pg8000", "sync", "request"),
    ],
)
def test_a_commit_that_is_lost_has_one_effect(
    server: Server, driver: str, proxy: Proxy, colour: Colour, loss: str
) -> None:
    """Read again it is the value; not found again it is an unknown outcome; the repeat is right in both cases."""

    def test(shop: Shop) -> Steps[None]:
        effects = Effects()

        def body(order_no: str, session: Any) -> Steps[Any]:
            yield from place(order_no, session)
            if effects.add(order_no) == 2:  # the next commit is the one of this transaction
                (proxy.drop_reply if loss == "reply" else proxy.drop_request)(COMMIT[driver])
            return len(effects)

        f = shop.decorate(body)
        yield f("warm")
        (first,) = yield from Running(colour, [calling(lambda: f("A-1"))]).results()
        assert proxy.fired.is_set()
        outcome = yield f.outcome("A-1")
        if loss == "reply":
            assert (first, outcome.value, outcome.replayed) == (2, 2, True)
        else:
            assert isinstance(first, OutcomeUnknownError)
            assert (first.result, outcome.value, outcome.replayed) == (2, 3, False)
        assert shop.orders("A-1") == 1

    driven(database(server, proxy), colour, test)


@colours
def test_a_commit_of_the_callers_own_that_is_lost_is_answered_by_the_repeat(
    server: Server, driver: str, proxy: Proxy, colour: Colour
) -> None:
    """The driver's error is the caller's to see; the repeat in a new transaction replays."""

    def test(shop: Shop) -> Steps[None]:
        def body(order_no: str, session: Any) -> Steps[Any]:
            yield from place(order_no, session)
            proxy.drop_reply(COMMIT[driver])
            return order_no

        f = shop.decorate(body)
        (error,) = yield from Running(colour, [in_session(shop, f, "A-1")]).results()
        assert proxy.fired.is_set()
        assert isinstance(error, Exception)
        assert not isinstance(error, IdempoError)
        assert (yield f.outcome("A-1")).replayed
        assert shop.orders("A-1") == 1

    driven(database(server, proxy), colour, test)


@colours
def test_a_connection_cut_while_the_function_runs_leaves_nothing(
    server: Server, proxy: Proxy, colour: Colour
) -> None:
    def test(shop: Shop) -> Steps[None]:
        effects = Effects()

        def body(order_no: str, session: Any) -> Steps[Any]:
            yield from place(order_no, session)
            if effects.add(order_no) == 1:
                proxy.cut()
            return len(effects)

        f = shop.decorate(body)
        (first,) = yield from Running(colour, [calling(lambda: f("A-1"))]).results()
        assert isinstance(first, Exception)
        outcome = yield f.outcome("A-1")
        assert (outcome.value, outcome.attempt, outcome.replayed) == (2, 1, False)
        assert shop.orders() == 1

    driven(database(server, proxy), colour, test)


@awaited
@pytest.mark.parametrize("caller", ["idempo's transaction", "a session"])
def test_a_waiter_cancelled_inside_the_database_leaves_nothing_behind(server: Server, caller: str) -> None:
    """Its connections are whole again, and so is the pool."""

    def test(shop: Shop) -> Steps[None]:
        f, owner = shop.decorate(place), shop.sessions()
        call = calling(lambda: f("A-1")) if caller == "idempo's transaction" else in_session(shop, f, "A-1")
        try:
            yield f("A-1", session=owner)
            waiters = Running("async", [call] * 3)
            yield from shop.until(WAITING[server.kind], 3)
            waiters.cancel()
            found = yield from waiters.results()
            assert [type(one) for one in found] == [asyncio.CancelledError] * 3
            yield owner.rollback()
        finally:
            yield owner.close()
        assert shop.engine.sync_engine.pool.checkedout() == 0
        results = yield from Running("async", [call] * 3).results()
        assert results == ["placed A-1"] * 3
        assert shop.orders() == 1

    driven(database(server), "async", test)


@awaited
def test_a_function_cancelled_in_its_transaction_leaves_nothing_and_the_next_call_runs_at_once(
    server: Server,
) -> None:
    def test(shop: Shop) -> Steps[None]:
        inside, effects = Gate("async"), Effects()

        def body(order_no: str, session: Any) -> Steps[Any]:
            yield from place(order_no, session)
            if effects.add(order_no) == 1:
                inside.open()
                yield asyncio.Event().wait()
            return len(effects)

        f = shop.decorate(body, lease=3600)
        owner = Running("async", [calling(lambda: f("A-1"))])
        yield inside.wait()
        owner.cancel()
        (cancelled,) = yield from owner.results()
        assert isinstance(cancelled, asyncio.CancelledError)
        assert shop.engine.sync_engine.pool.checkedout() == 0
        outcome = yield f.outcome("A-1")
        assert (outcome.value, outcome.attempt) == (2, 1)
        assert shop.orders() == 1

    driven(database(server), "async", test)


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
def test_a_server_killed_while_the_function_runs_leaves_all_or_nothing(kind: str) -> None:
    """It comes back on the same data: the first key is there, the one under way is not, and its repeat runs."""
    with start(kind) as server:
        effects = Effects()

        def test(shop: Shop) -> Steps[None]:
            def body(order_no: str, session: Any) -> Steps[Any]:
                yield from place(order_no, session)
                if effects.add(order_no) == 2:
                    server.kill()
                return len(effects)

            f = shop.decorate(body)
            assert (yield f("A-1")) == 1
            (broken,) = yield from Running("sync", [calling(lambda: f("A-2"))]).results()
            assert isinstance(broken, Exception)
            (refused,) = yield from Running("sync", [calling(lambda: f("A-3"))]).results()
            assert isinstance(refused, IdempoError)
            assert refused.ran is False
            server.start()
            assert (yield f.outcome("A-1")).replayed
            assert (yield f("A-2")) == 3
            assert (shop.orders("A-1"), shop.orders("A-2"), shop.orders("A-3")) == (1, 1, 0)

        driven(database(server), "sync", test)
