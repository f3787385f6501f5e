"""Stores for the tests of tokens and versions: every ledger, in both colours, looked at and changed from outside."""

import functools
import inspect
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import redis
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from idempo import Memory, RedisCache, UniqueInsert, idempotent
from idempo.contracts import Colour, Strategy
from idempo.steps import Steps, arun, run
from idempo.testing import drive
from tests.servers import Server, fresh_database
from tests.traps.support import SECONDS, create_tables, empty_tables

S = TypeVar("S")

COLOURS: tuple[Colour, Colour] = ("sync", "async")
REDIS = {"redis": "redis_server", "redis62": "redis62", "valkey": "valkey", "cluster": "redis_cluster"}
LEASED = ("memory", *REDIS, "postgres", "mariadb", "sqlite")
JOINED = ("postgres joined", "mariadb joined", "sqlite joined")
EVERY = LEASED + JOINED
SOME = ("memory", "redis", "postgres", "mariadb joined")
MYSQL = ("mysql", "mysql joined")
ONLY: dict[str, Colour] = {
    "redis62": "sync",
    "valkey": "async",
    "cluster": "sync",
    "mysql": "sync",
    "mysql joined": "async",
}

_URLS = pytest.StashKey[dict[str, str]]()


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Store:
    """One ledger's store, empty, and ways to look into it that are not idempo's."""

    def __init__(self, kind: str, colour: Colour, url: str) -> None:
        self.kind = kind
        self.colour: Colour = colour
        self.url = url
        self.joined = kind.endswith(" joined")
        self.name = f"tokens.{uuid.uuid4()}"
        self.prefix = f"{self.name}:"
        self._opened: list[Any] = []

    def ledger(self) -> Strategy:
        """A new strategy on this store, as a user makes it."""
        raise NotImplementedError

    def records(self) -> list[dict[str, Any]]:
        """All that is stored, one dictionary for each key that anybody ever claimed or issued."""
        raise NotImplementedError

    def end_retention(self) -> None:
        """Let the time of all records be over."""
        raise NotImplementedError

    def end_leases(self) -> None:
        """Let the leases of all claims be over."""
        raise NotImplementedError

    def empty(self) -> None:
        """Lose everything."""

    def opened(self, strategy: S) -> S:
        """Close this strategy at the end of the test."""
        self._opened.append(strategy)
        return strategy

    def closing(self) -> Steps[None]:
        for strategy in self._opened:
            yield strategy.close()

    def decorate(self, body: Callable[..., Steps[Any]], using: Any = None, **options: Any) -> Any:
        """Decorate `body(order)`, given as steps, as a function of a token and more."""
        terms: Any = {"key": "{token}", "using": using or self.ledger(), "name": self.name, "wait": SECONDS}
        return idempotent(**(terms | options))(submitting(body, self.colour))


def submitting(body: Callable[..., Steps[Any]], colour: Colour) -> Any:
    """A function of this colour; the body gets the session too if it takes one."""
    with_session = len(inspect.signature(body).parameters) > 1

    def steps(order: Any, session: Any) -> Steps[Any]:
        return body(order, session) if with_session else body(order)

    def plain(token: Any, order: Any = "A-1", tenant: Any = "t", session: Any = None) -> Any:
        return run(steps(order, session))

    async def coroutine(token: Any, order: Any = "A-1", tenant: Any = "t", session: Any = None) -> Any:
        return await arun(steps(order, session))

    return plain if colour == "sync" else coroutine


class InMemory(Store):
    def __init__(self, kind: str, colour: Colour, url: str) -> None:
        super().__init__(kind, colour, url)
        self.clock = Clock()
        self._memory = Memory(clock=self.clock)

    def ledger(self) -> Strategy:
        return self._memory

    def records(self) -> list[dict[str, Any]]:
        rows: dict[bytes, Any] = self._memory._rows
        found = []
        for digest, row in rows.items():
            assert row.call.arguments == {}
            call = {name: getattr(row.call, name) for name in ("operation", "scope", "key", "fingerprint")}
            result = row.payload.data if row.payload is not None else None
            found.append({"digest": digest, "owner": row.owner, "result": result, **call})
        return found

    def end_retention(self) -> None:
        self.clock.now += 300 * 365 * 86_400

    def end_leases(self) -> None:
        self.clock.now += 3600


class InRedis(Store):
    def __init__(self, kind: str, colour: Colour, url: str) -> None:
        super().__init__(kind, colour, url)
        self.client: Any
        if kind == "cluster":
            self.client = redis.RedisCluster.from_url(url.replace("redis+cluster:", "redis:"))
        else:
            self.client = redis.Redis.from_url(url)

    def ledger(self) -> Strategy:
        return self.opened(RedisCache(self.url, prefix=self.prefix))

    def keys(self) -> list[bytes]:
        return sorted(self.client.scan_iter(match=f"{self.prefix}*", count=1000))

    def records(self) -> list[dict[str, Any]]:
        found = []
        for key in self.keys():
            fields = {name.decode(): value for name, value in self.client.hgetall(key).items()}
            found.append({"name": key.removeprefix(self.prefix.encode())} | fields)
        return found

    def end_retention(self) -> None:
        for key in self.keys():
            self.client.pexpireat(key, 1)

    def end_leases(self) -> None:
        for key in self.keys():
            self.client.hset(key, "lease", 0)

    def empty(self) -> None:
        for key in self.keys():
            self.client.delete(key)

    def closing(self) -> Steps[None]:
        yield from super().closing()
        self.empty()
        self.client.close()


class InDatabase(Store):
    def __init__(self, kind: str, colour: Colour, url: str) -> None:
        super().__init__(kind, colour, url)
        self.outside = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        empty_tables(url)

    def ledger(self) -> Strategy:
        return self.insert(join="session" if self.joined else None)

    def insert(self, **options: Any) -> UniqueInsert:
        return self.opened(UniqueInsert(self.url, **options))

    def do(self, sql: str) -> Any:
        """Ask or tell the server, on a connection of its own."""
        with self.outside.connect() as connection:
            result = connection.execute(text(sql))
            return result.mappings().all() if result.returns_rows else None

    def count(self, table: str = "orders") -> int:
        return int(self.do(f"SELECT count(*) AS n FROM {table}")[0]["n"])

    def records(self) -> list[dict[str, Any]]:
        return [dict(row) for row in self.do("SELECT * FROM idempo_records")]

    def end_retention(self) -> None:
        self.do("UPDATE idempo_records SET keep_until = 1")

    def end_leases(self) -> None:
        self.do("UPDATE idempo_records SET lease_until = 1 WHERE state = 'running'")

    def empty(self) -> None:
        self.do("DELETE FROM idempo_records")


def dump(store: Store) -> bytes:
    """Every byte that the store has, names of keys and columns included."""
    parts = [part for record in store.records() for item in record.items() for part in item]
    return b"\n".join(part if isinstance(part, bytes) else str(part).encode() for part in parts)


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """What `on` asks for."""
    kind, colour = request.param
    return make_store(kind, colour, request, tmp_path_factory)


def make_store(
    kind: str, colour: Colour, request: pytest.FixtureRequest, folders: pytest.TempPathFactory
) -> Store:
    if kind == "memory":
        return InMemory(kind, colour, "")
    if kind in REDIS:
        server: Server = request.getfixturevalue(REDIS[kind])
        url = server.url.replace("redis:", "redis+cluster:") if kind == "cluster" else server.url
        return InRedis(kind, colour, url)
    return InDatabase(kind, colour, database_url(kind.removesuffix(" joined"), request, folders))


def database_url(kind: str, request: pytest.FixtureRequest, folders: pytest.TempPathFactory) -> str:
    """A database with all tables, made once in each process."""
    urls = request.config.stash.setdefault(_URLS, {})
    if kind not in urls:
        if kind == "sqlite":
            urls[kind] = f"sqlite:///{folders.mktemp('tokens')}/shop.db"
        else:
            urls[kind] = fresh_database(request.getfixturevalue(kind))
        create_tables(urls[kind])
    return urls[kind]


def on(*kinds: str, colours: tuple[Colour, ...] = COLOURS) -> pytest.MarkDecorator:
    """Run a test on these stores, in these colours; relatives of another store in one colour."""
    values = [
        pytest.param((kind, colour), id=f"{kind}-{colour}")
        for kind in kinds
        for colour in colours
        if ONLY.get(kind, colour) == colour
    ]
    return pytest.mark.parametrize("store", values, indirect=True)


everywhere = on(*EVERY)


def driven(test: Callable[..., Steps[None]]) -> Callable[..., None]:
    """Make a test out of steps with a `store`."""

    @functools.wraps(test)
    def whole(**arguments: Any) -> None:
        store = next(one for one in arguments.values() if isinstance(one, Store))

        def steps() -> Steps[None]:
            try:
                yield from test(**arguments)
            finally:
                yield from store.closing()

        drive(store.colour, steps())

    assert inspect.isgeneratorfunction(test), f"{test} is not made of steps"
    return whole
