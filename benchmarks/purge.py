"""A purge while traffic runs: what a batch takes, and what callers feel of it."""

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.filling import fill_database
from benchmarks.method import Measured, Plan, Subject, fresh_keys, percentile
from benchmarks.sections import Section
from benchmarks.stores import Stores
from idempo import UniqueInsert

__all__ = ["measure"]

TABLE = "bench_purged"
BATCH = 1000
QUIET = "a first run while nobody purges"


def measure(stores: Stores, plan: Plan) -> dict[str, list[Measured]]:
    """Return the tables of this benchmark, by title."""
    return {
        "purge in PostgreSQL": during(stores, stores.postgres, plan),
        "purge in MariaDB": during(stores, stores.mariadb, plan),
    }


def during(stores: Stores, url: str, plan: Plan) -> list[Measured]:
    fill_database(url, TABLE, plan.purged, over=True)
    section = Section(stores, "sync")
    ledger = UniqueInsert(section.engine(url), table=TABLE)
    f = section.decorated(ledger)
    purging = Purging(ledger)
    section.closing(purging, purging.end)
    section.subjects += [
        Subject(QUIET, f, purging.pausing(fresh_keys())),
        Subject("a first run while a purge runs", f, purging.going_on(fresh_keys()), QUIET),
    ]
    purging.thread.start()
    rows = section.time(plan)
    rest = Purging(UniqueInsert(url, table=TABLE))
    rest.wanted.set()
    rest.work()
    rest.ledger.close()
    deleted = purging.deleted + rest.deleted
    return [
        *rows,
        batches("a batch, with callers", purging.batches, f"{BATCH} records each"),
        batches(
            "a batch, nobody calls", rest.batches, f"in all, {deleted} records of {plan.purged - 1} deleted"
        ),
    ]


def batches(name: str, taken: list[float], note: str) -> Measured:
    ranked = sorted(taken) or [0.0]
    return Measured(name, len(taken), statistics.median(ranked), percentile(ranked, 0.99), note=note)


@dataclass
class Purging:
    """Purges batch after batch in a thread of its own, in the blocks of one subject only."""

    ledger: UniqueInsert
    batches: list[float] = field(default_factory=list)
    deleted: int = 0
    wanted: threading.Event = field(default_factory=threading.Event)
    idle: threading.Lock = field(default_factory=threading.Lock)
    ended: bool = False
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self.work, name="purge")

    def work(self) -> None:
        """Go on until nothing is left, or the end."""
        while True:
            self.wanted.wait()
            with self.idle:
                if self.ended:
                    return
                began = time.perf_counter()
                count = self.ledger.purge(BATCH)
            if count == 0:
                return
            self.batches.append((time.perf_counter() - began) * 1e6)
            self.deleted += count

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
        self.ended = True
        self.wanted.set()
        if self.thread.is_alive():
            self.thread.join()
