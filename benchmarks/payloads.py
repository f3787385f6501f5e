"""First run and replay of results of 100 bytes, 10 KB and 500 KB. The floor sends the same bytes."""

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import floors
from benchmarks.method import Measured, Plan
from benchmarks.sections import Section, measured
from benchmarks.stores import Stores
from idempo import UniqueInsert

__all__ = ["measure"]

SIZES = {"100 B": 100, "10 KB": 10_000, "500 KB": 500_000}
SMALL = 2
"""Calls in a block, where each call carries half a megabyte."""


def measure(stores: Stores, plan: Plan) -> dict[str, list[Measured]]:
    """Return the tables of this benchmark, by title."""
    found = {}
    for words, size in SIZES.items():
        block = plan.block if size < 100_000 else SMALL
        shorter = Plan(rounds=plan.rounds, block=block, seed=plan.seed)
        found[f"results of {words}"] = measured(
            partial(fill, size=size), stores, "sync", shorter, trips=False
        )
    return found


def fill(section: Section, size: int) -> None:
    result = b"x" * size
    redis = section.by_hand("Redis by redis-py", floors.redis_by_hand(section.stores.redis, result))
    postgres = section.by_hand("PostgreSQL by psycopg", floors.postgres_by_hand(section.stores.libpq, result))
    leased = UniqueInsert(section.engine(section.stores.postgres))
    for name, floor, ledger in (
        ("RedisCache", redis, section.cache()),
        ("UniqueInsert", postgres, leased),
    ):
        section.both(name, section.decorated(ledger, body=returning(result)), floor=floor)


def returning(result: bytes) -> Callable[[Any], bytes]:
    def body(key: str) -> bytes:
        return result

    return body
