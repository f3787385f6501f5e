"""What the errors of a database driver mean."""

from __future__ import annotations

import traceback

from sqlalchemy.exc import DBAPIError

__all__ = [
    "codes",
    "is_aborted",
    "is_conflict",
    "is_disconnect",
    "is_gone",
    "is_missing_savepoint",
    "is_missing_table",
    "is_sqlite_busy",
    "is_unknown_name",
    "takes_no_writes",
]

_DRIVERS = {"psycopg", "psycopg2", "pg8000", "asyncpg", "pymysql", "asyncmy", "aiomysql", "MySQLdb", "mysql"}
_DRIVERS |= {"sqlite3", "sqlalchemy"}  # the second: its adapters of async drivers


def codes(error: BaseException) -> tuple[str, int]:
    """Return the SQLSTATE and the number that the driver gave `error`, as far as it gave them."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if cause is None or type(cause).__module__.partition(".")[0] not in _DRIVERS:
        return "", 0  # the user's own exception, whatever number it carries
    told = cause.args[0] if cause.args else None
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None) or ""
    if isinstance(told, dict):  # pg8000 hands on the fields of the server's ErrorResponse
        state = told.get("C", "")
    number = getattr(cause, "sqlite_errorcode", None)
    if number is None and isinstance(told, int):
        number = told
    return str(state), int(number or 0)


_MISSING_SAVEPOINT = 1305  # InnoDB: ER_SP_DOES_NOT_EXIST
_ABORTED = "25P02"  # PostgreSQL: in_failed_sql_transaction
_CONFLICTS = ("40001", "40P01")  # PostgreSQL: serialization failure, deadlock
_CONFLICT_NUMBERS = (1213, 1020)  # InnoDB: deadlock; record has changed since the snapshot
_SQLITE_BUSY = 5  # the primary code; SQLITE_BUSY_SNAPSHOT is 517
_MISSING_TABLE = ("42P01", 1146)


def is_conflict(error: BaseException) -> bool:
    """True if the database undid a transaction, or refused a statement, for the sake of another transaction."""
    state, number = codes(error)
    return state in _CONFLICTS or number in _CONFLICT_NUMBERS or is_sqlite_busy(error)


def is_sqlite_busy(error: BaseException) -> bool:
    """True if SQLite has waited for another writer for as long as it was told to."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    number = getattr(cause, "sqlite_errorcode", None)
    return isinstance(number, int) and number & 0xFF == _SQLITE_BUSY


def is_disconnect(error: BaseException) -> bool:
    """True if the connection was lost, so that nobody knows what became of the statement."""
    if not isinstance(error, DBAPIError):
        return is_gone(error)
    lost = error.connection_invalidated or codes(error)[0].startswith(("08", "57P"))
    return lost or (error.orig is not None and is_gone(error.orig))


def is_gone(error: BaseException) -> bool:
    """True if a driver says that its connection is gone in words that SQLAlchemy does not know.

    pg8000 lets errors of its socket pass as they are. mysql-connector gives no number where it finds, before it sends
    anything, that it is not connected.
    """
    if isinstance(error, OSError):
        return _came_through(error, "pg8000")
    package = type(error).__module__.partition(".")[0]
    return package == "mysql" and getattr(error, "errno", 0) == -1 and "available" in str(error)


def _came_through(error: BaseException, package: str) -> bool:
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").partition(".")[0] == package for frame, _ in frames)


# PostgreSQL: read-only, and class 53, insufficient resources. MySQL: disk full, table full, read-only, out of memory.
_UNWRITABLE_STATES = ("25006", "53")
_UNWRITABLE_NUMBERS = (1021, 1114, 1290, 1836, 1037, 1041, 3098)
_SQLITE_UNWRITABLE = (8, 13)  # SQLITE_READONLY, SQLITE_FULL


def takes_no_writes(error: BaseException) -> bool:
    """True if the database is read-only, or has no room left."""
    state, number = codes(error)
    on_file = getattr(getattr(error, "orig", error), "sqlite_errorcode", None)
    if isinstance(on_file, int):
        return on_file & 0xFF in _SQLITE_UNWRITABLE
    return state.startswith(_UNWRITABLE_STATES) or number in _UNWRITABLE_NUMBERS


_UNKNOWN_NAMES = ("42P01", "42703", 1146, 1054)  # a table, a column


def is_unknown_name(error: BaseException) -> bool:
    """True if a statement names a table or a column that the database does not have."""
    state, number = codes(error)
    missing = "no such table" in str(error) or "no such column" in str(error)
    return state in _UNKNOWN_NAMES or number in _UNKNOWN_NAMES or missing


def is_aborted(error: BaseException) -> bool:
    """True if the transaction has failed before, and takes nothing but its end: PostgreSQL's alone do so."""
    return codes(error)[0] == _ABORTED


def is_missing_savepoint(error: BaseException) -> bool:
    """True if the savepoint is gone: MariaDB and MySQL undo a whole transaction by themselves."""
    return codes(error)[1] == _MISSING_SAVEPOINT


def is_missing_table(error: BaseException) -> bool:
    """True if the records table does not exist."""
    state, number = codes(error)
    return state in _MISSING_TABLE or number in _MISSING_TABLE or "no such table" in str(error)
