"""MySQL and MariaDB (InnoDB): the row exists before it is locked, so that waiters never deadlock over inserting it.

Several transactions that wait to insert one key, and whose owner rolls back, deadlock among themselves (MySQL manual,
"Locks Set by Different SQL Statements in InnoDB"). So a placeholder is committed first, on a connection of its own;
then the business transaction locks that row, and only that row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, TextClause

from idempo.dialects import ALL, Dialect
from idempo.failures import codes
from idempo.records import Answer, Call, InProgress
from idempo.roundtrip import prefixed, together
from idempo.sending import Answered

__all__ = ["MariaDB", "MySQL"]

_LOCK_WAIT_TIMEOUT = 1205
_NOWAIT_FAILED = 3572


class MySQL(Dialect):
    """MySQL 8 and newer."""

    # UTC, so that no daylight saving time makes an hour happen twice.
    clock = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', UTC_TIMESTAMP(6))"
    placeholder = True

    def lock_and_claim(self, connection: Connection, call: Call, over: int | None, wait: float) -> Answer:
        sql = (
            f"SELECT {{clock}}, {ALL} FROM {{table}} AS r WHERE r.digest = :digest FOR UPDATE"
            f"{self.lock_clause(wait)}"
        )
        with self.bounded(connection, wait):
            row = self.fetch(connection, sql, {"digest": call.digest})
        answer = row.answer(call, over)
        if answer is None and row.state == "absent":
            return InProgress(b"", 0.0)  # purged since the placeholder was made: make it again
        # The row is locked: nobody changes it between this look and the claim.
        return answer or self.take(connection, call, row, over) or InProgress(b"", 0.0)

    def lock_clause(self, wait: float) -> str:
        return " NOWAIT" if wait <= 0 else ""

    @contextmanager
    def bounded(self, connection: Connection, wait: float) -> Iterator[None]:
        """Bound how long the database waits for a lock; afterwards the caller's own bound holds again."""
        connection.exec_driver_sql("SET @idempo_before = @@SESSION.innodb_lock_wait_timeout")
        connection.exec_driver_sql(f"SET SESSION innodb_lock_wait_timeout = {max(1, math.ceil(wait))}")
        try:
            yield
        finally:
            # A connection that was lost, or whose wait was cancelled, took its bound with it.
            if not connection.invalidated:
                connection.exec_driver_sql("SET SESSION innodb_lock_wait_timeout = @idempo_before")

    def purge(self, connection: Connection, batch: int) -> int:
        sql = "DELETE FROM {table} WHERE keep_until <= {clock} ORDER BY keep_until LIMIT :batch"
        return self.change(connection, sql, {"batch": batch})

    def is_busy(self, error: BaseException) -> bool:
        return codes(error)[1] in (_LOCK_WAIT_TIMEOUT, _NOWAIT_FAILED)


class MariaDB(MySQL):
    """MariaDB 10.6 and newer: the bound is part of the statement (its manual, "SET STATEMENT", "WAIT and NOWAIT")."""

    def lock_clause(self, wait: float) -> str:
        return " NOWAIT" if wait <= 0 else f" WAIT {max(1, math.ceil(wait))}"

    @contextmanager
    def bounded(self, connection: Connection, wait: float) -> Iterator[None]:
        yield

    def execute_bounded(
        self, connection: Connection, statement: TextClause, values: dict[str, Any], wait: float
    ) -> Answered:
        bound = f"SET STATEMENT innodb_lock_wait_timeout = {math.ceil(wait)} FOR "
        return together(connection, [(prefixed(bound, statement), values)])[0]
