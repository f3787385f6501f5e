"""Whether the records table is what idempo would make: its columns, its unique key, its index."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import BigInteger, Connection, Integer, inspect
from sqlalchemy.dialects import mysql
from sqlalchemy.engine.reflection import Inspector
from sqlalchemy.types import TypeEngine

from idempo.doctor.findings import Finding, danger, ok, warning
from idempo.sql import Records

__all__ = ["columns", "index", "missing", "rights", "unique_key"]

_BLOBS: dict[type[Any], int] = {
    mysql.TINYBLOB: 2**8 - 1,
    mysql.MEDIUMBLOB: 2**24 - 1,
    mysql.LONGBLOB: 2**32 - 1,
}
_BLOB = 2**16 - 1
_INIT = "compare it with `idempo init --ddl URL`"


def missing(records: Records) -> Finding:
    return danger(
        "table",
        f"there is no table {records.name} in the database of this URL: every call fails",
        "idempo init URL, or a migration from .metadata",
    )


def columns(connection: Connection, records: Records) -> Iterator[Finding]:
    """Compare the columns with those that idempo would make: kind, size, and whether they may be null."""
    there = {one["name"]: one for one in inspect(connection).get_columns(records.name)}
    wrong = []
    for column in records.table.columns:
        found = there.pop(column.name, None)
        if found is None:
            wrong.append(f"{column.name} is missing")
            continue
        wanted = column.type.dialect_impl(connection.dialect)
        if complaint := _narrower(wanted, found["type"], connection.dialect.name):
            wrong.append(f"{column.name} is {found['type']}, {complaint}")
        if column.nullable and not found["nullable"]:
            wrong.append(f"{column.name} is NOT NULL, but a claim leaves it null")
    for name, found in there.items():
        if not found["nullable"] and found.get("default") is None and found.get("autoincrement") is not True:
            wrong.append(f"{name} is not idempo's, and is NOT NULL without a default")
    if wrong:
        yield danger(
            "columns",
            f"the table {records.name} is not as idempo needs it, so calls fail or lose results: {'; '.join(wrong)}",
            f"ALTER TABLE {records.name}; {_INIT}",
        )
    else:
        yield ok("columns", f"the table {records.name} has the columns that idempo needs")


def _narrower(wanted: TypeEngine[Any], found: TypeEngine[Any], dialect: str) -> str:
    """Why a column of the type `found` does not hold what one of the type `wanted` does; "" if it does."""
    kind, theirs = _kind(wanted), _kind(found)
    if kind is not theirs:
        return f"not {_NAMES[kind]}"
    if kind is int:
        small = isinstance(wanted, BigInteger) and not isinstance(found, BigInteger) and dialect != "sqlite"
        tiny = isinstance(found, mysql.TINYINT | mysql.SMALLINT | mysql.MEDIUMINT)
        return "too small for it" if small or tiny or not isinstance(found, Integer) else ""
    needed, given = _length(wanted), _length(found)
    if dialect == "sqlite" or given is None or (needed is not None and given >= needed):
        return ""
    return f"shorter than {needed or 'a result can be'}"


_NAMES: dict[type[Any] | None, str] = {bytes: "binary", int: "an integer", str: "text", None: "of that type"}


def _kind(one: TypeEngine[Any]) -> type[Any] | None:
    try:
        kind: type[Any] = one.python_type
    except NotImplementedError:
        return None
    return kind


def _length(one: TypeEngine[Any]) -> int | None:
    """How long a value may be; None: longer than any record needs."""
    if type(one) in _BLOBS:
        return _BLOBS[type(one)]
    length: int | None = getattr(one, "length", None)
    return _BLOB if length is None and type(one).__name__ == "BLOB" else length


def unique_key(connection: Connection, records: Records) -> Iterator[Finding]:
    """See that the database itself keeps a digest unique."""
    about = inspect(connection)
    keys: list[Any] = [about.get_pk_constraint(records.name)["constrained_columns"]]
    keys += [one["column_names"] for one in about.get_unique_constraints(records.name)]
    keys += [one["column_names"] for one in about.get_indexes(records.name) if one["unique"]]
    if ["digest"] in keys:
        yield ok("unique key", f"a digest is unique in {records.name}")
        return
    yield danger(
        "unique key",
        f"nothing keeps a digest unique in {records.name}: two callers can claim one key. It breaks Single claim",
        f"ALTER TABLE {records.name} ADD PRIMARY KEY (digest), after deleting the rows that are there twice; SQLite "
        "cannot: make the table again",
    )


def index(connection: Connection, records: Records) -> Iterator[Finding]:
    """See that a purge finds what is over without reading all of the table."""
    about: Inspector = inspect(connection)
    if any((one["column_names"] or [None])[0] == "keep_until" for one in about.get_indexes(records.name)):
        yield ok("index", f"{records.name} has an index on keep_until")
        return
    name = f"{records.name}_keep_until"
    yield warning(
        "index",
        f"{records.name} has no index on keep_until: `idempo purge` and `idempo list` read all of the table each "
        "time",
        f"CREATE INDEX {name} ON {records.name} (keep_until)",
    )


def rights(records: Records, lacking: list[str]) -> Finding:
    mend = f"GRANT SELECT, INSERT, UPDATE, DELETE ON {records.name} TO ..."
    if not lacking:
        return ok("rights", f"this user may do with {records.name} what idempo does")
    if lacking == ["DELETE"]:
        return warning("rights", f"this user lacks DELETE on {records.name}: purge and forget() fail", mend)
    return danger("rights", f"this user lacks {', '.join(lacking)} on {records.name}: every call fails", mend)
