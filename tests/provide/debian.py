"""Debian packages unpacked into a folder: no root, no installation, no service started."""

import fcntl
import os
import platform
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


def unpack(packages: Sequence[str], cache: Path, suite: str = "") -> Path:
    """The folder with these packages and those of their dependencies that the system lacks.

    Packages of another `suite` bring all that they depend on, the C library and its loader too.
    """
    name = f"{packages[0]}-{suite}" if suite else packages[0]
    folder = cache / name
    with locked(cache / f"{name}.lock"):
        if not folder.exists():
            if name in _refusals:
                raise Unavailable(_refusals[name])
            try:
                _unpack(packages, cache / f"{name}.apt", folder, suite)
            except Unavailable as reason:
                _refusals[name] = str(reason)
                raise
    return folder


def _unpack(packages: Sequence[str], state: Path, folder: Path, suite: str) -> None:
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        raise Unavailable("this is not Debian")
    new = folder.with_suffix(".new")
    for left_behind in (new, state):
        shutil.rmtree(left_behind, ignore_errors=True)
    for part in ("lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    apt = ["apt-get", "-q", "-y", "-o", f"Dir::State={state}"]
    # The system's list of installed packages, so that only what is missing is fetched; all else is private.
    apt += _only(suite, state) if suite else ["-o", "Dir::State::status=/var/lib/dpkg/status"]
    apt += ["-o", f"Dir::Cache={state}/cache", "-o", "Debug::NoLocking=true", "-o", "Acquire::Retries=1"]
    apt += ["-o", "APT::Sandbox::User=", "-o", "Acquire::http::Timeout=20", "-o", "Acquire::Languages=none"]
    _run([*apt, "update"])
    _run([*apt, "install", "--download-only", "--reinstall", "--no-install-recommends", *packages])
    for archive in sorted((state / "cache/archives").glob("*.deb")):
        _run(["dpkg", "-x", str(archive), str(new)])
    new.rename(folder)
    shutil.rmtree(state)


def _only(suite: str, state: Path) -> list[str]:
    """Options that make apt see this suite of the system's archive and nothing else, nothing installed either."""
    (state / "status").touch()
    (state / "sources.list").write_text(f"deb {_signed()}{_archive()} {suite} main\n")
    options = [f"Dir::State::status={state}/status", f"Dir::Etc::sourcelist={state}/sources.list"]
    options += ["Dir::Etc::sourceparts=/dev/null", f"APT::Default-Release={suite}"]
    options += ["Dir::Etc::preferences=/dev/null", "Dir::Etc::preferencesparts=/dev/null"]
    return [word for option in options for word in ("-o", option)]


def _archive() -> str:
    """Where the system itself gets its Debian packages from."""
    release = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    wanted = {release.get("VERSION_CODENAME"), "stable", "testing", "unstable", "sid"}
    ask = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"]
    if release.get("ID") == "debian":
        for line in _run([*ask, "Created-By: Packages"]).splitlines():
            address, name, component = line.split()
            if name in wanted and component == "main":
                return address
    raise Unavailable("apt knows no archive of Debian's")


def _signed() -> str:
    keys = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    return f"[signed-by={keys}] " if keys.exists() else ""


def _run(command: list[str]) -> str:
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
    return done.stdout
