"""MySQL and MariaDB (InnoDB): the row exists before it is locked, so that waiters never deadlock over inserting it.

Several transactions that wait to insert one key, and whose owner rolls back, deadlock among themselves (MySQL manual,
"Locks Set by Different SQL Statements in InnoDB"). So a placeholder is committed first, on a connection of its own;
then the business transaction locks that row, and only that row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from sqlalchemy import Connection, TextClause

from idempo.dialects import TIMES, WRITTEN, Dialect, among, answers
from idempo.failures import codes
from idempo.records import Answer, Call, InProgress, Payload
from idempo.roundtrip import prefixed, together
from idempo.sending import Answered, by_the_driver, every
from idempo.sql import JUDGED, completion, identity

__all__ = ["MariaDB", "MySQL"]

_LOCK_WAIT_TIMEOUT = 1205
_NOWAIT_FAILED = 3572


# Many keys are handed over as one JSON text (MySQL manual, "JSON Table Functions"), what is binary as hexadecimal.
_CLAIM_MANY = (
    f"INSERT INTO {{table}} ({WRITTEN}, {TIMES}) SELECT UNHEX(a.digest), a.operation, a.scope, a.business_key, "
    "'running', UNHEX(a.owner), {clock}, 1, UNHEX(a.fingerprint), {clock}, {clock} + :lease, {clock}, NULL, "
    "{clock} + :keep, NULL FROM JSON_TABLE(:listed, '$[*]' COLUMNS (digest CHAR(64) PATH '$[0]', "
    "operation VARCHAR(255) PATH '$[1]', scope VARCHAR(255) PATH '$[2]', business_key VARCHAR(255) PATH '$[3]', "
    "owner CHAR(32) PATH '$[4]', fingerprint LONGTEXT PATH '$[5]')) AS a "
    "ORDER BY a.digest ON DUPLICATE KEY UPDATE attempt = {table}.attempt"
)
_BY_DIGEST = (
    "JSON_TABLE(:listed, '$[*]' COLUMNS (digest CHAR(64) PATH '$[0]')) AS a "
    "STRAIGHT_JOIN {table} AS r ON r.digest = UNHEX(a.digest)"
)
_READ_MANY = f"SELECT {{clock}}, {JUDGED} FROM {_BY_DIGEST}"
_FIRSTS = (
    "JSON_TABLE(:listed, '$[*]' COLUMNS (digest CHAR(64) PATH '$[0]', owner CHAR(32) PATH '$[1]', "
    "state VARCHAR(16) PATH '$[2]', result LONGTEXT PATH '$[3]')) AS c "
    "STRAIGHT_JOIN {table} AS r ON r.digest = UNHEX(c.digest) AND r.owner = UNHEX(c.owner)"
)
_COMPLETE_MANY = (
    f"UPDATE {_FIRSTS} SET r.state = c.state, r.result = UNHEX(c.result), r.completed_at = {{clock}}, "
    "r.keep_until = {clock} + :keep WHERE r.state IN ('running', c.state)"
)
_COMPLETED = f"SELECT r.digest FROM {_FIRSTS} WHERE r.state = c.state"
_OVER = "SELECT digest FROM {table} WHERE keep_until <= {clock} ORDER BY keep_until LIMIT :batch OFFSET :seen"
_LOCK_OVER = f"SELECT r.digest FROM {_BY_DIGEST} WHERE r.keep_until <= {{clock}} FOR UPDATE"
_DELETE_LOCKED = f"DELETE r FROM {_BY_DIGEST}"


class MySQL(Dialect):
    """MySQL 8 and newer."""

    # UTC, so that no daylight saving time makes an hour happen twice.
    clock = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', UTC_TIMESTAMP(6))"
    placeholder = True
    skipping: ClassVar[str] = " OF r SKIP LOCKED"

    def claim_many(self, connection: Connection, calls: Sequence[Call]) -> list[Answer | None]:
        described = [identity(call) for call in calls]
        names = ("digest", "operation", "scope", "business_key", "owner", "fingerprint")
        listed = _listed([[one[name] for name in names] for one in described])
        values = {"listed": listed, "lease": described[0]["lease"], "keep": described[0]["keep"]}
        self.change(connection, _CLAIM_MANY, values)
        return answers(
            calls, by_the_driver(connection, self.statement(_READ_MANY), {"listed": listed}, every)
        )

    def complete_many(self, connection: Connection, firsts: Sequence[tuple[Call, Payload]]) -> list[bool]:
        described = [completion(call, payload) for call, payload in firsts]
        listed = _listed(
            [[one[name] for name in ("digest", "owner", "state", "result")] for one in described]
        )
        self.change(connection, _COMPLETE_MANY, {"listed": listed, "keep": described[0]["keep"]})
        return among(firsts, by_the_driver(connection, self.statement(_COMPLETED), {"listed": listed}, every))

    def lock_and_claim(self, connection: Connection, call: Call, over: int | None, wait: float) -> Answer:
        sql = (
            f"SELECT {{clock}}, {JUDGED} FROM {{table}} AS r WHERE r.digest = :digest FOR UPDATE"
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
        """Look for what is over without a lock, then lock those rows alone, by their keys, and nothing in between.

        Locks on the way along the index would hold up whoever completes, renews or inserts a record near them.
        """
        deleted = skipped = 0
        while deleted < batch:
            wanted = {"batch": batch - deleted, "seen": skipped}
            over = self._send(connection, self.statement(_OVER), wanted, every)
            if not over:
                break
            gone = self._delete_over(connection, over)
            deleted += gone
            skipped += len(over) - gone  # locked, or claimed anew
        return deleted

    def _delete_over(self, connection: Connection, over: Sequence[Any]) -> int:
        """Delete those of these records that are still over and that nobody has locked."""
        deleted = 0
        # Without the locks on gaps of the levels above (MySQL manual, "Transaction Isolation Levels"). For one
        # transaction only.
        for begin in ("SET TRANSACTION ISOLATION LEVEL READ COMMITTED", "START TRANSACTION"):
            self.change(connection, begin, {})
        try:
            mine = self._send(connection, self.statement(_LOCK_OVER + self.skipping), _digests(over), every)
            if mine:
                deleted = self.change(connection, _DELETE_LOCKED, _digests(mine))
        except BaseException:
            if not connection.invalidated:
                self.change(connection, "ROLLBACK", {})
            raise
        self.change(connection, "COMMIT", {})
        return deleted

    def is_busy(self, error: BaseException) -> bool:
        return codes(error)[1] in (_LOCK_WAIT_TIMEOUT, _NOWAIT_FAILED)


class MariaDB(MySQL):
    """MariaDB 10.6 and newer: the bound is part of the statement (its manual, "SET STATEMENT", "WAIT and NOWAIT")."""

    skipping = " SKIP LOCKED"

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


def _listed(rows: Sequence[Sequence[Any]]) -> str:
    return json.dumps([[one.hex() if isinstance(one, bytes) else one for one in row] for row in rows])


def _digests(rows: Sequence[Any]) -> dict[str, str]:
    return {"listed": _listed([[bytes(row[0])] for row in rows])}
