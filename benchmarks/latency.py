"""Latency of the first run and of a replay, ledger by ledger, each against its floor; and their round trips."""

from typing import Any

from benchmarks import floors, floors_sql
from benchmarks.method import Measured, Plan
from benchmarks.sections import COLOURS, Making, Section, measured, titled
from benchmarks.stores import Stores
from idempo import LocalCache, Memory, MonotonicVersion, OneTimeToken, RedisCache, UniqueInsert
from idempo.contracts import Colour
from tests.servers import async_url

__all__ = ["measure"]

REDIS = "SET NX and SET by redis-py"
PSYCOPG = "two statements by psycopg"


def measure(stores: Stores, plan: Plan) -> dict[str, list[Measured]]:
    """Return the tables of this benchmark, by title."""
    floors_sql.mariadb_by_hand(stores.mariadb).close()  # its table, for both colours
    tables: dict[str, tuple[Making, tuple[Colour, ...]]] = {
        "in this process": (in_process, COLOURS),
        "SQLite, own transactions": (sqlite, COLOURS),
        "Redis": (redis, COLOURS),
        "PostgreSQL, own transactions": (postgres, COLOURS),
        "MariaDB, own transactions": (mariadb, COLOURS),
    }
    return {
        titled(title, colour): measured(make, stores, colour, plan)
        for title, (make, colours) in tables.items()
        for colour in colours
    }


def in_process(section: Section) -> None:
    sync = section.colour == "sync"
    memory = section.decorated(Memory())
    section.both("Memory", memory, targets=(8.0, 3.0) if sync else (None, None))
    cached = section.decorated(LocalCache(), Memory())
    section.both("LocalCache, Memory", cached, targets=(None, 3.0) if sync else (None, None))


def sqlite(section: Section) -> None:
    url = section.stores.sqlite
    if section.colour == "sync":
        floor = section.by_hand("two statements by sqlite3", floors_sql.sqlite_by_hand(url))
    else:
        floor = section.by_hand("two statements by aiosqlite", floors_sql.sqlite_by_hand_async(url))
    section.both("UniqueInsert", section.decorated(leased(section, url)), floor=floor)


def redis(section: Section) -> None:
    url = section.stores.redis
    if section.colour == "sync":
        floor = section.by_hand(REDIS, floors.redis_by_hand(url))
        section.by_hand("the requests of idempo by redis-py", floors.redis_scripts(url), floor)
    else:
        floor = section.by_hand(REDIS, floors.redis_by_hand_async(url))
    section.both("RedisCache", section.decorated(section.cache()), floor=floor, targets=(1.15, 1.15))
    tokens = OneTimeToken(section.cache())
    section.both(
        "OneTimeToken(RedisCache)",
        section.decorated(tokens),
        floor=floor,
        keys=tokens.issue,
        note="issued before, not measured",
    )
    versions = MonotonicVersion(section.cache(), entity="{key}", version=lambda key: 1)
    section.both("MonotonicVersion(RedisCache)", section.decorated(versions), floor=floor)


def postgres(section: Section) -> None:
    by_hand = floors.postgres_by_hand if section.colour == "sync" else floors.postgres_by_hand_async
    floor = section.by_hand(PSYCOPG, by_hand(section.stores.libpq))
    url = section.stores.postgres
    section.both("UniqueInsert", section.decorated(leased(section, url)), floor=floor, targets=(1.25, 1.25))
    section.both("MonotonicVersion(UniqueInsert)", section.decorated(versioned(section, url)), floor=floor)
    section.both("RedisCache, UniqueInsert", tiers(section, section.cache()), floor=floor)
    section.both(
        "LocalCache, UniqueInsert", tiers(section, LocalCache()), floor=floor, note="its replay asks nobody"
    )


def mariadb(section: Section) -> None:
    url = section.stores.mariadb
    if section.colour == "sync":
        floor = section.by_hand("two statements by PyMySQL", floors_sql.mariadb_by_hand(url))
    else:
        floor = section.by_hand("two statements by asyncmy", floors_sql.mariadb_by_hand_async(url))
    section.both("UniqueInsert", section.decorated(leased(section, url)), floor=floor)
    section.both("MonotonicVersion(UniqueInsert)", section.decorated(versioned(section, url)), floor=floor)


def leased(section: Section, url: str) -> UniqueInsert:
    """A ledger made from a URL, as in the documentation's first lines."""
    made = UniqueInsert(url if section.colour == "sync" else async_url(url))
    section.closing(made, made.close)
    return made


def versioned(section: Section, url: str) -> MonotonicVersion:
    return MonotonicVersion(leased(section, url), entity="{key}", version=lambda key: 1)


def tiers(section: Section, outside: RedisCache | LocalCache) -> Any:
    return section.decorated(outside, leased(section, section.stores.postgres))
