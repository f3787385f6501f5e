"""A worker to be stopped: a process of its own that runs decorated functions and talks in lines of JSON.

It is told `{"call": key, "ending": ..., ...}` and `{"go": key}`; it says `{"key", "inside": fence}` when a function has
been entered, and `{"key", "value"}` or `{"key", "error", ...}` when the call has ended. `Worker` is its other end.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, insert, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from idempo import (
    MISSING,
    MonotonicVersion,
    OneTimeToken,
    RedisCache,
    SelectForUpdate,
    StateGuard,
    UniqueInsert,
    VersionCheck,
    current,
    idempotent,
)
from idempo.contracts import Colour
from idempo.records import Call
from idempo.steps import Pause, Steps, arun, run
from idempo.strategies.redis_cache import RedisLedger
from idempo.strategies.unique_insert import SqlLedger
from idempo.testing import Gate
from idempo.urls import url_for
from tests.guards.support import FLOW, Order, Payment
from tests.traps.support import until

LEASE = 0.3  # of the one that is stopped
LATE = "UPDATE stock SET note = :note, fence = :mine WHERE id = :id AND fence < :mine"  # a table guarded by a fence
OURS = {Order.id: "{order_id}"}


class Declined(Exception):
    """The function's own failure."""


class Rejected(Exception):
    """One of `replay_errors`."""


class Unsure(Exception):
    """One of `unknown_errors`."""


# ------------------------------------------------------------------------ what both sides decorate

LEDGERS: dict[str, Callable[[str], Any]] = {
    "unique": UniqueInsert,
    "redis": RedisCache,
    "token": lambda url: OneTimeToken(RedisCache(url)),
    "version": lambda url: MonotonicVersion(UniqueInsert(url), entity="{key}", version=lambda key: 1),
}
GUARDS: dict[str, Callable[[Any], Any]] = {
    "insert": lambda engine: UniqueInsert(engine, join="session"),
    "state": lambda engine: StateGuard(Order.status, OURS, FLOW, "paid", engine=engine),
    "lock": lambda engine: SelectForUpdate(Order, OURS, done=lambda row: row.status == "paid", engine=engine),
    "version": lambda engine: VersionCheck(Order.version, OURS, engine=engine),
}


def leased(using: Any, colour: Colour, name: str, body: Callable[[str], Steps[str]], **terms: Any) -> Any:
    """Decorate `body(key)`, given as steps, under a claim with a lease."""

    def plain(key: str) -> str:
        return run(body(key))

    async def coroutine(key: str) -> str:
        return await arun(body(key))

    errors: Any = {"replay_errors": (Rejected,), "unknown_errors": (Unsure,)}
    return idempotent(key="{key}", using=using, name=name, **errors, **terms)(
        plain if colour == "sync" else coroutine
    )


def joined(engine: Any, colour: Colour, guard: str, before: Callable[[], Steps[None]], **terms: Any) -> Any:
    """A function that takes a payment, and does `before` while its transaction is open."""

    def body(order_id: int, session: Any) -> Steps[int]:
        yield session.execute(insert(Payment).values(order_id=order_id, no=guard))
        yield from before()
        return order_id

    def plain(order_id: int, session: Any = None) -> int:
        return run(body(order_id, session))

    async def coroutine(order_id: int, session: Any = None) -> int:
        return await arun(body(order_id, session))

    return idempotent(key="{order_id}", using=GUARDS[guard](engine), name=guard, **terms)(
        plain if colour == "sync" else coroutine
    )


def engine_for(url: str, colour: Colour, **options: Any) -> Any:
    if colour == "sync":
        return create_engine(url, **options)
    return create_async_engine(url_for(make_url(url), "async"), **options)


def write_stock(url: str, key: str, note: str, fence: int) -> int:
    """The guarded write; how many rows it has changed."""
    engine = create_engine(url)
    with engine.begin() as connection:
        changed = connection.execute(text(LATE), {"note": note, "mine": fence, "id": key}).rowcount
    engine.dispose()
    return changed


# ------------------------------------------------------------------------ the test's end


class Worker:
    """The process, and what it has said so far."""

    def __init__(self, colour: Colour, environment: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "tests.faults.stalled", colour]
        root = Path(__file__).resolve().parents[2]
        self._process = subprocess.Popen(
            command, cwd=root, env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._said: dict[tuple[str, str], dict[str, Any]] = {}
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word = json.loads(line)
            self._said[word["key"], "inside" if "inside" in word else "end"] = word

    def tell(self, **words: Any) -> None:
        assert self._process.stdin is not None
        print(json.dumps(words), file=self._process.stdin, flush=True)

    def hear(self, key: str, what: str) -> Steps[dict[str, Any]]:
        """Wait until the call is "inside" its function, or at its "end"."""
        ended = key, "end"
        yield from until(
            lambda: (key, what) in self._said or ended in self._said or not self._listener.is_alive(),
            f"{key} {what}",
        )
        assert (key, what) in self._said, self._said.get(ended, "the worker has ended")
        return self._said.pop((key, what))

    def stop(self) -> None:
        """Returns when all of its threads have stopped."""
        os.kill(self._process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def wake(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._listener.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def stopped(worker: Worker) -> Iterator[None]:
    worker.stop()
    try:
        yield
    finally:
        worker.wake()


# ------------------------------------------------------------------------ the worker's end

_refused: set[bytes] = set()  # owners whose renewal the store has refused
_gates: dict[str, Gate] = {}
_one_line = threading.Lock()


def _watch_renewals(ledger: Any) -> None:
    """Note what the store says to a heartbeat: there is no event for a refused one."""
    renew = ledger.renew

    def watched(self: Any, call: Call, lease: float) -> Steps[bool]:
        alive: bool = yield from renew(self, call, lease)
        if not alive:
            _refused.add(call.owner)
        return alive

    ledger.renew = watched


def _say(**words: Any) -> None:
    with _one_line:
        print(json.dumps(words), flush=True)


def _held(key: str, colour: Colour, inside: Callable[[], int]) -> Steps[None]:
    gate = _gates[key] = Gate(colour)
    _say(key=key, inside=inside())
    yield gate.wait()


def _leased_call(words: dict[str, Any], colour: Colour) -> Any:
    ending, stock = words["ending"], words["stock"]

    def body(key: str) -> Steps[str]:
        yield from _held(key, colour, lambda: current().fence)
        match ending:
            case "fails":
                raise Declined(key)
            case "is unsure":
                raise Unsure(key)
            case "is rejected":
                raise Rejected(key)
            case "renews":
                while current().owner not in _refused:
                    yield Pause(0.01)
            case "writes":
                changed = write_stock(stock, key, "first", current().fence)
                return f"first changed {changed} rows"
        return "first"

    using = LEDGERS[words["ledger"]](words["url"])
    terms = {"lease": LEASE} | {name: words[name] for name in ("lease", "keep", "wait") if name in words}
    return leased(using, colour, words["name"], body, **terms)(words["call"])


def _joined_call(words: dict[str, Any], colour: Colour) -> Any:
    key = words["call"]
    engine = engine_for(words["url"], colour)
    f = joined(engine, colour, words["guard"], lambda: _held(key, colour, lambda: 0))
    return f(words["order"])


def _one(words: dict[str, Any], colour: Colour) -> Steps[None]:
    key = words["call"]
    try:
        value = yield (_joined_call if "guard" in words else _leased_call)(words, colour)
    except Exception as error:
        told = {
            name: _plain(getattr(error, name)) for name in ("ran", "result", "stored") if hasattr(error, name)
        }
        _say(key=key, error=type(error).__name__, text=str(error), cause=repr(error.__cause__), **told)
    else:
        _say(key=key, value=value)


def _plain(value: Any) -> Any:
    return "MISSING" if value is MISSING else value


def _blocking() -> None:
    for line in sys.stdin:
        words = json.loads(line)
        if "go" in words:
            _gates.pop(words["go"]).open()
        else:
            threading.Thread(target=run, args=(_one(words, "sync"),), daemon=True).start()


async def _awaiting() -> None:
    tasks = set()
    while line := await asyncio.to_thread(sys.stdin.readline):
        words = json.loads(line)
        if "go" in words:
            _gates.pop(words["go"]).open()
        else:
            tasks.add(asyncio.ensure_future(arun(_one(words, "async"))))


if __name__ == "__main__":
    for ledger in (RedisLedger, SqlLedger):
        _watch_renewals(ledger)
    if sys.argv[1] == "sync":
        _blocking()
    else:
        asyncio.run(_awaiting())
