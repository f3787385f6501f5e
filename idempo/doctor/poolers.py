"""Whether something stands between us and PostgreSQL, and whether it gives each transaction another session.

What idempo needs of a session: the transaction it is in. Time limits are set for the transaction only (`set_config(...,
true)`), and no advisory lock, no LISTEN and no temporary table is used, so a transaction pooler is no danger by
itself. But psycopg keeps prepared statements in the session once a statement has run five times (psycopg
documentation, "Prepared statements"), and the pooler must follow them: PgBouncer does from 1.21 on, if
max_prepared_statements is above 0 (PgBouncer documentation, "max_prepared_statements").
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from idempo.doctor.findings import Finding, danger, ok, unknown, warning
from idempo.doctor.looking import said

__all__ = ["Seen", "judged", "proxy"]

_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Seen:
    """What two connections of one client saw."""

    announced: Sequence[int]
    """The process that the server named when the connection was made, for each."""
    served: Sequence[Sequence[int]]
    """The processes that then executed its statements, for each."""
    prepared: bool | None = None
    """Whether a prepared statement was there again; None: not tried."""

    @property
    def shared(self) -> bool:
        """True if a connection had several processes, or two connections had the same one."""
        sets = [set(one) for one in self.served]
        return any(len(one) > 1 for one in sets) or bool(sets[0] & sets[1])

    @property
    def between(self) -> bool:
        """True if a process was announced that did not execute: somebody else answered first."""
        return any(set(one) != {pid} for one, pid in zip(self.served, self.announced, strict=True))


def judged(seen: Seen) -> Finding:
    if seen.shared and seen.prepared is False:
        return danger(
            "proxy",
            "a pooler gives each transaction another session of the server, and does not follow prepared statements: "
            "psycopg prepares from the sixth time on, and then claims and completions fail, and outcomes are unknown",
            "in PgBouncer 1.21 or newer max_prepared_statements = 200, or pool_mode = session; or give idempo an "
            "engine: "
            'create_engine(url, connect_args={"prepare_threshold": None})',
        )
    if seen.shared:
        return warning(
            "proxy",
            "a pooler gives each transaction another session of the server, and follows prepared statements. That is "
            "enough for idempo; but what your own code sets for a session does not hold, nor do advisory locks and "
            "LISTEN",
            "use SET LOCAL and pg_advisory_xact_lock in your own code, or pool_mode = session",
        )
    if seen.between:
        return ok("proxy", "a proxy stands between, and keeps one session of the server for each connection")
    return ok("proxy", "each connection is a session of the server of its own")


def proxy(raw: Any, another: Callable[[], AbstractContextManager[Any]]) -> Iterator[Finding]:
    """Take turns on two connections, and see who serves them."""
    if not type(raw).__module__.startswith("psycopg"):
        yield ok("proxy", "not looked at: idempo's own driver here is not psycopg")
        return
    import psycopg

    try:
        with another() as second:
            yield judged(_look((raw, second)))
    except psycopg.Error as error:
        yield unknown(
            "proxy",
            f"a second connection does not answer beside the first: {said(error)}",
            "see that the pool has a connection to spare, and ask again",
        )


def _look(pair: Sequence[Any]) -> Seen:
    served: tuple[list[int], list[int]] = ([], [])
    for _ in range(_ROUNDS):
        for connection, pids in zip(pair, served, strict=True):
            pids.append(connection.execute("SELECT pg_backend_pid()").fetchone()[0])
    seen = Seen([one.info.backend_pid for one in pair], served)
    return dataclasses.replace(seen, prepared=_follows(pair)) if seen.shared else seen


def _follows(pair: Sequence[Any]) -> bool:
    """Prepare under a name that nobody else has, on both, in turns, and remove it again."""
    import psycopg

    name = f"idempo_doctor_{secrets.token_hex(8)}".encode()
    good = psycopg.pq.ExecStatus
    try:
        for number, connection in enumerate(pair):
            answer = connection.pgconn.prepare(name, f"SELECT {number}".encode())
            if answer.status != good.COMMAND_OK:
                return False
        for _ in range(_ROUNDS):
            for number, connection in enumerate(pair):
                answer = connection.pgconn.exec_prepared(name, [])
                if answer.status != good.TUPLES_OK or answer.get_value(0, 0) != str(number).encode():
                    return False
        return True
    finally:
        _forget(pair, name.decode())


def _forget(pair: Sequence[Any], name: str) -> None:
    """Look and deallocate in one transaction, so in one session; a few times, for there may be several."""
    for _ in range(_ROUNDS):
        for connection in pair:
            with connection.transaction():
                found = connection.execute("SELECT 1 FROM pg_prepared_statements WHERE name = %s", [name])
                if found.fetchone():
                    connection.execute(f"DEALLOCATE {name}")
