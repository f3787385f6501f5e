"""The demo on a SQL database: record and posting commit in one transaction, so each payment is posted exactly once."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from sqlalchemy import Column, Integer, MetaData, Numeric, String, Table, TypeDecorator, inspect, select
from sqlalchemy.dialects.mysql import VARCHAR
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from idempo.connections import Database
from idempo.decorator import idempotent
from idempo.demo.postings import KEEP, LEDGER, OPERATION, Entry, Post, Posting, amount_of
from idempo.schema import create
from idempo.sql import Records
from idempo.strategies.unique_insert import UniqueInsert

__all__ = ["SqlPostings", "open_postings"]


class _Amount(TypeDecorator[Decimal]):
    """An exact decimal; as text on SQLite, whose numbers are floats."""

    impl = Numeric(24, 6)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        kind: Any = String(40) if dialect.name == "sqlite" else Numeric(24, 6)
        return dialect.type_descriptor(kind)

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Any:
        return f"{value:f}" if value is not None and dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal:
        return amount_of(value)


_text = String(200).with_variant(VARCHAR(200, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
_metadata = MetaData()
# The payment number is not unique here, on purpose: that no payment is posted twice must not be this table's doing.
_ledger = Table(
    LEDGER,
    _metadata,
    Column("id", Integer, primary_key=True),
    Column("payment_no", _text, nullable=False),
    Column("event_id", _text, nullable=False),
    Column("amount", _Amount, nullable=False),
    Column("run", String(32), nullable=False),
    mysql_engine="InnoDB",
    mariadb_engine="InnoDB",
)
_OPENED: Any = None
"""Nobody passes a session: idempo opens one, hands it over, and commits it together with its own record."""


class SqlPostings:
    """The table `idempo_demo_ledger`, and a function that posts to it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._database = Database(url)
        self._database.check("sync", OPERATION)

    def prepare(self) -> None:
        engine: Any = self._database.engine("sync")
        with engine.begin() as connection:
            create(connection, Records())
        with engine.begin() as connection:
            try:
                _metadata.create_all(connection)
            except DBAPIError:  # another demo creates it in the same instant
                if not inspect(engine).has_table(LEDGER):
                    raise

    def handler(self, run: str) -> Post:
        @idempotent(
            key="{payment_no}",
            fingerprint="amount",  # the event id is another one in each delivery, and does not matter
            using=UniqueInsert(self._url, join="session"),
            name=OPERATION,
            keep=KEEP,
            wait=30,
        )
        def post_payment(
            payment_no: str, event_id: str, amount: Decimal, session: Session = _OPENED
        ) -> Posting:
            session.execute(
                _ledger.insert().values(payment_no=payment_no, event_id=event_id, amount=amount, run=run)
            )
            return Posting(payment_no, event_id, amount)

        return post_payment.outcome

    def entries(self) -> list[Entry]:
        engine: Any = self._database.engine("sync")
        columns = _ledger.c.payment_no, _ledger.c.event_id, _ledger.c.amount, _ledger.c.run
        with engine.connect() as connection:
            return [Entry(*row) for row in connection.execute(select(*columns).order_by(_ledger.c.id))]

    def times_run(self, run: str) -> int | None:
        return None

    def close(self) -> None:
        engine: Any = self._database.engine("sync")
        engine.dispose()


open_postings = SqlPostings
