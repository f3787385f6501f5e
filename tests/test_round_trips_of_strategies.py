"""How many requests each strategy adds, counted on the wire: the numbers of the page "Which strategy?"."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, insert
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from idempo import (
    LocalCache,
    MonotonicVersion,
    OneTimeToken,
    ReadOnly,
    RedisCache,
    SelectForUpdate,
    StateGuard,
    UniqueInsert,
    VersionCheck,
    idempotent,
)
from idempo.contracts import Colour, Strategy
from idempo.steps import Steps
from idempo.testing import drive
from tests.faults.proxy import Proxy
from tests.servers import Server, fresh_database
from tests.test_round_trips import COLOURS, ending

PAGE = Path(__file__).resolve().parent.parent / "docs" / "how-to" / "which-strategy.md"
ROWS = Table(
    "rows",
    MetaData(),
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("status", String(20)),
    Column("version", Integer),
)
WHERE = {ROWS.c.id: "{row}"}
FLOW = {"pending": ["paid"]}
WARM = 12  # calls until the driver has prepared its statements


class Wire:
    """PostgreSQL and Redis, each behind a proxy that counts."""

    def __init__(self, database: Proxy, redis: Proxy, url: str, colour: Colour) -> None:
        self.proxies = (database, redis)
        self.colour: Colour = colour
        url = ending(url, database.port) + "?sslmode=disable"
        self.engine: Any = create_engine(url) if colour == "sync" else create_async_engine(url)
        self.cache = RedisCache(f"redis://127.0.0.1:{redis.port}")

    def joined(self) -> UniqueInsert:
        return UniqueInsert(self.engine, join="session")

    def leased(self) -> UniqueInsert:
        return UniqueInsert(self.engine)

    def count(self, call: Callable[[], Any]) -> Steps[int]:
        for proxy in self.proxies:
            proxy.reset_count()
        yield call()
        return sum(proxy.requests for proxy in self.proxies)


Making = Callable[[Wire], Strategy | list[Strategy]]

COMPOSITIONS: dict[str, Making] = {
    "RedisCache": lambda wire: wire.cache,
    "UniqueInsert": lambda wire: wire.leased(),
    "UniqueInsert, joined": lambda wire: wire.joined(),
    "RedisCache, UniqueInsert, joined": lambda wire: [wire.cache, wire.joined()],
    "LocalCache, UniqueInsert, joined": lambda wire: [LocalCache(), wire.joined()],
    "OneTimeToken(RedisCache), UniqueInsert, joined": lambda wire: [
        OneTimeToken(wire.cache, key="{token}"),
        wire.joined(),
    ],
    "StateGuard": lambda wire: StateGuard(ROWS.c.status, WHERE, FLOW, "paid", engine=wire.engine),
    "VersionCheck, expected": lambda wire: VersionCheck(
        ROWS.c.version, WHERE, expected="{version}", engine=wire.engine
    ),
    "VersionCheck": lambda wire: VersionCheck(ROWS.c.version, WHERE, engine=wire.engine),
    "RedisCache, VersionCheck": lambda wire: [
        wire.cache,
        VersionCheck(ROWS.c.version, WHERE, engine=wire.engine),
    ],
    "SelectForUpdate": lambda wire: SelectForUpdate(ROWS, WHERE, engine=wire.engine),
    "MonotonicVersion(UniqueInsert)": lambda wire: MonotonicVersion(
        wire.leased(), entity="{row}", version="{version}"
    ),
    "MonotonicVersion(UniqueInsert), joined": lambda wire: MonotonicVersion(
        wire.joined(), entity="{row}", version="{version}"
    ),
    "MonotonicVersion(RedisCache)": lambda wire: MonotonicVersion(
        wire.cache, entity="{row}", version="{version}"
    ),
    "ReadOnly": lambda wire: ReadOnly(wire.engine),
}


@pytest.fixture
def servers(postgres: Server, redis_server: Server) -> Iterator[tuple[Proxy, Proxy, str]]:
    url = fresh_database(postgres)
    engine = create_engine(url, poolclass=NullPool)
    UniqueInsert(engine).create_schema()
    ROWS.metadata.create_all(engine)
    with engine.begin() as connection:
        rows = [{"id": number, "status": "pending", "version": 1} for number in range(WARM + 1)]
        connection.execute(insert(ROWS), rows)
    with Proxy(postgres.port) as database, Proxy(redis_server.port) as redis:
        yield database, redis, url


def function(colour: Colour) -> Callable[..., Any]:
    """A function that takes the transaction and does nothing in it: what is counted is ours."""

    def plain(row: int, version: int = 1, token: str = "t", session: Any = None) -> int:
        return row

    async def coroutine(row: int, version: int = 1, token: str = "t", session: Any = None) -> int:
        return row

    return plain if colour == "sync" else coroutine


def said() -> dict[str, tuple[int, int]]:
    """What the page says: requests of a first run and of a replay."""
    rows = re.findall(r"^\| `([^`]+)` \| (\d+) \| (\d+) \|", PAGE.read_text(), re.MULTILINE)
    return {name: (int(first), int(replay)) for name, first, replay in rows}


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("name", COMPOSITIONS)
def test_the_page_says_how_many_requests_a_composition_takes(
    name: str, colour: Colour, servers: tuple[Proxy, Proxy, str]
) -> None:
    wire = Wire(*servers, colour)
    using = COMPOSITIONS[name](wire)
    f: Any = idempotent(key="{row}:{version}", using=using, name=f"{name}.{colour}.{id(wire)}")(
        function(colour)
    )
    tokens = using[0] if isinstance(using, list) and isinstance(using[0], OneTimeToken) else None

    def steps() -> Steps[None]:
        for row in range(1, WARM + 1):
            token = "t" if tokens is None else (yield tokens.issue())
            for _ in range(2):
                yield f(row, token=token)
        token = "t" if tokens is None else (yield tokens.issue())
        first = yield from wire.count(lambda: f(0, token=token))
        replay = yield from wire.count(lambda: f(0, token=token))
        yield wire.cache.close()
        yield wire.engine.dispose()
        assert said()[name] == (first, replay)

    drive(colour, steps())


def test_every_composition_of_the_page_is_counted() -> None:
    assert said().keys() == COMPOSITIONS.keys()
