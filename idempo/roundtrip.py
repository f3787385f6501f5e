"""Several statements in one round trip, where the driver can: psycopg's client-side cursors.

Source: psycopg documentation, "Client-side-binding cursors"; SQLAlchemy documentation, "Getting at the raw (DBAPI)
Connection" and "Using awaitable-only driver methods". With any other driver they are sent one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from sqlalchemy import Connection, TextClause, bindparam, text
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import StatementError

from idempo.sending import Answered, by_sqlalchemy, sqlalchemys_own

__all__ = ["Statement", "can_send_together", "prefixed", "together"]

Statement: TypeAlias = tuple[TextClause | str, dict[str, Any]]
"""With its values; a string has none."""

_LARGE = 64 * 1024  # bytes; a client-side cursor writes them into the statement, twice as long


def can_send_together(connection: Connection, values: dict[str, Any]) -> bool:
    """True if `together` takes one round trip on this connection, with these values."""
    large = any(isinstance(value, bytes) and len(value) > _LARGE for value in values.values())
    return connection.dialect.driver in ("psycopg", "psycopg_async") and not large


def together(connection: Connection, statements: Sequence[Statement]) -> list[Answered]:
    """Execute `statements` in order, in the transaction of `connection`. The names of their values must differ.

    The first that fails raises the driver's error, and those behind it are not executed.
    """
    values = {name: value for _, one in statements for name, value in one.items()}
    if not can_send_together(connection, values):
        return [_alone(connection, statement, one) for statement, one in statements]
    if not connection.in_transaction():
        connection.begin()  # as SQLAlchemy does by itself before a statement that it sends
    dialect = connection.dialect
    parts = []
    for one, given in statements:
        if isinstance(one, str):
            parts.append(one)
            continue
        sql, processors = _compiled(one, dialect)
        parts.append(sql)
        try:
            values |= {name: process(given[name]) for name, process in processors.items()}
        except Exception as error:
            raise StatementError(str(error), sql, None, error, hide_parameters=True) from error
    sql = "; ".join(parts)
    raw: Any = connection.connection.driver_connection
    import psycopg

    try:
        return _send(connection.connection.dbapi_connection, raw, sql, values)
    except psycopg.Error as error:
        raise sqlalchemys_own(error, sql, dialect, lost=bool(raw.closed)) from error


def _alone(connection: Connection, statement: TextClause | str, values: dict[str, Any]) -> Answered:
    if not isinstance(statement, str):
        return by_sqlalchemy(connection, statement, values, _answered)
    connection.exec_driver_sql(statement)
    return Answered(None, -1)


def _answered(result: Any) -> Answered:
    return Answered(result.fetchone() if result.returns_rows else None, result.rowcount)


@lru_cache(maxsize=256)
def _compiled(statement: TextClause, dialect: Dialect) -> tuple[str, dict[str, Callable[[Any], Any]]]:
    """The statement in the database's own words, and what makes each value that the driver's business."""
    compiled: Any = statement.compile(dialect=dialect)
    types = {name: one.type.dialect_impl(dialect) for name, one in compiled.binds.items()}
    processors = {name: kind.bind_processor(dialect) for name, kind in types.items()}
    return str(compiled), {name: process for name, process in processors.items() if process is not None}


@lru_cache(maxsize=256)
def prefixed(prefix: str, statement: TextClause) -> TextClause:
    """Return the statement with something in front of it, and the types of its values as they are."""
    types = statement.compile().binds
    return text(prefix + statement.text).bindparams(
        *(bindparam(name, type_=one.type) for name, one in types.items())
    )


def _send(adapted: Any, raw: Any, sql: str, values: dict[str, Any]) -> list[Answered]:
    import psycopg

    settle = _settle(adapted)
    asynchronous = isinstance(raw, psycopg.AsyncConnection)
    cursor: Any = psycopg.AsyncClientCursor(raw) if asynchronous else psycopg.ClientCursor(raw)
    settle(cursor.execute(sql, values))
    answers = []
    while True:
        answers.append(Answered(settle(cursor.fetchone()) if cursor.description else None, cursor.rowcount))
        if not cursor.nextset():
            return answers


def _settle(adapted: Any) -> Callable[[Any], Any]:
    """What turns an answer of the driver into a value: nothing to do, or awaiting it below SQLAlchemy's greenlet."""
    run_async = getattr(adapted, "run_async", None)
    return (lambda value: value) if run_async is None else (lambda value: run_async(lambda _: value))
