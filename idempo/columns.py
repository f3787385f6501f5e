"""The columns that a guard is given: mapped attributes or Core columns, and the values that fit them."""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Table, TypeDecorator
from sqlalchemy.orm import Mapper, QueryableAttribute

from idempo.errors import ConfigurationError

__all__ = ["Named", "column_of", "fits"]

_KINDS: dict[type, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    decimal.Decimal: (int, decimal.Decimal),
    float: (int, float, decimal.Decimal),
    str: (str,),
    bytes: (bytes, bytearray, memoryview),
    uuid.UUID: (uuid.UUID,),
    dt.datetime: (dt.datetime,),
    dt.date: (dt.date,),
    dt.time: (dt.time,),
    dt.timedelta: (dt.timedelta,),
}


@dataclass(frozen=True, slots=True)
class Named:
    """A column of the user's, as mapped attribute or Core column."""

    column: Column[Any]
    attribute: str
    """The name of the mapped attribute; "" for a Core column."""
    mapper: Mapper[Any] | None

    @property
    def table(self) -> Table:
        table = self.column.table
        if not isinstance(table, Table):
            raise ConfigurationError(f"{self.column} is no column of a table")
        return table

    def __str__(self) -> str:
        return f"{self.column.table}.{self.column.name}"


def column_of(given: Any, what: str) -> Named:
    """Return the column behind `given`. Raises `ConfigurationError` for what is none."""
    if isinstance(given, QueryableAttribute):
        mapper: Any = getattr(given, "parent", None)
        columns: list[Any] = list(getattr(getattr(given, "property", None), "columns", ()))
        if isinstance(mapper, Mapper) and len(columns) == 1 and isinstance(columns[0], Column):
            return Named(columns[0], given.key, mapper)
    elif isinstance(given, Column) and isinstance(given.table, Table):
        return Named(given, "", None)
    raise ConfigurationError(
        f"{what} takes a mapped attribute such as Order.status or a column of a table, not {given!r:.200}"
    )


def fits(value: Any, column: Column[Any]) -> bool:
    """True unless the database would have to guess: MySQL takes every text for the number 0."""
    if isinstance(column.type, TypeDecorator):
        return True  # the user's own type knows what it takes
    try:
        expected = column.type.python_type
    except NotImplementedError:
        return True
    kinds = _KINDS.get(expected)
    return kinds is None or (isinstance(value, kinds) and isinstance(value, bool) == (expected is bool))
