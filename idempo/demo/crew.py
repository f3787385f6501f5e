"""The parent of the workers: it hands out lines and kills a worker now and then.

A worker has one line in hand at a time, so the parent knows what a killed one had, and gives it to another. A line may
therefore be handled more than once, but it is answered once. The first line of a payment decides about its amount:
lines with another one are handed out after it is answered, all others as they come, duplicates at the same instant.
No process outlives the parent: a worker whose pipe is closed at the other end returns.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from idempo.demo.callbacks import Callback
from idempo.demo.postings import module_for
from idempo.demo.worker import Answer, serve

__all__ = ["Handled", "WorkersError", "handle"]

_DEATHS = 3  # of their own accord, one after the other, before we stop hiring
_MOMENT = 0.004  # seconds within which a worker is killed: as long as a line takes


class WorkersError(Exception):
    """The workers cannot do their work."""


@dataclass(slots=True)
class Handled:
    """What came of all lines."""

    answers: dict[int, Answer] = field(default_factory=dict)
    kills: int = 0
    redone: int = 0
    """Lines that were in the hand of a worker when it died."""
    retries: int = 0


@dataclass(eq=False, slots=True)
class _Worker:
    process: BaseProcess
    pipe: Connection
    ready: bool = False
    callback: Callback | None = None
    killed: bool = False


def handle(
    callbacks: Sequence[Callback],
    *,
    url: str,
    run: str,
    workers: int,
    kills: int,
    seed: int,
    watch: Callable[[Handled], None],
) -> Handled:
    """Have all callbacks answered by `workers` processes, `kills` of which are killed on the way.

    `watch` is told after each answer and each kill. Raises `WorkersError` where a line cannot be handled at all.
    """
    crew = _Crew(callbacks, url, run, kills, random.Random(seed), watch)  # noqa: S311 - no secret
    try:
        for _ in range(min(workers, len(callbacks))):
            crew.hire()
        while len(crew.handled.answers) < len(callbacks):
            crew.turn()
    finally:
        crew.dismiss()
    return crew.handled


class _Crew:
    def __init__(
        self,
        callbacks: Sequence[Callback],
        url: str,
        run: str,
        kills: int,
        rng: random.Random,
        watch: Callable[[Handled], None],
    ) -> None:
        self.handled = Handled()
        self._todo = deque(callbacks)
        self._first: dict[str, Callback] = {}
        for callback in callbacks:
            self._first.setdefault(callback.payment_no, callback)
        self._held: dict[str, list[Callback]] = {}
        self._url, self._run, self._rng, self._watch = url, run, rng, watch
        self._context = _context(url)
        self._workers: dict[Connection, _Worker] = {}
        self._deaths = 0
        # A kill is due when so many lines are answered; not at the very end, so that there is work to be killed at.
        last = max(1, len(callbacks) * 9 // 10)
        self._due = sorted(rng.randrange(last) for _ in range(kills)) if callbacks else []

    def hire(self) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=serve, args=(theirs, self._url, self._run), daemon=True)
        with _deaf():
            process.start()
        theirs.close()  # now its end is open in the worker only: when it dies, ours says so
        self._workers[ours] = _Worker(process, ours)

    def turn(self) -> None:
        """Hear what there is to hear, give out lines, kill one if it is time."""
        for pipe in wait(list(self._workers)):
            worker = self._workers[pipe]  # type: ignore[index]
            try:
                self._hear(worker, worker.pipe.recv())
            except (EOFError, OSError):
                self._bury(worker)
        for worker in self._workers.values():
            if worker.ready and not worker.killed and worker.callback is None:
                worker.callback = self._next()
                if worker.callback is None:
                    break
                with contextlib.suppress(OSError):  # dead already: heard of in the next turn
                    worker.pipe.send(worker.callback)
        while self._due and len(self.handled.answers) >= self._due[0] and self._kill():
            self._due.pop(0)

    def _next(self) -> Callback | None:
        """The next line that may be handed out, if there is one."""
        while self._todo:
            callback = self._todo.popleft()
            first = self._first[callback.payment_no]
            if callback.amount == first.amount or first.line in self.handled.answers:
                return callback
            self._held.setdefault(callback.payment_no, []).append(callback)
        return None

    def _hear(self, worker: _Worker, answer: Any) -> None:
        if isinstance(answer, Answer) and answer.kind == "failed":
            raise WorkersError(f"line {answer.line}: {answer.detail}" if answer.line else answer.detail)
        callback, worker.ready, worker.callback = worker.callback, True, None
        self._deaths = 0
        if isinstance(answer, Answer):
            self.handled.answers[answer.line] = answer
            self.handled.retries += answer.retries
            if callback is not None and callback is self._first[callback.payment_no]:
                self._todo.extendleft(reversed(self._held.pop(callback.payment_no, [])))
            self._watch(self.handled)

    def _kill(self) -> bool:
        busy = [one for one in self._workers.values() if one.callback is not None and not one.killed]
        if not busy:
            return False
        victim = self._rng.choice(busy)
        time.sleep(self._rng.uniform(0, _MOMENT))
        victim.process.kill()
        victim.killed = True
        self.handled.kills += 1
        self._watch(self.handled)
        return True

    def _bury(self, worker: _Worker) -> None:
        del self._workers[worker.pipe]
        worker.pipe.close()
        worker.process.join()
        if worker.callback is not None:
            self._todo.appendleft(worker.callback)
            self.handled.redone += 1
        if not worker.killed:
            self._deaths += 1
            if self._deaths >= _DEATHS:
                raise WorkersError(f"the workers end by themselves, with status {worker.process.exitcode}")
        self.hire()

    def dismiss(self) -> None:
        """Let idle workers return, and leave no process behind."""
        for worker in self._workers.values():
            worker.pipe.close()
            if worker.callback is not None:
                worker.process.kill()
        patience = time.monotonic() + 2
        for worker in self._workers.values():
            worker.process.join(max(0.0, patience - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers.clear()


def _context(url: str) -> Any:
    """How processes are started: new ones, that inherit nothing from us but their end of the pipe.

    Where the system can do that, they are forks of a helper that has the modules loaded, so that one in place of a
    killed one is there at once. The helper ends when we do.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([serve.__module__, module_for(url)])
    return context


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Ignore Ctrl-C for the moment in which a child inherits what we ignore, so that it never sees one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
