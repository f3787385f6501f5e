"""`python -m benchmarks`: run benchmarks by name, print their tables, and write them down, with pictures."""

import argparse
import datetime as dt
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import (
    batches,
    compare,
    concurrency,
    contention,
    imports,
    latency,
    memory,
    mixed,
    payloads,
    plots,
    purge,
    report,
    tables,
    transactions,
)
from benchmarks.method import Measured, Plan
from benchmarks.stores import Stores, machine, opened

__all__ = ["BENCHMARKS", "QUICK", "Benchmark", "main"]

FULL = Plan()
QUICK = Plan(
    rounds=10,
    block=12,
    name="quick",
    sizes=(10_000, 200_000),
    calls=10_000,
    workers=(1, 8, 64),
    hold=0.1,
    purged=50_000,
)


@dataclass(frozen=True)
class Benchmark:
    """One part of a run."""

    name: str
    about: str
    measure: Callable[[Stores, Plan], dict[str, list[Measured]]]


def with_peers(stores: Stores, plan: Plan) -> dict[str, list[Measured]]:
    if importlib.util.find_spec("benchmarks.peers") is None:
        return {"not there": []}
    from benchmarks import peers

    found: dict[str, list[Measured]] = peers.measure(stores, plan)
    return found


BENCHMARKS = (
    Benchmark("latency", "each ledger against the bare driver", latency.measure),
    Benchmark("transactions", "joined records, guards, production combinations", transactions.measure),
    Benchmark("mixed", "nine calls of ten are repeats", mixed.measure),
    Benchmark("payloads", "results of 100 B, 10 KB, 500 KB", payloads.measure),
    Benchmark("concurrency", "throughput with many threads and tasks", concurrency.measure),
    Benchmark("contention", "many duplicates of one key at once", contention.measure),
    Benchmark("tables", "cost where many records are kept, and their size", tables.measure),
    Benchmark("memory", "growth of the process", memory.measure),
    Benchmark("purge", "purges beside traffic", purge.measure),
    Benchmark("imports", "what an import costs and loads", imports.measure),
    Benchmark("batches", "many calls at once", batches.measure),
    Benchmark("peers", "other libraries, in an environment of their own", with_peers),
)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    told = "\n".join(f"  {one.name:13} {one.about}" for one in BENCHMARKS)
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description="Measure idempo against the bare driver, on real servers.",
        epilog=f"benchmarks:\n{told}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [one.name for one in BENCHMARKS]
    parser.add_argument(
        "--full", action="store_true", help="more rounds, up to ten million records: an hour or more"
    )
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help="these benchmarks only")
    parser.add_argument("--no-peers", action="store_true", help="without the other libraries")
    parser.add_argument(
        "--out", type=Path, default=Path(".cache/bench"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--compare", type=Path, metavar="BASELINE.json", help="exit code 1 if a row is really slower"
    )
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    baseline = report.loaded(options.compare) if options.compare else None
    plan = FULL if options.full else QUICK
    chosen = [one for one in BENCHMARKS if one.name in (options.only or [one.name])]
    if options.no_peers:
        chosen = [one for one in chosen if one.name != "peers"]
    began = time.monotonic()
    with opened() as stores:
        about: dict[str, Any] = {
            "when": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "plan": asdict(plan),
            **machine(stores),
            "load before": load(),
        }
        for name, value in about.items():
            print(f"{name}: {report.told(value)}")
        results = run(chosen, stores, plan)
    about |= {"load after": load(), "seconds": round(time.monotonic() - began)}
    print(f"\nload after: {report.told(about['load after'])}; {about['seconds']} seconds in all")
    report.saved(options.out, about, results)
    draw(options.out, results)
    if baseline is None:
        return 0
    if baseline[0]["plan"] != report.jsonable(about["plan"]):
        print("\nthe baseline was measured by another plan: compare runs of one plan")
    words, slower = compare.worded(baseline[1], results)
    print(f"\nagainst {options.compare}: {words}")
    return 1 if slower else 0


def run(chosen: Sequence[Benchmark], stores: Stores, plan: Plan) -> dict[str, dict[str, list[Measured]]]:
    """Run these benchmarks one after the other, and print each table as it comes."""
    results: dict[str, dict[str, list[Measured]]] = {}
    for one in chosen:
        began = time.monotonic()
        results[one.name] = one.measure(stores, plan)
        for title, rows in results[one.name].items():
            print(report.printed(f"{one.name}: {title}", rows))
        print(f"\n{one.name} took {time.monotonic() - began:.1f} s", flush=True)
    return results


def draw(folder: Path, results: dict[str, dict[str, list[Measured]]]) -> None:
    try:
        files = plots.drawn(folder, results)
    except ImportError as error:
        print(f"no pictures: {error}")
        files = []
    print(f"written to {folder}: results.json, results.md{''.join(f', {file.name}' for file in files)}")


def load() -> list[float]:
    """How busy the machine is: the load averages of 1, 5 and 15 minutes, where the system has them."""
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else []


if __name__ == "__main__":
    sys.exit(main())
