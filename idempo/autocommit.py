"""A connection whose every statement is a transaction of its own, for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Connection

from idempo.steps import Repeated, Steps

T = TypeVar("T")

__all__ = ["AT_ONCE", "committed_at_once", "given_back", "switch_back"]

AT_ONCE = {"isolation_level": "AUTOCOMMIT", "pool_reset_on_return": None}
"""How an engine is made whose connections have no transactions: nothing is to be undone when one is given back."""


def committed_at_once(connection: Connection, work: Callable[[Connection], T]) -> T:
    """Do `work` with a connection fresh from its pool whose every statement is a transaction of its own."""
    _switch_over(connection)
    result = work(connection)
    if connection.dialect.name != "sqlite" or connection.invalidated:
        return result  # to look at one that has been given up would open another
    if getattr(connection.connection.driver_connection, "in_transaction", False):
        connection.commit()  # an engine whose "begin" listener sends BEGIN, in autocommit too
    return result


def _switch_over(connection: Connection) -> None:
    """Switch to autocommit; some drivers ask the server to.

    Not by SQLAlchemy's execution option: where the server goes away meanwhile, that one loses the connection to its
    pool and, on the way back, the answer that the server has given.
    """
    try:
        connection.dialect.set_isolation_level(_raw(connection), "AUTOCOMMIT")
    except Exception:
        connection.exec_driver_sql("SELECT 1")  # a connection that is gone says so, and the pool learns of it
        raise


def switch_back(connection: Connection) -> None:
    """Make the connection as it was, before it goes back to its pool."""
    if connection.invalidated:
        return
    try:
        connection.dialect.reset_isolation_level(_raw(connection))
    except Exception as error:
        connection.invalidate(error)  # of no use any more


def _raw(connection: Connection) -> Any:
    return connection.connection.dbapi_connection


def given_back(connection: Any) -> Callable[[], Repeated]:
    """Return what gives back a connection of an engine that is `AT_ONCE`: nothing is to be undone, nobody asked."""

    def closing() -> Steps[None]:
        yield connection.close()

    return lambda: Repeated(closing)
