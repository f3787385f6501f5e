"""How things are compared: interleaved in one run, each call timed, as ratios to a floor.

Every round runs a block of calls of each subject, in an order drawn anew, so that what disturbs the machine disturbs
all of them alike. A ratio is that of the medians of one round; what is reported is the median over the rounds, and the
interval in which the true median lies with 95 % (by order statistics, whatever the distribution is).
"""

import asyncio
import gc
import itertools
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Measured", "Plan", "Subject", "fresh_keys", "interleave", "interleave_async", "ordered"]

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
    call: Callable[[str], Any]
    key: Callable[[], str]
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


@dataclass(frozen=True)
class Measured:
    """Times in microseconds."""

    name: str
    calls: int
    median: float
    p99: float
    floor: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    target: float | None = None
    note: str = ""
    rounds: tuple[float, ...] = field(default=(), repr=False)
    """The median of each round."""

    @property
    def missed(self) -> bool:
        """True if the whole interval is above the target."""
        worst = self.low if self.floor else self.median
        return self.target is not None and worst is not None and worst > self.target


def interleave(subjects: Sequence[Subject], plan: Plan) -> list[Measured]:
    """Measure plain functions."""
    times: dict[str, list[list[int]]] = {subject.name: [] for subject in subjects}
    for subject in _turns(subjects, plan):
        keys = [subject.key() for _ in range(plan.block)]
        call, clock, taken = subject.call, time.perf_counter_ns, []
        for key in keys:
            began = clock()
            call(key)
            taken.append(clock() - began)
        times[subject.name].append(taken)
    return _measured(subjects, times)


def interleave_async(subjects: Sequence[Subject], plan: Plan) -> list[Measured]:
    """Measure coroutine functions, one call after the other in one event loop."""

    async def run() -> dict[str, list[list[int]]]:
        times: dict[str, list[list[int]]] = {subject.name: [] for subject in subjects}
        for subject in _turns(subjects, plan):
            keys = [subject.key() for _ in range(plan.block)]
            call: Callable[[str], Awaitable[Any]] = subject.call
            clock, taken = time.perf_counter_ns, []
            for key in keys:
                began = clock()
                await call(key)
                taken.append(clock() - began)
            times[subject.name].append(taken)
        return times

    return _measured(subjects, asyncio.run(run()))


def _turns(subjects: Sequence[Subject], plan: Plan) -> Iterator[Subject]:
    """Each subject once a round; the first round warms up and is thrown away by `_measured`."""
    chance = random.Random(plan.seed)
    for _ in range(plan.rounds + 1):
        gc.collect()
        yield from chance.sample(subjects, len(subjects))


def _measured(subjects: Sequence[Subject], times: dict[str, list[list[int]]]) -> list[Measured]:
    medians = {
        name: [statistics.median(block) / 1000 for block in blocks[1:]] for name, blocks in times.items()
    }
    found = []
    for subject in subjects:
        taken = sorted(one / 1000 for block in times[subject.name][1:] for one in block)
        mine = medians[subject.name]
        ratio = low = high = None
        if subject.floor:
            ratios = [one / base for one, base in zip(mine, medians[subject.floor], strict=True)]
            ratio, low, high = ordered(ratios)
        found.append(
            Measured(
                subject.name,
                len(taken),
                statistics.median(taken),
                taken[min(len(taken) - 1, int(len(taken) * 0.99))],
                subject.floor,
                ratio,
                low,
                high,
                subject.target,
                subject.note,
                tuple(mine),
            )
        )
    return found


def ordered(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, and the order statistics between which the true one lies with about 95 %."""
    ranked = sorted(values)
    reach = 0.98 * len(ranked) ** 0.5
    middle = len(ranked) / 2
    low = max(0, int(middle - reach))
    high = min(len(ranked) - 1, int(middle + reach))
    return statistics.median(ranked), ranked[low], ranked[high]
