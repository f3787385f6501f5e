"""Callbacks of a payment provider: the serial number of a payment, and the state of the order.

    python payment_callback.py --database postgresql+psycopg://localhost/shop

Callbacks come several times, late, and in any order. Each payment either pays its order or is sent back, once, and each
callback is answered as the normal case is: the provider stops calling. Prints what came of it as JSON; exit code 1 if
that is wrong.
"""

import argparse
import asyncio
import json
import random
import sys
from datetime import timedelta
from typing import TypedDict

from sqlalchemy import String, create_engine, select, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from idempo import INJECTED, StateConflictError, StateGuard, UniqueInsert, idempotent

FLOW = {"pending": ["paid", "cancelled"], "paid": ["shipped"], "shipped": ["delivered"]}
# Stripe, for one, calls back for up to three days, and people send an event again by hand long after that.
KEEP = timedelta(days=90)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "paid_order"
    no: Mapped[str] = mapped_column(String(40), primary_key=True)
    status: Mapped[str] = mapped_column(String(20))
    payment: Mapped[str | None] = mapped_column(String(40))


class Refund(Base):
    """Payments that go back. Nothing but idempo keeps two refunds of one payment apart."""

    __tablename__ = "refund"
    id: Mapped[int] = mapped_column(primary_key=True)
    serial: Mapped[str] = mapped_column(String(40))
    reason: Mapped[str] = mapped_column(String(20))


class Answer(TypedDict):
    """What the provider expects."""

    code: str
    message: str


SUCCESS: Answer = {"code": "SUCCESS", "message": "OK"}


class Callbacks:
    def __init__(self, database: str) -> None:
        self.engine = create_async_engine(_async(database), pool_size=20)
        sessions = async_sessionmaker(self.engine)

        @idempotent(
            key="{serial}",
            fingerprint=(
                "serial",
                "order_no",
            ),  # not the send time and signature, which change with each delivery
            keep=KEEP,
            using=StateGuard(
                Order.status, where={Order.no: "{order_no}"}, flow=FLOW, to="paid", engine=sessions
            ),
            name="shop.paid",
        )
        async def paid(
            serial: str, order_no: str, sent_at: float, session: AsyncSession = INJECTED
        ) -> Answer:
            await session.execute(update(Order).where(Order.no == order_no).values(payment=serial))
            return SUCCESS

        @idempotent(
            key="{serial}", keep=KEEP, using=UniqueInsert(sessions, join="session"), name="shop.refund"
        )
        async def refund(serial: str, reason: str, session: AsyncSession = INJECTED) -> Answer:
            session.add(Refund(serial=serial, reason=reason))
            return SUCCESS

        self.paid, self.refund = paid, refund

    async def callback(self, serial: str, order_no: str, sent_at: float) -> Answer:
        """Handle one delivery, whose signature was checked before."""
        try:
            return await self.paid(serial, order_no, sent_at)
        except StateConflictError as conflict:
            # Cancelled meanwhile, or paid by another payment: the money goes back, and the provider is told it is done.
            return await self.refund(serial, conflict.verdict)


async def deliver(database: str, seed: int) -> list[Answer | BaseException]:
    callbacks = Callbacks(database)
    deliveries = [
        ("P-1", "A-1"),  # the normal case
        ("P-2", "A-2"),  # late: the order was cancelled
        ("P-3", "A-3"),  # two payments of one order
        ("P-4", "A-3"),
        ("P-5", "A-5"),  # late: shipped meanwhile, after another payment
    ] * 10
    random.Random(seed).shuffle(deliveries)
    waiting = (callbacks.callback(*one, sent_at=float(number)) for number, one in enumerate(deliveries))
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    await callbacks.engine.dispose()
    return list(answers)


def _async(database: str) -> str:
    """The URL with a driver for async functions; psycopg serves both."""
    pairs = (
        ("mysql+pymysql", "mysql+asyncmy"),
        ("mariadb+pymysql", "mariadb+asyncmy"),
        ("sqlite", "sqlite+aiosqlite"),
    )
    for sync, other in pairs:
        if database.startswith(f"{sync}:"):
            return database.replace(sync, other, 1)
    return database


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--database", required=True)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    engine = create_engine(given.database)
    Base.metadata.create_all(engine)
    UniqueInsert(engine).create_schema()
    with Session(engine) as session, session.begin():
        states = {"A-1": "pending", "A-2": "cancelled", "A-3": "pending", "A-5": "shipped"}
        session.add_all(Order(no=no, status=status, payment=None) for no, status in states.items())

    answers = asyncio.run(deliver(given.database, given.seed))

    with Session(engine) as session:
        orders = {one.no: (one.status, one.payment) for one in session.scalars(select(Order))}
        refunds = sorted((one.serial, one.reason) for one in session.scalars(select(Refund)))
    engine.dispose()
    winner = orders["A-3"][1]
    loser = {"P-3": "P-4", "P-4": "P-3"}.get(winner or "", "")
    told = {
        "deliveries": len(answers),
        "answered_as_the_normal_case": sum(one == SUCCESS for one in answers),
        "orders": {no: status for no, (status, _) in orders.items()},
        "refunds": dict(refunds),
        "refunded_twice": len(refunds) - len({serial for serial, _ in refunds}),
    }
    print(json.dumps(told, indent=2))
    right = (
        told["answered_as_the_normal_case"] == len(answers)
        and orders["A-1"] == ("paid", "P-1")
        and (orders["A-2"][0], orders["A-3"][0], orders["A-5"][0]) == ("cancelled", "paid", "shipped")
        and refunds == sorted([("P-2", "illegal"), (loser, "already"), ("P-5", "superseded")])
    )
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
