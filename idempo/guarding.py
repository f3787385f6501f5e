"""What the guards have in common: the transaction they work in, and what their statements' errors mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Table
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.orm import Mapper, Session

from idempo.asking import NotAdmitted, RunAgain
from idempo.carriers import Transaction
from idempo.connections import Database, Source, on
from idempo.contracts import Inner, Site, Terms
from idempo.dialects import Dialect
from idempo.errors import ConfigurationError, IdempoError, InProgressError
from idempo.events import tell
from idempo.failures import is_conflict, is_disconnect, is_unknown_name
from idempo.guarantees import Part
from idempo.records import Call, Done, Record
from idempo.refusals import conflicting
from idempo.schema import dialect_of
from idempo.sql import Records
from idempo.steps import Steps
from idempo.transactions import BroughtRecord
from idempo.units import connection_of
from idempo.verdicts import unavailable

T = TypeVar("T")

__all__ = ["Admission", "Guarding", "transaction_for"]

_DIALECTS = Records()  # guards have no table of their own: they ask the dialect how to wait


class Guarding:
    """What a guard is besides what it judges: a strategy that works in a transaction of the function."""

    carried: Transaction

    def record(self) -> BroughtRecord:
        """Return the ledger to bring along where none joins the transaction."""
        return BroughtRecord(self.carried)

    def close(self) -> Any:
        """Close the connections made from a URL; awaitable inside an event loop. A given engine is left alone."""
        return self.carried.close()


def transaction_for(join: str, engine: Source | None) -> Transaction:
    """Return the transaction that a guard works in. Raises `ConfigurationError`."""
    if not str(join).isidentifier():
        raise ConfigurationError(f"join={join!r} is no name of a parameter")
    return Transaction(join, None if engine is None else Database(engine))


@dataclass(frozen=True)
class Admission:
    """The layer of a guard: judges the user's row in the transaction of the record. Subclasses say how."""

    site: Site
    carried: Transaction
    table: Table
    mapper: Mapper[Any] | None
    part: Part

    @property
    def injects(self) -> frozenset[str]:
        return frozenset({self.carried.join})

    @property
    def terms(self) -> Terms:
        return self.site.terms

    def around(self, call: Call, inner: Inner) -> Steps[Done]:
        raise NotImplementedError

    def lookup(self, call: Call) -> Steps[Record | None]:
        yield from ()  # a guard remembers nothing
        return None

    def forget(self, call: Call) -> Steps[bool]:
        yield from ()
        return False

    def asked(
        self, call: Call, work: Callable[[Any, Connection, Dialect], T], *, ran: bool = False
    ) -> Steps[T]:
        """Do `work` with the session or connection, its connection and dialect.

        Raises `NotAdmitted` with a typed error, and `RunAgain` for a conflict with another transaction.
        """
        holder = self.carried.given(call, self.site.colour)
        try:
            result: T = yield on(holder, lambda opened: self._in_place(opened, call, work))
        except StatementError as error:
            raise self._told(error, call, ran=ran) from error
        except IdempoError as error:
            if ran:
                error.ran = True
            else:
                tell(self.terms.hooks, "refused", call, type(error).__name__)
            raise NotAdmitted(error) from error
        return result

    def _in_place(self, holder: Any, call: Call, work: Callable[[Any, Connection, Dialect], T]) -> T:
        connection = connection_of(holder)
        if isinstance(holder, Session):
            bound: Any = holder.get_bind(self.mapper) if self.mapper is not None else holder.get_bind()
            if bound.engine.pool is not connection.engine.pool:
                raise ConfigurationError(
                    f"{self.table.name} and the record are in two databases, by the binds= of the session: nothing "
                    "could change both at once",
                    operation=call.operation,
                    key=call.key,
                )
        dialect = dialect_of(connection, _DIALECTS)
        try:
            return work(holder, connection, dialect)
        except DBAPIError as error:
            if dialect.is_busy(error):
                raise self._busy(call) from error
            raise

    def _busy(self, call: Call) -> InProgressError:
        return InProgressError(
            f"another transaction holds the row of {self.table.name}; call again later, or give a longer wait=",
            operation=call.operation,
            key=call.key,
        )

    def _told(self, error: StatementError, call: Call, *, ran: bool) -> Exception:
        if is_conflict(error):
            again = conflicting(call)
            again.__cause__ = error
            again.ran = ran
            return RunAgain(again, started=ran)
        if is_disconnect(error):
            told: IdempoError = unavailable(call, self.terms, error, ran=ran)
        elif is_unknown_name(error):
            told = ConfigurationError(
                f"the database of {self.carried.join} does not know the table {self.table.name}, or a column that the "
                f"{self.part.strategy} names: is it another database, or is a migration missing?",
                operation=call.operation,
                key=call.key,
            )
        else:
            told = ConfigurationError(
                f"the database refused the statement of the {self.part.strategy} on {self.table.name}",
                operation=call.operation,
                key=call.key,
            )
        told.__cause__ = error
        told.ran = ran
        return NotAdmitted(told)
