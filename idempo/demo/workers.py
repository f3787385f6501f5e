"""The processes that handle callbacks, and the parent that hands out lines and kills a worker now and then.

A worker has one line in hand at a time, so the parent knows what a killed one had, and gives it to another. A line may
therefore be handled more than once, but it is answered once. No process outlives the parent: a worker whose pipe is
closed at the other end returns.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import random
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from idempo.demo.callbacks import Callback
from idempo.demo.postings import Post, open_postings
from idempo.errors import FingerprintMismatchError, IdempoError

__all__ = ["Answer", "Handled", "WorkersError", "handle"]

_TRIES = 5
_DEATHS = 3  # of their own accord, one after the other, before we stop hiring
_MOMENT = 0.004  # seconds within which a worker is killed: as long as a line takes


class WorkersError(Exception):
    """The workers cannot do their work."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker says about one line."""

    line: int
    kind: str
    """executed, replayed or refused; or failed, with the reason as `detail`."""
    amount: Decimal | None = None
    """The amount that the first result of this payment has."""
    retries: int = 0
    """How often the store could not give a definite answer, so that the line was handled again."""
    detail: str = ""


@dataclass(slots=True)
class Handled:
    """What came of all lines."""

    answers: dict[int, Answer] = field(default_factory=dict)
    kills: int = 0
    redone: int = 0
    """Lines that were in the hand of a worker when it died."""
    retries: int = 0


# ---------------------------------------------------------------------------------------- in the worker's process


def serve(pipe: Connection, url: str, run: str) -> None:
    """Answer lines until the parent closes its end, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all of us: the parent decides
    logging.getLogger("idempo").addHandler(logging.NullHandler())  # takeovers are expected here
    with contextlib.suppress(EOFError, OSError):
        try:
            postings = open_postings(url)
            post = postings.handler(run)
        except Exception as error:
            pipe.send(Answer(0, "failed", detail=_reason(error)))
            return
        pipe.send(None)
        while True:
            pipe.send(_answer(post, pipe.recv()))


def _answer(post: Post, callback: Callback) -> Answer:
    detail = ""
    for retries in range(_TRIES):
        try:
            outcome = post(callback.payment_no, callback.event_id, callback.amount)
        except FingerprintMismatchError:
            return Answer(callback.line, "refused", retries=retries)
        except Exception as error:  # busy, gone, or unknown: asking again is what the key is for
            detail = _reason(error)
            time.sleep(0.05 * 2**retries)
        else:
            kind = "replayed" if outcome.replayed else "executed"
            return Answer(callback.line, kind, outcome.value.amount, retries)
    return Answer(callback.line, "failed", detail=detail)


def _reason(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, IdempoError) and error.__cause__ is not None else None
    return f"{type(error).__name__}: {error}" + (f" ({type(cause).__name__}: {cause})" if cause else "")


# ---------------------------------------------------------------------------------------- in the parent


@dataclass(eq=False, slots=True)
class _Worker:
    process: SpawnProcess
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
        self._url, self._run, self._rng, self._watch = url, run, rng, watch
        self._workers: dict[Connection, _Worker] = {}
        self._deaths = 0
        # A kill is due when so many lines are answered; not at the very end, so that there is work to be killed at.
        last = max(1, len(callbacks) * 9 // 10)
        self._due = sorted(rng.randrange(last) for _ in range(kills)) if callbacks else []

    def hire(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, self._url, self._run), daemon=True)
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
            if self._todo and worker.ready and not worker.killed and worker.callback is None:
                worker.callback = self._todo.popleft()
                with contextlib.suppress(OSError):  # dead already: heard of in the next turn
                    worker.pipe.send(worker.callback)
        while self._due and len(self.handled.answers) >= self._due[0] and self._kill():
            self._due.pop(0)

    def _hear(self, worker: _Worker, answer: Any) -> None:
        if isinstance(answer, Answer) and answer.kind == "failed":
            raise WorkersError(f"line {answer.line}: {answer.detail}" if answer.line else answer.detail)
        worker.ready, worker.callback = True, None
        self._deaths = 0
        if isinstance(answer, Answer):
            self.handled.answers[answer.line] = answer
            self.handled.retries += answer.retries
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
