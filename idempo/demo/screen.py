"""What people see: progress on stderr while it runs, a summary on stdout at the end."""

from __future__ import annotations

import json
import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from idempo.demo.callbacks import plain
from idempo.demo.crew import Handled
from idempo.demo.reconcile import Report

__all__ = ["Screen", "as_json", "summary"]

_SHOWN = 100  # bad lines, and problems: the rest is counted


class Screen:
    """Progress: a moving bar on a terminal, a line for each tenth elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._bad = self._kills = self._tenth = self._total = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def bad_line(self, number: int, reason: str) -> None:
        self._bad += 1
        if self._bad <= _SHOWN:
            self._say(f"line {number}: {reason}; skipped")

    def begin(self, total: int, workers: int, where: str) -> None:
        if self._bad > _SHOWN:
            self._say(f"... and {self._bad - _SHOWN} more bad lines")
        self._say(f"{_n(total, 'callback')}, {_n(workers, 'worker')}, {where}")
        self._total = total
        if self._console.is_terminal and total:
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
            bar = self._bar = Progress(*columns, console=self._console, transient=True)
            bar.add_task("callbacks", total=total)
            bar.start()

    def watch(self, handled: Handled) -> None:
        answered = len(handled.answers)
        if handled.kills > self._kills:
            self._kills = handled.kills
            self._say(
                f"killed a worker ({handled.kills}) after {answered:,} callbacks; another one is started"
            )
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=answered)
        elif answered * 10 // self._total > self._tenth:
            self._tenth = answered * 10 // self._total
            self._say(f"{answered:,} of {self._total:,} callbacks answered")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False)


def as_json(report: Report) -> str:
    """The report as one JSON object."""
    names = "received", "malformed", "payments", "executed", "replayed", "refused", "kills"
    counts = {name: getattr(report, name) for name in names}
    return json.dumps({**counts, "ledger_total": plain(report.ledger_total), "ok": report.ok})


def summary(report: Report) -> None:
    """Print a table and what it means."""
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    table = Table("callbacks", "", box=None, show_header=False, pad_edge=False)
    rows = {
        "received": report.received,
        "  malformed": report.malformed,
        "  executed": report.executed,
        "  replayed": report.replayed,
        "  refused": report.refused,
        "payments": report.payments,
        "workers killed": report.kills,
    }
    for name, number in rows.items():
        table.add_row(name, f"{number:,}")
    table.columns[1].justify = "right"
    table.add_row("ledger total", plain(report.ledger_total, grouped=True))
    console.print(table)
    console.print(_sentence(report), markup=False)
    for problem in report.problems[:_SHOWN]:
        console.print(f"- {problem}", markup=False)
    if len(report.problems) > _SHOWN:
        console.print(f"- ... and {len(report.problems) - _SHOWN} more")


def _sentence(report: Report) -> str:
    counts = _n(report.payments, "payment"), _n(report.received, "callback"), _n(report.kills, "worker")
    begin = f"{', '.join(counts)} killed: "
    if not report.ok:
        return begin + "the ledger does NOT reconcile."
    if not report.payments:
        return begin + "there was nothing to post."
    earlier = report.payments - report.executed
    note = (
        f" ({'all' if not report.executed else f'{earlier:,}'} of them by an earlier run)" if earlier else ""
    )
    total = plain(report.ledger_total, grouped=True)
    return f"{begin}each payment was posted exactly once{note}; the ledger totals {total}."


def _n(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
