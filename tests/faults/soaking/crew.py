"""The processes that call, as the soak holds them: started, killed, stopped past their lease, replaced."""

import contextlib
import json
import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import asdict
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Literal

from tests.faults.soaking import caller
from tests.faults.soaking.stand import Place

__all__ = ["Crew", "Ending", "Member"]

Ending = Literal["done", "died", "hung"]

_forking: ForkServerContext = multiprocessing.get_context("forkserver")


class Member:
    """One process."""

    def __init__(self, words: dict[str, object]) -> None:
        self._pipe, theirs = _forking.Pipe()
        # Started from the main thread of a server that lives as long as we do: they end with it.
        self._process: ForkServerProcess = _forking.Process(
            target=caller.live, args=(json.dumps(words), theirs), daemon=True
        )
        self._process.start()
        theirs.close()
        self.name = str(words["name"])
        self.stopped = False

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    @property
    def status(self) -> int | None:
        return self._process.exitcode

    @property
    def crashed(self) -> bool:
        """It has ended, and neither at its end nor by SIGKILL."""
        return self.status not in (None, 0, -signal.SIGKILL)

    def tell(self, **words: object) -> None:
        with contextlib.suppress(OSError):  # it is dead, and will be replaced
            self._pipe.send_bytes(json.dumps(words).encode())

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        self.stopped = True

    def wake(self) -> None:
        if self.alive:
            os.kill(self.pid, signal.SIGCONT)
        self.stopped = False

    def ended(self, seconds: float) -> Ending:
        """Wait until it has made its last call; one that does not come to an end is killed."""
        if not self._pipe.poll(seconds):
            self.kill()
            return "hung"
        try:
            self._pipe.recv_bytes()
        except (EOFError, OSError):
            self._process.join()
            return "died"
        self._process.join()
        return "done"


class Crew:
    """So many processes, at all times."""

    def __init__(self, size: int, folder: Path, places: Sequence[Place], seed: int, twin: str) -> None:
        _forking.set_forkserver_preload([caller.__name__])
        self._words: dict[str, object] = {
            "folder": str(folder),
            "places": [asdict(place) for place in places],
            "seed": seed,
            "twin": twin,
            "settle": [],
        }
        self._started = 0
        self._keys: list[str] = []
        self._folder = folder
        self.failures: list[str] = []
        """What became of processes that nobody has killed."""
        self.members = [self._start() for _ in range(size)]

    def _start(self) -> Member:
        self._started += 1
        return Member(self._words | {"name": f"w{self._started}"})

    def keys(self, keys: list[str]) -> None:
        """From now on, call these."""
        self._keys = keys
        for member in self.members:
            member.tell(keys=keys)

    def replace_dead(self) -> int:
        """Start a new process for each that is gone. How many."""
        gone = [number for number, member in enumerate(self.members) if not member.alive]
        for number in gone:
            self._examine(self.members[number])
            self.members[number] = self._start()
            self.members[number].tell(keys=self._keys)
        return len(gone)

    def finish(self, seconds: float) -> None:
        """Let all make their last calls, for so long at the most."""
        for member in self.members:
            member.tell(finish=True)
        for member in self.members:
            self._end(member, seconds)

    def settle(self, keys: Sequence[str], seconds: float) -> None:
        """One more process calls each key once, quietly."""
        member = Member(self._words | {"name": "settling", "settle": list(keys)})
        if self._end(member, seconds) == "died" and not member.crashed:
            self.failures.append("settling was killed by somebody else")

    def _end(self, member: Member, seconds: float) -> Ending:
        ending = member.ended(seconds)
        if ending == "hung":
            self.failures.append(f"{member.name} has not ended its last calls in {seconds:.0f} s")
        self._examine(member)
        return ending

    def _examine(self, member: Member) -> None:
        if member.crashed:
            log = self._folder / f"{member.name}.log"
            text = log.read_text(errors="replace")[-1000:] if log.exists() else "before it could say a word"
            self.failures.append(f"{member.name} ended with status {member.status}: {text}")

    def close(self) -> None:
        for member in self.members:
            if member.alive:
                member.kill()
