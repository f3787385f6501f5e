"""One key, many duplicates at once: how long after the first run's completion each has its answer, and what they ask.

They call one function, so that they wait together; or each one behind a ledger of its own, as those of other processes.

The first run is held until all duplicates wait, and `plan.hold` seconds longer. Times are those of direct connections;
the round trips, from the first duplicate to the last answer, are counted in a crowd of their own, behind proxies.
"""

import asyncio
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import psycopg

from benchmarks.method import Measured, Plan, fresh_keys, percentile
from benchmarks.sections import COLOURS, Section
from benchmarks.stores import Stores, behind_proxies
from idempo import Event, UniqueInsert
from idempo.contracts import Colour
from idempo.steps import Steps, arun, run

__all__ = ["measure"]

Ledger: TypeAlias = Literal["RedisCache", "UniqueInsert", "UniqueInsert(join=)"]

LEDGERS: tuple[Ledger, ...] = ("RedisCache", "UniqueInsert", "UniqueInsert(join=)")
TARGET = 10_000.0
FEWEST = 8
FEW = 64
"""So many at the most are threads, have a connection each, or a target: an answer costs processor time, too."""
PATIENT = 60.0
BLOCKED = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


def measure(stores: Stores, plan: Plan) -> dict[str, list[Measured]]:
    """Return the tables of this benchmark, by title."""
    # Half a thousand over a pool of ten connections take half a minute: not in a quick run.
    many = ("RedisCache", "UniqueInsert") if plan.name == "full" else ("RedisCache",)
    rows = [
        answered(stores, ledger, colour, count, plan)
        for ledger in LEDGERS
        for colour in COLOURS
        for count in plan.duplicates
        if count <= FEW or (colour == "async" and ledger in many)
    ]
    alone = [
        answered(stores, ledger, colour, FEWEST, plan, apart=True)
        for ledger in LEDGERS[:2]
        for colour in COLOURS
    ]
    held = f"held for {plan.hold:g} s"
    return {
        f"answered after the completion; {held}": rows,
        f"each with a ledger of its own, as in other processes; {held}": alone,
    }


def answered(
    stores: Stores, ledger: Ledger, colour: Colour, count: int, plan: Plan, *, apart: bool = False
) -> Measured:
    def several(crowd: Crowd) -> Steps[list[list[float]]]:
        found = []
        yield crowd.answers(count)  # opens the connections
        for _ in range(max(1, plan.rounds // 12)):
            found.append((yield crowd.answers(count, plan.hold)))
        return found

    rounds = Crowd(stores, stores, ledger, colour, count, apart=apart).driven(several)
    taken = sorted(one for delays in rounds for one in delays)
    return Measured(
        f"{ledger}, {count} {'threads' if colour == 'sync' else 'tasks'}",
        len(taken),
        statistics.median(taken),
        percentile(taken, 0.99),
        target=TARGET if count <= FEW else None,
        rounds=tuple(statistics.median(delays) for delays in rounds),
        requests=asked(stores, ledger, count, plan, apart=apart) if colour == "async" else None,
    )


def asked(stores: Stores, ledger: Ledger, count: int, plan: Plan, *, apart: bool) -> float:
    """Return the requests per duplicate; counted of tasks only, since threads send the same."""
    with behind_proxies(stores) as (seen, wire):

        def counted(crowd: Crowd) -> Steps[int]:
            yield crowd.answers(count)
            yield crowd.answers(count, plan.hold, wire.reset)
            return wire.requests

        requests: int = Crowd(seen, stores, ledger, "async", count, apart=apart).driven(counted)
    return requests / count


@dataclass
class Told:
    """What the calls of one key told."""

    completed: float = 0.0
    waiting: list[str] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)

    def hook(self, event: Event) -> None:
        if event.kind == "completed":
            self.completed = time.perf_counter()
        elif event.kind == "waited":
            self.waiting.append(event.key)

    @property
    def delays(self) -> list[float]:
        """Microseconds from the completion to each answer."""
        return [max(0.0, one - self.completed) * 1e6 for one in self.answered]


class Crowd:
    """A first run that is held, and its duplicates."""

    def __init__(
        self, stores: Stores, direct: Stores, ledger: Ledger, colour: Colour, count: int, *, apart: bool
    ) -> None:
        self.section = Section(stores, colour)
        self.keys = fresh_keys()
        self.told = Told()
        self.gate: Any = threading.Event() if colour == "sync" else asyncio.Event()
        self.entered: Any = threading.Event() if colour == "sync" else asyncio.Event()
        # Who waits inside the database tells nobody; it is asked.
        self.blocked = psycopg.connect(direct.libpq, autocommit=True) if "join" in ledger else None
        self.f = self._decorated(ledger, count)
        self.duplicates = [self._decorated(ledger, 1) for _ in range(count)] if apart else [self.f] * count
        """What the duplicates call: the same function, or each one behind a ledger of its own."""

    def _decorated(self, ledger: Ledger, count: int) -> Any:
        return self.section.decorated(
            self._ledger(ledger, count),
            name="bench.crowd",
            body=self.body if self.section.colour == "sync" else self.body_async,
            hooks=(self.tell,),
            wait=PATIENT,
        )

    def tell(self, event: Event) -> None:
        self.told.hook(event)

    def _ledger(self, ledger: Ledger, count: int) -> Any:
        if ledger == "RedisCache":
            return self.section.cache()
        joined = "join" in ledger
        engine = self.section.engine(self.section.stores.postgres, count + 2 if joined else 10)
        return UniqueInsert(engine, join="session") if joined else UniqueInsert(engine)

    def body(self, key: str, session: Any = None) -> int:
        self.entered.set()
        self.gate.wait(PATIENT)
        return 1

    async def body_async(self, key: str, session: Any = None) -> int:
        self.entered.set()
        await self.gate.wait()
        return 1

    def driven(self, work: Callable[["Crowd"], Steps[Any]]) -> Any:
        def steps() -> Steps[Any]:
            try:
                return (yield from work(self))
            finally:
                if self.blocked is not None:
                    self.blocked.close()
                yield from self.section.closed()

        return run(steps()) if self.section.colour == "sync" else asyncio.run(arun(steps()))

    def answers(self, count: int, hold: float = 0.0, before: Callable[[], None] = lambda: None) -> Any:
        """Let `count` duplicates of a new key wait; return how long after the completion each was answered."""
        self.told = Told()
        self.gate.clear()
        self.entered.clear()
        work = self._threads if self.section.colour == "sync" else self._tasks
        return work(self.keys(), count, hold, before)

    def _threads(self, key: str, count: int, hold: float, before: Callable[[], None]) -> list[float]:
        def duplicate(call: Callable[[str], Any]) -> None:
            call(key)
            self.told.answered.append(time.perf_counter())

        with ThreadPoolExecutor(count + 1) as pool:
            try:
                first = pool.submit(self.f, key)
                assert self.entered.wait(PATIENT)
                before()
                duplicates = [pool.submit(duplicate, call) for call in self.duplicates]
                deadline = time.monotonic() + PATIENT
                while self._coming(count, deadline):
                    time.sleep(0.005)
                time.sleep(hold)
            finally:
                self.gate.set()
            for one in (first, *duplicates):
                one.result()
        return self.told.delays

    async def _tasks(self, key: str, count: int, hold: float, before: Callable[[], None]) -> list[float]:
        async def duplicate(call: Callable[[str], Any]) -> None:
            await call(key)
            self.told.answered.append(time.perf_counter())

        first = asyncio.create_task(self.f(key))
        await asyncio.wait_for(self.entered.wait(), PATIENT)
        before()
        duplicates = [asyncio.create_task(duplicate(call)) for call in self.duplicates]
        deadline = time.monotonic() + PATIENT
        while self._coming(count, deadline):  # noqa: ASYNC110 - the database is asked, and sets no event
            await asyncio.sleep(0.005)
        await asyncio.sleep(hold)
        self.gate.set()
        await asyncio.gather(first, *duplicates)
        return self.told.delays

    def _coming(self, count: int, deadline: float) -> bool:
        """Whether duplicates are still on their way."""
        if self.blocked is None:
            waiting = len(self.told.waiting)
        else:
            row = self.blocked.execute(BLOCKED).fetchone()
            waiting = row[0] if row else 0
        if time.monotonic() > deadline:
            raise RuntimeError(f"only {waiting} of {count} duplicates wait after {PATIENT:g} seconds")
        return bool(waiting < count)
