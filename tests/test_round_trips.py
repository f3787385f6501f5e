"""How many requests a call sends, counted on the wire."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, insert, make_url, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from idempo import RedisCache, UniqueInsert, idempotent
from idempo.contracts import Colour
from idempo.steps import Steps
from idempo.testing import drive
from tests.faults.proxy import Proxy
from tests.servers import Server, fresh_database

ORDERS = Table("orders", MetaData(), Column("id", Integer, primary_key=True), Column("no", String(50)))
COLOURS: list[Colour] = ["sync", "async"]


def ending(url: str, port: int) -> str:
    return make_url(url).set(port=port).render_as_string(hide_password=False)


@pytest.fixture
def wire(postgres: Server) -> Iterator[tuple[Proxy, str]]:
    url = fresh_database(postgres)
    engine = create_engine(url, poolclass=NullPool)
    UniqueInsert(engine).create_schema()
    ORDERS.metadata.create_all(engine)
    with Proxy(postgres.port) as proxy:
        yield proxy, ending(url, proxy.port) + "?sslmode=disable"


def counted(proxy: Proxy, work: Callable[[], Any]) -> Steps[int]:
    proxy.reset_count()
    yield work()
    return proxy.requests


def function(colour: Colour, body: Callable[[Any], Any] = lambda session: None) -> Callable[..., Any]:
    def plain(order: str, session: Any = None) -> int:
        body(session)
        return 1

    async def coroutine(order: str, session: Any = None) -> int:
        if (made := body(session)) is not None:
            await made
        return 1

    return plain if colour == "sync" else coroutine


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("server", ["redis_server", "valkey"])
def test_redis_takes_two_requests_for_a_first_run_and_one_for_a_replay(
    colour: Colour, server: str, request: pytest.FixtureRequest
) -> None:
    found: Server = request.getfixturevalue(server)
    with Proxy(found.port) as proxy:
        cache = RedisCache(f"redis://127.0.0.1:{proxy.port}")
        f: Any = idempotent(key="{order}", using=cache, name=f"trips.{colour}.{id(proxy)}")(function(colour))

        def steps() -> Steps[None]:
            for order in ("warm", "warmer"):  # the connection and the scripts
                yield f(order)
                yield f(order)
            assert (yield from counted(proxy, lambda: f("A-1"))) == 2
            assert (yield from counted(proxy, lambda: f("A-1"))) == 1
            yield cache.close()

        drive(colour, steps())


REQUESTS = {
    "postgres": (2, "?sslmode=disable"),
    "mariadb": (3, ""),  # it looks for the record before it inserts one
}


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("server", REQUESTS)
def test_a_database_takes_so_many_requests_for_a_first_run_and_one_for_a_replay(
    colour: Colour, server: str, request: pytest.FixtureRequest
) -> None:
    found: Server = request.getfixturevalue(server)
    first, settings = REQUESTS[server]
    with Proxy(found.port) as proxy:
        ledger = UniqueInsert(ending(fresh_database(found), proxy.port) + settings)
        f: Any = idempotent(key="{order}", using=ledger)(function(colour))

        def steps() -> Steps[None]:
            yield ledger.create_schema()
            for number in range(8):  # until the driver has prepared its statements
                yield f(f"warm {number}")
                yield f(f"warm {number}")
            assert (yield from counted(proxy, lambda: f("A-1"))) == first
            assert (yield from counted(proxy, lambda: f("A-1"))) == 1
            yield ledger.close()

        drive(colour, steps())


def writing(session: Any) -> Any:
    return session.execute(insert(ORDERS).values(no="A-1"))


@pytest.mark.parametrize("colour", COLOURS)
def test_a_joined_call_adds_two_requests_to_a_transaction_of_ours_and_replays_in_one(
    colour: Colour, wire: tuple[Proxy, str]
) -> None:
    proxy, url = wire
    engine: Any = create_engine(url) if colour == "sync" else create_async_engine(url)
    f: Any = idempotent(key="{order}", using=UniqueInsert(engine, join="session"))(function(colour, writing))

    def bare() -> Steps[None]:
        session: Any = Session(engine) if colour == "sync" else AsyncSession(engine)
        yield writing(session)
        yield session.commit()
        yield session.close()

    def steps() -> Steps[None]:
        for number in range(8):
            yield from bare()
            yield f(f"warm {number}")
            yield f(f"warm {number}")
        proxy.reset_count()
        yield from bare()
        floor = proxy.requests
        assert (yield from counted(proxy, lambda: f("A-1"))) - floor <= 2
        assert (yield from counted(proxy, lambda: f("A-1"))) == 1
        yield engine.dispose()

    drive(colour, steps())


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("kind", ["session", "connection"])
def test_a_joined_call_adds_two_requests_to_the_callers_transaction_and_replays_in_one(
    colour: Colour, kind: str, wire: tuple[Proxy, str]
) -> None:
    """Also where a session knows of the savepoint that the function runs behind."""
    proxy, url = wire
    engine: Any = create_engine(url) if colour == "sync" else create_async_engine(url)
    f: Any = idempotent(key="{order}", using=UniqueInsert(join="session"))(function(colour, writing))

    def opened() -> Steps[Any]:
        if kind == "session":
            return Session(engine) if colour == "sync" else AsyncSession(engine)
        return (yield engine.connect())

    def transaction(work: Callable[[Any], Any]) -> Steps[int]:
        session = yield from opened()
        yield session.execute(select(ORDERS.c.id).where(ORDERS.c.id == 0))
        proxy.reset_count()
        yield work(session)
        taken = proxy.requests
        yield session.commit()
        yield session.close()
        return taken

    def steps() -> Steps[None]:
        for number in range(8):
            yield from transaction(writing)
            yield from transaction(lambda session: f(f"warm {number}", session))  # noqa: B023
            yield from transaction(lambda session: f(f"warm {number}", session))  # noqa: B023
        floor = yield from transaction(writing)
        assert (yield from transaction(lambda session: f("A-1", session))) - floor <= 2
        assert (yield from transaction(lambda session: f("A-1", session))) == 1
        yield engine.dispose()

    drive(colour, steps())


@pytest.mark.parametrize("colour", COLOURS)
def test_nothing_is_sent_and_no_connection_is_held_while_the_function_runs(
    colour: Colour, wire: tuple[Proxy, str]
) -> None:
    """Nor between calls: a claim is one request, a completion another, and nobody polls while nobody waits."""
    proxy, url = wire
    engine: Any = create_engine(url) if colour == "sync" else create_async_engine(url)
    seen: list[tuple[int, int]] = []

    def body(_: Any) -> None:
        seen.append((proxy.requests, engine.pool.checkedout()))

    f: Any = idempotent(key="{order}", using=UniqueInsert(engine))(function(colour, body))

    def steps() -> Steps[None]:
        for number in range(8):
            yield f(f"warm {number}")
        proxy.reset_count()
        yield f("A-1")
        assert seen[-1] == (1, 0)
        assert (proxy.requests, engine.pool.checkedout()) == (2, 0)
        yield engine.dispose()

    drive(colour, steps())
