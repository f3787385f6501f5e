"""Several statements in one round trip, where the driver can: psycopg's pipeline mode.

Sources: psycopg documentation, "Pipeline mode support"; SQLAlchemy documentation, "Getting at the raw (DBAPI)
Connection" and "Using awaitable-only driver methods". With any other driver they are sent one after the other. Each is
prepared by the server once it has come often enough: to plan a claim takes longer than a round trip.
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


def can_send_together(connection: Connection) -> bool:
    """True if `together` takes one round trip on this connection."""
    if connection.dialect.driver not in ("psycopg", "psycopg_async"):
        return False
    import psycopg

    return psycopg.Pipeline.is_supported()


def together(connection: Connection, statements: Sequence[Statement]) -> list[Answered]:
    """Execute `statements` in order, in the transaction of `connection`.

    The first that fails raises the driver's error, and those behind it are not executed.
    """
    if not can_send_together(connection):
        return [_alone(connection, statement, values) for statement, values in statements]
    if not connection.in_transaction():
        connection.begin()  # as SQLAlchemy does by itself before a statement that it sends
    compiled = [_ready(statement, values, connection.dialect) for statement, values in statements]
    raw: Any = connection.connection.driver_connection
    import psycopg

    try:
        run_async = getattr(connection.connection.dbapi_connection, "run_async", None)
        if run_async is None:
            return _pipelined(raw, compiled)
        answers: list[Answered] = run_async(lambda _: _pipelined_async(raw, compiled))
        return answers
    except psycopg.Error as error:
        said = "; ".join(sql for sql, _ in compiled)
        raise sqlalchemys_own(error, said, connection.dialect, lost=bool(raw.closed)) from error


def _ready(
    statement: TextClause | str, values: dict[str, Any], dialect: Dialect
) -> tuple[str, dict[str, Any]]:
    """The statement in the driver's words, and its values as the driver takes them."""
    if isinstance(statement, str):
        return statement, {}
    sql, processors = _compiled(statement, dialect)
    try:
        processed = {name: process(values[name]) for name, process in processors.items()}
    except Exception as error:
        raise StatementError(str(error), sql, None, error, hide_parameters=True) from error
    return sql, values | processed


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


def _pipelined(raw: Any, statements: Sequence[tuple[str, dict[str, Any]]]) -> list[Answered]:
    import psycopg
    from psycopg.rows import tuple_row

    cursors: list[Any] = [psycopg.Cursor(raw, row_factory=tuple_row) for _ in statements]
    failed: psycopg.Error | None = None
    try:
        with raw.pipeline():
            try:
                for cursor, (sql, values) in zip(cursors, statements, strict=True):
                    cursor.execute(sql, values or None)
            except psycopg.Error as error:
                failed = error  # kept from the pipeline, which would log what follows from it
    except psycopg.Error as error:
        failed = failed or error
    if failed is not None:
        try:
            raise failed
        finally:
            failed = None  # this frame is part of its traceback: it would hold itself
    return [Answered(one.fetchone() if one.description else None, one.rowcount) for one in cursors]


async def _pipelined_async(raw: Any, statements: Sequence[tuple[str, dict[str, Any]]]) -> list[Answered]:
    import psycopg
    from psycopg.rows import tuple_row

    cursors: list[Any] = [psycopg.AsyncCursor(raw, row_factory=tuple_row) for _ in statements]
    failed: psycopg.Error | None = None
    try:
        async with raw.pipeline():
            try:
                for cursor, (sql, values) in zip(cursors, statements, strict=True):
                    await cursor.execute(sql, values or None)
            except psycopg.Error as error:
                failed = error
    except psycopg.Error as error:
        failed = failed or error
    if failed is not None:
        try:
            raise failed
        finally:
            failed = None  # this frame is part of its traceback: it would hold itself
    return [Answered(await one.fetchone() if one.description else None, one.rowcount) for one in cursors]
