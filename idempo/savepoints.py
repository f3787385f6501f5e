"""Savepoints that SQLAlchemy knows of and that a claim has made already, so that they take no request of their own.

What the ORM cannot flush, it undoes as far back as it knows of a savepoint. It makes and ends each with a request.
Where the claim's request brings the savepoint along, SQLAlchemy is told that its `SAVEPOINT` has been executed, and its
`RELEASE` is left out: the completion releases the savepoint around it, or commits.

Source: SQLAlchemy documentation, "SQL Execution and Connection Events", DialectEvents.do_execute: a listener that
returns True says that the cursor's execution has taken place in it.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any

from sqlalchemy import Connection, event

__all__ = ["begin_nested", "fresh_name"]

_numbers = itertools.count(1)
_MADE = ""
_ours: weakref.WeakKeyDictionary[Connection, dict[str, str]] = weakref.WeakKeyDictionary()
"""Our names of savepoints in open transactions, by SQLAlchemy's; one that it has no name for yet by `_MADE`."""


def fresh_name() -> str:
    """Return a name for a savepoint that nothing else in this process has."""
    return f"idempo_{next(_numbers)}"


def begin_nested(holder: Any, connection: Connection, made: str) -> Any:
    """Return `holder.begin_nested()`: of the savepoint `made` if one is named, else of a new one."""
    if not made:
        return holder.begin_nested()
    if not event.contains(connection.dialect, "do_execute", _executed):
        event.listen(connection.dialect, "do_execute", _executed)
    names = _ours.setdefault(connection, {})
    names[_MADE] = made
    try:
        nested = holder.begin_nested()
        if holder is not connection:
            holder.connection()  # a session makes the savepoint with the first use of it
    finally:
        names.pop(_MADE, None)
    return nested


def _executed(cursor: Any, statement: str, _: Any, context: Any) -> bool | None:
    """True for what SQLAlchemy says of a savepoint of ours; any other statement costs one look-up."""
    names = _ours.get(context.root_connection)
    if not names:
        return None
    match statement.split(maxsplit=4):
        case ["SAVEPOINT", name, *_] if _MADE in names:
            names[name] = names.pop(_MADE)
        case ["RELEASE", "SAVEPOINT", name, *_] if name in names:
            del names[name]
        case ["ROLLBACK", "TO", "SAVEPOINT", name, *_] if name in names:
            cursor.execute(f"ROLLBACK TO SAVEPOINT {names.pop(name)}")
        case _:
            return None
    return True
