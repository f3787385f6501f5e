"""Where server programs are looked for: the system, wheels, Debian packages unpacked without root."""

import atexit
import dataclasses
import functools
import glob
import hashlib
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.provide import debian
from tests.provide.processes import Unavailable, server_user, temporary_folder

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / ".cache"
SITE = Path(sysconfig.get_paths()["platlib"])


@dataclass(frozen=True)
class Place:
    """A program, the folder below which everything it needs lies, and what to tell people."""

    program: Path
    origin: str
    base: Path = Path("/")
    trees: tuple[str, ...] = ()  # below base; empty for the system's own programs
    own_loader: bool = False  # its C library lies there too, and is not the system's

    @property
    def command(self) -> list[str | Path]:
        """How to run the program."""
        if not self.own_loader:
            return [self.program]
        loaders = glob.glob(f"{self.base}/usr/lib/*-linux-*/ld-linux*.so.*")
        if not loaders:
            raise Unavailable(f"{self.origin}: no loader among its libraries")
        return [loaders[0], "--library-path", self._libraries, self.program]

    @property
    def environment(self) -> dict[str, str]:
        # With a C library of its own in there, the variable would break every other program.
        libraries = "" if self.own_loader or not self.trees else self._libraries
        return {"LD_LIBRARY_PATH": libraries} if libraries else {}

    @property
    def _libraries(self) -> str:
        folders = [*glob.glob(f"{self.base}/usr/lib/*-linux-*"), *glob.glob(f"{self.base}/lib/*-linux-*")]
        return ":".join(folders)


def named() -> tuple[str, ...]:
    """Where to look instead of everywhere: `IDEMPO_TEST_PLACES=wheel,debian` is a machine without servers."""
    return tuple(filter(None, os.environ.get("IDEMPO_TEST_PLACES", "").split(",")))


def on_system(name: str, *patterns: str) -> Iterator[Place]:
    """On PATH, in /usr/sbin, then by pattern, newest version first."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    newest = sorted((hit for pattern in patterns for hit in glob.glob(pattern)), key=_version, reverse=True)
    for program in [*([found] if found else []), *newest]:
        yield Place(Path(program), f"system, {program}")


def _version(path: str) -> list[int]:
    return [int(part) for part in path.split("/") if part.isdigit()]


def in_wheel(wheel: str, pattern: str, *trees: str) -> Iterator[Place]:
    for program in sorted(SITE.glob(pattern)):
        yield Place(program, f"wheel {wheel}", SITE, trees)


def in_debian(program: str, *packages: str) -> Iterator[Place]:
    base = debian.unpack(packages, CACHE / "debian")
    yield Place(base / program, f"Debian package {packages[0]}, unpacked", base, ("usr", "lib"))


def in_suite(suite: str, program: str, trees: tuple[str, ...], *packages: str) -> Iterator[Place]:
    """From a Debian newer than the system: with all of its libraries, which only its own loader can load."""
    base = debian.unpack(packages, CACHE / "debian", suite)
    yield Place(base / program, f"Debian {suite} package {packages[0]}, unpacked", base, trees, True)


def first(
    name: str, candidates: dict[str, Callable[[], Iterator[Place]]], places: Sequence[str] | None = None
) -> Place:
    """The first place that has the program. Candidates are in the order in which they are wanted."""
    missing = []
    for where in places or named() or candidates:
        if where not in candidates:
            continue
        try:
            for place in candidates[where]():
                if os.access(place.program, os.X_OK):
                    return _readable(place)
            missing.append(f"{where}: not there")
        except Unavailable as reason:
            missing.append(f"{where}: {reason}")
    raise Unavailable(f"no {name} ({'; '.join(missing) or 'no place to look at'})")


@functools.lru_cache
def _readable(place: Place) -> Place:
    """The place itself, or a copy where the user that servers run as may enter."""
    folders = [place.program.parent, *place.program.parent.parents]
    if not place.trees or not server_user() or all(folder.stat().st_mode & 0o001 for folder in folders):
        return place
    copy = temporary_folder()
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    copy.chmod(0o755)
    for tree in place.trees:
        if (place.base / tree).exists():
            shutil.copytree(place.base / tree, copy / tree, symlinks=True)
    return dataclasses.replace(place, program=copy / place.program.relative_to(place.base), base=copy)


def template(key: str, build: Callable[[Path], None]) -> Path:
    """A data folder that is made once per machine and copied for each server."""
    folder = CACHE / "templates" / hashlib.sha256(key.encode()).hexdigest()[:16]
    with debian.locked(folder.with_suffix(".lock")):
        if not folder.exists():
            with _scratch() as scratch:
                build(scratch)
                shutil.rmtree(folder.with_suffix(".new"), ignore_errors=True)
                shutil.copytree(scratch / "data", folder.with_suffix(".new"), symlinks=True)
                folder.with_suffix(".new").rename(folder)
    return folder


@contextmanager
def _scratch() -> Iterator[Path]:
    folder = temporary_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
