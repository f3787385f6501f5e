"""What runs in other processes: a module of its own, so that it starts quickly."""

import os
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from idempo import (
    InProgressError,
    MonotonicVersion,
    OneTimeToken,
    RedisCache,
    TokenSpentError,
    UniqueInsert,
    idempotent,
)

NAME = "tokens.race"


def ledger(kind: str, url: str, prefix: str) -> Any:
    """The ledger of one process."""
    if kind == "redis":
        return RedisCache(url, prefix=prefix)
    return UniqueInsert(url, join="session" if kind.endswith("joined") else None)


def submitting(tokens: OneTimeToken, url: str, wait: float) -> Any:
    """A function whose runs are counted in the table of orders, by a connection of its own."""
    engine = create_engine(url, poolclass=NullPool)

    @idempotent(key="{token}", using=tokens, name=NAME, wait=wait)
    def submit(token: str, session: Any = None) -> int:
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO orders (order_no) VALUES (:no)"), {"no": token[:4]})
        return os.getpid()

    return submit


def click(
    kind: str, url: str, prefix: str, database: str, reuse: Any, token: str, start: Any, answers: Any
) -> None:
    """One process that sends the form once everybody is ready."""
    store = ledger(kind, url, prefix)
    submit = submitting(OneTimeToken(store, reuse=reuse), database, wait=60)
    start.wait()
    try:
        answers.put(submit(token))
    except (TokenSpentError, InProgressError) as error:
        answers.put(type(error).__name__)
    finally:
        store.close()


def bring_all(kind: str, url: str, prefix: str, database: str, versions: list[int]) -> list[str]:
    """One process that brings versions to a table that knows none: the last write stays there."""
    store = ledger(kind, url, prefix)
    engine = create_engine(database, poolclass=NullPool)
    using = MonotonicVersion(store, entity="{row}", version="{version}", stale="too late")

    @idempotent(key=("row", "version"), using=using, name=f"sync.{prefix}", wait=60)
    def bring(row: str, version: int, session: Any = None) -> str:
        with engine.begin() as connection:
            connection.execute(text("UPDATE orders SET order_no = :version"), {"version": str(version)})
            connection.execute(text("INSERT INTO serials VALUES (:number)"), {"number": f"{prefix}{version}"})
        return f"applied {version}"

    try:
        return [bring("row", version) for version in versions]
    finally:
        store.close()
