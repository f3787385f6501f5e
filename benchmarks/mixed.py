"""Traffic as it is under retries: nine calls of ten are repeats. One measured time is that of ten calls of one key.

The floor knows beforehand which call is the first.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks import floors
from benchmarks.method import Measured, Plan, Subject, fresh_keys
from benchmarks.sections import COLOURS, Section, measured, titled
from benchmarks.stores import Stores
from idempo import LocalCache, UniqueInsert

__all__ = ["measure"]

REPEATS = 9
REDIS = "redis-py by hand"
PSYCOPG = "psycopg by hand"


def measure(stores: Stores, plan: Plan) -> dict[str, list[Measured]]:
    """Return the tables of this benchmark, by title."""
    shorter = replace(plan, block=max(1, plan.block // 3))
    return {
        titled("ten calls, nine of them repeats", colour): measured(fill, stores, colour, shorter)
        for colour in COLOURS
    }


def fill(section: Section) -> None:
    sync, stores = section.colour == "sync", section.stores
    redis = (floors.redis_by_hand if sync else floors.redis_by_hand_async)(stores.redis)
    postgres = (floors.postgres_by_hand if sync else floors.postgres_by_hand_async)(stores.libpq)
    for name, hand in ((REDIS, redis), (PSYCOPG, postgres)):
        section.closing(hand, hand.close)
        section.subjects.append(Subject(name, ten(section, hand.first, hand.replay), fresh_keys()))
    leased = UniqueInsert(section.engine(stores.postgres))
    ours: dict[str, tuple[str, list[Any]]] = {
        "RedisCache": (REDIS, [section.cache()]),
        "UniqueInsert": (PSYCOPG, [leased]),
        "RedisCache, UniqueInsert": (PSYCOPG, [section.cache(), leased]),
        "LocalCache, UniqueInsert": (PSYCOPG, [LocalCache(), leased]),
    }
    for name, (floor, using) in ours.items():
        f = section.decorated(*using)
        section.subjects.append(Subject(name, ten(section, f, f), fresh_keys(), floor))


def ten(section: Section, first: Callable[[str], Any], replay: Callable[[str], Any]) -> Callable[[str], Any]:
    """One first run and its nine repeats."""

    def plain(key: str) -> None:
        first(key)
        for _ in range(REPEATS):
            replay(key)

    async def coroutine(key: str) -> None:
        await first(key)
        for _ in range(REPEATS):
            await replay(key)

    return plain if section.colour == "sync" else coroutine
