"""Debian packages unpacked into a folder: no root, no installation, no service started."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.provide.processes import Unavailable


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time; the lock goes with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# What went wrong earlier in this process: asking a network that is not there again takes its time.
_refusals: dict[str, str] = {}


def unpack(packages: Sequence[str], cache: Path) -> Path:
    """The folder with these packages and those of their dependencies that the system lacks."""
    name = packages[0]
    folder = cache / name
    with locked(cache / f"{name}.lock"):
        if not folder.exists():
            if name in _refusals:
                raise Unavailable(_refusals[name])
            try:
                _unpack(packages, cache / f"{name}.apt", folder)
            except Unavailable as reason:
                _refusals[name] = str(reason)
                raise
    return folder


def _unpack(packages: Sequence[str], state: Path, folder: Path) -> None:
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        raise Unavailable("this is not Debian")
    new = folder.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    for part in ("lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    # The system's list of installed packages, so that only what is missing is fetched; all else is private.
    apt = [
        "apt-get",
        "-q",
        "-y",
        "-o",
        f"Dir::State={state}",
        "-o",
        "Dir::State::status=/var/lib/dpkg/status",
    ]
    apt += ["-o", f"Dir::Cache={state}/cache", "-o", "Debug::NoLocking=true", "-o", "Acquire::Retries=1"]
    apt += ["-o", "APT::Sandbox::User=", "-o", "Acquire::http::Timeout=20", "-o", "Acquire::Languages=none"]
    _run([*apt, "update"])
    _run([*apt, "install", "--download-only", "--reinstall", "--no-install-recommends", *packages])
    for archive in sorted((state / "cache/archives").glob("*.deb")):
        _run(["dpkg", "-x", str(archive), str(new)])
    new.rename(folder)
    shutil.rmtree(state)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{command[0]} took too long") from None
    if done.returncode:
        raise Unavailable(f"{command[0]} failed: {done.stderr.strip()[-300:]}")
