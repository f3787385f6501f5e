"""`ReadOnly`: the function reads in a transaction that cannot write."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from idempo.carriers import Transaction, connected
from idempo.connections import Database, Source, on
from idempo.contracts import Inner, Layer, Site
from idempo.errors import CompositionError, ConfigurationError
from idempo.guarantees import Part
from idempo.records import Call, Done, Record, replace
from idempo.steps import Shielded, Steps, ending
from idempo.units import connection_of, transaction_of

__all__ = ["ReadOnly"]

logger = logging.getLogger("idempo")

_savepoints = itertools.count(1)


class ReadOnly:
    """Lets the function read, and nothing else: a write fails in the database, with the database's own error.

    Reads are safe to repeat, so nothing is recorded and no store is asked: each call reads anew. In front of it a
    ledger such as `RedisCache` makes a repeat get the first result.

    With an engine, idempo begins a read-only transaction, hands it over in the parameter `join` where the function has
    it, and ends it. A transaction that the caller passes is made read-only for the time of the function; MySQL and
    MariaDB cannot do that with one that has begun.

    Args:
        source: an engine, a sessionmaker or a URL; or the name of the parameter that carries the caller's transaction.
        join: that name, where an engine is given too.

    Raises:
        ConfigurationError: for a source that is none.

    A call raises `ConfigurationError` where the caller passed no transaction and there is no engine to begin one, and
    for a transaction of MySQL or MariaDB that the caller passed.
    """

    def __init__(self, source: Source | str, *, join: str = "session") -> None:
        named = isinstance(source, str) and source.isidentifier()
        self._transaction = Transaction(str(source) if named else join, None if named else Database(source))
        self.carried = None

    def record(self) -> None:
        """Reads need no record."""

    def close(self) -> Any:
        """Close the connections made from a URL; awaitable inside an event loop. A given engine is left alone."""
        return self._transaction.close()

    def bind(self, site: Site) -> Layer:
        if site.carried is not None:
            raise CompositionError(
                f"{site.operation}: ReadOnly cannot stand in a transaction that writes: neither in that of a record "
                "with join=, nor beside another guard"
            )
        self._transaction.check(site, hidden=True)
        return _Layer(site, self._transaction)


@dataclass(frozen=True)
class _Layer:
    site: Site
    carried: Transaction

    @property
    def part(self) -> Part:
        return Part("ReadOnly", "guard", notes=("the function only reads: a write in it fails",))

    @property
    def injects(self) -> frozenset[str]:
        return frozenset({self.carried.join})

    def around(self, call: Call, inner: Inner) -> Steps[Done]:
        holder = self.carried.given(call, self.site.colour)
        if holder is None:
            return (yield from self._in_ours(call, inner))
        yield on(holder, lambda opened: _check(opened, call))
        ban = _Ban(f"idempo_{next(_savepoints)}")
        return (yield from _reading(holder, ban, inner(call)))

    def _in_ours(self, call: Call, inner: Inner) -> Steps[Done]:
        colour, hint = self.site.colour, self.site.hints.get(self.carried.join)
        database = self.carried.needed()
        engine: Any = database.engine(colour)
        if database.dialect == "postgresql":
            engine = engine.execution_options(postgresql_readonly=True)  # begins so, at no cost
        connection = yield from connected(engine)
        plain = self.carried.wants_connection(colour, hint)
        # A session that fails lets go of its connection; on one of ours it cannot.
        holder = connection if plain else database.session(colour, bind=connection)
        call = replace(call, arguments={**call.arguments, self.carried.join: holder})

        def closing() -> Steps[None]:
            if holder is not connection:
                yield holder.close()
            yield connection.close()

        return (yield from ending(_reading(holder, _Ban(""), inner(call)), lambda: Shielded(closing)))

    def lookup(self, call: Call) -> Steps[Record | None]:
        yield from ()  # nothing is recorded
        return None

    def forget(self, call: Call) -> Steps[bool]:
        yield from ()
        return False


def _check(holder: Any, call: Call) -> None:
    if connection_of(holder).dialect.name in ("mysql", "mariadb"):
        raise ConfigurationError(
            "MySQL and MariaDB cannot make a transaction read-only that has begun; give ReadOnly an engine, and leave "
            "the session out of the call",
            operation=call.operation,
            key=call.key,
        )


class _Ban:
    """Forbids writing in one transaction, and allows it again."""

    def __init__(self, savepoint: str) -> None:
        self._savepoint = savepoint
        """In the caller's transaction: undoing it allows writing again. "" in ours, which ends."""
        self._driver: Any = None
        self._lift = ""
        self._transaction: Any = None
        self._nested: Any = None

    def forbid(self, holder: Any) -> None:
        """Sources: PostgreSQL, "SET TRANSACTION"; MySQL, "SET TRANSACTION"; SQLite, "PRAGMA query_only"."""
        if isinstance(holder, Session):
            holder.flush()  # what the caller has not sent yet is his, and no write of the function
        self._nested = holder.get_nested_transaction()
        connection = connection_of(holder)
        match connection.dialect.name:
            case "sqlite":
                self._set(connection, "PRAGMA query_only = ON", "PRAGMA query_only = OFF")
            case "postgresql" if self._savepoint:
                connection.exec_driver_sql(f"SAVEPOINT {self._savepoint}")
                connection.exec_driver_sql("SET TRANSACTION READ ONLY")
            case "postgresql":
                pass  # begun so
            case _:
                # For the session, not for the transaction: DDL ends that one and is none of the next.
                read_only, read_write = (f"SET SESSION TRANSACTION READ {mode}" for mode in ("ONLY", "WRITE"))
                self._set(connection, read_only, read_write)

        self._transaction = transaction_of(holder)  # begun now, if it was not before

    def _set(self, connection: Connection, ban: str, lift: str) -> None:
        connection.exec_driver_sql(ban)
        self._driver, self._lift = connection.connection.dbapi_connection, lift

    def lift(self, holder: Any) -> None:
        if self._driver is not None:
            cursor = self._driver.cursor()  # below the session, which may have failed
            cursor.execute(self._lift)
            cursor.close()
        elif self._savepoint and transaction_of(holder) is self._transaction:
            while (nested := holder.get_nested_transaction()) is not None and nested is not self._nested:
                nested.rollback()
            connection = connection_of(holder)
            connection.exec_driver_sql(f"ROLLBACK TO SAVEPOINT {self._savepoint}")
            connection.exec_driver_sql(f"RELEASE SAVEPOINT {self._savepoint}")


def _reading(holder: Any, ban: _Ban, steps: Steps[Done]) -> Steps[Done]:
    """Take the steps of the function while nothing can be written."""

    def forbidden() -> Steps[Done]:
        yield on(holder, ban.forbid)
        done = yield from steps
        # What it has changed and not sent: a write that must fail here, not in the caller's next statement.
        yield on(holder, lambda opened: opened.flush() if isinstance(opened, Session) else None)
        return done

    def lifting() -> Steps[None]:
        try:
            yield on(holder, ban.lift)
        except Exception as error:
            logger.debug("the transaction has ended, and its ban on writing with it: %r", error)

    return (yield from ending(forbidden(), lambda: Shielded(lifting)))
