"""The record in the business transaction: the caller's, or one that idempo opens, hands over and commits."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from idempo.connections import Database, beside, on
from idempo.contracts import Colour, Inner, Layer, Site, Terms, Unit
from idempo.dialects import Dialect
from idempo.errors import ColourMismatchError, CompositionError, ConfigurationError
from idempo.failures import is_missing_table
from idempo.guarantees import Part
from idempo.joining import joined
from idempo.records import Call, Completed, Done, Issued, Record
from idempo.schema import create, dialect_of, missing_table
from idempo.sql import Records
from idempo.steps import Steps
from idempo.units import SqlUnit, connection_of

T = TypeVar("T")
logger = logging.getLogger("idempo")

_HIDDEN = (
    "the function takes no {join}: the guarded row and the record change in one transaction, but what the function "
    "writes is elsewhere"
)

__all__ = ["Joined", "JoinedRecords", "Transaction", "holder_of"]


@dataclass(frozen=True, slots=True)
class Transaction:
    """The transaction that the parameter `join` carries, and the database to begin one in where the caller has none."""

    join: str
    database: Database | None

    def differs(self, other: Any) -> str:
        """Say why `other` is another transaction; "" if it is the same."""
        if other.join != self.join:
            return f"join={other.join!r} is another parameter than {self.join!r}"
        if self.database is None or other.database is None or self.database.is_same(other.database):
            return ""
        return "they name two databases"

    def record(self) -> BroughtRecord:
        """The record that a guard brings along."""
        return BroughtRecord(self)


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
        ledger = JoinedRecords(records, carried.database, carried.join, site.colour, hint, marks)
        ledger.check(site, hidden=brought)
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
    database: Database | None
    join: str
    colour: Colour
    hint: Any
    marks: bool
    """True if an exception can be a result, or leave an orphan: then writes are undone without the claim."""

    def check(self, site: Site, *, hidden: bool) -> None:
        """Raise `ConfigurationError` if the function cannot carry the transaction, nor may leave it to us."""
        if self.join not in site.parameters and not (hidden and self.database is not None):
            raise CompositionError(
                f"{site.operation}: join={self.join!r} names no parameter of the function; it has "
                f"{', '.join(site.parameters) or 'none'}" + (", and no engine= was given" if hidden else "")
            )
        wrong = _kinds("sync" if self.colour == "async" else "async")
        for kind in _classes(self.hint):
            if issubclass(kind, wrong):
                raise ColourMismatchError(
                    f"{site.operation} is {self.colour}, but its parameter {self.join} is a {kind.__name__}"
                )
        if self.database is not None:
            self.database.check(self.colour, site.operation)

    def open(self, call: Call) -> Steps[Unit | Completed]:
        """Take part in the caller's transaction, or begin one of our own, unless the key is completed already."""
        given = call.arguments.get(self.join)
        if given is not None:
            holder = holder_of(given, self.join, self.colour)
            yield from self._hold_place(holder, call)
            return SqlUnit(self.records, holder, call.arguments, owned=False, marks=self.marks)
        database = self._needed()
        known = yield from self.outside(call, lambda at, c: _known(at, c, call))
        if known is not None:
            return known
        holder = self._open(database)
        if hasattr(holder, "__await__"):
            holder = yield holder
        return SqlUnit(
            self.records, holder, {**call.arguments, self.join: holder}, owned=True, marks=self.marks
        )

    def recall(self, call: Call) -> Steps[Completed | None]:
        """Read the committed record, outside any transaction of the call."""
        return (yield from self.outside(call, lambda at, c: _completed(at, c, call)))

    def issue(self, call: Call) -> Steps[bool]:
        return (yield from self.outside(call, lambda at, c: at.issue(c, call)))

    def revoke(self, digest: bytes) -> Steps[bool]:
        database = self._needed()
        work = lambda c: _work(self.records, c, lambda at, c: at.revoke(c, digest))  # noqa: E731
        return (yield from database.autocommit(self.colour, work))

    def outside(self, call: Call, work: Callable[[Dialect, Connection], T]) -> Steps[T]:
        """Do `work` with a connection of its own, or with the caller's where there is no other."""
        given = call.arguments.get(self.join)
        if self.database is None and given is not None:
            found: T = yield on(
                holder_of(given, self.join, self.colour),
                lambda h: _work(self.records, connection_of(h), work),
            )
            return found
        database = self._needed()
        return (yield from database.autocommit(self.colour, lambda c: _work(self.records, c, work)))

    def _needed(self) -> Database:
        if self.database is None:
            raise ConfigurationError(
                f"the caller passed no {self.join}, and the strategy was given no engine, sessionmaker or URL to open "
                "one"
            )
        return self.database

    def _open(self, database: Database) -> Any:
        engine: Any = database.engine(self.colour)
        session, connection = _kinds(self.colour)
        if any(issubclass(kind, connection) for kind in _classes(self.hint)):
            return engine.connect()
        if database.sessions is not None:
            return database.sessions()
        return session(engine, expire_on_commit=False)

    def _hold_place(self, holder: Any, call: Call) -> Steps[None]:
        """Commit a placeholder on a connection of its own, where the database needs one to be locked.

        Not from the engine's pool: the caller may hold its only connection.
        """
        sync = getattr(holder, "sync_session", None) or getattr(holder, "sync_connection", None) or holder
        engine = sync.get_bind() if isinstance(sync, Session) else sync.engine
        engine = engine.engine if isinstance(engine, Connection) else engine
        if engine.dialect.name in ("mysql", "mariadb"):
            yield from beside(
                engine, self.colour, lambda c: _work(self.records, c, lambda at, c: _known(at, c, call))
            )


def holder_of(given: Any, join: str, colour: Colour) -> Any:
    """The session or connection of the right colour behind what the caller passed."""
    holder = given() if hasattr(given, "registry") else given  # a scoped_session
    if not isinstance(holder, _kinds(colour)):
        names = "Session or Connection" if colour == "sync" else "AsyncSession or AsyncConnection"
        raise ColourMismatchError(f"{join} must be a {names} here, not a {type(holder).__name__}")
    return holder


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


def _completed(at: Dialect, connection: Connection, call: Call) -> Completed | None:
    answer = at.read(connection, call.digest).answer(call, None)
    return answer if isinstance(answer, Completed) else None


def _known(at: Dialect, connection: Connection, call: Call) -> Completed | None:
    """The committed first result, if there is one; otherwise see to it that there is a row to lock."""
    row = at.read(connection, call.digest)
    if at.placeholder and row.state == "absent" and not isinstance(call.demand, Issued):
        at.hold_place(connection, call)
    answer = row.answer(call, None)
    return answer if isinstance(answer, Completed) else None


def _kinds(colour: Colour) -> tuple[type, ...]:
    """The session and the connection of a colour; none for async where nobody has imported SQLAlchemy's asyncio."""
    if colour == "sync":
        return Session, Connection
    module = sys.modules.get("sqlalchemy.ext.asyncio")
    return () if module is None else (module.AsyncSession, module.AsyncConnection)


def _classes(hint: Any) -> list[type]:
    """The classes that an annotation allows, looking into unions and Annotated."""
    if isinstance(hint, type):
        return [hint]
    return [kind for argument in getattr(hint, "__args__", ()) for kind in _classes(argument)]
