"""Where connections come from: a URL, an engine or a sessionmaker; in two colours, over forks and event loops."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from idempo.autocommit import AT_ONCE, committed_at_once, given_back, switch_back
from idempo.clocks import StoreClock
from idempo.contracts import Colour
from idempo.errors import ColourMismatchError, ConfigurationError
from idempo.failures import is_conflict, is_disconnect, is_sqlite_busy
from idempo.steps import Pause, Shielded, Steps, ending
from idempo.urls import checked, module_of, options_for, require, stored, tune, url_for

if TYPE_CHECKING:
    # Needs greenlet, which is there only for those who want SQLAlchemy to be async.
    from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

T = TypeVar("T")

Source: TypeAlias = "str | URL | Engine | AsyncEngine | sessionmaker[Any] | async_sessionmaker[Any]"
AnyEngine: TypeAlias = "Engine | AsyncEngine"

__all__ = ["AnyEngine", "Database", "Source", "beside", "on"]

_TRIES = 5
_BESIDE = "idempo_beside"


def on(holder: Any, work: Callable[[Any], T]) -> Any:
    """Do `work` with a connection or session: at once, or as an awaitable where the holder is async."""
    run_sync = getattr(holder, "run_sync", None)
    return work(holder) if run_sync is None else run_sync(work)


def is_async(thing: Any) -> bool:
    """True for an AsyncEngine, an AsyncSession or an AsyncConnection, told without importing their module."""
    module = sys.modules.get("sqlalchemy.ext.asyncio")
    if module is None:
        return False  # then nobody can have made one
    return isinstance(thing, module.AsyncEngine | module.AsyncSession | module.AsyncConnection)


class Database:
    """One database, as the user named it. Owns the engines it makes from a URL, and only those.

    `at_once` is for who only works in autocommit: then engines made from a URL have no transactions at all, and neither
    begin one nor have to make sure that one is over.
    """

    def __init__(self, source: Any, *, at_once: bool = False) -> None:
        self.clock = StoreClock()
        self._at_once = at_once
        self.sessions: sessionmaker[Any] | async_sessionmaker[Any] | None = None
        self._url: URL | None = None
        self._given: AnyEngine | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._made: Engine | None = None
        self._made_in_loop: weakref.WeakKeyDictionary[Any, AsyncEngine] = weakref.WeakKeyDictionary()
        if isinstance(source, str | URL):
            self._url = checked(source)
        elif isinstance(source, Engine) or is_async(source):
            self._given = source
        elif isinstance(getattr(source, "kw", None), dict):
            self.sessions = source
            bind = source.kw.get("bind")
            if not (isinstance(bind, Engine) or is_async(bind)):
                raise ConfigurationError("the sessionmaker needs a bind= to one engine")
            self._given = bind
        else:
            raise ConfigurationError(
                f"a SQL strategy takes a URL, an engine or a sessionmaker, not {type(source).__name__}"
            )
        if self._given is not None:
            stored(self._engine_url)

    @property
    def _named(self) -> URL:
        if self._url is None:
            raise RuntimeError("an engine was given, not a URL")
        return self._url

    @property
    def dialect(self) -> str:
        """The name of the database's dialect: postgresql, mysql, mariadb, sqlite."""
        if self._given is not None:
            return self._given.dialect.name
        return self._named.get_backend_name()

    @property
    def colour(self) -> Colour:
        """The colour of what was given; a URL is async inside a running event loop."""
        if self._given is not None:
            return "async" if is_async(self._given) else "sync"
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return "sync"
        return "async"

    def is_same(self, other: Database) -> bool:
        """True if both are known to be one database: the same server, port and name, whoever connects."""
        if self._given is not None and self._given is other._given:
            return True
        here, there = (_place(one._url or one._engine_url) for one in (self, other))
        return here == there

    @property
    def _engine_url(self) -> URL:
        given: Any = self._given
        url: URL = given.url
        return url

    def check(self, colour: Colour, operation: str) -> None:
        """Raise `ColourMismatchError` if this database cannot serve functions of `colour`."""
        given = self._given
        if colour == "async" and isinstance(given, Engine):
            raise ColourMismatchError(
                f"{operation} is async and would be blocked by a sync engine; give an AsyncEngine "
                "(create_async_engine), or a URL"
            )
        if colour == "sync" and is_async(given):
            raise ColourMismatchError(
                f"{operation} is a plain function and cannot await an async engine; give an Engine (create_engine), "
                "or a URL"
            )
        if self._url is not None:
            driver = url_for(self._url, colour).drivername
            require(module_of(driver), driver.partition("+")[0], operation)
            if colour == "async":
                require("greenlet", "asyncio", operation)

    def engine(self, colour: Colour) -> AnyEngine:
        """Return the engine for this process and, if async, for the running loop."""
        if self._pid != os.getpid():
            self._after_fork()
        if self._given is not None:
            return self._given
        if colour == "async":
            loop = asyncio.get_running_loop()
            engine = self._made_in_loop.get(loop)
            if engine is None:
                from sqlalchemy.ext.asyncio import create_async_engine

                self._give_up_closed_loops()
                engine = create_async_engine(url_for(self._named, "async"), **self._options("async"))
                tune(engine.sync_engine)
                self._made_in_loop[loop] = engine
            return engine
        if self._made is None:
            with self._lock:
                if self._made is None:
                    made = create_engine(url_for(self._named, "sync"), **self._options("sync"))
                    tune(made)
                    self._made = made
        return self._made

    def _options(self, colour: Colour) -> dict[str, Any]:
        return options_for(self._named, colour) | (AT_ONCE if self._commits_at_once(colour) else {})

    def _commits_at_once(self, colour: Colour) -> bool:
        """True where the engine that is used knows no transactions."""
        # Not without a pool, where connections close by awaiting: a cancellation meanwhile would leave one open.
        return self._at_once and self._given is None and (colour == "sync" or self.dialect != "sqlite")

    def session(self, colour: Colour, bind: Any = None) -> Any:
        """Return a new session as the user's sessionmaker makes it, on `bind` instead of the engine if given."""
        if self.sessions is not None:
            return self.sessions() if bind is None else self.sessions(bind=bind)
        where: Any = self.engine(colour) if bind is None else bind
        if colour == "sync":
            return Session(where, expire_on_commit=False)
        from sqlalchemy.ext.asyncio import AsyncSession

        return AsyncSession(where, expire_on_commit=False)

    def close(self) -> Steps[None]:
        """Close the connections of the engines made from a URL; those of a loop that has ended are given up."""
        made, self._made = self._made, None
        if made is not None:
            made.dispose()
        engines = list(self._made_in_loop.items())
        self._made_in_loop.clear()
        for loop, engine in engines:
            if loop.is_running():
                yield engine.dispose()
            else:
                _drop(engine)

    def autocommit(self, colour: Colour, work: Callable[[Connection], T]) -> Steps[T]:
        """Do `work` with a connection whose every statement is a transaction of its own.

        Tried again where the database refused a statement for the sake of another one, and once where the connection
        turned out to be gone: each work is one decisive statement, and repeating it as the same owner changes nothing.
        """
        engine = self.engine(colour)
        tries = 0
        while True:
            connection = yield engine.connect()
            try:
                if self._commits_at_once(colour):
                    return (yield from ending(_do(connection, work), given_back(connection)))
                committed = functools.partial(committed_at_once, work=work)
                return (yield from ending(_do(connection, committed), _closing(connection)))
            except Exception as error:
                tries += 1
                lost = tries == 1 and is_disconnect(error)
                if not (lost or (is_conflict(error) and tries < _TRIES)) or is_sqlite_busy(error):
                    raise
            yield Pause(0.002 * 2**tries)

    def aside(self, colour: Colour, work: Callable[[Connection], T]) -> Steps[T]:
        """The same, on a connection that the user's pool need not have to spare."""
        if self._given is None:
            return (yield from self.autocommit(colour, work))
        given: Any = self._given
        return (yield from beside(getattr(given, "sync_engine", given), colour, work))

    def _give_up_closed_loops(self) -> None:
        for loop in [loop for loop in self._made_in_loop if loop.is_closed()]:
            _drop(self._made_in_loop.pop(loop))

    def _after_fork(self) -> None:
        # A socket shared with the parent would mix two conversations: leave the parent's connections alone.
        self._pid = os.getpid()
        self._lock = threading.Lock()
        engines = [self._given, self._made]
        self._made = None
        self._made_in_loop = weakref.WeakKeyDictionary()
        for engine in engines:
            if engine is not None:
                getattr(engine, "sync_engine", engine).dispose(close=False)


def beside(engine: Engine, colour: Colour, work: Callable[[Connection], T]) -> Steps[T]:
    """Do `work` in autocommit on a connection of its own, made as the engine makes them, and closed at the end."""
    side: Any = vars(engine).get(_BESIDE)  # lives as long as the engine, and goes with it
    if side is None:
        pool = engine.pool.recreate()
        if colour == "async":
            from sqlalchemy.ext.asyncio import create_async_engine

            side = create_async_engine(engine.url, pool=pool)
        else:
            side = create_engine(engine.url, pool=pool)
        side = vars(engine)[_BESIDE] = side.execution_options(**engine.get_execution_options())
    return (yield from Database(side).autocommit(colour, lambda connection: _alone(connection, work)))


def _alone(connection: Connection, work: Callable[[Connection], T]) -> T:
    connection.detach()  # from its pool: closing it ends it
    if not connection.dialect.is_async:
        return work(connection)
    driver: Any = connection.connection.dbapi_connection
    try:
        return work(connection)
    finally:
        driver.close()  # SQLAlchemy would break it off without a word
        connection.invalidate()


def _place(url: URL) -> tuple[object, ...]:
    """Kind of server, host, port, database; and the hosts that a query names, of a failover pair or a socket."""
    backend = url.get_backend_name()
    named = url.database or str(url.query.get("dbname", "")) or None
    hosts = (url.query.get(name) for name in ("host", "hostaddr", "port", "unix_socket"))
    return ("mysql" if backend == "mariadb" else backend), url.host, url.port, named, *hosts


def _drop(engine: AsyncEngine) -> None:
    """Let go of the sockets of an engine whose loop has ended: nobody can say goodbye on them any more."""
    engine.sync_engine.dispose(close=False)


def _do(connection: Any, work: Callable[[Connection], T]) -> Steps[T]:
    result: T = yield on(connection, work)
    return result


def _closing(connection: Any) -> Callable[[], Shielded]:
    def closing() -> Steps[None]:
        yield on(connection, switch_back)
        with contextlib.suppress(DBAPIError):  # what was asked has been answered
            yield connection.close()
        yield connection.close()  # does nothing but where the first one was not heard

    return lambda: Shielded(closing)  # a cancellation now would lose the connection to its pool
