"""A soak: many processes call many keys of all compositions while everything breaks; a checker judges what was seen.

    python -m tests.faults.soak --minutes 10 --seed 7

Every invocation and every answer is written down by the process that made or got it, and so is every fault. At the end,
with all faults over, each key is called once more, the effects are read from the databases and the other system, and
`checker` decides, knowing nothing of idempo. A violation is printed with its seed and the shortest part of the history
that shows it; the exit status is then 1. `--keep FOLDER` leaves the whole history there, one line an event.

The seed decides keys, faults, ends and lengths of functions, but not how processes and servers are scheduled: the same
seed makes a similar run, not the same. Two databases, three Redises and the processes take about a gigabyte of memory.

`--twin NAME` soaks a library that is wrong on purpose: the checker has to find it.
"""

import argparse
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from tests.faults import checker
from tests.faults.checker import Violation
from tests.faults.soaking.chaos import ODDS, Chaos
from tests.faults.soaking.crew import Crew
from tests.faults.soaking.ground import Ground, ground
from tests.faults.soaking.history import Event
from tests.faults.soaking.journal import Journal, read
from tests.faults.soaking.shrinking import shortest
from tests.faults.soaking.stand import LEASE, PROMISES
from tests.faults.soaking.twins import TWINS
from tests.provide.processes import temporary_folder

__all__ = ["Load", "Report", "main", "soak"]

WAVE = 24
"""New keys at a time; those of the wave before are called along with them."""
WAVE_SECONDS = 3.0
END_SECONDS = 90.0
EACH_SECONDS = 0.5
"""How long the last calls may take, all in all and for each key: then a process hangs."""
SHORTENED = 8
"""So many violations of a rule are made short, and the shortest is shown."""


@dataclass
class Report:
    """What a soak came to."""

    seed: int
    counts: Counter[str]
    violations: list[Violation]
    idle: list[str] = field(default_factory=list)
    """What a run needs to mean anything, and did not have."""
    history: list[Event] = field(default_factory=list, repr=False)

    @property
    def right(self) -> bool:
        return not (self.violations or self.idle)

    def __str__(self) -> str:
        lines = []
        for rule, found in groupby(sorted(self.violations, key=lambda one: one.rule), lambda one: one.rule):
            lines += self._shown(rule, list(found))
        lines += [f"SEEN NO {idle}: this run shows nothing" for idle in self.idle]
        counted = ", ".join(f"{number} {name}" for name, number in self.counts.items())
        lines.append(f"soak {'right' if self.right else 'WRONG'}, seed {self.seed}: {counted}")
        return "\n".join(lines)

    def _shown(self, rule: str, found: list[Violation]) -> list[str]:
        """The shortest history that shows this rule broken, in seconds since its first event."""
        candidates = [(one, shortest(self.history, PROMISES, one)) for one in found[:SHORTENED] if one.key]
        lines = [f"VIOLATION {rule}, {len(found)} times, seed {self.seed}"]
        if not candidates:
            return lines + [f"  {one.text}" for one in found]
        one, short = min(candidates, key=lambda candidate: len(candidate[1]))
        lines.append(f"  {one.key}: {one.text}")
        return lines + [f"  {event.at - short[0].at:8.3f}  {event}" for event in short]


@dataclass(frozen=True)
class Load:
    """What to do, and for how long."""

    seconds: float
    seed: int
    processes: int = 5
    faults: tuple[str, ...] = ()
    """Only these; all of them without any."""
    twin: str = ""
    folder: Path | None = None
    """Where the history stays."""


def soak(load: Load) -> Report:
    """Break things, then judge."""
    where = load.folder or temporary_folder()
    counts: Counter[str] = Counter()
    try:
        journal = Journal(where, "main")
        failures = _run(load, where, journal, counts)
        journal.close()
        history = list(read(where))
    finally:
        if load.folder is None:
            shutil.rmtree(where, ignore_errors=True)
    counts.update(_counted(history))
    violations = checker.check(history, PROMISES)
    violations += [Violation("process_failed", "", (), one) for one in failures]
    counts["keys undecided"] = len(checker.undecided(history, PROMISES))
    needed = ("processes killed", "takeovers", "replays", "keys")
    return Report(load.seed, counts, violations, [name for name in needed if not counts[name]], history)


def _run(load: Load, where: Path, journal: Journal, counts: Counter[str]) -> list[str]:
    """Call and break; what has failed beside the calls."""
    odds, keys = random.Random(load.seed), []
    with ground() as at:
        crew = Crew(load.processes, where, at.places, load.seed, load.twin)
        try:
            chaos = Chaos(odds, crew, at.servers, at.proxies, LEASE, journal, load.faults)
            keys = _waves(load.seconds, at, crew, chaos, odds, journal)
            chaos.over()
            crew.finish(END_SECONDS)
            crew.settle(keys, END_SECONDS + len(keys) * EACH_SECONDS)
        finally:
            crew.close()
        at.look(keys, journal)
    counts.update({"keys": len(keys)} | chaos.counts)
    return crew.failures


def _waves(
    seconds: float, at: Ground, crew: Crew, chaos: Chaos, odds: random.Random, journal: Journal
) -> list[str]:
    began = time.monotonic()
    keys: list[str] = []
    wave_over = said = began
    while (now := time.monotonic()) < began + seconds:
        if now >= wave_over:
            keys += at.new_keys(WAVE, odds, journal)
            crew.keys(keys[-2 * WAVE :])
            wave_over = time.monotonic() + WAVE_SECONDS
        if now >= said + 10:
            said = now
            faults = ", ".join(f"{number} {kind}" for kind, number in sorted(chaos.counts.items()))
            print(
                f"soak: {now - began:.0f} of {seconds:.0f} s, {len(keys)} keys, {faults}",
                file=sys.stderr,
                flush=True,
            )
        chaos.once()
    return keys


def _counted(history: Sequence[Event]) -> dict[str, int]:
    what = Counter(event.what for event in history)
    kinds = Counter(event.more["kind"] for event in history if event.what == "fault")
    replays = sum(event.what == "return" and bool(event.more.get("replayed")) for event in history)
    return {
        "calls": what["invoke"],
        "runs": what["begin"],
        "effects": what["told"] + what["row"],
        "replays": replays,
        "takeovers": what["took over"],
        "errors": what["raise"],
        "processes killed": kinds["kill"],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The program. 0 if nothing was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.soak", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--faults", nargs="+", choices=sorted(ODDS), default=(), help="only these")
    parser.add_argument(
        "--twin", choices=sorted(TWINS), default="", help="a library that is wrong on purpose"
    )
    parser.add_argument("--keep", type=Path, help="an empty folder for the history")
    told = parser.parse_args(arguments)
    if told.keep:
        told.keep.mkdir(parents=True, exist_ok=True)
    report = soak(
        Load(told.minutes * 60, told.seed, told.processes, tuple(told.faults), told.twin, told.keep)
    )
    print(report)
    return 0 if report.right else 1


if __name__ == "__main__":
    sys.exit(main())
