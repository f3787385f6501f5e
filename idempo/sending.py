"""How a statement is sent: by SQLAlchemy in the user's transaction, by the driver's own cursor where it is one alone.

SQLAlchemy compiles a statement once, keeps the connections and knows the errors of the drivers. What it does beyond
that for each execution, events and results of many kinds, costs as much as a round trip, and nobody looks at it here
(SQLAlchemy documentation, "Working with Driver SQL and Raw DBAPI Connections").
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import msgspec
from sqlalchemy import Connection, TextClause
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError

from idempo.failures import is_gone

T = TypeVar("T")

__all__ = ["Answered", "Send", "by_sqlalchemy", "by_the_driver", "count", "every", "first", "sqlalchemys_own"]


class Answered(msgspec.Struct, frozen=True):
    """What one statement brought: its first row, if it returns rows, and how many rows it matched."""

    row: Any
    count: int


class Send(Hashable, Protocol):
    """Executes a statement. What it brings is taken from its result: `first`, `count` or `every`."""

    def __call__(
        self,
        connection: Connection,
        statement: TextClause,
        values: Mapping[str, Any],
        taken: Callable[[Any], T],
        /,
    ) -> T: ...


def first(result: Any) -> Any:
    """The first row, or None."""
    return result.fetchone()


def count(result: Any) -> int:
    """How many rows the statement matched."""
    matched: int = result.rowcount
    return matched


def every(result: Any) -> Sequence[Any]:
    """All rows."""
    rows: Sequence[Any] = result.fetchall()
    return rows


def by_sqlalchemy(
    connection: Connection, statement: TextClause, values: Mapping[str, Any], taken: Callable[[Any], T]
) -> T:
    """Execute a statement in the transaction of `connection`, which begins with it if there is none yet."""
    return taken(connection.execute(statement, values))


def by_the_driver(
    connection: Connection, statement: TextClause, values: Mapping[str, Any], taken: Callable[[Any], T]
) -> T:
    """Execute a statement on a connection that is in autocommit mode.

    Raises SQLAlchemy's own errors, without the values in them. A connection that is lost, or whose conversation was
    interrupted, is not used again.
    """
    sql, positions = _compiled(statement, connection.dialect)
    given = values if positions is None else tuple([values[name] for name in positions])
    cursor: Any = None
    try:
        cursor = connection.connection.cursor()
        cursor.execute(sql, given)
        return taken(cursor)
    except connection.dialect.loaded_dbapi.Error as error:
        # A local variable for what is raised would make it hold itself, and all that it came through, for long.
        raise sqlalchemys_own(error, sql, connection.dialect, lost=_is_lost(connection, error)) from error
    except Exception as error:
        if is_gone(error):
            connection.invalidate(error)
        raise
    except BaseException as interrupt:  # the answer may still come, to nobody
        connection.invalidate(interrupt)
        raise
    finally:
        if cursor is not None:
            with contextlib.suppress(Exception):
                cursor.close()


@lru_cache(maxsize=256)
def _compiled(statement: TextClause, dialect: Dialect) -> tuple[str, tuple[str, ...] | None]:
    """The statement in the database's own words, and the order of its values where the driver counts them."""
    compiled: Any = statement.compile(dialect=dialect)
    return str(compiled), tuple(compiled.positiontup) if compiled.positional else None


def sqlalchemys_own(error: Exception, sql: str, dialect: Dialect, *, lost: bool) -> Exception:
    """What SQLAlchemy would raise for an error of the driver; the values stay out of it."""
    dbapi: Any = dialect.loaded_dbapi
    return DBAPIError.instance(
        sql, None, error, dbapi.Error, hide_parameters=True, connection_invalidated=lost, dialect=dialect
    )


def _is_lost(connection: Connection, error: Any) -> bool:
    """True if the error says that the connection is; then it is not used again."""
    known = connection.dialect.is_disconnect(error, connection.connection.dbapi_connection, None)
    if not (known or is_gone(error)):
        return False
    with contextlib.suppress(Exception):
        connection.exec_driver_sql("SELECT 1")  # so that the pool learns of it, for its other connections
    connection.invalidate(error)
    return True
