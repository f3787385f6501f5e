"""Where connections come from: a URL, an engine or a sessionmaker; in two colours, over forks and event loops."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool

from idempo.contracts import Colour
from idempo.dialects import is_conflict, is_disconnect
from idempo.errors import ColourMismatchError, ConfigurationError
from idempo.steps import Pause, Steps, ending

if TYPE_CHECKING:
    # Needs greenlet, which is there only for those who want SQLAlchemy to be async.
    from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

T = TypeVar("T")

Source: TypeAlias = "str | URL | Engine | AsyncEngine | sessionmaker[Any] | async_sessionmaker[Any]"
AnyEngine: TypeAlias = "Engine | AsyncEngine"

__all__ = ["AnyEngine", "Database", "Source", "on"]

_ASYNC_DRIVERS = {"sqlite": "aiosqlite", "mysql": "asyncmy", "mariadb": "asyncmy", "postgresql": "psycopg"}
_SYNC_DRIVERS = {"sqlite": "pysqlite", "mysql": "pymysql", "mariadb": "pymysql", "postgresql": "psycopg"}
_ASYNC_NAMES = ("aiosqlite", "asyncmy", "aiomysql", "asyncpg", "psycopg_async")
_TRIES = 5


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
    """One database, as the user named it. Owns the engines it makes from a URL, and only those."""

    def __init__(self, source: Any) -> None:
        self.sessions: sessionmaker[Any] | async_sessionmaker[Any] | None = None
        self._url: URL | None = None
        self._given: AnyEngine | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._made: Engine | None = None
        self._made_in_loop: weakref.WeakKeyDictionary[Any, AsyncEngine] = weakref.WeakKeyDictionary()
        if isinstance(source, str | URL):
            self._url = _checked(source)
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
            driver = _url_for(self._url, colour).drivername
            _require(_module_of(driver), driver.partition("+")[0], operation)
            if colour == "async":
                _require("greenlet", "asyncio", operation)

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

                engine = create_async_engine(_url_for(self._named, "async"), **_options(self._named, "async"))
                _tune(engine.sync_engine)
                self._made_in_loop[loop] = engine
            return engine
        if self._made is None:
            with self._lock:
                if self._made is None:
                    made = create_engine(_url_for(self._named, "sync"), **_options(self._named, "sync"))
                    _tune(made)
                    self._made = made
        return self._made

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
                engine.sync_engine.dispose(close=False)

    def autocommit(self, colour: Colour, work: Callable[[Connection], T]) -> Steps[T]:
        """Do `work` with a connection whose every statement is a transaction of its own.

        Tried again where the database refused a statement for the sake of another one, and once where the connection
        turned out to be gone: each work is one decisive statement, and repeating it as the same owner changes nothing.
        """
        engine = self.engine(colour).execution_options(isolation_level="AUTOCOMMIT")
        tries = 0
        while True:
            connection = yield engine.connect()
            try:
                return (yield from ending(_do(connection, work), connection.close))
            except Exception as error:
                tries += 1
                lost = tries == 1 and is_disconnect(error)
                if not (lost or (is_conflict(error) and tries < _TRIES)):
                    raise
            yield Pause(0.002 * 2**tries)

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


def _do(connection: Any, work: Callable[[Connection], T]) -> Steps[T]:
    result: T = yield on(connection, work)
    return result


def _checked(source: str | URL) -> URL:
    try:
        url = make_url(source)
        url.get_dialect()
    except (ArgumentError, NoSuchModuleError) as error:
        raise ConfigurationError(
            "this is no SQLAlchemy URL of a known database; write it like postgresql+psycopg://user@host/name, "
            "mysql+pymysql://user@host/name or sqlite:///file.db"
        ) from error
    if url.get_backend_name() not in _SYNC_DRIVERS:
        raise ConfigurationError(f"{url.get_backend_name()} is no database that idempo knows")
    if url.get_backend_name() == "sqlite" and _in_memory(url):
        raise ConfigurationError(
            "an in-memory SQLite database is another one in each thread; use Memory(), or a file"
        )
    return url


def _in_memory(url: URL) -> bool:
    database = url.database or ""
    return database in ("", ":memory:") or "mode=memory" in str(url) or database.startswith("file::memory:")


def _url_for(url: URL, colour: Colour) -> URL:
    """The same database by a driver of the colour."""
    backend, _, driver = url.drivername.partition("+")
    if colour == "async" and driver not in (*_ASYNC_NAMES, "psycopg"):
        driver = _ASYNC_DRIVERS[backend]
    if colour == "sync" and (not driver or driver in _ASYNC_NAMES):
        driver = _SYNC_DRIVERS[backend]
    return url.set(drivername=f"{backend}+{driver}")


def _module_of(drivername: str) -> str:
    driver = drivername.partition("+")[2]
    return {"pysqlite": "sqlite3", "psycopg_async": "psycopg"}.get(driver, driver)


def _require(module: str, what: str, operation: str) -> None:
    if importlib.util.find_spec(module) is None:
        extra = {"postgresql": "postgres", "mariadb": "mysql"}.get(what, what)
        raise ConfigurationError(
            f"{operation} needs the package {module}, which is not installed: pip install 'idempo[{extra}]'"
        )


def _options(url: URL, colour: Colour) -> dict[str, Any]:
    match url.get_backend_name():
        case "sqlite":
            options: dict[str, Any] = {"connect_args": {"timeout": 30}}
            if colour == "async":
                # An open aiosqlite connection has a thread of its own, which would keep the interpreter alive.
                options["poolclass"] = NullPool
            return options
        case "postgresql":
            return {"connect_args": {} if "asyncpg" in url.drivername else {"connect_timeout": 10}}
        case _:
            return {"connect_args": {"connect_timeout": 10}}


def _tune(engine: Engine) -> None:
    if engine.dialect.name != "sqlite":
        return

    @event.listens_for(engine, "connect")
    def durable(connection: Any, _: Any) -> None:
        # Readers beside one writer, and every commit on the disk before it is acknowledged.
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.close()
