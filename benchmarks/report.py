"""What was measured, as tables for people and as JSON for `compare`."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.method import Measured

__all__ = ["Results", "jsonable", "loaded", "markdown", "printed", "saved", "told"]

Results: TypeAlias = Mapping[str, Mapping[str, Sequence[Measured]]]
"""The rows by benchmark and title."""

HEADS = ("subject", "floor", "median", "p99", "ratio", "95 %", "target", "verdict", "requests", "note")


def cells(row: Measured) -> tuple[str, ...]:
    """One row as words, in the order of `HEADS`."""
    ratio = interval = ""
    if row.ratio is not None and row.low is not None and row.high is not None:
        ratio, interval = f"{row.ratio:.2f}", f"{row.low:.2f} to {row.high:.2f}"
    target = ""
    if row.target is not None:
        bound = f"{row.target:g}" if row.ratio is not None else worded(row.target, row.unit)
        target = f"{'>=' if row.at_least else '<='} {bound}"
    return (
        row.name,
        row.floor,
        worded(row.median, row.unit),
        worded(row.p99, row.unit),
        ratio,
        interval,
        target,
        judged(row),
        "" if row.requests is None else f"{row.requests:.3g}",
        row.note,
    )


def judged(row: Measured) -> str:
    """Whether the target is met, and by how much it is missed."""
    match row.verdict:
        case "missed":
            return f"missed by {row.beyond:.0%}"
        case "open":
            return f"open, {row.beyond:+.0%}"
        case word:
            return word


def worded(value: float | None, unit: str) -> str:
    """A number with its unit, of about three figures."""
    if value is None:
        return ""
    if unit == "us" and abs(value) >= 10_000:
        value, unit = value / 1000, "ms"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f} {unit}"


def shown(rows: Iterable[Measured]) -> tuple[list[str], list[list[str]]]:
    """The heads and rows of a table, without the columns in which nothing is."""
    every = [cells(row) for row in rows]
    kept = [number for number in range(len(HEADS)) if number == 0 or any(row[number] for row in every)]
    return [HEADS[number] for number in kept], [[row[number] for number in kept] for row in every]


def printed(title: str, rows: Sequence[Measured]) -> str:
    """A table for the screen; its floors are told in the report."""
    heads, every = shown(dataclasses.replace(row, floor="") for row in rows)
    widths = [max(len(row[number]) for row in [heads, *every]) for number in range(len(heads))]
    lines = [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in ([heads, *every] if every else [])
    ]
    return "\n".join(["", title, *lines])


def markdown(about: Mapping[str, object], results: Results) -> str:
    """The whole report as Markdown."""
    lines = ["# Benchmarks of idempo", ""]
    lines += [f"- {name}: {told(value)}" for name, value in about.items()]
    every = [row for tables in results.values() for rows in tables.values() for row in rows if row.target]
    counts = {verdict: sum(row.verdict == verdict for row in every) for verdict in ("met", "open", "missed")}
    lines += ["", "Targets: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + "."]
    for name, tables in results.items():
        lines += ["", f"## {name}"]
        for title, rows in tables.items():
            heads, words = shown(rows)
            lines += ["", f"### {title}", ""]
            if words:
                lines += [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
                lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in words]
    return "\n".join(lines) + "\n"


def told(value: object) -> str:
    match value:
        case dict():
            return ", ".join(f"{name} {told(one)}" for name, one in value.items())
        case list() | tuple():
            return "; ".join(map(told, value))
        case float():
            return f"{value:.2f}"
        case _:
            return str(value)


def saved(folder: Path, about: Mapping[str, object], results: Results) -> None:
    """Write `results.json` and `results.md` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {
        "about": about,
        "benchmarks": {
            name: {title: [dataclasses.asdict(row) for row in rows] for title, rows in tables.items()}
            for name, tables in results.items()
        },
    }
    (folder / "results.json").write_text(json.dumps(whole, indent=1) + "\n")
    (folder / "results.md").write_text(markdown(about, results))


def loaded(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, list[Measured]]]]:
    """Read what `saved` has written as `results.json`."""
    whole = json.loads(path.read_text())
    return whole["about"], {
        name: {title: [row_of(row) for row in rows] for title, rows in tables.items()}
        for name, tables in whole["benchmarks"].items()
    }


def jsonable(value: object) -> Any:
    """`value` as it comes back from JSON: tuples as lists."""
    return json.loads(json.dumps(value))


def row_of(row: Mapping[str, Any]) -> Measured:
    return Measured(**{**row, "rounds": tuple(row["rounds"])})
