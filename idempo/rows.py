"""The user's business row that a guard judges: how a call names it, and how it is locked, and compared and set."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Table,
    TextClause,
    UniqueConstraint,
    bindparam,
    select,
    text,
)
from sqlalchemy.engine import Dialect as SqlDialect
from sqlalchemy.orm import Mapper

from idempo.columns import Named, column_of, fits
from idempo.contracts import KeySpec
from idempo.dialects import Dialect
from idempo.errors import ConfigurationError, KeyRefusedError, RowMissingError
from idempo.records import Call
from idempo.schema import translated
from idempo.specs import value_reader

__all__ = ["BusinessRow", "is_mysql", "unchanged"]


def is_mysql(connection: Connection) -> bool:
    """True for the databases whose plain reads show an older snapshot than their locking ones."""
    return connection.dialect.name in ("mysql", "mariadb")


def unchanged(named: Named, call: Call) -> ConfigurationError:
    """The error for a row that is locked and right, and yet was not changed."""
    return ConfigurationError(
        f"{named} is as it should be, and yet the database changed nothing: a trigger, or a type that it compares in "
        "another way",
        operation=call.operation,
        key=call.key,
    )


class BusinessRow:
    """One row of a table of the user's, named by `where`: columns, and what a call has for each."""

    def __init__(self, table: Table, where: Mapping[Any, KeySpec], mapper: Mapper[Any] | None) -> None:
        named: Any = where
        if not isinstance(named, Mapping) or not named:
            raise ConfigurationError("where= takes columns and what names the row: {Order.id: '{order_id}'}")
        self.table = table
        self._mapper = mapper
        self.where = {column_of(given, "where="): spec for given, spec in where.items()}
        for named in self.where:
            if named.column.table is not table:
                raise ConfigurationError(f"where= names {named}, which is not a column of {table.name}")
        self._statements: dict[tuple[str, str, str, int], TextClause] = {}
        self.certain = _is_unique(table, {named.column for named in self.where})
        """True if the table cannot hold two rows that `where` matches."""

    def reader(self, parameters: Collection[str], operation: str) -> Callable[[Call], dict[str, Any]]:
        """Return what reads the values of `where` from a call. Raises `KeyTemplateError` while decorating."""
        readers = [
            (
                f"w_{number}",
                named,
                value_reader(spec, parameters, what=f"where= of {named}", operation=operation),
            )
            for number, (named, spec) in enumerate(self.where.items())
        ]

        def read(call: Call) -> dict[str, Any]:
            return {name: _checked(source(call.arguments), named, call) for name, named, source in readers}

        return read

    def compare_and_set(
        self,
        connection: Connection,
        at: Dialect,
        values: Mapping[str, Any],
        column: Column[Any],
        expected: Iterable[Any],
        new: Any,
        wait: float,
        counted: Column[Any] | None = None,
    ) -> int:
        """Set `column` to `new` where it is one of `expected`, and count `counted` up; return how many rows matched.

        MySQL without FOUND_ROWS counts the rows that were changed.
        """
        olds = {f"old_{number}": old for number, old in enumerate(expected)}
        statement = self._update(connection, column, len(olds), counted)
        given = {**values, **self._kind_values(), **olds, "new": new}
        return at.execute_bounded(connection, statement, given, wait).count

    def lock(self, connection: Connection, at: Dialect, values: Mapping[str, Any], wait: float) -> None:
        """Lock the row by its key alone, whatever state it is in; wait for others `wait` seconds at the most."""
        given = {**values, **self._kind_values()}
        at.execute_bounded(connection, self._lock(connection, nowait=wait <= 0), given, wait)

    def read(
        self,
        connection: Connection,
        values: Mapping[str, Any],
        columns: Collection[Column[Any]],
        call: Call,
        *,
        locked: bool,
    ) -> Any:
        """Return these columns of the row; `locked` as they are now, whatever snapshot the transaction has.

        Raises `RowMissingError`, and `ConfigurationError` where several rows match.
        """
        found = connection.execute(self.selected(select(*columns), values, locked=locked)).fetchmany(2)
        return self.one_of(found, call)

    def selected(self, query: Any, values: Mapping[str, Any], *, locked: bool) -> Any:
        """Return `query` for the rows that `where` matches, two at the most."""
        for number, named in enumerate(self.where):
            query = query.where(named.column == values[f"w_{number}"])
        if (kinds := self._kinds()) is not None:
            query = query.where(kinds[0].in_(kinds[1]))
        query = query.limit(2)
        return query.with_for_update() if locked else query

    def one_of(self, found: Collection[Any], call: Call) -> Any:
        """Return the one row that was found. Raises `RowMissingError` and `ConfigurationError`."""
        if not found:
            raise RowMissingError(
                f"{self.table.name} has no row for this call: {self}; create it first, or mend where=",
                operation=call.operation,
                key=call.key,
            )
        if len(found) > 1:
            raise self.ambiguous(call)
        return next(iter(found))

    def ambiguous(self, call: Call) -> ConfigurationError:
        """The error for a where clause that matches many rows."""
        return ConfigurationError(
            f"where= matches several rows of {self.table.name}: {self}; name the columns of its primary key, or of a "
            "unique constraint",
            operation=call.operation,
            key=call.key,
        )

    def __str__(self) -> str:
        return ", ".join(f"{named.column.name}={spec}" for named, spec in self.where.items())

    def _kinds(self) -> tuple[Column[Any], list[Any]] | None:
        """The column that tells classes in one table apart, and what it holds for the class that is meant."""
        mapper = self._mapper
        if mapper is None or not mapper.single or not isinstance(mapper.polymorphic_on, Column):
            return None
        return mapper.polymorphic_on, [one.polymorphic_identity for one in mapper.self_and_descendants]

    def _kind_values(self) -> dict[str, Any]:
        kinds = self._kinds()
        return {} if kinds is None else {f"kind_{number}": one for number, one in enumerate(kinds[1])}

    def _update(
        self, connection: Connection, column: Column[Any], count: int, counted: Column[Any] | None
    ) -> TextClause:
        dialect, table = connection.dialect, self._table(connection)
        made = self._statements.get((dialect.name, table, column.name, count))
        if made is not None:
            return made
        quoted = _quoted(column.name, dialect)
        olds = " OR ".join(f"{quoted} = :old_{number}" for number in range(count))
        version = "" if counted is None else _quoted(counted.name, dialect)
        counting = f", {version} = {version} + 1" if version else ""
        sql = f"UPDATE {table} SET {quoted} = :new{counting} WHERE {self._matches(dialect)} AND ({olds})"
        types = {"new": column.type} | {f"old_{number}": column.type for number in range(count)}
        return self._statement((dialect.name, table, column.name, count), sql, types)

    def _lock(self, connection: Connection, *, nowait: bool) -> TextClause:
        dialect, table = connection.dialect, self._table(connection)
        made = self._statements.get((dialect.name, table, "", int(nowait)))
        if made is not None:
            return made
        lock = "" if dialect.name == "sqlite" else " FOR UPDATE NOWAIT" if nowait else " FOR UPDATE"
        sql = f"SELECT 1 FROM {table} WHERE {self._matches(dialect)} LIMIT 2{lock}"
        return self._statement((dialect.name, table, "", int(nowait)), sql, {})

    def _table(self, connection: Connection) -> str:
        """The table as this database quotes it, in the schema that the connection translates its own to."""
        schema = translated(connection, self.table.schema)
        name = _quoted(self.table.name, connection.dialect)
        return name if schema is None else f"{_quoted(schema, connection.dialect)}.{name}"

    def _matches(self, dialect: SqlDialect) -> str:
        names = (_quoted(named.column.name, dialect) for named in self.where)
        matches = " AND ".join(f"{name} = :w_{number}" for number, name in enumerate(names))
        kinds = self._kinds()
        if kinds is None:
            return matches
        kind = _quoted(kinds[0].name, dialect)
        wanted = " OR ".join(f"{kind} = :kind_{number}" for number in range(len(kinds[1])))
        return f"{matches} AND ({wanted})"

    def _statement(self, key: tuple[str, str, str, int], sql: str, types: dict[str, Any]) -> TextClause:
        types |= {f"w_{number}": named.column.type for number, named in enumerate(self.where)}
        kinds = self._kinds()
        if kinds is not None:
            types |= dict.fromkeys(self._kind_values(), kinds[0].type)
        made = text(sql).bindparams(*(bindparam(name, type_=kind) for name, kind in types.items()))
        return self._statements.setdefault(key, made)


def _quoted(name: str, dialect: SqlDialect) -> str:
    """A name as this database quotes it, for a statement in text: that one doubles a % itself, and : begins nothing."""
    quoted = dialect.identifier_preparer.quote(name)
    if dialect.paramstyle in ("format", "pyformat"):
        quoted = quoted.replace("%%", "%")
    return quoted.replace(":", r"\:")


def _is_unique(table: Table, columns: set[Column[Any]]) -> bool:
    keys = [set(table.primary_key.columns)]
    keys += [set(one.columns) for one in table.constraints if isinstance(one, UniqueConstraint)]
    keys += [set(one.columns) for one in table.indexes if one.unique and _is_plain(one)]
    keys += [{column} for column in table.columns if column.unique]
    return any(key and key <= columns for key in keys)


def _is_plain(index: Any) -> bool:
    """True for an index on columns, of all rows."""
    partial = any(options.get("where") is not None for options in index.dialect_options.values())
    return not partial and all(isinstance(one, Column) for one in index.expressions)


def _checked(value: Any, named: Named, call: Call) -> Any:
    if value is None or not fits(value, named.column):
        wanted = "a value" if value is None else f"{named.column.type!r}"
        raise KeyRefusedError(
            f"where= needs {wanted} for {named}, and this call has a {type(value).__name__}; nothing ran",
            operation=call.operation,
            key=call.key,
        )
    return value
