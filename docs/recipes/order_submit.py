"""A form that is sent twice: a one-time token, and an order number that is unique.

    python order_submit.py --database postgresql+psycopg://localhost/shop --redis redis://localhost

Fifty clicks at once with one token make one order. Prints what came of it as JSON; exit code 1 if that is wrong.
"""

import argparse
import json
import sys
import threading
from dataclasses import dataclass

from sqlalchemy import String, create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from idempo import (
    INJECTED,
    FingerprintMismatchError,
    OneTimeToken,
    RedisCache,
    TokenUnknownError,
    UniqueInsert,
    idempotent,
)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "submitted_order"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_no: Mapped[str] = mapped_column(String(40), unique=True)
    customer: Mapped[str] = mapped_column(String(40))
    cents: Mapped[int]


@dataclass
class Confirmation:
    order_no: str
    id: int


class Shop:
    def __init__(self, database: str, redis: str) -> None:
        self.engine = create_engine(database, pool_size=60)
        Base.metadata.create_all(self.engine)
        self.cache = RedisCache(redis)
        self.tokens = OneTimeToken(self.cache, key="{token}")
        self.records = UniqueInsert(sessionmaker(self.engine), join="session")
        self.records.create_schema()

        @idempotent(
            key="{order_no}",
            scope="{customer}",
            using=[self.tokens, self.records],
            name="shop.submit",
        )
        def submit(
            customer: str, order_no: str, cents: int, token: str, session: Session = INJECTED
        ) -> Confirmation:
            order = Order(order_no=order_no, customer=customer, cents=cents)
            session.add(order)
            session.flush()
            return Confirmation(order_no, order.id)

        self.submit = submit

    def form(self, customer: str) -> str:
        """Show the form: the token travels in a hidden field."""
        token: str = self.tokens.issue(scope=customer, keep=30 * 60)
        return token

    def orders(self) -> int:
        with Session(self.engine) as session:
            return session.scalar(select(func.count()).select_from(Order)) or 0

    def close(self) -> None:
        self.cache.close()
        self.engine.dispose()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--database", required=True)
    parser.add_argument("--redis", required=True)
    given = parser.parse_args()
    shop = Shop(given.database, given.redis)

    token = shop.form("ada")
    clicks = 50
    answers: list[Confirmation] = []
    start = threading.Barrier(clicks)

    def click() -> None:
        start.wait()
        answers.append(shop.submit("ada", "A-1001", 1990, token))

    threads = [threading.Thread(target=click) for _ in range(clicks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    reloaded = shop.submit(
        "ada", "A-1001", 1990, shop.form("ada")
    )  # the form again: another token, the same order
    try:
        shop.submit("ada", "A-1002", 500, token)
        other_order = "accepted"
    except FingerprintMismatchError:
        other_order = "refused"
    try:
        shop.submit("eve", "A-1003", 500, token)
        other_customer = "accepted"
    except TokenUnknownError:
        other_customer = "refused"

    told = {
        "clicks": clicks,
        "answers": len(answers),
        "different_answers": len({(one.order_no, one.id) for one in answers}),
        "orders": shop.orders(),
        "form_again": "the same order" if reloaded == answers[0] else "another order",
        "used_token_for_another_order": other_order,
        "token_of_another_customer": other_customer,
    }
    shop.close()
    print(json.dumps(told, indent=2))
    right = (told["answers"], told["different_answers"], told["orders"]) == (clicks, 1, 1)
    return 0 if right and reloaded == answers[0] and other_order == other_customer == "refused" else 1


if __name__ == "__main__":
    sys.exit(main())
