"""PostgreSQL: the claim in one request, with a bounded wait for an owner that has not committed yet.

Sources: PostgreSQL manual, "INSERT" (ON CONFLICT), "WITH Queries", and "Client Connection Defaults" (lock_timeout).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, TextClause

from idempo.dialects import COMPLETE, FREE, RACES, TIMES, WRITTEN, Dialect, accepted, among, answers
from idempo.failures import codes
from idempo.records import Answer, Call, InProgress, Issued, NotIssued, Payload
from idempo.roundtrip import Statement, can_send_together, together
from idempo.sending import Answered, by_the_driver, every
from idempo.sql import JUDGED, Row, completion, identity, row_of

__all__ = ["PostgreSQL"]

_DIVISION_BY_ZERO = "22012"

# The caller's own bound is kept beside ours, and holds again after the statement in between.
_BOUND = (
    "SELECT set_config('idempo.lock_timeout', current_setting('lock_timeout'), true), "
    "set_config('lock_timeout', :wait, true)"
)
_UNBOUND = "SELECT set_config('lock_timeout', current_setting('idempo.lock_timeout'), true)"


# The claim of a row that is there, if it is free to claim at this moment.
TAKEN_OVER = (
    "ON CONFLICT (digest) DO UPDATE SET operation = excluded.operation, scope = excluded.scope, "
    "business_key = excluded.business_key, state = 'running', owner = excluded.owner, "
    "fence = greatest(r.fence + 1, excluded.fence), "
    "attempt = CASE WHEN r.keep_until <= excluded.created_at OR r.state IN ('completed', 'failed') "
    "THEN 1 ELSE r.attempt + 1 END, "
    "fingerprint = excluded.fingerprint, leased_at = excluded.leased_at, lease_until = excluded.lease_until, "
    "created_at = excluded.created_at, completed_at = NULL, keep_until = excluded.keep_until, result = NULL "
    f"WHERE {FREE.replace('{now}', 'excluded.created_at')} RETURNING {JUDGED}"
)
# The same claim for many keys. In the order of their digests: two batches that wait for each other would deadlock.
_CLAIM_MANY = (
    "WITH now AS MATERIALIZED (SELECT {clock} AS us), "
    "asked AS MATERIALIZED (SELECT * FROM unnest(:digests, :operations, :scopes, :keys, :owners, :fingerprints) "
    "AS a (digest, operation, scope, business_key, owner, fingerprint)), "
    f"known AS MATERIALIZED (SELECT {JUDGED} FROM asked AS a JOIN {{table}} AS r ON r.digest = a.digest, now "
    f"WHERE NOT {FREE.replace('{now}', 'now.us')}), "
    f"claimed AS (INSERT INTO {{table}} AS r ({WRITTEN}, {TIMES}) "
    "SELECT a.digest, a.operation, a.scope, a.business_key, 'running', a.owner, now.us, 1, a.fingerprint, "
    "now.us, now.us + :lease, now.us, NULL, now.us + :keep, NULL FROM asked AS a, now "
    f"WHERE NOT EXISTS (SELECT 1 FROM known WHERE known.digest = a.digest) ORDER BY a.digest {TAKEN_OVER}) "
    f"SELECT now.us, {JUDGED} FROM now, (SELECT * FROM known UNION ALL SELECT * FROM claimed) AS r"
)
_COMPLETE_MANY = (
    "UPDATE {table} AS r SET state = c.state, result = c.result, completed_at = {clock}, keep_until = {clock} + :keep "
    "FROM unnest(:digests, :owners, :states, :results) AS c (digest, owner, state, result) "
    "WHERE r.digest = c.digest AND r.owner = c.owner AND r.state IN ('running', c.state) RETURNING r.digest"
)


class PostgreSQL(Dialect):
    """PostgreSQL 13 and newer."""

    clock = "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)"

    # Its clock goes on within a statement: a lease of 0 is over when it begins, so it is read once.
    renewal = (
        "UPDATE {table} AS r SET leased_at = now.us, lease_until = now.us + :lease, "
        "keep_until = now.us + :lease + :keep FROM (SELECT {clock} AS us) AS now "
        "WHERE r.digest = :digest AND r.owner = :owner AND r.state = 'running'"
    )

    # One request: what is known is read and, only if the key is free, the claim is inserted or taken over. A replay
    # writes nothing and locks nothing. No row at all: the insert met a row that this statement's snapshot cannot see.
    _claim = (
        "WITH now AS MATERIALIZED (SELECT {clock} AS us{bound}), "
        f"known AS MATERIALIZED (SELECT {JUDGED} FROM {{table}} AS r, now "
        f"WHERE r.digest = :digest AND NOT {FREE.replace('{now}', 'now.us')}), "
        f"claimed AS (INSERT INTO {{table}} AS r ({WRITTEN}, {TIMES}) "
        "SELECT :digest, :operation, :scope, :business_key, 'running', :owner, now.us, 1, :fingerprint, "
        "now.us, now.us + :lease, now.us, NULL, now.us + :keep, NULL FROM now WHERE NOT EXISTS (SELECT 1 FROM known) "
        "AND (NOT :issued OR EXISTS "
        "(SELECT 1 FROM {table} AS r WHERE r.digest = :digest AND r.keep_until > now.us)) "
        f"{TAKEN_OVER}) "
        f"SELECT now.us, {JUDGED}{{restore}} FROM now LEFT JOIN "
        "(SELECT * FROM known UNION ALL SELECT * FROM claimed) AS r ON true"
    )
    _leased = _claim.replace("{bound}", "").replace("{restore}", "")
    # The bound on the wait is set before the insert and set back after it, in the same statement.
    _joined = _claim.replace(
        "{bound}",
        ", current_setting('lock_timeout') AS before, set_config('lock_timeout', :wait, true) AS during",
    ).replace("{restore}", ", set_config('lock_timeout', now.before, true)")

    # The commit is sent without waiting for the completion: if our claim is gone, this must fail and take it along.
    _complete_or_fail = f"WITH kept AS ({COMPLETE} RETURNING 1) SELECT 1 / count(*) FROM kept"

    def claim(self, connection: Connection, call: Call, over: int | None) -> Answer:
        values = self._claiming(call, over)
        for _ in range(RACES):
            row = self.fetch(connection, self._leased, values)
            if (answer := self._answer(connection, row, call, over)) is not None:
                return self.judged(connection, call, row, answer)
        return InProgress(b"", 0.0)

    def claim_many(self, connection: Connection, calls: Sequence[Call]) -> list[Answer | None]:
        described = [identity(call) for call in calls]
        values = {
            f"{name}s": [one[name] for one in described] for name in ("digest", "operation", "scope", "owner")
        }
        values |= {"keys": [one["business_key"] for one in described]}
        values |= {"fingerprints": [one["fingerprint"] for one in described]}
        values |= {name: described[0][name] for name in ("lease", "keep")} | {"over": -1, "above": -1}
        return answers(calls, by_the_driver(connection, self.statement(_CLAIM_MANY), values, every))

    def complete_many(self, connection: Connection, firsts: Sequence[tuple[Call, Payload]]) -> list[bool]:
        described = [completion(call, payload) for call, payload in firsts]
        values = {
            f"{name}s": [one[name] for one in described] for name in ("digest", "owner", "state", "result")
        }
        values |= {"keep": described[0]["keep"]}
        return among(firsts, by_the_driver(connection, self.statement(_COMPLETE_MANY), values, every))

    def claim_joined(
        self, connection: Connection, call: Call, over: int | None, wait: float, savepoint: str, inner: str
    ) -> Answer:
        values = self._claiming(call, over) | {"wait": _milliseconds(wait)}
        claim = self.statement(self._joined), values
        before: list[Statement] = [(f"SAVEPOINT {savepoint}", {})] if savepoint else []
        behind: list[Statement] = [(f"SAVEPOINT {inner}", {})] if inner else []
        for _ in range(RACES):
            answered = together(connection, [*before, claim, *behind])
            row = row_of(answered[len(before)].row)
            if (answer := self._answer(connection, row, call, over)) is not None:
                return answer
            before = []
        return InProgress(b"", 0.0)

    def _claiming(self, call: Call, over: int | None) -> dict[str, Any]:
        return identity(call) | accepted(call, over) | {"issued": isinstance(call.demand, Issued)}

    def _answer(self, connection: Connection, row: Row, call: Call, over: int | None) -> Answer | None:
        """How the key stands. None: the claim met a row that its snapshot could not see, so ask again."""
        answer = row.answer(call, over)
        if isinstance(answer, NotIssued) and self.read(connection, call.digest).known:
            return None
        return answer

    def execute_bounded(
        self, connection: Connection, statement: TextClause, values: dict[str, Any], wait: float
    ) -> Answered:
        bound = self.statement(_BOUND), {"wait": _milliseconds(wait)}
        return together(connection, [bound, (statement, values), (_UNBOUND, {})])[1]

    def complete_joined(self, connection: Connection, call: Call, payload: Payload, savepoint: str) -> bool:
        if not savepoint:
            return self.complete(connection, call, payload)
        update = self.statement(COMPLETE), completion(call, payload)
        kept, _ = together(connection, [update, (f"RELEASE SAVEPOINT {savepoint}", {})])
        return kept.count == 1

    def complete_and_commit(
        self,
        connection: Connection,
        call: Call,
        payload: Payload,
        commit: Callable[[], None],
        *,
        at_once: bool,
    ) -> bool:
        values = completion(call, payload)
        if not (at_once and can_send_together(connection)):
            return super().complete_and_commit(connection, call, payload, commit, at_once=False)
        update = self.statement(self._complete_or_fail), values
        try:
            together(connection, [update, ("COMMIT", {})])
        except Exception as error:
            if codes(error)[0] == _DIVISION_BY_ZERO:
                return False
            raise
        commit()  # sends nothing more: the driver sees that the transaction is over, and SQLAlchemy is told
        return True

    def purge(self, connection: Connection, batch: int) -> int:
        # The clock is read once: compared with one that goes on, the index would be read to its end.
        sql = (
            "DELETE FROM {table} WHERE digest = ANY (ARRAY(SELECT digest FROM {table} "
            "WHERE keep_until <= (SELECT {clock}) ORDER BY keep_until LIMIT :batch FOR UPDATE SKIP LOCKED))"
        )
        return self.change(connection, sql, {"batch": batch})

    def is_busy(self, error: BaseException) -> bool:
        return codes(error)[0] == "55P03"


def _milliseconds(wait: float) -> str:
    return str(max(1, math.ceil(wait * 1000)))  # 0 would mean no bound at all
