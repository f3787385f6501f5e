"""What a ledger does with the records table, in SQL that all databases share; in a transaction: `joined_dialects`.

Each method is a plain function of a connection. Where a database has a better way it is in a module of its own:
`postgresql`, `mysql`, `sqlite`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from sqlalchemy import Connection, TextClause
from sqlalchemy.exc import IntegrityError

from idempo.clocks import StoreClock
from idempo.joined_dialects import JoinedDialect
from idempo.records import Above, Answer, Call, Claimed, Done, InProgress, Issued, Orphan, Payload, Record
from idempo.sending import Send, count, first
from idempo.sql import COLUMNS, JUDGED, MICROSECONDS, Row, completion, filled, identity, row_of, typed

__all__ = ["Dialect"]

ALL = ", ".join(f"r.{column}" for column in COLUMNS)
WRITTEN = "digest, operation, scope, business_key, state, owner, fence, attempt, fingerprint"
TIMES = "leased_at, lease_until, created_at, completed_at, keep_until, result"
RACES = 50

# Free to claim: its retention is over, its owner released it or nobody has spent it, it is the orphan that the caller
# accepts to take over, or the first result that it accepts to replace.
FREE = (
    "(r.keep_until <= {now} OR r.state IN ('released', 'issued') "
    "OR (r.state = 'running' AND (r.lease_until <= {now} OR r.lease_until <= r.leased_at) AND r.fence = :over) "
    "OR (r.state IN ('completed', 'failed') AND r.fence = :above))"
)
COMPLETE = (
    "UPDATE {table} SET state = :state, result = :result, completed_at = {clock}, keep_until = {clock} + :keep "
    "WHERE digest = :digest AND owner = :owner AND state IN ('running', :state)"
)


class Dialect(JoinedDialect):
    """What all databases share. A subclass is one of the databases."""

    clock: ClassVar[str]
    renewal: ClassVar[str] = (
        "UPDATE {table} SET leased_at = {clock}, lease_until = {clock} + :lease, "
        "keep_until = {clock} + :lease + :keep WHERE digest = :digest AND owner = :owner AND state = 'running'"
    )

    def __init__(self, table: str, send: Send, clock: StoreClock | None) -> None:
        self._table = table
        self._send = send
        self._clock = clock
        self._statements: dict[str, TextClause] = {}

    def statement(self, sql: str) -> TextClause:
        """Return `sql` with the table, as this database quotes it, and the clock filled in."""
        statement = self._statements.get(sql)
        if statement is None:
            filled = sql.replace("{table}", self._table).replace("{clock}", self.clock)
            statement = self._statements[sql] = typed(filled)
        return statement

    def fetch(self, connection: Connection, sql: str, values: Mapping[str, Any]) -> Row:
        """Execute a statement that selects the clock and the columns of at most one row."""
        asked = time.monotonic()
        row = row_of(self._send(connection, self.statement(sql), values, first))
        if self._clock is not None:
            self._clock.hear(row.now, asked)
        return row

    def change(self, connection: Connection, sql: str, values: Mapping[str, Any]) -> int:
        """Execute a statement and return how many rows it matched."""
        return self._send(connection, self.statement(sql), values, count)

    # ---- a claim under a lease, each statement a transaction of its own

    def read(self, connection: Connection, digest: bytes, columns: str = ALL) -> Row:
        sql = f"SELECT {{clock}}, {columns} FROM (SELECT 1 AS one) AS o LEFT JOIN {{table}} AS r ON r.digest = :digest"
        return self.fetch(connection, sql, {"digest": digest})

    def claim(self, connection: Connection, call: Call, over: int | None) -> Answer:
        """Read, then insert or compare and set: the second decides. A lost race reads again."""
        for _ in range(RACES):
            row = self.read(connection, call.digest, JUDGED)
            answer = row.answer(call, over)
            if answer is None and row.state == "absent":
                answer = self.insert(connection, call, row)
            elif answer is None:
                answer = self.take(connection, call, row, over)
            if answer is not None:
                return self.judged(connection, call, row, answer)
        return InProgress(b"", 0.0)

    def judged(self, connection: Connection, call: Call, row: Row, answer: Answer) -> Answer:
        """The answer, where the clock may have been set since the lease began.

        Put forward: the lease is not over before its time. Set back, so that it seems to begin in the future: nobody
        knows how much of it is over, and it begins anew. So its owner, if it lives, is not taken for dead too early,
        and if it is dead the key is not held until the clock has made up for it.
        """
        if isinstance(answer, Orphan) and self._clock is not None:
            left = self._clock.lease_left(row.now, row.leased_at, row.lease_until)
            return answer if left <= 0 else InProgress(row.fingerprint, left / MICROSECONDS)
        if isinstance(answer, InProgress) and row.leased_at > row.now:
            sql = (
                "UPDATE {table} SET lease_until = {clock} + (lease_until - leased_at), leased_at = {clock} "
                "WHERE digest = :digest AND fence = :seen AND state = 'running' AND leased_at > {clock}"
            )
            self.change(connection, sql, {"digest": call.digest, "seen": row.fence})
        return answer

    def insert(self, connection: Connection, call: Call, row: Row) -> Claimed | None:
        """Insert the claim of a key that has no row. None: somebody was faster."""
        mine = Claimed(fence=row.now, attempt=1)
        values = identity(call) | {"state": "running", "fence": mine.fence, "attempt": mine.attempt}
        return mine if self._insert(connection, values) else None

    def hold_place(self, connection: Connection, call: Call) -> None:
        """Insert a row that nobody has claimed, for a transaction to lock."""
        self._insert(
            connection, identity(call) | {"state": "released", "fence": 0, "attempt": 0, "owner": b""}
        )

    def issue(self, connection: Connection, call: Call) -> bool:
        """Insert a key that waits to be claimed, for `call.keep` seconds. False, and no change, if it is there."""
        values = identity(call) | {"state": "issued", "fence": 0, "attempt": 0, "owner": b"", "lease": 0}
        values["keep"] = int(call.keep * MICROSECONDS)
        if self._insert(connection, values):
            return True
        # Plus 0: InnoDB would read along the index of what is to be purged, and lock what it passes there.
        sql = (
            "UPDATE {table} SET state = 'issued', operation = :operation, scope = :scope, "
            "business_key = :business_key, fingerprint = :fingerprint, attempt = 0, owner = :owner, "
            "leased_at = {clock}, lease_until = {clock}, created_at = {clock}, completed_at = NULL, "
            "keep_until = {clock} + :keep, result = NULL WHERE digest = :digest AND keep_until + 0 <= {clock}"
        )
        return self.change(connection, sql, _only(values, sql)) == 1

    def revoke(self, connection: Connection, digest: bytes) -> bool:
        """Delete an issued key that nobody has claimed. False, and no change, for any other."""
        sql = "DELETE FROM {table} WHERE digest = :digest AND state = 'issued' AND keep_until + 0 > {clock}"
        return self.change(connection, sql, {"digest": digest}) == 1

    def _insert(self, connection: Connection, values: dict[str, Any]) -> bool:
        sql = (
            f"INSERT INTO {{table}} ({WRITTEN}, {TIMES}) VALUES (:digest, :operation, :scope, :business_key, :state, "
            ":owner, :fence, :attempt, :fingerprint, {clock}, {clock} + :lease, {clock}, NULL, {clock} + :keep, NULL)"
        )
        try:
            return self.change(connection, sql, values) == 1
        except IntegrityError:
            return False

    def take(self, connection: Connection, call: Call, row: Row, over: int | None) -> Claimed | None:
        """Claim a row that is free, or the orphan `over`. None: it changed since it was read."""
        # InnoDB keeps a gap of an index locked where a change of it is rolled back to a savepoint, and nobody could
        # insert a record until the transaction ends. So what is long enough stays.
        kept = "CASE WHEN r.keep_until > {clock} + :lease THEN r.keep_until ELSE {clock} + :keep END"
        sql = (
            "UPDATE {table} AS r SET operation = :operation, scope = :scope, business_key = :business_key, "
            "state = 'running', owner = :owner, fence = :fence, attempt = :attempt, fingerprint = :fingerprint, "
            "leased_at = {clock}, lease_until = {clock} + :lease, created_at = {clock}, completed_at = NULL, "
            f"keep_until = {kept}, result = NULL WHERE r.digest = :digest AND r.fence = :seen AND "
        ) + FREE.replace("{now}", "{clock}")
        # The clock as the base: fences go on growing where the row itself is gone and comes back.
        anew = row.keep_until <= row.now or row.state in ("completed", "failed")
        attempt = 1 if anew else row.attempt + 1
        mine = Claimed(fence=max(row.fence + 1, row.now), attempt=attempt)
        values = identity(call) | {
            "fence": mine.fence,
            "attempt": mine.attempt,
            "seen": row.fence,
            **accepted(call, over),
        }
        return mine if self.change(connection, sql, values) == 1 else None

    def complete(self, connection: Connection, call: Call, payload: Payload) -> bool:
        return self.change(connection, COMPLETE, completion(call, payload)) == 1

    def release(self, connection: Connection, call: Call) -> bool:
        # The row stays: its count of attempts and its fence go on.
        sql = (
            "UPDATE {table} SET state = :free WHERE digest = :digest AND owner = :owner "
            "AND state IN ('running', :free)"
        )
        free = "issued" if isinstance(call.demand, Issued) else "released"
        return self.change(connection, sql, {"digest": call.digest, "owner": call.owner, "free": free}) == 1

    def renew(self, connection: Connection, call: Call, lease: float) -> bool:
        times = {"lease": int(lease * MICROSECONDS), "keep": int(call.keep * MICROSECONDS)}
        return (
            self.change(connection, self.renewal, {"digest": call.digest, "owner": call.owner, **times}) == 1
        )

    def lookup(self, connection: Connection, digest: bytes) -> Record | None:
        return self.read(connection, digest).record(digest)

    def forget(self, connection: Connection, digest: bytes) -> bool:
        row = self.read(connection, digest)
        if row.free or (row.state == "running" and row.lease_left > 0):
            return False
        # The row as it was seen: not the result of a run that ends while this waits for it, nor a renewed claim.
        sql = (
            "DELETE FROM {table} WHERE digest = :digest AND fence = :seen AND state = :state "
            "AND (state <> 'running' OR lease_until <= {clock} OR lease_until <= leased_at)"
        )
        return self.change(connection, sql, {"digest": digest, "seen": row.fence, "state": row.state}) == 1

    def fill(self, connection: Connection, call: Call, done: Done) -> None:
        assigned = (
            "state = :state, owner = :owner, fence = :fence, attempt = :attempt, fingerprint = :fingerprint, "
            "completed_at = {clock}, keep_until = {clock} + :keep, result = :result"
        )
        # Not over a newer result: this call may have been silent for a while.
        older = "(fence <= :fence OR keep_until <= {clock})"
        update = f"UPDATE {{table}} SET {assigned} WHERE digest = :digest AND {older}"
        insert = (
            f"INSERT INTO {{table}} ({WRITTEN}, {TIMES}) VALUES (:digest, :operation, :scope, :business_key, :state, "
            ":owner, :fence, :attempt, :fingerprint, {clock}, {clock}, {clock}, {clock}, {clock} + :keep, :result)"
        )
        values = filled(call, done)
        if self.change(connection, update, _only(values, update)) == 0:
            try:
                self.change(connection, insert, values)
            except IntegrityError:
                return  # filled by another call meanwhile, with the same result

    def purge(self, connection: Connection, batch: int) -> int:
        sql = (
            "DELETE FROM {table} WHERE digest IN "
            "(SELECT digest FROM {table} WHERE keep_until <= {clock} ORDER BY keep_until LIMIT :batch)"
        )
        return self.change(connection, sql, {"batch": batch})

    def claim_many(self, connection: Connection, calls: Sequence[Call]) -> Sequence[Answer | None]:
        raise NotImplementedError

    def complete_many(self, connection: Connection, firsts: Sequence[tuple[Call, Payload]]) -> Sequence[bool]:
        raise NotImplementedError


def accepted(call: Call, over: int | None) -> dict[str, int]:
    """The fences of the orphan and of the first result that may be replaced; no record has a fence of -1."""
    above = call.demand.fence if isinstance(call.demand, Above) else -1
    return {"over": -1 if over is None else over, "above": above}


def answers(calls: Sequence[Call], found: Sequence[Any]) -> list[Answer | None]:
    """How the key of each call stands, by the rows found for them; None: there is none, or it is free to claim."""
    rows = {bytes(one[1]): row_of(one) for one in found}
    return [rows[call.digest].answer(call, None) if call.digest in rows else None for call in calls]


def among(firsts: Sequence[tuple[Call, Payload]], found: Sequence[Any]) -> list[bool]:
    """For each first result, whether its digest is one of those found."""
    digests = {bytes(one[0]) for one in found}
    return [call.digest in digests for call, _ in firsts]


def _only(values: dict[str, Any], sql: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if f":{name}" in sql}
