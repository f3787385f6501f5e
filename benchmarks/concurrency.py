"""Throughput with many threads, and many tasks, as the share of what the bare driver does with as many of them.

One measured number is the calls per second of a block, which the workers share among themselves.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from benchmarks import floors, floors_sql
from benchmarks.method import Measured, Plan, Subject, summed_up, turns
from benchmarks.sections import COLOURS, Section, titled
from benchmarks.stores import Stores
from idempo import UniqueInsert
from idempo.contracts import Colour
from idempo.steps import arun, run

__all__ = ["measure"]

AT_TARGET = 8
TARGETS = {"RedisCache": 0.85, "UniqueInsert": 0.75}
CALLS_EACH = 3


def measure(stores: Stores, plan: Plan) -> dict[str, list[Measured]]:
    """Return the tables of this benchmark, by title."""
    floors.postgres_by_hand(stores.libpq).close()  # its table, before many ask for it at once
    found = {}
    for colour in COLOURS:
        rows = []
        for workers in plan.workers:
            rows += with_workers(stores, colour, workers, plan)
        found[titled("calls per second", colour)] = rows
    return found


def with_workers(stores: Stores, colour: Colour, workers: int, plan: Plan) -> list[Measured]:
    """The rows of so many threads or tasks."""
    section = Section(stores, colour)
    fill(section, workers)
    block = replace(
        plan, rounds=max(2, plan.rounds * 2 // 3), block=max(plan.block * 4, CALLS_EACH * workers)
    )
    rates = (
        timed(section, workers, block)
        if colour == "sync"
        else asyncio.run(timed_async(section, workers, block))
    )
    word = "thread" if colour == "sync" else "task"
    counted = f"{workers} {word}{'s' if workers > 1 else ''}"
    rows = []
    for subject in section.subjects:
        # A block gives one rate.
        row = summed_up(subject, rates[subject.name], rates.get(subject.floor))
        aimed = colour == "sync" and workers == AT_TARGET
        target = TARGETS.get(subject.name.partition(":")[0]) if aimed else None
        row = replace(row, name=f"{subject.name}, {counted}", target=target, at_least=True)
        floor = f"{subject.floor}, {counted}" if subject.floor else ""
        rows.append(replace(row, floor=floor, calls=row.calls * block.block, p99=None, unit="calls/s"))
    return rows


def fill(section: Section, workers: int) -> None:
    stores = section.stores
    if section.colour == "sync":
        redis = floors.redis_by_hand(stores.redis)
        postgres = floors_sql.spread(lambda: floors.postgres_by_hand(stores.libpq))
    else:
        redis = floors.redis_by_hand_async(stores.redis)
        postgres = floors_sql.spread_async(lambda: floors.postgres_by_hand_async(stores.libpq))
    by_redis = section.by_hand("redis-py by hand", redis)
    by_psycopg = section.by_hand("psycopg by hand", postgres)
    section.both("RedisCache", section.decorated(section.cache()), floor=by_redis)
    engine = section.engine(stores.postgres, workers)
    section.both("UniqueInsert", section.decorated(UniqueInsert(engine)), floor=by_psycopg)


def timed(section: Section, workers: int, plan: Plan) -> dict[str, list[list[float]]]:
    found: dict[str, list[list[float]]] = {subject.name: [] for subject in section.subjects}

    def work(call: Callable[[Any], Any], keys: Sequence[Any]) -> None:
        for key in keys:
            call(key)

    try:
        run(section.prepared())
        with ThreadPoolExecutor(workers) as pool:
            for subject in turns(section.subjects, plan):
                shares = shared_out(subject, workers, plan)
                began = time.perf_counter()
                running = [pool.submit(work, subject.call, keys) for keys in shares]
                for one in running:
                    one.result()
                found[subject.name].append([plan.block / (time.perf_counter() - began)])
    finally:
        run(section.closed())
    return found


async def timed_async(section: Section, workers: int, plan: Plan) -> dict[str, list[list[float]]]:
    found: dict[str, list[list[float]]] = {subject.name: [] for subject in section.subjects}

    async def work(call: Callable[[Any], Any], keys: Sequence[Any]) -> None:
        for key in keys:
            await call(key)

    try:
        await arun(section.prepared())
        for subject in turns(section.subjects, plan):
            shares = shared_out(subject, workers, plan)
            began = time.perf_counter()
            await asyncio.gather(*(work(subject.call, keys) for keys in shares))
            found[subject.name].append([plan.block / (time.perf_counter() - began)])
    finally:
        await arun(section.closed())
    return found


def shared_out(subject: Subject, workers: int, plan: Plan) -> list[list[Any]]:
    keys = [subject.key() for _ in range(plan.block)]
    return [keys[number::workers] for number in range(workers)]
