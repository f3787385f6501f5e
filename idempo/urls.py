"""Database URLs: which driver serves which colour, what it needs, and how its engine is set up."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from typing import Any

from sqlalchemy import URL, Engine, ExceptionContext, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import NullPool

from idempo.contracts import Colour
from idempo.errors import ConfigurationError
from idempo.failures import is_gone, is_sqlite_busy

__all__ = ["checked", "module_of", "options_for", "require", "stored", "tune", "url_for"]

_ASYNC_DRIVERS = {"sqlite": "aiosqlite", "mysql": "asyncmy", "mariadb": "asyncmy", "postgresql": "psycopg"}
_SYNC_DRIVERS = {"sqlite": "pysqlite", "mysql": "pymysql", "mariadb": "pymysql", "postgresql": "psycopg"}
_ASYNC_NAMES = ("aiosqlite", "asyncmy", "aiomysql", "asyncpg", "psycopg_async")


def checked(source: str | URL) -> URL:
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
    return stored(url)


def stored(url: URL) -> URL:
    """Return the URL. Raises `ConfigurationError` for a database in memory."""
    database = url.database or ""
    in_memory = database in ("", ":memory:") or "mode=memory" in str(url) or "file::memory:" in database
    if url.get_backend_name() == "sqlite" and in_memory:
        raise ConfigurationError(
            "an in-memory SQLite database is another one in each thread, or one connection for all, where one's commit "
            "commits what others have begun; use Memory(), or a file (a temporary one in tests)"
        )
    return url


def url_for(url: URL, colour: Colour) -> URL:
    """The same database by a driver of the colour."""
    backend, _, driver = url.drivername.partition("+")
    if colour == "async" and driver not in (*_ASYNC_NAMES, "psycopg"):
        driver = _ASYNC_DRIVERS[backend]
    if colour == "sync" and (not driver or driver in _ASYNC_NAMES):
        driver = _SYNC_DRIVERS[backend]
    if driver == "asyncmy":
        url = url.difference_update_query(["write_timeout"])  # PyMySQL's; asyncmy has none
    return url.set(drivername=f"{backend}+{driver}")


_MODULES = {
    "pysqlite": "sqlite3",
    "psycopg_async": "psycopg",
    "mysqlconnector": "mysql",  # the package in which it is
    "mysqldb": "MySQLdb",
}


def module_of(drivername: str) -> str:
    driver = drivername.partition("+")[2]
    return _MODULES.get(driver, driver)


def require(module: str, what: str, operation: str) -> None:
    if importlib.util.find_spec(module) is None:
        extra = {"postgresql": "postgres", "mariadb": "mysql"}.get(what, what)
        raise ConfigurationError(
            f"{operation} needs the package {module}, which is not installed: pip install 'idempo[{extra}]'"
        )


def options_for(url: URL, colour: Colour) -> dict[str, Any]:
    # What is stored may be anybody's secret: it is no part of an error's text.
    options: dict[str, Any] = {"hide_parameters": True}
    match url.get_backend_name(), module_of(url_for(url, colour).drivername):
        case "sqlite", _:
            options["connect_args"] = {"timeout": _SQLITE_PATIENCE}
            if colour == "async":
                # An open aiosqlite connection has a thread of its own, which would keep the interpreter alive.
                options["poolclass"] = NullPool
        case "postgresql", "psycopg" | "psycopg2":
            options["connect_args"] = _unless_named(url, _CONNECT | _VANISHED)
        case _, "pymysql":
            options["connect_args"] = _unless_named(url, _CONNECT | _SILENT | _DEAF)
        case _, "asyncmy":
            options["connect_args"] = _unless_named(url, _CONNECT | _SILENT)
        case _, "aiomysql" | "MySQLdb":
            options["connect_args"] = _unless_named(url, _CONNECT)
        case _:
            pass  # other drivers name their options in other ways: the URL can hold them
    return options


_SQLITE_PATIENCE = 30  # seconds
_RESTING = 0.005
_CONNECT = {"connect_timeout": 10}
# A host that has vanished is given up after a minute: PostgreSQL manual, "Parameter Key Words" of libpq.
_VANISHED = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
# Seconds without a word: PyMySQL documentation, "Connection Object". Longer than a statement waits for a lock by
# itself: 50 seconds, MySQL manual, "innodb_lock_wait_timeout".
_SILENT = {"read_timeout": 60}
_DEAF = {"write_timeout": 60}


def _unless_named(url: URL, options: dict[str, int]) -> dict[str, int]:
    return {name: value for name, value in options.items() if name not in url.query}


def tune(engine: Engine) -> None:
    if engine.dialect.driver in ("pg8000", "mysqlconnector"):
        event.listen(engine, "handle_error", _let_go)
    if engine.dialect.name != "sqlite":
        return

    @event.listens_for(engine, "connect")
    def durable(connection: Any, _: Any) -> None:
        # Readers beside one writer, and every commit on the disk before it is acknowledged.
        cursor = connection.cursor()
        _write_ahead(connection, cursor)
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.close()


def _let_go(context: ExceptionContext) -> None:
    """Tell SQLAlchemy, and with it the pool, of a connection that is gone."""
    if is_gone(context.original_exception):
        context.is_disconnect = True


def _write_ahead(connection: Any, cursor: Any) -> None:
    """Switch the file to a write-ahead log. That is refused at once, and not waited for, while others do it too."""
    until = time.monotonic() + _SQLITE_PATIENCE
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except Exception as error:
            if not is_sqlite_busy(error) or time.monotonic() > until:
                raise
        _rest(connection)


def _rest(connection: Any) -> None:
    run_async = getattr(connection, "run_async", None)
    if run_async is None:
        time.sleep(_RESTING)
    else:
        run_async(lambda _: asyncio.sleep(_RESTING))
