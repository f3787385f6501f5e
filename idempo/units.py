"""`SqlUnit`: one transaction with a record in it, the caller's or ours."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from typing import Any, Literal

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from idempo.connections import on
from idempo.dialects import Dialect
from idempo.errors import IdempoError
from idempo.failures import (
    is_aborted,
    is_conflict,
    is_disconnect,
    is_missing_savepoint,
    is_missing_table,
    takes_no_writes,
)
from idempo.records import Answer, Call, Claimed, Completed, InProgress, Payload, replace
from idempo.refusals import conflicting, refuse_autocommit, unrecorded, unusable, usable
from idempo.roundtrip import can_send_together
from idempo.savepoints import begin_nested, fresh_name
from idempo.schema import create, dialect_of, missing_table
from idempo.sql import Records
from idempo.steps import Steps

logger = logging.getLogger("idempo")

__all__ = ["SqlUnit", "connection_of", "is_claimed_in"]

_uncommitted: weakref.WeakKeyDictionary[Any, set[bytes]] = weakref.WeakKeyDictionary()


class SqlUnit:
    """One transaction with a record in it."""

    def __init__(
        self, records: Records, holder: Any, arguments: Mapping[str, Any], *, owned: bool, marks: bool
    ) -> None:
        self.arguments = arguments
        self.owned = owned
        self._records = records
        self._marks = marks
        self._holder = holder
        self._savepoint = ""
        self._inner = ""
        self._connection: Connection | None = None
        self._mark: Any = None
        self._transaction: Any = None
        self._nested: Any = None
        self._state: Literal["open", "refused", "claimed", "committing", "completed", "closed"] = "open"

    def enter(self) -> Steps[None]:
        """Send the caller's pending writes, so that they are not undone together with the function's."""
        if not self.owned:
            yield on(self._holder, lambda holder: holder.flush() if isinstance(holder, Session) else None)

    def claim(self, call: Call, over: int | None, wait: float) -> Steps[Answer]:
        answer: Answer = yield on(self._holder, lambda holder: self._claim(holder, call, over, wait))
        return answer

    def _claim(self, holder: Any, call: Call, over: int | None, wait: float) -> Answer:
        with usable(call):
            connection = self._connection = connection_of(holder)
        refuse_autocommit(connection, call)
        self._nested = holder.get_nested_transaction()
        dialect = dialect_of(connection, self._records)
        self._savepoint = "" if self.owned else fresh_name()
        self._inner = fresh_name() if self._is_marked(holder) and can_send_together(connection) else ""
        try:
            answer = self._claim_or_create(connection, dialect, call, over, wait)
        except Exception as error:
            self._state = "refused"
            if dialect.is_busy(error):
                return InProgress(b"", 0.0)
            if is_missing_table(error):
                raise missing_table(self._records, connection.dialect.name) from error
            if is_conflict(error) and not self.owned:
                raise conflicting(call) from error
            if is_aborted(error):
                raise unusable(call, "it has failed already") from error
            raise
        match answer:
            case Claimed():
                self._state = "claimed"
                self._transaction = transaction_of(holder)
                _uncommitted.setdefault(self._transaction, set()).add(call.digest)
                if self._is_marked(holder):
                    self._mark = begin_nested(holder, connection, self._inner)
            case Completed() if is_claimed_in(holder, call):
                return replace(answer, durable=False)
        return answer

    def _claim_or_create(
        self, connection: Connection, dialect: Dialect, call: Call, over: int | None, wait: float
    ) -> Answer:
        try:
            return dialect.claim_joined(connection, call, over, wait, self._savepoint, self._inner)
        except Exception as error:
            if not (is_missing_table(error) and connection.dialect.name == "sqlite"):
                raise
        create(connection, self._records)
        return dialect.claim_joined(connection, call, over, wait, self._savepoint, self._inner)

    def _is_marked(self, holder: Any) -> bool:
        """True for a function that runs behind a savepoint of SQLAlchemy's: the ORM undoes a failed flush up to it."""
        return self._marks or (isinstance(holder, Session) and not self.owned)

    def complete(self, call: Call, payload: Payload) -> Steps[bool]:
        """Record the first result, and commit if the transaction is ours. False if the claim is gone."""
        kept: bool = yield on(self._holder, lambda holder: self._complete(holder, call, payload))
        if kept:
            self._state = "completed"
        return kept

    def _complete(self, holder: Any, call: Call, payload: Payload) -> bool:
        if isinstance(holder, Session):
            holder.flush()  # the function's own pending writes: what they raise is the function's error
        try:
            if self._mark is not None and self._mark.is_active:
                self._mark.commit()
        except DBAPIError as error:
            if is_missing_savepoint(error):
                return False  # the database has undone all, for a deadlock that the function does not tell of
            raise
        if not self.owned:
            self._unwind(holder, keep=True)  # savepoints that the function left open
        # A function that ended the transaction by itself ended our savepoint with it.
        savepoint = self._savepoint if transaction_of(holder) is self._transaction else ""
        connection = connection_of(holder)
        dialect = dialect_of(connection, self._records)
        try:
            if not self.owned:
                return dialect.complete_joined(connection, call, payload, savepoint)
            self._state = "committing"
            at_once = _commits_alone(holder, connection)
            return dialect.complete_and_commit(connection, call, payload, holder.commit, at_once=at_once)
        except DBAPIError as error:
            lost = is_disconnect(error) and not self.ambiguous(error)
            if lost or takes_no_writes(error):
                raise unrecorded(call, error) from error
            raise

    def undo_writes(self) -> Steps[bool]:
        try:
            yield on(self._holder, lambda holder: self._mark.rollback())
        except Exception as error:
            if is_disconnect(error):
                raise
            return False
        return True

    def abandon(self, call: Call) -> Steps[None]:
        """Undo what the function has written, and leave its claim behind as an orphan, committed if that is ours."""
        yield on(self._holder, lambda holder: self._abandon(holder, call))
        if self.owned:
            yield self._holder.commit()
        self._state = "completed"

    def _abandon(self, holder: Any, call: Call) -> None:
        self._mark.rollback()
        connection = connection_of(holder)
        dialect_of(connection, self._records).renew(connection, call, 0)

    def close(self) -> Steps[None]:
        """Undo the claim and the function's writes unless completed; let go of what is ours."""
        ended, self._state = self._state, "closed"
        if ended == "closed":
            return
        try:
            if self.owned and ended != "completed":
                yield self._holder.rollback()
            elif not self.owned and ended in ("refused", "claimed"):
                yield on(self._holder, lambda holder: self._roll_back_to(holder, self._savepoint))
        except Exception as error:
            # The transaction is gone already, and so is what was written in it.
            logger.debug("nothing left to undo: %r", error)
        finally:
            if self.owned:
                yield self._holder.close()

    def _roll_back_to(self, holder: Any, savepoint: str) -> None:
        try:
            self._unwind(holder)
            if self._transaction is not None and transaction_of(holder) is not self._transaction:
                return  # the function has ended the transaction by itself, and our savepoint with it
            connection_of(holder).exec_driver_sql(f"ROLLBACK TO SAVEPOINT {savepoint}")
        except DBAPIError:
            claimed_on = self._connection
            if claimed_on is not None and claimed_on.dialect.name in ("mysql", "mariadb"):
                # InnoDB has undone all of it, for a deadlock: a commit must not leave out what the caller wrote before.
                claimed_on.invalidate()
            raise

    def _unwind(self, holder: Any, *, keep: bool = False) -> None:
        """End the savepoints that SQLAlchemy knows of since the claim: ours lies behind all of them."""
        nested = holder.get_nested_transaction()
        while nested is not None and nested is not self._nested:
            if keep:
                nested.commit()
            else:
                nested.rollback()
            left = holder.get_nested_transaction()
            nested = None if left is nested else left

    def again(self, error: BaseException) -> bool:
        # A nested call of ours, in the same transaction, may have met the conflict and told it in its own words.
        told = error.__cause__ if isinstance(error, IdempoError) else error
        return self.owned and told is not None and is_conflict(told)

    def ambiguous(self, error: BaseException) -> bool:
        return self.owned and self._state == "committing" and is_disconnect(error)


def _commits_alone(holder: Any, connection: Connection) -> bool:
    """True if nothing of the user's stands between the completion and the commit, so that they can go together."""
    if connection.dispatch.commit:
        return False
    if not isinstance(holder, Session):
        return not connection.in_nested_transaction()
    return not (holder.twophase or holder.in_nested_transaction() or holder.dispatch.before_commit)


def connection_of(holder: Any) -> Connection:
    """The connection of a sync session or connection."""
    connection: Connection = holder.connection() if isinstance(holder, Session) else holder
    return connection


def is_claimed_in(holder: Any, call: Call) -> bool:
    """True if the open transaction has claimed this key itself, so that nobody else sees how the key stands in it."""
    return call.digest in _uncommitted.get(transaction_of(holder), ())


def transaction_of(holder: Any) -> Any:
    """What lives as long as the transaction does, the same for a session and for its connection."""
    connection = connection_of(holder)
    return connection.get_transaction() or connection
