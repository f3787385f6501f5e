"""How much the memory of the process grows with the number of calls: it is to be flat.

Counted in the blocks that the interpreter has allocated (`sys.getallocatedblocks`), which costs nothing while the calls
run: what is cached on the way is there after the first third of them, and what is left after the rest is a leak. What
drivers allocate by themselves does not count there; the note has the pages of the whole process for that.
"""

import asyncio
import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.method import Measured, Plan, fresh_keys
from benchmarks.sections import Section
from benchmarks.stores import Stores
from idempo import LocalCache, UniqueInsert
from idempo.contracts import Colour
from idempo.steps import Steps, arun, run

__all__ = ["growth", "measure"]

TARGET = 0.1
"""A leak of one object in ten calls."""


def measure(stores: Stores, plan: Plan) -> dict[str, list[Measured]]:
    """Return the tables of this benchmark, by title."""
    # The cache in the process is so small that it is full before the counting begins.
    compositions: dict[str, tuple[Colour, Callable[[Section], list[Any]]]] = {
        "LocalCache, RedisCache": ("sync", lambda section: [LocalCache(64), section.cache()]),
        "UniqueInsert": ("sync", leased),
        "RedisCache, async": ("async", lambda section: [section.cache()]),
    }
    rows = []
    for name, (colour, making) in compositions.items():
        section = Section(stores, colour)
        steps = grown(section, section.decorated(*making(section)), plan.calls)
        blocks, pages = run(steps) if colour == "sync" else asyncio.run(arun(steps))
        note = f"half of the calls are replays; {pages:.1f} bytes of the process per call"
        rows.append(Measured(name, plan.calls, blocks, None, target=TARGET, unit="blocks", note=note))
    return {"growth of the process per call": rows}


def leased(section: Section) -> list[Any]:
    return [UniqueInsert(section.engine(section.stores.postgres))]


def grown(section: Section, f: Callable[[str], Any], calls: int) -> Steps[tuple[float, float]]:
    try:
        return (yield from growth(f, calls))
    finally:
        yield from section.closed()


def growth(f: Callable[[str], Any], calls: int) -> Steps[tuple[float, float]]:
    """Return the blocks, and the bytes of the whole process, that stay per call in the last two thirds of them."""
    keys = fresh_keys()
    yield from calling(f, keys, calls // 3)
    blocks, size = kept()
    rest = calls - calls // 3
    yield from calling(f, keys, rest)
    later, larger = kept()
    return (later - blocks) / rest, (larger - size) / rest


def calling(f: Callable[[str], Any], keys: Callable[[], str], calls: int) -> Steps[None]:
    for _ in range(calls // 2):
        key = keys()
        yield f(key)
        yield f(key)


def kept() -> tuple[int, int]:
    """Blocks of the interpreter and bytes of the process, now."""
    gc.collect()
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        pages = 0
    return sys.getallocatedblocks(), pages * resource.getpagesize()
