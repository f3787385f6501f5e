"""SQLite: one writer at a time, and a transaction that means to write says so when it begins.

A deferred transaction that reads and then writes fails at once where somebody wrote in between, whatever the busy
timeout (SQLite, "Result and Error Codes", SQLITE_BUSY_SNAPSHOT). So ours begin IMMEDIATE.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, TextClause, text

from idempo.dialects import Dialect
from idempo.failures import codes
from idempo.records import Answer, Call, Completed, Payload
from idempo.roundtrip import together
from idempo.sending import Answered, by_the_driver, count

__all__ = ["SQLite"]

_BUSY = 5  # the primary code, in the lowest byte
_BUSY_SNAPSHOT = 517  # no wait helps: somebody wrote since this transaction has read


class SQLite(Dialect):
    """SQLite 3.35 and newer."""

    clock = "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"

    @contextmanager
    def bounded(self, connection: Connection, wait: float) -> Iterator[None]:
        before = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {math.ceil(wait * 1000)}")
        try:
            yield
        finally:
            # A wait that was cancelled took its connection along.
            if not connection.invalidated:
                connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(before)}")

    def claim_many(self, connection: Connection, calls: Sequence[Call]) -> list[Answer]:
        with _one_transaction(connection):
            return [self.claim(connection, call, None) for call in calls]

    def complete_many(self, connection: Connection, firsts: Sequence[tuple[Call, Payload]]) -> list[bool]:
        with _one_transaction(connection):
            return [self.complete(connection, call, payload) for call, payload in firsts]

    def execute_bounded(
        self, connection: Connection, statement: TextClause, values: dict[str, Any], wait: float
    ) -> Answered:
        # The claim of the record has made this transaction the one that writes: nobody is there to wait for.
        return together(connection, [(statement, values)])[0]

    def claim_joined(
        self, connection: Connection, call: Call, over: int | None, wait: float, savepoint: str, inner: str
    ) -> Answer:
        # Without a savepoint, somebody has looked before this transaction began.
        if savepoint and not _begun(connection):
            known = self.read(connection, call.digest).answer(call, over)
            if isinstance(known, Completed):
                return known  # a replay writes nothing, and waits for no writer
        return super().claim_joined(connection, call, over, wait, savepoint, inner)

    def begin(self, connection: Connection, wait: float) -> None:
        if not _begun(connection):
            with self.bounded(connection, wait):
                connection.exec_driver_sql("BEGIN IMMEDIATE")

    def is_busy(self, error: BaseException) -> bool:
        number = codes(error)[1]
        return number & 0xFF == _BUSY and number != _BUSY_SNAPSHOT


def _begun(connection: Connection) -> bool:
    driver = connection.connection.driver_connection
    return driver is None or driver.in_transaction


@contextmanager
def _one_transaction(connection: Connection) -> Iterator[None]:
    """One transaction, and so one wait for the disk, on a connection that is in autocommit mode."""
    by_the_driver(connection, _BEGIN, {}, count)
    try:
        yield
    except BaseException:
        if not connection.invalidated:
            by_the_driver(connection, _ROLLBACK, {}, count)
        raise
    by_the_driver(connection, _COMMIT, {}, count)


_BEGIN, _COMMIT, _ROLLBACK = text("BEGIN IMMEDIATE"), text("COMMIT"), text("ROLLBACK")
