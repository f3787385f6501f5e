"""Servers that go away while a function is called, and the compositions that stand on them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import create_engine, insert
from sqlalchemy.pool import NullPool

from idempo import OneTimeToken, RedisCache, StateGuard, UniqueInsert, idempotent
from idempo.contracts import Colour
from idempo.steps import Steps, arun, run
from idempo.testing import Effects
from tests.guards.support import FLOW, Order, Payment, create_tables
from tests.guards.support import Shop as Orders
from tests.servers import Server, fresh_database

ON_SQL = ("leased", "joined", "guard", "cache", "token")  # what needs the database
ON_REDIS = ("redis", "cache", "token")
IN_TRANSACTION = ("joined", "guard", "token")


@dataclass
class Place:
    """A database and a Redis, both ours to break, and the colour of those who call."""

    sql: Server
    redis: Server
    colour: Colour
    database: str = ""
    number: str = ""

    def fresh(self) -> None:
        self.database, self.number = fresh_database(self.sql), fresh_database(self.redis)
        create_tables(self.database)

    def shop(self, **limits: Any) -> "Shop":
        return Shop(self.database, self.number, self.colour, **limits)


class Shop:
    """Functions of one colour, and what they have done. `limits` are those of the Redis client."""

    def __init__(self, database: str, number: str, colour: Colour, **limits: Any) -> None:
        self.colour: Colour = colour
        self.orders = Orders(database, colour, poolclass=NullPool)
        self.orders.outside = create_engine(database, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self.client = _client(number, colour, limits)
        self.direct: Any = redis.Redis.from_url(number)
        self.leased = UniqueInsert(database)
        self.effects = Effects()
        self.tokens: dict[str, Any] = {}

    def using(self, composition: str) -> Any:
        joined = functools.partial(UniqueInsert, self.orders.engine, join="session")
        match composition:
            case "leased":
                return self.leased
            case "joined":
                return joined()
            case "guard":
                row = {Order.id: "{order}"}
                return StateGuard(Order.status, row, FLOW, "paid", engine=self.orders.engine)
            case "redis":
                return RedisCache(self.client)
            case "cache":
                return [RedisCache(self.client), self.leased]
            case "token":
                self.tokens[composition] = OneTimeToken(RedisCache(self.client), key="{token}")
                return [self.tokens[composition], joined()]
            case _:
                raise ValueError(composition)

    def function(self, composition: str, last: Callable[[], Any] = lambda: None, **terms: Any) -> Any:
        """Decorate a function that pays an order, notes that it ran, and does `last` in its last line."""

        def body(order: int, session: Any) -> Steps[int]:
            if session is not None:
                yield session.execute(insert(Payment).values(order_id=order, no=composition))
            self.effects.add(f"{composition} {order}")
            count = self.ran(composition, order)
            yield last()
            return count

        def plain(order: int, token: str = "", session: Any = None) -> int:
            return run(body(order, session))

        async def coroutine(order: int, token: str = "", session: Any = None) -> int:
            return await arun(body(order, session))

        terms = {"key": "{order}", "fingerprint": None, "wait": 30} | terms
        function: Any = plain if self.colour == "sync" else coroutine
        return idempotent(using=self.using(composition), name=composition, **terms)(function)

    def arguments(self, composition: str, order: int) -> Steps[tuple[Any, ...]]:
        """What to call it with: an order that is there, and a token that was issued."""
        self.orders.add(order)
        if composition != "token":
            return (order,)
        return (order, (yield self.tokens[composition].issue(operation="token")))

    def ran(self, composition: str, order: int) -> int:
        return self.effects.of(f"{composition} {order}")

    def close(self) -> Steps[None]:
        self.direct.close()
        yield (self.client.close() if self.colour == "sync" else self.client.aclose())
        yield self.leased.close()
        yield from self.orders.close()


def _client(url: str, colour: Colour, limits: dict[str, Any]) -> Any:
    """A client that does not try again by itself, so that the tests are quick."""
    kind: Any = redis.Redis if colour == "sync" else redis.asyncio.Redis
    retry: Any = Retry if colour == "sync" else AsyncRetry
    return kind.from_url(url, retry=retry(NoBackoff(), 0), **limits)
