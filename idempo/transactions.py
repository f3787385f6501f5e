"""The record in the business transaction: the caller's, or one that idempo opens, hands over and commits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from idempo.carriers import Transaction
from idempo.connections import beside, on
from idempo.contracts import Colour, Inner, Layer, Site, Terms, Unit
from idempo.dialects import Dialect
from idempo.failures import is_missing_table
from idempo.guarantees import Part
from idempo.joining import joined
from idempo.records import Call, Completed, Done, Issued, NotIssued, Record
from idempo.refusals import usable
from idempo.schema import create, dialect_of, missing_table
from idempo.sql import Records
from idempo.steps import Steps
from idempo.units import SqlUnit, connection_of, is_claimed_in

T = TypeVar("T")
logger = logging.getLogger("idempo")

_HIDDEN = (
    "the function takes no {join}: the guarded row and the record change in one transaction, but what the function "
    "writes is elsewhere"
)

__all__ = ["BroughtRecord", "Joined", "JoinedRecords"]


@dataclass(frozen=True, slots=True)
class BroughtRecord:
    """The strategy of a record that a guard brings along, in its own transaction."""

    carried: Transaction

    def bind(self, site: Site) -> Layer:
        return Joined.at(site, Records(), self.carried, brought=True)


@dataclass(frozen=True, slots=True)
class Joined:
    """The layer of a record that joins the transaction of the function's own session or connection."""

    ledger: JoinedRecords
    terms: Terms
    part: Part
    injects: frozenset[str]

    @classmethod
    def at(cls, site: Site, records: Records, carried: Transaction, *, brought: bool) -> Joined:
        """Return the layer for the function at `site`. Raises `ConfigurationError` where they do not fit.

        A record that a guard brings also serves a function that does not take the transaction.
        """
        marks = bool(site.terms.replay_errors or site.terms.unknown_errors)
        hint = site.hints.get(carried.join)
        carried.check(site, hidden=brought)
        ledger = JoinedRecords(records, carried, site.colour, hint, marks)
        notes = () if carried.join in site.parameters else (_HIDDEN.format(join=carried.join),)
        part = Part("UniqueInsert", "record", joined=True, notes=notes)
        return cls(ledger, site.terms, part, frozenset({carried.join}))

    def around(self, call: Call, inner: Inner) -> Steps[Done]:
        return (yield from joined(self.ledger, call, self.terms, inner))

    def lookup(self, call: Call) -> Steps[Record | None]:
        return (yield from self.ledger.outside(call, lambda at, c: at.lookup(c, call.digest)))

    def forget(self, call: Call) -> Steps[bool]:
        return (yield from self.ledger.outside(call, lambda at, c: at.forget(c, call.digest)))


@dataclass(frozen=True, slots=True)
class JoinedRecords:
    """The records table, as part of the transaction that the parameter `join` carries."""

    records: Records
    carried: Transaction
    colour: Colour
    hint: Any
    marks: bool
    """True if an exception can be a result, or leave an orphan: then writes are undone without the claim."""

    def open(self, call: Call) -> Steps[Unit | Completed | NotIssued]:
        """Take part in the caller's transaction, or begin one of our own, unless the key is completed already."""
        holder = self.carried.given(call, self.colour)
        if holder is not None:
            known = yield from self._hold_place(holder, call)
            if known is not None and not (yield on(holder, lambda one: is_claimed_in(one, call))):
                return known  # a lock on the row would hold up, until the end of this transaction, who asks as well
            return SqlUnit(self.records, holder, call.arguments, owned=False, marks=self.marks)
        known = yield from self.outside(call, lambda at, c: _known(at, c, call))
        if known is not None:
            return known
        holder = yield from self.carried.begin(self.colour, self.hint)
        return SqlUnit(
            self.records, holder, {**call.arguments, self.carried.join: holder}, owned=True, marks=self.marks
        )

    def recall(self, call: Call) -> Steps[Completed | None]:
        """Read the committed record, outside any transaction of the call."""
        return (yield from self.outside(call, lambda at, c: _completed(at, c, call)))

    def issue(self, call: Call) -> Steps[bool]:
        return (yield from self.outside(call, lambda at, c: at.issue(c, call)))

    def revoke(self, digest: bytes) -> Steps[bool]:
        database = self.carried.needed()
        work = lambda c: _work(self.records, c, lambda at, c: at.revoke(c, digest))  # noqa: E731
        return (yield from database.autocommit(self.colour, work))

    def outside(self, call: Call, work: Callable[[Dialect, Connection], T]) -> Steps[T]:
        """Do `work` with a connection of its own, or with the caller's where there is no other."""
        given = self.carried.given(call, self.colour) if self.carried.database is None else None
        if given is not None:
            found: T = yield on(given, lambda holder: _work(self.records, connection_of(holder), work))
            return found
        database = self.carried.needed()
        return (yield from database.autocommit(self.colour, lambda c: _committed(self.records, c, work)))

    def _hold_place(self, holder: Any, call: Call) -> Steps[Completed | NotIssued | None]:
        """Look for a committed first result, and commit a placeholder, where the database needs a row to be locked.

        On a connection of its own, and not from the engine's pool: the caller may hold its only connection.
        """
        sync = getattr(holder, "sync_session", None) or getattr(holder, "sync_connection", None) or holder
        with usable(call):
            engine = sync.get_bind() if isinstance(sync, Session) else sync.engine
        engine = engine.engine if isinstance(engine, Connection) else engine
        if engine.dialect.name not in ("mysql", "mariadb"):
            return None
        work = lambda c: _committed(self.records, c, lambda at, c: _known(at, c, call))  # noqa: E731
        return (yield from beside(engine, self.colour, work))


def _work(records: Records, connection: Connection, work: Callable[[Dialect, Connection], T]) -> T:
    dialect = dialect_of(connection, records)
    try:
        return work(dialect, connection)
    except Exception as error:
        if not is_missing_table(error):
            raise
        if connection.dialect.name != "sqlite":
            raise missing_table(records, connection.dialect.name) from error
    create(connection, records)
    return work(dialect, connection)


def _committed(records: Records, connection: Connection, work: Callable[[Dialect, Connection], T]) -> T:
    """Do `work`, which reads one thing, and see nothing that is not committed, whatever level the engine is set to."""
    if connection.dialect.name in ("mysql", "mariadb"):
        info = connection.info
        if "idempo_dirty" not in info:  # asked once for each connection
            info["idempo_dirty"] = connection.get_isolation_level() == "READ UNCOMMITTED"
        if info["idempo_dirty"]:
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
    return _work(records, connection, work)


def _completed(at: Dialect, connection: Connection, call: Call) -> Completed | None:
    answer = at.read(connection, call.digest).answer(call, None)
    return answer if isinstance(answer, Completed) else None


def _known(at: Dialect, connection: Connection, call: Call) -> Completed | NotIssued | None:
    """The committed first result, if there is one; otherwise see to it that there is a row to lock."""
    row = at.read(connection, call.digest)
    if at.placeholder and row.state == "absent" and not isinstance(call.demand, Issued):
        at.hold_place(connection, call)
    answer = row.answer(call, None)
    return answer if isinstance(answer, Completed | NotIssued) else None
