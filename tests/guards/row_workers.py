"""What the races of rows run in other processes: a module of its own, so that it starts quickly."""

from typing import Any

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from idempo import SelectForUpdate, VersionCheck, idempotent

TRIES = 3


class Base(DeclarativeBase):
    pass


class Stock(Base):
    __tablename__ = "stock"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    left: Mapped[int] = mapped_column("items", default=0)
    version: Mapped[int] = mapped_column(default=1)


class Sale(Base):
    """Nothing keeps two sales to one buyer apart: a second effect is seen."""

    __tablename__ = "sales"
    id: Mapped[int] = mapped_column(primary_key=True)
    buyer: Mapped[int] = mapped_column()


def engine_for(url: str) -> Engine:
    waiting = {"timeout": 60} if url.startswith("sqlite") else {}
    return create_engine(url, connect_args=waiting)


def seller(engine: Any) -> Any:
    """Sells one item to a buyer; the naive body: read, judge, write what was read minus one."""
    guard = VersionCheck(Stock.version, {Stock.id: lambda: 1}, retries=200, engine=engine)

    @idempotent(key="{buyer}", using=guard, name="sell", wait=60)
    def sell(buyer: int, session: Session | None = None) -> str:
        assert session is not None
        stock = session.get_one(Stock, 1)
        if stock.left == 0:
            return "sold out"
        stock.left -= 1
        session.add(Sale(buyer=buyer))
        return "sold"

    return sell


def adder(engine: Any) -> Any:
    """Adds one to a row by reading it and writing it."""
    guard = SelectForUpdate(Stock, {Stock.id: "{number}"}, into="stock", engine=engine)

    @idempotent(key="{call}", using=guard, name="add", wait=60)
    def add(call: str, number: int, session: Session | None = None, stock: Stock | None = None) -> int:
        assert stock is not None
        stock.left += 1
        return stock.left

    return add


def buy(url: str, buyers: list[int], start: Any, told: Any) -> None:
    """Each buyer tries several times, as impatient people do."""
    engine = engine_for(url)
    sell = seller(engine)
    start.wait()
    told.put([(buyer, sell(buyer)) for _ in range(TRIES) for buyer in buyers])
    engine.dispose()


def count(url: str, calls: list[str], start: Any, told: Any) -> None:
    engine = engine_for(url)
    add = adder(engine)
    start.wait()
    told.put([(call, add(call, 1)) for call in calls])
    engine.dispose()


def naive_buy(engine: Any, buyer: int, seen: int) -> str:
    """The recipe: no affected rows means that it was a repeat, so it is a success."""
    with engine.begin() as connection:
        update = text(
            "UPDATE stock SET items = items - 1, version = version + 1 WHERE id = 1 AND version = :seen"
        )
        if connection.execute(update, {"seen": seen}).rowcount == 1:
            connection.execute(text("INSERT INTO sales (buyer) VALUES (:buyer)"), {"buyer": buyer})
    return "sold"
