"""The results as pictures, PNG and SVG. matplotlib is imported only here, and only when something is drawn."""

import importlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.method import Measured
from benchmarks.report import Results

__all__ = ["drawn"]

FORMATS = ("png", "svg")
WORDS = {"first run": "#1f6f8b", "replay": "#e08e45"}
"""The two words of a row, and their colours, in all pictures."""


def drawn(folder: Path, results: Results) -> list[Path]:
    """Draw what was measured into `folder`; return the files. Raises `ImportError` without matplotlib."""
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    plt: Any = importlib.import_module("matplotlib.pyplot")
    pictures: dict[str, tuple[Callable[[Any, Results], Any], str]] = {
        "latency": (latency, "latency"),
        "throughput": (throughput, "concurrency"),
        "table_size": (table_size, "tables"),
        "round_trips": (round_trips, "latency"),
    }
    written = []
    for name, (draw, source) in pictures.items():
        if not results.get(source):
            continue
        figure = draw(plt, results)
        for ending in FORMATS:
            path = folder / f"{name}.{ending}"
            figure.savefig(path, dpi=120, bbox_inches="tight")
            written.append(path)
        plt.close(figure)
    return written


def pairs(results: Results, *benchmarks: str) -> Iterator[tuple[str, str, Measured]]:
    """Subject, word and row of all rows that are a first run or a replay, of plain functions."""
    for benchmark in benchmarks:
        for title, rows in results.get(benchmark, {}).items():
            for row in rows:
                subject, _, word = row.name.rpartition(": ")
                if word in WORDS and not title.endswith(", async") and row.unit == "us":
                    yield f"{subject}  [{title.partition(',')[0]}]", word, row


def bars(plt: Any, results: Results, value: Callable[[Measured], float | None], label: str) -> Any:
    """Horizontal bars: one line per subject, its first run and its replay below each other."""
    found: dict[str, dict[str, float]] = {}
    for subject, word, row in pairs(results, "latency", "transactions"):
        if (number := value(row)) is not None and not subject.startswith("added by"):
            found.setdefault(subject, {})[word] = number
    subjects = list(reversed(found))
    figure, axes = plt.subplots(figsize=(9, 1 + 0.36 * len(subjects)))
    for offset, (word, colour) in zip((0.2, -0.2), WORDS.items(), strict=True):
        places = [number + offset for number in range(len(subjects))]
        axes.barh(places, [found[one].get(word, 0) for one in subjects], 0.38, label=word, color=colour)
    axes.set_yticks(range(len(subjects)), subjects, fontsize=8)
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    return figure


def latency(plt: Any, results: Results) -> Any:
    figure = bars(plt, results, lambda row: row.median, "microseconds per call, median, logarithmic")
    figure.axes[0].set_xscale("log")
    figure.axes[0].set_title("Latency by strategy")
    return figure


def round_trips(plt: Any, results: Results) -> Any:
    figure = bars(plt, results, lambda row: row.requests, "requests per call, counted on the wire")
    figure.axes[0].set_title("Round trips by strategy")
    return figure


def throughput(plt: Any, results: Results) -> Any:
    tables = results["concurrency"]
    figure, every = plt.subplots(1, len(tables), figsize=(7 * len(tables), 4.5), squeeze=False)
    for axes, (title, rows) in zip(every[0], tables.items(), strict=True):
        lines(axes, rows, r"(.+), (\d+) \w+")
        axes.set_xscale("log", base=2)
        axes.set_xlabel("tasks" if title.endswith("async") else "threads")
        axes.set_ylabel("calls per second")
        axes.set_title(title)
    return figure


def table_size(plt: Any, results: Results) -> Any:
    tables = {title: rows for title, rows in results["tables"].items() if rows and rows[0].unit == "us"}
    figure, every = plt.subplots(1, len(tables), figsize=(5 * len(tables), 4), squeeze=False)
    for axes, (title, rows) in zip(every[0], tables.items(), strict=True):
        turned = [(row, re.fullmatch(r"([\d ]+) records: (.+)", row.name)) for row in rows]
        for word, colour in WORDS.items():
            points = [
                (int(found[1].replace(" ", "")), row.median)
                for row, found in turned
                if found and found[2] == word
            ]
            axes.plot(*zip(*points, strict=True), marker="o", label=word, color=colour)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("records kept")
        axes.set_title(title)
        axes.legend()
    every[0][0].set_ylabel("microseconds per call, median")
    return figure


def lines(axes: Any, rows: Sequence[Measured], pattern: str) -> None:
    """One line per subject over a number at the end of its name; floors are dashed."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if matched := re.fullmatch(pattern, row.name):
            found.setdefault(matched[1], []).append((int(matched[2]), row.median))
    for name, points in found.items():
        axes.plot(*zip(*points, strict=True), "--" if "by hand" in name else "-", marker="o", label=name)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncol=2)
