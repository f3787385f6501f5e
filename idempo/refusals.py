"""What is told of a transaction in which nothing can be done, or in which the database does not do it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection
from sqlalchemy.exc import InvalidRequestError

from idempo.errors import ConfigurationError, InProgressError, LedgerUnavailableError
from idempo.records import Call

__all__ = ["conflicting", "refuse_autocommit", "unrecorded", "unusable", "usable"]


@contextmanager
def usable(call: Call) -> Iterator[None]:
    """Raise `ConfigurationError` where SQLAlchemy has no use for the session as it is."""
    try:
        yield
    except InvalidRequestError as error:
        raise unusable(call, str(error)) from error


def unusable(call: Call, why: str) -> ConfigurationError:
    """The error for a session or a transaction of the caller's in which nothing can be done."""
    return ConfigurationError(
        f"nothing can be done in this transaction, and nothing was: {why}. Roll it back, and call again in a new one; "
        "or mend how the session is made",
        operation=call.operation,
        key=call.key,
    )


def refuse_autocommit(connection: Connection, call: Call) -> None:
    """Raise `ConfigurationError` for a connection without transactions: nothing could be joined to anything."""
    options = connection.get_execution_options()
    detect = getattr(connection.dialect, "detect_autocommit_setting", None)
    driver = connection.connection.dbapi_connection
    try:
        autocommit = options.get("isolation_level") == "AUTOCOMMIT" or (detect is not None and detect(driver))
    except NotImplementedError:
        autocommit = False
    if autocommit:
        raise ConfigurationError(
            "join= needs a transaction, but this connection is in autocommit mode: each statement would commit alone",
            operation=call.operation,
            key=call.key,
        )


def unrecorded(call: Call, error: Exception) -> LedgerUnavailableError:
    """The error for a database that does not take the first result: it is gone, full, or read-only."""
    told = LedgerUnavailableError(
        f"the database did not take the first result ({type(error).__name__}) after the function had run: what it "
        "wrote in this transaction is undone, what it did elsewhere is done; repeat the call when the database takes "
        "writes",
        operation=call.operation,
        key=call.key,
    )
    told.ran = True
    return told


def conflicting(call: Call) -> InProgressError:
    """The error for a claim that the caller's own transaction cannot make."""
    return InProgressError(
        "another transaction with this key got in the way of yours (a deadlock, or a commit that your snapshot cannot "
        "see); roll your transaction back and call again in a new one",
        operation=call.operation,
        key=call.key,
    )
