"""idempo itself, in the shape of its peers."""

from typing import Any

from benchmarks.peers.shapes import LEASE, Function, Options, Places, shaped
from idempo import Memory, RedisCache, UniqueInsert, idempotent

__all__ = ["memory", "redis_cache", "unique_insert"]


def memory(function: Function, places: Places, asynchronous: bool, options: Options) -> Any:
    return _behind(Memory(), function, asynchronous, options)


def redis_cache(function: Function, places: Places, asynchronous: bool, options: Options) -> Any:
    return _behind(RedisCache(places.redis), function, asynchronous, options)


def unique_insert(function: Function, places: Places, asynchronous: bool, options: Options) -> Any:
    ledger = UniqueInsert(places.postgres)
    ledger.create_schema()
    ledger.close()
    return _behind(UniqueInsert(places.postgres), function, asynchronous, options)


def _behind(ledger: Any, function: Function, asynchronous: bool, options: Options) -> Any:
    lease = LEASE if "lease" in options else 30.0
    decorate = idempotent(key="{key}", using=ledger, name=function.name, lease=lease)
    return decorate(shaped(function, asynchronous))
