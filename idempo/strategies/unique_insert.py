"""`UniqueInsert`: one row per business key, unique by digest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, MetaData

from idempo.carriers import Transaction
from idempo.connections import Database, Source
from idempo.contracts import Colour, KeySpec, Layer, Site
from idempo.dialects import Dialect
from idempo.errors import CompositionError, ConfigurationError
from idempo.failures import is_missing_table
from idempo.layers import Leased
from idempo.records import Answer, Call, Done, Payload, Record
from idempo.schema import create, ddl, dialect_of, missing_table
from idempo.sending import by_the_driver
from idempo.sql import Records
from idempo.steps import Steps, arun, run
from idempo.transactions import Joined

T = TypeVar("T")

__all__ = ["UniqueInsert"]


class UniqueInsert:
    """Remembers in a SQL database: PostgreSQL, MariaDB, MySQL, SQLite.

    With `UniqueInsert(engine)`, claim and completion commit on their own, under a lease. With `join="session"`, the
    record joins the transaction of the function's parameter `session` (a Session, AsyncSession, Connection or
    AsyncConnection): record, business writes and result commit together. If the caller leaves that parameter out and
    a source was given too, idempo opens the transaction, hands it over, and commits.

    Args:
        source: a SQLAlchemy URL, an engine, or a sessionmaker; may be left out with `join`.
        join: the name of the function's parameter that carries the transaction.
        key: a key of its own, where it differs from the decorator's.
        required: False lets a call fall through to the ledger inside while this one is down.
        table: the name of the records table.

    Raises:
        ConfigurationError: for a source that is none, or neither source nor join.
    """

    def __init__(
        self,
        source: Source | None = None,
        *,
        join: str | None = None,
        key: KeySpec | None = None,
        required: bool = True,
        table: str = "idempo_records",
    ) -> None:
        if source is None and join is None:
            raise ConfigurationError("UniqueInsert needs a URL, an engine or a sessionmaker, or join=")
        self.records = Records(table)
        self._database = None if source is None else Database(source, at_once=join is None)
        self._join = join
        self._key = key
        self._required = required

    @property
    def carried(self) -> Transaction | None:
        """The transaction that the record joins; None without `join`."""
        return None if self._join is None else Transaction(self._join, self._database)

    @property
    def metadata(self) -> MetaData:
        """The SQLAlchemy MetaData of the records table, for Alembic's `target_metadata`."""
        return self.records.metadata

    def bind(self, site: Site) -> Layer:
        if self._join is not None:
            if site.tier or self._key is not None:
                raise CompositionError(
                    f"{site.operation}: UniqueInsert(join=...) is the record itself: it stands last in using=[...], "
                    "and under the decorator's key"
                )
            return Joined.at(site, self.records, Transaction(self._join, self._database), brought=False)
        database = self._needed()
        database.check(site.colour, site.operation)
        store = SqlLedger(self.records, database, site.colour)
        return Leased.at(site, store, "UniqueInsert", key=self._key, required=self._required)

    def create_schema(self) -> Any:
        """Create the records table if it does not exist; awaitable with an async engine, or inside an event loop.

        Raises `ConfigurationError` without a source, and the driver's errors.
        """
        return self._now(lambda colour: self._needed().autocommit(colour, lambda c: create(c, self.records)))

    def purge(self, batch: int = 1000) -> Any:
        """Delete up to `batch` records whose retention is over; return how many.

        Awaitable with an async engine, or inside an event loop.

        Call it again until it returns less than `batch`. A purge never touches a record within its retention, passes
        by what others have locked, and holds up nobody but who claims one of its keys anew while a batch lasts; on
        SQLite, which has one writer at a time, whoever writes.
        """
        if not 1 <= batch <= 100_000:
            raise ConfigurationError(f"batch={batch} is not between 1 and 100000")
        return self._now(lambda colour: SqlLedger(self.records, self._needed(), colour).purge(batch))

    def schema(self) -> str:
        """Return the statements that create the records table."""
        return ddl(self._needed().dialect, self.records)

    def close(self) -> Any:
        """Close the connections made from a URL; awaitable inside an event loop. A given engine is left alone."""
        return self._now(lambda _: self._needed().close())

    def _needed(self) -> Database:
        if self._database is None:
            raise ConfigurationError("this UniqueInsert has only join=: give it an engine or a URL too")
        return self._database

    def _now(self, steps: Callable[[Colour], Steps[T]]) -> Any:
        colour = self._needed().colour
        return arun(steps(colour)) if colour == "async" else run(steps(colour))


@dataclass(frozen=True, eq=False)
class SqlLedger:
    """The ledger whose claims and completions commit on their own."""

    records: Records
    database: Database
    colour: Colour

    @property
    def store(self) -> Database:
        """What all ledgers on this database share: one thread renews their leases."""
        return self.database

    def claim(self, call: Call, over: int | None) -> Steps[Answer]:
        return (yield from self._do(lambda at, connection: at.claim(connection, call, over)))

    def complete(self, call: Call, payload: Payload) -> Steps[bool]:
        return (yield from self._do(lambda at, connection: at.complete(connection, call, payload)))

    def claim_many(self, calls: Sequence[Call]) -> Steps[Sequence[Answer | None]]:
        return (yield from self._do(lambda at, connection: at.claim_many(connection, calls)))

    def complete_many(self, firsts: Sequence[tuple[Call, Payload]]) -> Steps[Sequence[bool]]:
        return (yield from self._do(lambda at, connection: at.complete_many(connection, firsts)))

    def release(self, call: Call) -> Steps[bool]:
        return (yield from self._do(lambda at, connection: at.release(connection, call)))

    def renew(self, call: Call, lease: float) -> Steps[bool]:
        # The user's function may hold every connection of the user's pool, for longer than the lease.
        def work(connection: Connection) -> bool:
            return self._dialect(connection).renew(connection, call, lease)

        return (yield from self.database.aside(self.colour, work))

    def lookup(self, digest: bytes) -> Steps[Record | None]:
        return (yield from self._do(lambda at, connection: at.lookup(connection, digest)))

    def forget(self, digest: bytes) -> Steps[bool]:
        return (yield from self._do(lambda at, connection: at.forget(connection, digest)))

    def issue(self, call: Call) -> Steps[bool]:
        return (yield from self._do(lambda at, connection: at.issue(connection, call)))

    def revoke(self, digest: bytes) -> Steps[bool]:
        return (yield from self._do(lambda at, connection: at.revoke(connection, digest)))

    def fill(self, call: Call, done: Done) -> Steps[None]:
        return (yield from self._do(lambda at, connection: at.fill(connection, call, done)))

    def purge(self, batch: int) -> Steps[int]:
        return (yield from self._do(lambda at, connection: at.purge(connection, batch)))

    def _dialect(self, connection: Connection) -> Dialect:
        return dialect_of(connection, self.records, by_the_driver, self.database.clock)

    def _do(self, work: Callable[[Dialect, Connection], T]) -> Steps[T]:
        def asked(connection: Connection) -> T:
            return work(self._dialect(connection), connection)

        try:
            return (yield from self.database.autocommit(self.colour, asked))
        except Exception as error:
            if not is_missing_table(error):
                raise
            if self.database.dialect != "sqlite":
                raise missing_table(self.records, self.database.dialect) from error
        yield from self.database.autocommit(self.colour, lambda c: create(c, self.records))
        return (yield from self.database.autocommit(self.colour, asked))
