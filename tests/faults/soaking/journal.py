"""Journals: one file a process, one write a line, so that whatever was written outlives a kill -9."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.soaking.history import Event

__all__ = ["Journal", "read"]


class Journal:
    """Appends the events of one process, from any of its threads."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file = os.open(folder / f"{name}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def say(
        self, what: str, *, key: str = "", call: str = "", run: str = "", fence: int = 0, **more: Any
    ) -> None:
        line = json.dumps([time.monotonic(), what, key, call, run, fence, more])
        os.write(self._file, line.encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)


def read(folder: Path) -> Iterator[Event]:
    """What all processes have written, in the order of the files."""
    for path in sorted(folder.glob("*.jsonl")):
        with path.open() as lines:
            for line in lines:
                yield Event(*json.loads(line))
