"""The compositions that the faults are tried on, and the tables and stores that they work with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

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
)

__all__ = [
    "BY_NAME",
    "CLUSTER",
    "COMPOSITIONS",
    "READS",
    "Base",
    "Composition",
    "Entry",
    "Open",
    "Order",
    "Stores",
]


class Base(DeclarativeBase):
    pass


class Entry(Base):
    """What the function writes. Nothing keeps two of one order apart: a second effect is seen."""

    __tablename__ = "entries"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_no: Mapped[str] = mapped_column(String(100), index=True)


class Order(Base):
    """The row that guards judge."""

    __tablename__ = "orders"
    order_no: Mapped[str] = mapped_column(String(100), primary_key=True)
    state: Mapped[str] = mapped_column(String(20))
    version: Mapped[int]


@dataclass(frozen=True)
class Stores:
    """Where a shop finds its servers."""

    database: str
    redis: str
    elsewhere: str
    """The other system: a Redis, too."""
    prefix: str = "idempo:"
    """Of the keys of records in Redis. A Cluster has one database only, which others use as well."""
    ways: tuple[tuple[int, int], ...] = ()
    """The ports by which the nodes of a Cluster are reached, which name each other by their own."""


@dataclass(frozen=True)
class Open:
    """A shop's clients, as the strategies take them."""

    engine: Any
    redis: Any
    tokens: list[str] = field(default_factory=list)
    """What the next tokens are."""
    prefix: str = "idempo:"

    def token(self, ledger: Any, **options: Any) -> OneTimeToken:
        return OneTimeToken(ledger, make=self.tokens.pop, **options)


@dataclass(frozen=True)
class Composition:
    """One `using=` and how the function is called under it."""

    name: str
    using: Callable[[Open], list[Any]]
    joined: bool = False
    """The function is given a session."""
    callers: bool = False
    """The caller opens that session and commits."""
    on_orphan: str = "rerun"
    token: bool = False
    reads: bool = False
    """The function reads, and nothing else."""
    servers: frozenset[str] = frozenset({"database"})
    options: Mapping[str, Any] = field(default_factory=dict)


def _by_order(column: Any) -> dict[Any, str]:
    return {column: "{order_no}"}


FLOW = {"new": ["paid", "cancelled"], "paid": ["sent"]}
BOTH = frozenset({"database", "redis"})
REDIS = frozenset({"redis"})

COMPOSITIONS = (
    Composition("insert", lambda at: [UniqueInsert(at.engine)]),
    Composition("insert-refuse", lambda at: [UniqueInsert(at.engine)], on_orphan="refuse"),
    Composition("insert-probe", lambda at: [UniqueInsert(at.engine)], on_orphan="probe"),
    Composition("redis", lambda at: [RedisCache(at.redis)], servers=REDIS),
    Composition("redis-refuse", lambda at: [RedisCache(at.redis)], on_orphan="refuse", servers=REDIS),
    Composition("redis-probe", lambda at: [RedisCache(at.redis)], on_orphan="probe", servers=REDIS),
    Composition("redis+insert", lambda at: [RedisCache(at.redis), UniqueInsert(at.engine)], servers=BOTH),
    Composition("local+redis", lambda at: [LocalCache(), RedisCache(at.redis)], servers=REDIS),
    Composition("token(redis)", lambda at: [at.token(RedisCache(at.redis))], token=True, servers=REDIS),
    Composition("token(insert)", lambda at: [at.token(UniqueInsert(at.engine))], token=True),
    Composition(
        "version(redis)",
        lambda at: [MonotonicVersion(RedisCache(at.redis), entity="{order_no}", version="{version}")],
        servers=REDIS,
    ),
    Composition(
        "version(insert)",
        lambda at: [MonotonicVersion(UniqueInsert(at.engine), entity="{order_no}", version="{version}")],
    ),
    Composition("joined", lambda at: [UniqueInsert(at.engine, join="session")], joined=True),
    Composition(
        "joined-callers", lambda at: [UniqueInsert(at.engine, join="session")], joined=True, callers=True
    ),
    Composition(
        "state",
        lambda at: [StateGuard(Order.state, _by_order(Order.order_no), FLOW, "paid", engine=at.engine)],
        joined=True,
    ),
    Composition(
        "state-callers",
        lambda at: [StateGuard(Order.state, _by_order(Order.order_no), FLOW, "paid", engine=at.engine)],
        joined=True,
        callers=True,
    ),
    Composition(
        "expected",
        lambda at: [
            VersionCheck(Order.version, _by_order(Order.order_no), expected="{version}", engine=at.engine)
        ],
        joined=True,
    ),
    Composition(
        "compared",
        lambda at: [VersionCheck(Order.version, _by_order(Order.order_no), retries=3, engine=at.engine)],
        joined=True,
    ),
    Composition(
        "locked",
        lambda at: [SelectForUpdate(Order, _by_order(Order.order_no), engine=at.engine)],
        joined=True,
    ),
    Composition(
        "redis+joined",
        lambda at: [RedisCache(at.redis), UniqueInsert(at.engine, join="session")],
        joined=True,
        servers=BOTH,
    ),
    Composition(
        "token(redis)+joined",
        lambda at: [
            at.token(RedisCache(at.redis), key="{token}"),
            UniqueInsert(at.engine, join="session"),
        ],
        joined=True,
        token=True,
        servers=BOTH,
    ),
    Composition(
        "token(joined)",
        lambda at: [at.token(UniqueInsert(at.engine, join="session"))],
        joined=True,
        token=True,
    ),
    Composition(
        "version(joined)",
        lambda at: [
            MonotonicVersion(
                UniqueInsert(at.engine, join="session"), entity="{order_no}", version="{version}"
            )
        ],
        joined=True,
    ),
    Composition(
        "redis+state+locked",
        lambda at: [
            RedisCache(at.redis),
            UniqueInsert(at.engine, join="session"),
            SelectForUpdate(Order, _by_order(Order.order_no)),
            StateGuard(Order.state, _by_order(Order.order_no), FLOW, "paid"),
        ],
        joined=True,
        servers=BOTH,
    ),
)
CLUSTER = Composition("cluster", lambda at: [RedisCache(at.redis, prefix=at.prefix)], servers=REDIS)
READS = (
    Composition("read", lambda at: [ReadOnly(at.engine)], joined=True, reads=True),
    Composition("read-callers", lambda at: [ReadOnly("session")], joined=True, reads=True, callers=True),
)
BY_NAME = {composition.name: composition for composition in (*COMPOSITIONS, CLUSTER, *READS)}
