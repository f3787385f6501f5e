"""A shop over real servers that calls one composition, and its books: what can be seen of it from outside.

The function writes one row, if it is given a session, and then tells another system; its value is the number of that
message, so that the values of two runs differ.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import redis
import redis.asyncio
from sqlalchemy import create_engine, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from idempo import INJECTED, RERUN, Found, UniqueInsert, idempotent
from idempo.contracts import Colour
from idempo.records import Call, Outcome, Record
from idempo.steps import Steps, arun, run
from tests.faults.compositions import Base, Composition, Entry, Open, Order, Stores
from tests.servers import async_url

__all__ = ["Books", "Shop"]

KEEP = 3600.0


class Books:
    """What can be seen, and moved, from outside: of the business rows, the other system, the leases."""

    def __init__(self, stores: Stores) -> None:
        self._engine = create_engine(stores.database, isolation_level="AUTOCOMMIT")
        self._redis = _client(redis, stores)
        self._prefix = stores.prefix
        self._elsewhere = redis.Redis.from_url(stores.elsewhere)
        self._table = UniqueInsert(self._engine)

    def create(self) -> None:
        Base.metadata.create_all(self._engine)
        self._table.create_schema()

    def close(self) -> None:
        self._engine.dispose()
        self._redis.close()
        self._elsewhere.close()

    def order(self, order_no: str) -> None:
        """A new business row, ready for every guard."""
        with self._engine.connect() as connection:
            connection.execute(insert(Order).values(order_no=order_no, state="new", version=1))

    def row(self, order_no: str) -> tuple[str, int]:
        """The state and the version of the business row."""
        with self._engine.connect() as connection:
            found = connection.execute(
                select(Order.state, Order.version).where(Order.order_no == order_no)
            ).one()
            return found.state, found.version

    def entries(self, order_no: str) -> int:
        """How often the function's write has been committed."""
        with self._engine.connect() as connection:
            count = select(func.count()).select_from(Entry).where(Entry.order_no == order_no)
            return int(connection.execute(count).scalar_one())

    def told(self, order_no: str) -> int:
        """How often the other system has been told."""
        return int(self._elsewhere.llen(f"told:{order_no}"))

    def end_leases(self) -> None:
        """The time of every lease is over, as if it had passed."""
        with self._engine.connect() as connection:
            connection.execute(text("UPDATE idempo_records SET lease_until = 1 WHERE state = 'running'"))
        for key in self._redis.scan_iter(f"{self._prefix}*", count=1000):
            if self._redis.hget(key, "state") == b"running":
                self._redis.hset(key, "lease", 1)


class Shop:
    """One program that calls: its clients, its decorated function, in one colour."""

    def __init__(
        self, composition: Composition, colour: Colour, stores: Stores, *, settings: Any = None, **client: Any
    ) -> None:
        self.composition = composition
        self._runner = asyncio.Runner() if colour == "async" else None
        kind: Any = redis.Redis if colour == "sync" else redis.asyncio.Redis
        make: Any = create_engine if colour == "sync" else create_async_engine
        self._session: Any = Session if colour == "sync" else AsyncSession
        url = stores.database if colour == "sync" else async_url(stores.database)
        module = redis if colour == "sync" else redis.asyncio
        self._open = Open(
            make(url, **(settings or {})), _client(module, stores, **client), prefix=stores.prefix
        )
        self._elsewhere = kind.from_url(stores.elsewhere)
        orphan: Any = self._probe if composition.on_orphan == "probe" else composition.on_orphan
        if composition.on_orphan == "probe" and colour == "async":
            orphan = self._aprobe
        self._strategies = composition.using(self._open)
        decorate = idempotent(
            key="{order_no}",
            using=self._strategies,
            name=f"faults.{composition.name}",
            on_orphan=orphan,
            keep=KEEP,
            wait=60,
        )
        body = _sync if colour == "sync" else _async
        work = self._read if composition.reads else self._work
        self.f: Any = decorate(body(work, composition.joined))

    def do(self, steps: Steps[Any]) -> Any:
        return run(steps) if self._runner is None else self._runner.run(arun(steps))

    def close(self) -> None:
        def closing() -> Steps[None]:
            yield self._open.engine.dispose()
            for client in (self._open.redis, self._elsewhere):
                yield client.aclose() if self._runner else client.close()

        self.do(closing())
        if self._runner is not None:
            self._runner.close()

    def connect(self) -> None:
        """Connect to every node of a Cluster, whichever the next key belongs to."""

        def connecting() -> Steps[None]:
            yield self._open.redis.ping(target_nodes=redis.RedisCluster.ALL_NODES)

        if "cluster" in self.composition.name:
            self.do(connecting())

    def write(self, order_no: str) -> None:
        """Write on a connection of its pool, without idempo."""

        def writing() -> Steps[None]:
            session = self._session(self._open.engine)
            try:
                yield session.execute(insert(Entry).values(order_no=order_no))
                yield session.commit()
            finally:
                yield session.close()

        self.do(writing())

    @property
    def connections_in_use(self) -> int:
        """How many connections the pool of its engine has handed out."""
        return int(self._open.engine.pool.checkedout())

    # ------------------------------------------------------------------------------------------ what it can do

    def issue(self, order_no: str) -> None:
        """Issue the token for an order, where the composition asks for one."""
        if self.composition.token:
            self._open.tokens.append(order_no)
            self.do(self._issue())

    def _issue(self) -> Steps[None]:
        yield self._strategies[0].issue()

    def call(self, order_no: str) -> Outcome[Any]:
        outcome: Outcome[Any] = self.do(self._call(order_no))
        return outcome

    def _call(self, order_no: str) -> Steps[Any]:
        arguments = {"order_no": order_no, "token": order_no, "version": 1}
        if not self.composition.callers:
            return (yield self.f.outcome(**arguments))
        session = self._session(self._open.engine)
        try:
            outcome = yield self.f.outcome(**arguments, session=session)
            yield session.commit()
        finally:
            yield session.close()
        return outcome

    def lookup(self, order_no: str) -> Record | None:
        def looking() -> Steps[Any]:
            return (yield self.f.lookup(order_no, order_no, 1))

        record: Record | None = self.do(looking())
        return record

    # ------------------------------------------------------------------------------------------ the function

    def _work(self, order_no: str, session: Any) -> Steps[dict[str, Any]]:
        if session is not None:
            yield session.execute(insert(Entry).values(order_no=order_no))
        number = yield self._elsewhere.rpush(f"told:{order_no}", "run")
        return {"order_no": order_no, "number": number}

    def _read(self, order_no: str, session: Any) -> Steps[dict[str, Any]]:
        found = yield session.execute(select(Order.version).where(Order.order_no == order_no))
        return {"order_no": order_no, "number": found.scalar_one()}

    def _probe(self, call: Call) -> Any:
        return self._judged(call, self._elsewhere.llen(f"told:{call.arguments['order_no']}"))

    async def _aprobe(self, call: Call) -> Any:
        return self._judged(call, await self._elsewhere.llen(f"told:{call.arguments['order_no']}"))

    def _judged(self, call: Call, number: int) -> Any:
        return Found({"order_no": call.arguments["order_no"], "number": number}) if number else RERUN


def _client(module: Any, stores: Stores, **options: Any) -> Any:
    """A client of redis-py, or of redis-py's asyncio, for the Redis or the Cluster of these stores."""
    scheme, cluster, rest = stores.redis.partition("+cluster")
    if not cluster:
        return module.Redis.from_url(stores.redis, **options)
    ways = dict(stores.ways)
    return module.RedisCluster.from_url(
        scheme + rest, address_remap=lambda place: (place[0], ways.get(place[1], place[1])), **options
    )


Work = Callable[[str, Any], Steps[dict[str, Any]]]


def _sync(work: Work, joined: bool) -> Callable[..., dict[str, Any]]:
    if not joined:
        return lambda order_no, token, version: run(work(order_no, None))
    return lambda order_no, token, version, session=INJECTED: run(work(order_no, session))


def _async(work: Work, joined: bool) -> Callable[..., Any]:
    async def plain(order_no: str, token: str, version: int) -> dict[str, Any]:
        return await arun(work(order_no, None))

    async def with_session(
        order_no: str, token: str, version: int, session: AsyncSession = INJECTED
    ) -> dict[str, Any]:
        return await arun(work(order_no, session))

    return with_session if joined else plain
