"""What a call costs where many records are kept already, and how many bytes a record takes.

The floor is the same call on the smallest table: the cost is to be flat.
"""

from collections.abc import Sequence
from functools import partial

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from benchmarks.filling import database_size, empty_databases, fill_database, fill_redis
from benchmarks.method import Measured, Plan
from benchmarks.sections import Section, measured
from benchmarks.stores import Stores
from idempo import RedisCache, UniqueInsert

__all__ = ["measure"]

FLAT = 1.2
KNOWN = 20
"""Keys that are replayed in turn, spread over the table."""


def measure(stores: Stores, plan: Plan) -> dict[str, list[Measured]]:
    """Return the tables of this benchmark, by title."""
    found: dict[str, list[Measured]] = {}
    bytes_each: list[Measured] = []
    with empty_databases(stores.redis, len(plan.sizes)) as urls:
        sizes = dict(zip(plan.sizes, urls, strict=False))
        taken = {size: fill_redis(url, size) for size, url in sizes.items()}
        found["Redis by records kept"] = measured(
            partial(in_redis, sizes=sizes), stores, "sync", plan, trips=False
        )
        bytes_each += [row("Redis", size, each) for size, each in taken.items()]
    for name, url in (("PostgreSQL", stores.postgres), ("MariaDB", stores.mariadb)):
        tables = {size: f"bench_{size}" for size in plan.sizes}
        for size, table in tables.items():
            fill_database(url, table, size)
        title = f"{name} by records kept"
        make = partial(in_database, url=url, tables=tables)
        engine = create_engine(url, poolclass=NullPool)
        with engine.begin() as connection:
            for size, table in tables.items():
                bytes_each.append(row(name, size, database_size(connection, table) / size))
        found[title] = measured(make, stores, "sync", plan, trips=False)
        with engine.begin() as connection:
            for table in tables.values():
                connection.execute(text(f"DROP TABLE {table}"))
    found["bytes per stored key"] = bytes_each
    return found


def row(name: str, size: int, each: float) -> Measured:
    return Measured(f"{name}, {worded(size)}", size, each, None, unit="bytes")


def worded(size: int) -> str:
    return f"{size:,} records".replace(",", " ")


def in_redis(section: Section, sizes: dict[int, str]) -> None:
    ledgers = []
    for size, url in sizes.items():
        cache = RedisCache(url)
        section.closing(cache, cache.close)
        ledgers.append((size, cache))
    against_smallest(section, ledgers)


def in_database(section: Section, url: str, tables: dict[int, str]) -> None:
    engine = section.engine(url)
    against_smallest(section, [(size, UniqueInsert(engine, table=table)) for size, table in tables.items()])


def against_smallest(section: Section, ledgers: Sequence[tuple[int, RedisCache | UniqueInsert]]) -> None:
    smallest = worded(ledgers[0][0])
    for size, ledger in ledgers:
        name = worded(size)
        floor, target = ("", None) if name == smallest else (smallest, FLAT)
        section.both(name, section.decorated(ledger), floor=floor, targets=(target, target), known=KNOWN)
