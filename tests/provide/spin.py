"""Where the model checker comes from: `spin`, and a C compiler for what it writes."""

from __future__ import annotations

import functools
import glob
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.provide import debian
from tests.provide.places import CACHE, first, in_debian, on_system
from tests.provide.processes import Unavailable

__all__ = ["Checker", "Compiler", "checker"]


@dataclass(frozen=True)
class Compiler:
    """A C compiler: the words before the file to compile, and those after it."""

    program: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checker:
    """The two programs, and what spin's libraries need in the environment."""

    spin: str
    compiler: Compiler
    environment: tuple[tuple[str, str], ...]

    def build(self, model: Path, folder: Path, spin: Sequence[str], compiler: Sequence[str]) -> None:
        """Make the program `pan` in `folder`, which verifies `model` when it is run there."""
        of_model = f"-P{self.compiler.program} -E -x c"
        self.run([self.spin, of_model, "-a", *spin, str(model)], folder, 30)
        words = [self.compiler.program, *self.compiler.before, *compiler, "-o", "pan", "pan.c"]
        self.run([*words, *self.compiler.after], folder, 120)

    def run(self, command: Sequence[str], folder: Path, seconds: float) -> str:
        """Run a command to its end and return what it printed. Raises if it fails or takes too long."""
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **dict(self.environment)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stdout[-2000:]}")
        return done.stdout


@functools.lru_cache
def checker() -> Checker:
    """Return what is on this machine. Raises `Unavailable` of the kind "spin", with the reason, where it is not."""
    try:
        spin = first(
            "spin",
            {"system": lambda: on_system("spin"), "debian": lambda: in_debian("usr/bin/spin", "spin")},
        )
        return Checker(str(spin.program), _compiler(), tuple(spin.environment.items()))
    except Unavailable as reason:
        reason.kind = "spin"
        raise


def _compiler() -> Compiler:
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return Compiler(found, ("-O1", "-w"))
    try:
        base = debian.unpack(("tcc", "libc6-dev"), CACHE / "debian")
    except Unavailable as reason:
        raise Unavailable(f"no C compiler for what spin writes: no cc, gcc or clang, and {reason}") from None
    return _tiny(base / "usr")


def _tiny(usr: Path) -> Compiler:
    """tcc looks for the C library where the system has it; here its headers and start files are unpacked elsewhere."""
    library = next((found.parent for found in usr.glob("lib/*/crt1.o")), None)
    shared = next(iter(glob.glob("/lib/*-linux-*/libc.so.6")), None)
    if library is None or shared is None:
        raise Unavailable(
            "no C compiler for what spin writes: no cc, gcc or clang, and tcc lacks the C library"
        )
    headers = (usr / "include", usr / "include" / library.name, library / "tcc/include")
    start, end = (library / "crt1.o", library / "crti.o"), (library / "tcc/libtcc1.a", library / "crtn.o")
    before = ("-w", "-nostdlib", *(f"-I{folder}" for folder in headers), *map(str, start))
    return Compiler(str(usr / "bin/tcc"), before, (shared, *map(str, end)))
