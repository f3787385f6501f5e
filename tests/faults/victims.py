"""Processes that are killed: one per call, forked from a server that has imported all there is to import."""

import contextlib
import json
import multiprocessing
import os
import signal
import sqlite3
from dataclasses import astuple
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

from tests.faults.compositions import BY_NAME, Stores
from tests.faults.shop import Shop
from tests.faults.wire import Moment, Point

__all__ = ["Victim"]

_SECONDS = 60
_forking: ForkServerContext = multiprocessing.get_context("forkserver")
_forking.set_forkserver_preload([__name__])


class Victim:
    """A process that has all its connections open, and waits to be told to call."""

    def __init__(self, composition: str, colour: str, stores: Stores, warm: str) -> None:
        self._pipe, theirs = _forking.Pipe()
        self._process: ForkServerProcess = _forking.Process(
            target=_live, args=(composition, colour, astuple(stores), warm, theirs), daemon=True
        )
        self._process.start()
        theirs.close()
        assert self._told() == "ready"

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def call(self, order_no: str, die_at: Point | None = None) -> Any:
        """What the call came to: its value or the name of its error. None: the process was killed.

        `die_at` is a point among the requests to a SQLite file, at which it kills itself.
        """
        at = None if die_at is None else [die_at.number, die_at.moment]
        self._pipe.send_bytes(json.dumps([order_no, at]).encode())
        return self._told()

    def end(self) -> None:
        """Let it go in peace, if it lives."""
        self._pipe.close()
        self._process.join(_SECONDS)
        assert self._process.exitcode is not None, "the victim did not end"

    def _told(self) -> Any:
        assert self._pipe.poll(_SECONDS), "the victim says nothing"
        try:
            return json.loads(self._pipe.recv_bytes())
        except (EOFError, ConnectionResetError):
            return None


def _live(composition: str, colour: Any, places: tuple[Any, ...], warm: str, pipe: Connection) -> None:
    stores = Stores(*places)
    settings = {"connect_args": {"factory": _Trapped}} if stores.database.startswith("sqlite") else None
    shop = Shop(BY_NAME[composition], colour, stores, settings=settings)
    shop.connect()
    shop.call(warm)
    pipe.send_bytes(b'"ready"')
    order_no, at = json.loads(pipe.recv_bytes())
    if at is not None:
        _trap.arm(Point(*at))
    try:
        answer: Any = shop.call(order_no).value
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    pipe.send_bytes(json.dumps(answer).encode())
    with contextlib.suppress(EOFError):
        pipe.recv_bytes()
    shop.close()


class _Trap:
    """A SQLite file has no wire: its requests are counted where the driver is called."""

    def __init__(self) -> None:
        self._count = 0
        self._point: Point | None = None

    def arm(self, point: Point) -> None:
        self._count, self._point = 0, point

    def passing(self, moment: Moment) -> None:
        self._count += moment == "request"
        if Point(self._count, moment) == self._point:
            os.kill(os.getpid(), signal.SIGKILL)


_trap = _Trap()


class _TrappedCursor(sqlite3.Cursor):
    def execute(self, *args: Any) -> Any:
        _trap.passing("request")
        answer = super().execute(*args)
        _trap.passing("reply")
        return answer


class _Trapped(sqlite3.Connection):
    def cursor(self, factory: Any = _TrappedCursor) -> Any:
        return super().cursor(factory)

    def commit(self) -> None:
        _trap.passing("request")
        super().commit()
        _trap.passing("reply")
