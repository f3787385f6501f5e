"""What is looked at in a SQL database: the connection, and which checks belong to which database."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from idempo.connections import Database
from idempo.doctor import mysql_checks, postgresql_checks, sqlite_checks
from idempo.doctor.findings import Finding
from idempo.doctor.looking import looked, said
from idempo.errors import LedgerUnavailableError
from idempo.sql import Records
from idempo.urls import checked, url_for

__all__ = ["examine_sql"]

_SECONDS = 6.0
"""For all of it, after the connection is made. For the connection, and for a second one: half of that."""


def examine_sql(url: str, table: str) -> list[Finding]:
    records = Records(table)
    if (found := sqlite_checks.in_memory(url)) is not None:
        return [found]
    named = checked(url)
    Database(named).check("sync", "idempo")  # is there a driver?
    if named.get_backend_name() == "sqlite":
        return sqlite_checks.examine(named, records)
    engine = _engine(named)
    try:
        with engine.connect() as connection, _deadline(connection, _SECONDS):
            if connection.dialect.name == "postgresql":
                checks = postgresql_checks.checks(connection, records, lambda: _raw(engine))
            else:
                checks = mysql_checks.checks(connection, records)
            return list(looked(checks))
    except (DBAPIError, OSError) as error:
        raise LedgerUnavailableError(f"the server cannot be looked at: {said(error)}") from error
    finally:
        engine.dispose()


def _engine(url: URL) -> Engine:
    options: dict[str, Any] = {"connect_timeout": int(_SECONDS / 2)}
    if url.get_backend_name() == "postgresql":
        options["prepare_threshold"] = None  # nothing of ours stays behind in a session that is shared
    else:
        options |= {"read_timeout": _SECONDS / 2, "write_timeout": _SECONDS / 2}
    return create_engine(
        url_for(url, "sync"),
        isolation_level="AUTOCOMMIT",
        poolclass=NullPool,
        hide_parameters=True,
        connect_args=options,
    )


@contextmanager
def _raw(engine: Engine) -> Iterator[Any]:
    """Another connection of the driver, bounded like the first."""
    with engine.connect() as connection, _deadline(connection, _SECONDS / 2):
        yield connection.connection.driver_connection


@contextmanager
def _deadline(connection: Connection, seconds: float) -> Iterator[None]:
    """Hang up on a server that has stopped answering: libpq itself would wait for ever."""
    driver: Any = connection.connection.driver_connection
    fileno = getattr(driver, "fileno", None)
    if fileno is None:  # PyMySQL, which has time limits of its own
        yield
        return
    ours = socket.socket(fileno=os.dup(fileno()))

    def hang_up() -> None:
        with suppress(OSError):
            ours.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, hang_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        ours.close()
