"""Creating the records table, and finding the dialect of a connection."""

from __future__ import annotations

import functools
from typing import Any

from sqlalchemy import Connection, inspect
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateIndex, CreateTable

from idempo.clocks import StoreClock
from idempo.dialects import Dialect
from idempo.errors import ConfigurationError, LedgerUnavailableError
from idempo.mysql import MariaDB, MySQL
from idempo.postgresql import PostgreSQL
from idempo.sending import Send, by_sqlalchemy
from idempo.sql import Records
from idempo.sqlite import SQLite

__all__ = ["create", "ddl", "dialect_of", "missing_table", "translated"]


def dialect_of(
    connection: Connection, records: Records, send: Send = by_sqlalchemy, clock: StoreClock | None = None
) -> Dialect:
    """Return what idempo does on the database of `connection`, and how it sends it."""
    dialect = connection.dialect
    quote, schema = dialect.identifier_preparer.quote, translated(connection, None)
    table = quote(records.name) if schema is None else f"{quote(schema)}.{quote(records.name)}"
    return _dialect(dialect.name, bool(getattr(dialect, "is_mariadb", False)), table, send, clock)


def translated(connection: Connection, schema: str | None) -> str | None:
    """The schema by the `schema_translate_map` of the connection; None: where the database looks by itself."""
    names = connection.get_execution_options().get("schema_translate_map")
    found: str | None = names.get(schema, schema) if names else schema
    return found


@functools.lru_cache(maxsize=1024)
def _dialect(name: str, mariadb: bool, table: str, send: Send, clock: StoreClock | None) -> Dialect:
    match name:
        case "postgresql":
            return PostgreSQL(table, send, clock)
        case "mysql" | "mariadb":
            return MariaDB(table, send, clock) if mariadb else MySQL(table, send, clock)
        case "sqlite":
            return SQLite(table, send, clock)
        case _:
            raise ConfigurationError(f"idempo knows PostgreSQL, MariaDB, MySQL and SQLite, but not {name}")


def create(connection: Connection, records: Records) -> None:
    """Create the table and its index where they are missing. Two that do it at once do not disturb each other."""
    try:
        records.metadata.create_all(connection)
    except DBAPIError:
        if connection.invalidated or not inspect(connection).has_table(
            records.name, translated(connection, None)
        ):
            raise


def ddl(name: str, records: Records) -> str:
    """Return the statements that `create` would send to the database of this dialect name."""
    dialects: dict[str, Any] = {
        "postgresql": postgresql.dialect,
        "mysql": mysql.dialect,
        "mariadb": functools.partial(mysql.dialect, is_mariadb=True),
        "sqlite": sqlite.dialect,
    }
    dialect = dialects[name]()
    statements: list[Any] = [CreateTable(records.table), *map(CreateIndex, records.table.indexes)]
    return "".join(f"{str(statement.compile(dialect=dialect)).strip()};\n" for statement in statements)


def missing_table(records: Records, dialect: str) -> LedgerUnavailableError:
    """The error for a server without the records table."""
    return LedgerUnavailableError(
        f"the table {records.name} does not exist in this {dialect} database; create it once, with `idempo init URL`, "
        "with .create_schema(), or by a migration from .metadata"
    )
