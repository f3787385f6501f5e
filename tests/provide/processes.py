"""Server processes of our own: started on a leash, killed and paused as whole trees."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

T = TypeVar("T")

NOBODY = 65534
LEASH = Path(__file__).with_name("leash.py")

# The kernel ends a leashed process when the *thread* that started it ends. One thread that lives as long as
# the interpreter starts them all, so that tests may start servers from any thread.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")


class Unavailable(Exception):
    """This server cannot be had on this machine; the message says why."""

    kind = ""


def free_port() -> int:
    """A free loopback port below the range the kernel gives to outgoing connections.

    Otherwise, while a server is down, a client could be given the server's own port as its source port.
    """
    while True:
        port = random.randint(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def temporary_folder(within: Path | None = None) -> Path:
    """A folder with a short name: the path of a unix socket ends at 107 characters."""
    return Path(tempfile.mkdtemp(prefix=f"idm-{os.getpid()}-", dir=within or _temporary()))


def sweep() -> None:
    """Remove what killed runs left behind. Their servers ended with them, their folders did not."""
    for folder in _temporary().glob("idm-*-*"):
        if not Path("/proc", folder.name.split("-")[1]).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _temporary() -> Path:
    folder = tempfile.gettempdir()
    return Path(folder if len(folder) < 60 else "/tmp")


def server_user() -> int:
    """The user for servers that refuse root: 0 stands for "as we are"."""
    return 0 if os.geteuid() else NOBODY


def give_away(folder: Path) -> None:
    """Hand a folder with all that is in it to the user that servers run as."""
    user = server_user()
    if not user:
        return
    for where, _, files in os.walk(folder):
        os.chown(where, user, user)
        for name in files:
            os.chown(os.path.join(where, name), user, user, follow_symlinks=False)


def spawn(
    command: Sequence[str | Path],
    folder: Path,
    *,
    user: int = 0,
    env: Mapping[str, str] | None = None,
    stdin: Path = Path(os.devnull),
) -> subprocess.Popen[bytes]:
    leashed = [sys.executable, "-I", "-S", LEASH, user, os.getpid(), *command]
    # A clean environment: no PG*, MYSQL_*, LD_PRELOAD of ours changes what the server does.
    clean = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C", "HOME": str(folder), **(env or {})}
    with (folder / "log").open("ab") as log, stdin.open("rb") as source:
        return _spawner.submit(
            subprocess.Popen,
            [str(part) for part in leashed],
            cwd=folder,
            env=clean,
            stdin=source,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for pytest, which then stops the servers
        ).result()


def run(
    command: Sequence[str | Path],
    folder: Path,
    *,
    user: int = 0,
    env: Mapping[str, str] | None = None,
    stdin: Path = Path(os.devnull),
) -> None:
    """Run a command to its end."""
    process = spawn(command, folder, user=user, env=env, stdin=stdin)
    if process.wait(timeout=120):
        raise Unavailable(f"{command[0]} failed with status {process.returncode}: {tail(folder)}")


def tail(folder: Path) -> str:
    """The last lines that the server wrote."""
    text = (folder / "log").read_text(errors="replace") if (folder / "log").exists() else ""
    return " / ".join(text.strip().splitlines()[-5:])


def poll(attempt: Callable[[], T], *, seconds: float, give_up: Callable[[], None] = lambda: None) -> T:
    """The first answer of `attempt` that is not an exception. `give_up` may raise to end the waiting."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return attempt()
        except Exception:
            give_up()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _state(pid: int, of: int | None = None) -> tuple[str, int]:
    """State letter and parent of a process, or of a thread `of` it; X where there is none."""
    place = pid if of is None else f"{of}/task/{pid}"
    try:
        fields = Path(f"/proc/{place}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "X", 0
    return fields[0], int(fields[1])


def _tree(root: int) -> list[int]:
    """A process and all that descend from it, parents first."""
    parents = {int(name): _state(int(name))[1] for name in os.listdir("/proc") if name.isdigit()}
    tree = [root]
    for member in tree:  # grows while it is walked
        tree += [pid for pid, parent in parents.items() if parent == member]
    return tree


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class Engine(Protocol):
    """What can be done to a server of ours."""

    def start(self) -> None: ...
    def kill(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def stop(self) -> None: ...
    def check(self) -> None: ...


class Local:
    """One server process in a folder of its own. It can be killed, paused and started again on its data."""

    def __init__(
        self,
        command: Sequence[str | Path],
        folder: Path,
        *,
        user: int = 0,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._command, self._folder, self._user, self._env = command, folder, user, env
        self._process: subprocess.Popen[bytes] | None = None

    def run_under(self, command: Sequence[str | Path]) -> None:
        """From the next start on, let this command run the server's, as `env` does."""
        self._command = [*command, *self._command]

    def start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            raise RuntimeError("the server is still running")
        self._process = spawn(self._command, self._folder, user=self._user, env=self._env)

    def check(self) -> None:
        """Say why, if the process has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            raise Unavailable(f"{self._command[0]} ended at once: {tail(self._folder)}")

    def pause(self) -> None:
        """Returns when all of its threads have stopped."""
        # The root first: a stopped parent cannot start children that the list would miss.
        if self._process is not None and self._process.poll() is None:
            _stop([self._process.pid])
            _stop(_tree(self._process.pid)[1:])

    def resume(self) -> None:
        if self._process is not None and self._process.poll() is None:
            for pid in reversed(_tree(self._process.pid)):
                _send(pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to the whole tree. A database's backends are in process groups of their own."""
        if self._process is None or self._process.poll() is not None:
            return
        self.pause()
        tree = _tree(self._process.pid)
        for pid in tree:
            _send(pid, signal.SIGKILL)
        self._process.wait(timeout=30)
        poll(lambda: _expect_gone(tree), seconds=30)

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def runs(pid: int) -> bool:
    """Whether there is such a process and it is not merely waiting to be buried."""
    return _state(pid)[0] not in "XZ"


def _stop(pids: list[int]) -> None:
    for pid in pids:
        _send(pid, signal.SIGSTOP)
    poll(lambda: _expect_stopped(pids), seconds=30)


def _expect_stopped(pids: list[int]) -> None:
    if going := [pid for pid in pids for state in _threads(pid) if state not in "TtZX"]:
        raise TimeoutError(f"processes {going} have not stopped")


def _threads(pid: int) -> list[str]:
    """The state letters of the threads of a process."""
    with contextlib.suppress(OSError):
        return [_state(int(thread), pid)[0] for thread in os.listdir(f"/proc/{pid}/task")]
    return []


def _expect_gone(pids: list[int]) -> None:
    # A new PostgreSQL refuses to start while an old backend holds the shared memory.
    if alive := [pid for pid in pids if runs(pid)]:
        raise TimeoutError(f"processes {alive} are still there")
