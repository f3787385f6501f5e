"""Clocks of servers and workers that a test moves, by libfaketime (its README: "Using a file to control time").

    with Clock() as clock, start("postgres", places=["wheel"], clock=clock) as server:
        clock.move(3600)                # from now on the server lives an hour later

Only the wall clock moves, and at once; the monotonic clock is left alone, as the kernel leaves it alone.
"""

import glob
import os
import shutil
from pathlib import Path
from typing import Self

from tests.provide import debian
from tests.provide.places import CACHE
from tests.provide.processes import Unavailable, temporary_folder

__all__ = ["Clock"]

_LIBRARY = "usr/lib/*/faketime/libfaketime.so.1"


class Clock:
    """A wall clock for programs that are started under it. It begins as the machine's own."""

    def __init__(self) -> None:
        library = _library()
        self._folder = temporary_folder()
        self._folder.chmod(0o755)  # servers run as another user, who may not enter every cache either
        self._file = self._folder / "moved"
        self.move(0)
        self.environment = {
            "LD_PRELOAD": str(shutil.copy(library, self._folder)),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    @property
    def command(self) -> list[str]:
        """What a command is run under. Not a whole environment: the library must not load before the user changes."""
        return ["/usr/bin/env", *(f"{name}={value}" for name, value in self.environment.items())]

    def move(self, seconds: int) -> None:
        """Let the clock be so many seconds ahead of the machine's, or behind it. Takes effect at once."""
        new = self._folder / "new"
        new.write_text(f"{seconds:+d}")
        new.replace(self._file)  # nobody reads half of it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def _library() -> Path:
    for base in (Path("/"), None):
        where = debian.unpack(("libfaketime",), CACHE / "debian") if base is None else base
        for found in glob.glob(str(where / _LIBRARY)):
            if os.access(found, os.R_OK):
                return Path(found)
    raise Unavailable("no libfaketime in its package")
