"""A purge while traffic runs: what callers feel of it, and what a batch takes.

It runs in a process of its own, as `idempo purge` does, and only beside the blocks of calls that are to feel it.
"""

import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.filling import fill_database
from benchmarks.method import Measured, Plan, Subject, fresh_keys, percentile
from benchmarks.sections import WORDS, Section
from benchmarks.stores import Stores
from idempo import UniqueInsert

__all__ = ["measure"]

TABLE = "bench_purged"
BATCH = 1000
PAUSE = 0.005
"""Seconds between two batches, as `idempo purge` has them."""
KNOWN = 20
"""Keys that are replayed in turn."""
LONG = 200
"""Calls in a block, where there is enough to purge beside them."""
ALONE = 500
"""Batches that are timed while nobody calls, where there are enough."""

_processes = multiprocessing.get_context("spawn")


def measure(stores: Stores, plan: Plan) -> dict[str, list[Measured]]:
    """Return the tables of this benchmark, by title."""
    return {
        "purge in PostgreSQL": during(stores, stores.postgres, plan),
        "purge in MariaDB": during(stores, stores.mariadb, plan),
    }


def during(stores: Stores, url: str, plan: Plan) -> list[Measured]:
    fill_database(url, TABLE, plan.purged, over=True)
    alone = timed_batches(url, min(ALONE, plan.purged // BATCH // 4))
    section = Section(stores, "sync")
    f = section.decorated(UniqueInsert(section.engine(url), table=TABLE))
    purging = Purging(url)
    section.closing(purging, purging.end)
    known = [fresh_keys()() for _ in range(KNOWN)]
    for key in known:
        f(key)
    turns = itertools.cycle(known)
    for word, keys in zip(WORDS, (fresh_keys(), lambda: next(turns)), strict=True):
        quiet = f"a {word} while nobody purges"
        section.subjects += [
            Subject(quiet, f, purging.pausing(keys)),
            Subject(f"a {word} while a purge runs", f, purging.going_on(keys), quiet),
        ]
    purging.start()
    rows = section.time(replace(plan, block=max(plan.block, min(LONG, plan.purged // 5 // BATCH))))
    left = plan.purged - 1 - len(alone) * BATCH - purging.deleted
    return [
        *rows,
        *(slowest(row, {one.name: one for one in rows}[row.floor]) for row in rows if row.floor),
        batches("a batch, nobody calls", alone, f"{BATCH} records each"),
        batches("a batch, with callers", purging.batches, f"{left} of {plan.purged - 1} records were left"),
    ]


def slowest(row: Measured, floor: Measured) -> Measured:
    """The slowest call of a hundred, and how many times that of the floor it is. Of all rounds: it has no interval."""
    beside, quiet = row.p99 or 0.0, floor.p99 or 1.0
    return Measured(
        f"{row.name}, p99", row.calls, beside, None, note=f"{beside / quiet:.2f} times the floor's"
    )


def batches(name: str, taken: list[float], note: str) -> Measured:
    ranked = sorted(taken) or [0.0]
    return Measured(name, len(taken), statistics.median(ranked), percentile(ranked, 0.99), note=note)


def timed_batches(url: str, count: int) -> list[float]:
    """Purge so many batches, and return the microseconds that each took."""
    ledger = UniqueInsert(url, table=TABLE)
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        ledger.purge(BATCH)
        taken.append((time.perf_counter() - began) * 1e6)
    ledger.close()
    return taken


@dataclass
class Purging:
    """Purges batch after batch in a process of its own, in the blocks of some subjects only."""

    url: str
    batches: list[float] = field(default_factory=list)
    deleted: int = 0
    wanted: Any = field(default_factory=_processes.Event)
    idle: Any = field(default_factory=_processes.Lock)
    ended: Any = field(default_factory=_processes.Event)
    process: Any = field(init=False)
    told: Connection = field(init=False)

    def __post_init__(self) -> None:
        self.told, telling = _processes.Pipe(duplex=False)
        self.process = _processes.Process(
            target=purge, args=(self.url, self.wanted, self.idle, self.ended, telling), daemon=True
        )

    def start(self) -> None:
        """Start, and wait until it has: an interpreter takes its time."""
        self.process.start()
        self.told.recv()

    def pausing(self, keys: Callable[[], str]) -> Callable[[], str]:
        """Keys, with no batch running once there is one."""

        def key() -> str:
            self.wanted.clear()
            with self.idle:
                return keys()

        return key

    def going_on(self, keys: Callable[[], str]) -> Callable[[], str]:
        def key() -> str:
            self.wanted.set()
            return keys()

        return key

    def end(self) -> None:
        self.ended.set()
        self.wanted.set()
        if self.process.pid is not None:
            self.deleted, self.batches = self.told.recv()
            self.process.join()


def purge(url: str, wanted: Any, idle: Any, ended: Any, telling: Connection) -> None:
    """Go on until nothing is left, or the end; then tell how many records are gone, and what each batch took."""
    ledger = UniqueInsert(url, table=TABLE)
    deleted, taken = 0, []
    telling.send(None)
    while True:
        wanted.wait()
        with idle:
            if ended.is_set():
                break
            if not wanted.is_set():
                continue
            began = time.perf_counter()
            count = ledger.purge(BATCH)
            taken.append((time.perf_counter() - began) * 1e6)
        deleted += count
        if count == 0:
            taken.pop()
            break
        time.sleep(PAUSE)
    ledger.close()
    telling.send((deleted, taken))
