"""What a database does with a record in the business transaction, in SQL that all databases share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from sqlalchemy import Connection, TextClause

from idempo.records import Answer, Call, Payload
from idempo.roundtrip import together
from idempo.sending import Answered

__all__ = ["JoinedDialect"]


class JoinedDialect:
    """The claim and the completion of `Dialect`, between a `BEGIN` and a `COMMIT` that may be the caller's."""

    placeholder: ClassVar[bool] = False
    """True if the row must exist, committed, before the business transaction locks it."""

    @contextmanager
    def bounded(self, connection: Connection, wait: float) -> Iterator[None]:
        """Bound how long the database waits for a lock; afterwards the caller's own bound holds again."""
        yield

    def execute_bounded(
        self, connection: Connection, statement: TextClause, values: dict[str, Any], wait: float
    ) -> Answered:
        """Execute a statement on a table of the user's, waiting `wait` seconds at the most for other transactions."""
        with self.bounded(connection, wait):
            return together(connection, [(statement, values)])[0]

    def begin(self, connection: Connection, wait: float) -> None:
        """Begin what must be begun by hand."""

    def claim_joined(
        self, connection: Connection, call: Call, over: int | None, wait: float, savepoint: str, inner: str
    ) -> Answer:
        """Claim in the transaction of `connection`, behind a savepoint if one is named.

        `inner` names a savepoint to be made behind the claim, where `roundtrip.can_send_together`.
        """
        self.begin(connection, wait)
        if savepoint:
            connection.exec_driver_sql(f"SAVEPOINT {savepoint}")
        return self.lock_and_claim(connection, call, over, wait)

    def lock_and_claim(self, connection: Connection, call: Call, over: int | None, wait: float) -> Answer:
        return self.claim(connection, call, over)

    def complete_joined(self, connection: Connection, call: Call, payload: Payload, savepoint: str) -> bool:
        """Record the first result in the transaction, and let go of the savepoint."""
        kept = self.complete(connection, call, payload)
        if kept and savepoint:
            connection.exec_driver_sql(f"RELEASE SAVEPOINT {savepoint}")
        return kept

    def complete_and_commit(
        self,
        connection: Connection,
        call: Call,
        payload: Payload,
        commit: Callable[[], None],
        *,
        at_once: bool,
    ) -> bool:
        """Record the first result, and commit. False, and no commit, if the claim is gone.

        `at_once` allows one request for both, where the database can.
        """
        kept = self.complete(connection, call, payload)
        if kept:
            commit()
        return kept

    def claim(self, connection: Connection, call: Call, over: int | None) -> Answer:
        raise NotImplementedError

    def complete(self, connection: Connection, call: Call, payload: Payload) -> bool:
        raise NotImplementedError

    def is_busy(self, error: BaseException) -> bool:
        """True if `error` says that the bounded wait is over."""
        raise NotImplementedError
