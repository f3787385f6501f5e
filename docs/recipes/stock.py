"""Stock, and likewise a balance: a version on the row, and a business key whose result is kept in Redis as well.

    python stock.py --database postgresql+psycopg://localhost/shop --redis redis://localhost

Stock 10, and 50 buyers who try three times each, in 8 processes. Ten are sold, nobody gets two, nothing is left. Prints
what came of it as JSON; exit code 1 if that is wrong.
"""

import argparse
import json
import multiprocessing
import sys
import threading
from collections import Counter
from collections.abc import Callable

from sqlalchemy import Integer, String, create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from idempo import INJECTED, RedisCache, UniqueInsert, VersionCheck, idempotent

STOCK, BUYERS, TRIES, PROCESSES = 10, 50, 3, 8


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "stock_item"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    stock: Mapped[int]
    version: Mapped[int]


class Sale(Base):
    """Nothing but idempo keeps two sales to one buyer apart."""

    __tablename__ = "sale"
    id: Mapped[int] = mapped_column(primary_key=True)
    buyer: Mapped[str] = mapped_column(String(40))


class SoldOut(Exception):
    pass


def shop(database: str, redis: str) -> tuple[Callable[[str, int], int], Callable[[], None]]:
    engine = create_engine(database)
    cache = RedisCache(redis, required=False)

    @idempotent(
        key=("buyer", "item"),
        using=[
            cache,
            VersionCheck(Item.version, where={Item.id: "{item}"}, retries=100, engine=sessionmaker(engine)),
        ],
        replay_errors=[SoldOut],  # a buyer who came too late gets the same answer again
        wait=30,
        name="shop.buy",
    )
    def buy(buyer: str, item: int, session: Session = INJECTED) -> int:
        row = session.get_one(Item, item)
        if row.stock == 0:
            raise SoldOut(item)
        row.stock -= 1
        session.add(Sale(buyer=buyer))
        return row.stock

    def close() -> None:
        cache.close()
        engine.dispose()

    return buy, close


def crowd(database: str, redis: str, number: int, results: "multiprocessing.Queue[tuple[str, str]]") -> None:
    """One of the processes: each buyer tries three times at once, and some of his tries are in other processes."""
    buy, close = shop(database, redis)

    def attempt(buyer: str) -> None:
        try:
            results.put((buyer, f"bought, {buy(buyer, 1)} left"))
        except SoldOut:
            results.put((buyer, "sold out"))
        except Exception as error:
            results.put((buyer, f"error: {error!r}"))

    tries = [f"buyer {buyer}" for buyer in range(BUYERS) for _ in range(TRIES)]
    threads = [threading.Thread(target=attempt, args=(buyer,)) for buyer in tries[number::PROCESSES]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    close()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--database", required=True)
    parser.add_argument("--redis", required=True)
    given = parser.parse_args()
    engine = create_engine(given.database)
    Base.metadata.create_all(engine)
    UniqueInsert(engine).create_schema()
    with Session(engine) as session, session.begin():
        session.add(Item(id=1, stock=STOCK, version=1))

    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[tuple[str, str]] = context.Queue()
    processes = [
        context.Process(target=crowd, args=(given.database, given.redis, number, results))
        for number in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    answers = [results.get() for _ in range(BUYERS * TRIES)]
    for process in processes:
        process.join()

    with Session(engine) as session:
        item = session.get_one(Item, 1)
        sales = Counter(session.scalars(select(Sale.buyer)))
        left, version = item.stock, item.version
        sold = session.scalar(select(func.count()).select_from(Sale))
    engine.dispose()
    told = {
        "tries": len(answers),
        "errors": [answer for _, answer in answers if answer.startswith("error")][:3],
        "different_answers_per_buyer": max(
            len({answer for one, answer in answers if one == buyer}) for buyer, _ in answers
        ),
        "sold": sold,
        "sold_twice_to": [buyer for buyer, times in sales.items() if times > 1],
        "stock": left,
        "version": version,
    }
    print(json.dumps(told, indent=2))
    right = not told["errors"] and not told["sold_twice_to"] and told["different_answers_per_buyer"] == 1
    return 0 if right and (sold, left, version) == (STOCK, 0, STOCK + 1) else 1


if __name__ == "__main__":
    sys.exit(main())
