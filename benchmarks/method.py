"""How things are compared: interleaved in one run, each call timed, as ratios to a floor.

Every round runs a block of calls of each subject, in an order drawn anew, so that what disturbs the machine disturbs
all of them alike. A ratio is that of the medians of one round; what is reported is the median over the rounds, and the
interval in which the true median lies with 95 % (by order statistics, whatever the distribution is).
"""

import asyncio
import gc
import inspect
import itertools
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

__all__ = [
    "Measured",
    "Plan",
    "Subject",
    "Verdict",
    "added",
    "fresh_keys",
    "interleave",
    "interleave_async",
    "interleave_here",
    "ordered",
    "percentile",
    "summed_up",
    "turns",
]

T = TypeVar("T")
Verdict: TypeAlias = Literal["", "met", "open", "missed"]

_runs = itertools.count(1)


def fresh_keys() -> Callable[[], str]:
    """Return what makes keys that nobody has used."""
    run = f"{time.time_ns():x}-{next(_runs)}"
    numbers = itertools.count()
    return lambda: f"{run}-{next(numbers)}"


@dataclass(frozen=True)
class Subject:
    """One thing to measure: `call` is given a key, which `key` makes outside of the measured time."""

    name: str
    call: Callable[[Any], Any]
    key: Callable[[], Any]
    floor: str = ""
    """The subject that is 1.00; "" for a floor, and for what has none."""
    target: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int = 30
    block: int = 40
    seed: int = 1
    name: str = "full"
    sizes: tuple[int, ...] = (10_000, 1_000_000, 10_000_000)
    """Records in the tables whose cost is compared."""
    calls: int = 100_000
    """Calls over which the memory of the process is watched."""
    workers: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Threads, or tasks, that call at the same time."""
    duplicates: tuple[int, ...] = (8, 64, 512)
    """Calls of one key at the same time."""
    hold: float = 1.0
    """Seconds for which a first run holds its duplicates once they all wait."""
    purged: int = 10_000_000
    """Records whose retention is over, for the purge."""
    batch: int = 500
    """Calls in one batch."""


@dataclass(frozen=True)
class Measured:
    """One row. `median`, `p99` and `rounds` are in `unit`, times in microseconds."""

    name: str
    calls: int
    median: float
    p99: float | None
    floor: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    target: float | None = None
    note: str = ""
    rounds: tuple[float, ...] = field(default=(), repr=False)
    """The median of each round."""
    unit: str = "us"
    at_least: bool = False
    """True if more is better: the target is then the least that will do."""
    requests: float | None = None
    """Round trips per call, counted and not timed."""

    @property
    def judged(self) -> tuple[float, float, float]:
        """What a target is compared with, and its interval: the ratio, or the median where there is no floor."""
        if self.ratio is not None and self.low is not None and self.high is not None:
            return self.ratio, self.low, self.high
        _, low, high = ordered(self.rounds or (self.median,))
        return self.median, low, high

    @property
    def missed(self) -> bool:
        """True if the whole interval is beyond the target."""
        return self.verdict == "missed"

    @property
    def verdict(self) -> Verdict:
        """`open` if the target lies within the interval, on its better side."""
        if self.target is None:
            return ""
        middle, low, high = self.judged
        if self.at_least:
            return "met" if middle >= self.target else "open" if high >= self.target else "missed"
        return "met" if middle <= self.target else "open" if low <= self.target else "missed"

    @property
    def beyond(self) -> float:
        """By which share of the target it is missed; negative for what is to spare. 0 without a target."""
        if not self.target:
            return 0.0
        share = self.judged[0] / self.target - 1
        return -share if self.at_least else share


def interleave(subjects: Sequence[Subject], plan: Plan) -> list[Measured]:
    """Measure plain functions."""
    times: dict[str, list[list[float]]] = {subject.name: [] for subject in subjects}
    for subject in turns(subjects, plan):
        keys = [subject.key() for _ in range(plan.block)]
        call, clock, taken = subject.call, time.perf_counter_ns, []
        for key in keys:
            began = clock()
            call(key)
            taken.append((clock() - began) / 1000)
        times[subject.name].append(taken)
    return [summed_up(subject, times[subject.name], times.get(subject.floor)) for subject in subjects]


def interleave_async(subjects: Sequence[Subject], plan: Plan) -> list[Measured]:
    """Measure coroutine functions, one call after the other, in an event loop of their own."""
    return asyncio.run(interleave_here(subjects, plan))


async def interleave_here(subjects: Sequence[Subject], plan: Plan) -> list[Measured]:
    """Measure coroutine functions in this event loop. A `key` that is awaitable is waited for."""
    times: dict[str, list[list[float]]] = {subject.name: [] for subject in subjects}
    for subject in turns(subjects, plan):
        made = [subject.key() for _ in range(plan.block)]
        keys = [await key if inspect.isawaitable(key) else key for key in made]
        call: Callable[[Any], Awaitable[Any]] = subject.call
        clock, taken = time.perf_counter_ns, []
        for key in keys:
            began = clock()
            await call(key)
            taken.append((clock() - began) / 1000)
        times[subject.name].append(taken)
    return [summed_up(subject, times[subject.name], times.get(subject.floor)) for subject in subjects]


def turns(subjects: Sequence[T], plan: Plan) -> Iterator[T]:
    """Each subject once a round, in an order drawn anew; the first round warms up, and `summed_up` leaves it out."""
    chance = random.Random(plan.seed)
    for _ in range(plan.rounds + 1):
        gc.collect()
        yield from chance.sample(subjects, len(subjects))


def summed_up(
    subject: Subject, blocks: Sequence[Sequence[float]], base: Sequence[Sequence[float]] | None = None
) -> Measured:
    """Sum up what was taken in each round, against the floor's same rounds."""
    mine = [statistics.median(block) for block in blocks[1:]]
    taken = sorted(one for block in blocks[1:] for one in block)
    ratio = low = high = None
    if subject.floor:
        if base is None:
            raise ValueError(f"the floor of {subject.name}, {subject.floor}, was not measured beside it")
        floors = (statistics.median(block) for block in base[1:])
        ratio, low, high = ordered([one / floor for one, floor in zip(mine, floors, strict=True)])
    return Measured(
        subject.name,
        len(taken),
        statistics.median(taken),
        percentile(taken, 0.99),
        subject.floor,
        ratio,
        low,
        high,
        subject.target,
        subject.note,
        tuple(mine),
    )


def added(name: str, whole: Measured, without: Measured, floor: Measured, target: float | None) -> Measured:
    """What `whole` takes beyond `without`, round by round, as a share of `floor`."""
    rounds = list(zip(whole.rounds, without.rounds, floor.rounds, strict=True))
    beyond = [one - other for one, other, _ in rounds]
    ratio, low, high = ordered([(one - other) / base for one, other, base in rounds])
    note = f"{whole.name}, less {without.name}"
    requests = None
    if whole.requests is not None and without.requests is not None:
        requests = whole.requests - without.requests
    return Measured(
        name,
        whole.calls,
        statistics.median(beyond),
        None,
        floor.name,
        ratio,
        low,
        high,
        target,
        note,
        tuple(beyond),
        requests=requests,
    )


def percentile(ranked: Sequence[float], share: float) -> float:
    """Return the value below which `share` of these lie, which are in order."""
    return ranked[min(len(ranked) - 1, int(len(ranked) * share))]


def ordered(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, and the order statistics between which the true one lies with about 95 %."""
    ranked = sorted(values)
    reach = 0.98 * len(ranked) ** 0.5
    middle = len(ranked) / 2
    low = max(0, int(middle - reach))
    high = min(len(ranked) - 1, int(middle + reach))
    return statistics.median(ranked), ranked[low], ranked[high]
