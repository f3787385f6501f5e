"""Latency of the first run and of a replay, strategy by strategy, each against its floor."""

from collections.abc import Callable
from typing import Any

from benchmarks import floors
from benchmarks.method import Measured, Plan, Subject, fresh_keys, interleave, interleave_async
from benchmarks.stores import Stores
from idempo import (
    LocalCache,
    Memory,
    RedisCache,
    UniqueInsert,
    idempotent,
)

__all__ = ["measure"]

KNOWN = "known"


def measure(stores: Stores, plan: Plan) -> dict[str, list[Measured]]:
    """Return the tables of this benchmark, by title."""
    found: dict[str, list[Measured]] = {}
    found["in this process"] = interleave(_in_process(), plan)
    found["Redis"] = interleave(_redis(stores), plan)
    found["Redis, async"] = interleave_async(_redis_async(stores), plan)
    found["PostgreSQL"] = interleave(_postgres(stores), plan)
    found["PostgreSQL, async"] = interleave_async(_postgres_async(stores), plan)
    return found


def once(key: str) -> int:
    return 1


async def once_async(key: str) -> int:
    return 1


def decorated(*using: Any, asynchronous: bool = False) -> Any:
    """A function that does nothing, behind these strategies."""
    return idempotent(key="{key}", using=list(using), name="bench")(once_async if asynchronous else once)


def both(
    name: str,
    first: Callable[[str], Any],
    replay: Callable[[str], Any],
    floor: str = "",
    targets: tuple[float | None, float | None] = (None, None),
) -> list[Subject]:
    """The two subjects of one thing; its floor is measured under the same two words."""
    words = ("first run", "replay")
    keys: tuple[Callable[[], str], ...] = (fresh_keys(), lambda: KNOWN)
    return [
        Subject(f"{name}: {word}", call, key, f"{floor}: {word}" if floor else "", target)
        for word, call, key, target in zip(words, (first, replay), keys, targets, strict=True)
    ]


def _in_process() -> list[Subject]:
    memory = decorated(Memory())
    cached = decorated(LocalCache(), Memory())
    for function in (memory, cached):
        function(KNOWN)
    return [
        *both("Memory", memory, memory, targets=(8.0, 3.0)),
        *both("LocalCache in front of Memory", cached, cached, targets=(None, 3.0))[1:],
    ]


def _redis(stores: Stores) -> list[Subject]:
    hand, scripts = floors.redis_by_hand(stores.redis), floors.redis_scripts(stores.redis)
    ours = decorated(RedisCache(stores.redis))
    for one in (hand.first, scripts.first, ours):
        one(KNOWN)
    floor = "SET NX and SET by redis-py"
    return [
        *both(floor, hand.first, hand.replay),
        *both("the requests of idempo by redis-py", scripts.first, scripts.replay, floor),
        *both("RedisCache", ours, ours, floor, (1.15, 1.15)),
    ]


def _redis_async(stores: Stores) -> list[Subject]:
    hand = floors.redis_by_hand_async(stores.redis)
    ours = decorated(RedisCache(stores.redis), asynchronous=True)
    floor = "SET NX and SET by redis-py"
    return [*both(floor, hand.first, hand.replay), *both("RedisCache", ours, ours, floor, (1.15, 1.15))]


def _postgres(stores: Stores) -> list[Subject]:
    hand = floors.postgres_by_hand(stores.libpq)
    leased = UniqueInsert(stores.postgres)
    leased.create_schema()
    ours = decorated(leased)
    for one in (hand.first, ours):
        one(KNOWN)
    floor = "two statements by psycopg"
    return [*both(floor, hand.first, hand.replay), *both("UniqueInsert", ours, ours, floor, (1.25, 1.25))]


def _postgres_async(stores: Stores) -> list[Subject]:
    hand = floors.postgres_by_hand_async(stores.libpq)
    ours = decorated(UniqueInsert(stores.postgres), asynchronous=True)
    floor = "two statements by psycopg"
    return [*both(floor, hand.first, hand.replay), *both("UniqueInsert", ours, ours, floor, (1.25, 1.25))]
