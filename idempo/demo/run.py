"""The demo from end to end: read, handle, reconcile."""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from idempo.demo.callbacks import read
from idempo.demo.crew import handle
from idempo.demo.postings import open_postings
from idempo.demo.reconcile import Report, reconcile
from idempo.demo.sample import bundled
from idempo.demo.screen import Screen
from idempo.presentation import without_password

__all__ = ["run_demo"]


def run_demo(source: str | None, url: str | None, *, workers: int, kills: int, seed: int) -> Report:
    """Handle the callbacks of the file `source` (None: the sample, "-": stdin) on the store of `url`.

    Raises `WorkersError`, an `IdempoError`, or the driver's error where the store does not work.
    """
    with _ending(), Screen() as screen, _store(url) as store, _opened(source) as stream:
        feed = read(stream, screen.bad_line)
        run = uuid.uuid4().hex
        postings = open_postings(store)
        try:
            postings.prepare()
            screen.begin(
                len(feed.callbacks), workers, without_password(url) if url else "a temporary SQLite file"
            )
            handled = handle(
                feed.callbacks,
                url=store,
                run=run,
                workers=workers,
                kills=kills,
                seed=seed,
                watch=screen.watch,
            )
            return reconcile(feed, handled, postings.entries(), run, postings.times_run(run))
        finally:
            postings.close()


@contextlib.contextmanager
def _opened(source: str | None) -> Iterator[BinaryIO]:
    if source == "-":
        yield sys.stdin.buffer
    else:
        with bundled() if source is None else Path(source).open("rb") as stream:
            yield stream


@contextlib.contextmanager
def _store(url: str | None) -> Iterator[str]:
    """The user's store, or a file of our own that is gone afterwards."""
    if url is not None:
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="idempo-demo-", ignore_cleanup_errors=True) as folder:
        yield f"sqlite:///{folder}/demo.db"


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    """Leave by the front door on SIGTERM too: no process and no file stays behind."""

    def leave(number: int, _: Any) -> None:
        sys.exit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # not in the main thread: then it is not ours to set
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
