"""The business table of the benchmarks on PostgreSQL: one row per call, and what a function does with it."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, text, update
from sqlalchemy.pool import NullPool

from benchmarks.sections import Section
from benchmarks.stores import Stores

__all__ = ["FLOW", "ROWS", "WHERE", "alone", "create", "numbers", "reading", "writing"]

ROWS = Table(
    "bench_rows",
    MetaData(),
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("status", String(20), nullable=False),
    Column("version", Integer, nullable=False),
    Column("amount", Integer, nullable=False),
)
WHERE: dict[Any, Any] = {ROWS.c.id: "{row}"}
FLOW = {"pending": ["paid"]}

_WRITE = update(ROWS).where(ROWS.c.id == text(":row")).values(amount=ROWS.c.amount + 1)
_READ = text("SELECT amount FROM bench_rows WHERE id = :row")


def create(stores: Stores, count: int) -> Callable[[], int]:
    """Make the table with so many rows, and return what gives each of them once."""
    engine = create_engine(stores.postgres, poolclass=NullPool)
    with engine.begin() as connection:
        ROWS.metadata.drop_all(connection)
        ROWS.metadata.create_all(connection)
        fill = "INSERT INTO bench_rows SELECT n, 'pending', 1, 0 FROM generate_series(1, :count) AS n"
        connection.execute(text(fill), {"count": count})
    return numbers(range(1, count + 1))


def numbers(rows: range) -> Callable[[], int]:
    left: Iterator[int] = itertools.chain(rows)

    def following() -> int:
        for row in left:
            return row
        raise ValueError(f"the table has {len(rows)} rows, and all are used: make it larger")

    return following


def writing(section: Section) -> Callable[..., Any]:
    """A function that changes one row in the transaction it is given."""

    def plain(row: int, token: str = "", session: Any = None) -> int:
        session.execute(_WRITE, {"row": row})
        return row

    async def coroutine(row: int, token: str = "", session: Any = None) -> int:
        await session.execute(_WRITE, {"row": row})
        return row

    return plain if section.colour == "sync" else coroutine


def reading(section: Section) -> Callable[..., Any]:
    """A function that reads one row in the transaction it is given."""

    def plain(row: int, session: Any = None) -> Any:
        return session.execute(_READ, {"row": row}).scalar_one()

    async def coroutine(row: int, session: Any = None) -> Any:
        return (await session.execute(_READ, {"row": row})).scalar_one()

    return plain if section.colour == "sync" else coroutine


def alone(section: Section, body: Callable[..., Any], engine: Any) -> Callable[[int], Any]:
    """`body` in a transaction of its own, as it is without idempo."""
    if section.colour == "sync":
        from sqlalchemy.orm import Session

        def plain(row: int) -> None:
            with Session(engine) as session, session.begin():
                body(row, session=session)

        return plain
    from sqlalchemy.ext.asyncio import AsyncSession

    async def coroutine(row: int) -> None:
        async with AsyncSession(engine) as session, session.begin():
            await body(row, session=session)

    return coroutine
