"""SQLite: one writer at a time, and a transaction that means to write says so when it begins.

A deferred transaction that reads and then writes fails at once where somebody wrote in between, whatever the busy
timeout (SQLite, "Result and Error Codes", SQLITE_BUSY_SNAPSHOT). So ours begin IMMEDIATE.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, TextClause

from idempo.dialects import Dialect
from idempo.failures import codes
from idempo.roundtrip import together
from idempo.sending import Answered

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

    def execute_bounded(
        self, connection: Connection, statement: TextClause, values: dict[str, Any], wait: float
    ) -> Answered:
        # The claim of the record has made this transaction the one that writes: nobody is there to wait for.
        return together(connection, [(statement, values)])[0]

    def begin(self, connection: Connection, wait: float) -> None:
        driver = connection.connection.driver_connection
        if driver is not None and not driver.in_transaction:
            with self.bounded(connection, wait):
                connection.exec_driver_sql("BEGIN IMMEDIATE")

    def is_busy(self, error: BaseException) -> bool:
        number = codes(error)[1]
        return number & 0xFF == _BUSY and number != _BUSY_SNAPSHOT
