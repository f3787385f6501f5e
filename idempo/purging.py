"""A purge that goes on: batch after batch, telling people how far it has come, until it is done or interrupted."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from idempo.inspection import Inspection

__all__ = ["Progress", "purging"]

_REWRITTEN = 0.2  # seconds between two looks of one line on a terminal
_ADDED = 10.0  # seconds between two lines elsewhere: in a log, or a mail from cron


def purging(store: Inspection, batch: int, pause: float, at_most: int | None) -> Iterator[int]:
    """Purge batches, `pause` seconds apart, and yield how many records each has deleted.

    Ends with a batch that is not full, or after `at_most` records: where records end all the time, no batch would be
    empty. An interrupt waits for the end of the batch, so that what is told is what is gone.
    """
    left = at_most
    while left is None or left > 0:
        wanted = batch if left is None else min(batch, left)
        with _interrupts_noted() as interrupts:
            deleted = store.purge(wanted)
        yield deleted
        if deleted < wanted:
            return
        if interrupts:
            raise KeyboardInterrupt
        left = None if left is None else left - deleted
        time.sleep(pause)


@contextmanager
def _interrupts_noted() -> Iterator[list[int]]:
    """Note an interrupt that comes meanwhile, and only note it. A second one interrupts as ever."""
    came: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield came  # interrupts are somebody else's business
        return

    def note(number: int, frame: object) -> None:
        came.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, before)


class Progress:
    """Tells on stderr how far a purge has come, and on stdout, however it ended, how many records are gone.

    On a terminal one line is rewritten; elsewhere there is a line every ten seconds. How many are left is not told:
    counting them would read the table.
    """

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._every = _REWRITTEN if self._terminal else _ADDED
        self._began = self._told = time.monotonic()
        self._deleted: int | None = None

    def __enter__(self) -> Self:
        return self

    def add(self, deleted: int) -> None:
        """Count a batch."""
        self._deleted = deleted + (self._deleted or 0)
        if time.monotonic() - self._told >= self._every:
            self._tell(self._deleted)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._deleted is None:
            return  # not even one batch: the error says why
        if self._told > self._began:
            self._tell(self._deleted)
        if self._terminal and self._told > self._began:
            print(file=sys.stderr)
        print(f"purged {self._deleted} record{'' if self._deleted == 1 else 's'}", flush=True)

    def _tell(self, deleted: int) -> None:
        self._told = time.monotonic()
        seconds = self._told - self._began
        line = f"{deleted:,} records deleted in {seconds:.0f} s, {deleted / seconds:,.0f} a second"
        if self._terminal:
            print(f"\r{line:<70}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)
