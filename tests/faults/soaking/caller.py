"""A process that calls: threads and tasks, random keys of all compositions, both colours, until it is told to stop.

It is told `{"keys": [...]}` and `{"finish": true}` in lines of JSON over a pipe, and says `{"done": true}` at its end.
It takes nothing from its parent's memory, and ends with it, also when it is stopped.
"""

import asyncio
import itertools
import json
import os
import random
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from idempo.contracts import Colour
from idempo.steps import Pause, Steps, arun, run
from tests.faults.soaking.journal import Journal
from tests.faults.soaking.stand import Place, Stand
from tests.faults.soaking.twins import become
from tests.provide import leash

__all__ = ["live"]

THREADS = 3
TASKS = 3
HOT = 4
"""So many keys are called at a time, by everybody; then the next ones."""
PER_SECOND = 4.0


class _Callers:
    """What the threads and tasks of one process share."""

    def __init__(self, words: dict[str, Any]) -> None:
        folder, self._name, twin = Path(words["folder"]), words["name"], words["twin"]
        self.journal = Journal(folder, self._name)
        self.odds = random.Random(f"{words['seed']} {self._name}")
        self._numbers = itertools.count(1)
        self.keys: list[str] = []
        self.finish = False
        quiet = bool(words["settle"])
        places = [Place(**place) for place in words["places"]]
        self._stands = {
            (place.name, colour): Stand(place, colour, self.journal, self.odds, twin=twin, quiet=quiet)
            for place in places
            for colour in ("sync", "async")
        }
        self.journal.say("start", pid=os.getpid())

    def calling(self, colour: Colour) -> Steps[None]:
        while not self.finish:
            if self.keys:
                yield from self._one(colour, self._next_key())
            yield Pause(self.odds.uniform(0.0, 0.05))

    def _next_key(self) -> str:
        keys = self.keys
        moment = int(time.monotonic() * PER_SECOND)
        return keys[(moment * HOT + self.odds.randrange(HOT)) % len(keys)]

    def _one(self, colour: Colour, key: str, *, settling: bool = False) -> Steps[None]:
        stand = self._stands[key.partition("/")[0], colour]
        yield from stand.call(key, f"{self._name}.{next(self._numbers)}", settling=settling)

    def settling(self, colour: Colour, keys: Sequence[str]) -> Steps[None]:
        for key in keys:
            yield from self._one(colour, key, settling=True)

    def close(self, colour: Colour) -> Steps[None]:
        for (_, own), stand in self._stands.items():
            if own == colour:
                yield from stand.close()


def live(words: str, pipe: Connection) -> None:
    """Call, until told to finish or until killed."""
    leash.tie(os.getppid())
    told = json.loads(words)
    log = os.open(Path(told["folder"]) / f"{told['name']}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)
    os.close(log)
    if told["twin"] not in ("", "not-joined"):
        become(told["twin"])
    callers = _Callers(told)
    settle: list[str] = told["settle"]
    parts = [settle[number :: THREADS + TASKS] for number in range(THREADS + TASKS)]

    def steps(colour: Colour, number: int) -> Steps[None]:
        return callers.settling(colour, parts[number]) if settle else callers.calling(colour)

    async def tasks() -> None:
        await asyncio.gather(*(arun(steps("async", THREADS + number)) for number in range(TASKS)))
        await arun(callers.close("async"))

    def many() -> None:
        asyncio.run(tasks())

    threads = [threading.Thread(target=run, args=(steps("sync", number),)) for number in range(THREADS)]
    threads.append(threading.Thread(target=many))
    for thread in threads:
        thread.daemon = True
        thread.start()
    while not (settle or callers.finish):
        try:
            word = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        callers.keys, callers.finish = word.get("keys", callers.keys), "finish" in word
    for thread in threads:
        thread.join()
    run(callers.close("sync"))
    pipe.send_bytes(b'{"done": true}')
