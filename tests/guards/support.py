"""What the tests of guards share: a shop with orders on every database, in both colours, in anybody's transaction."""

import functools
import inspect
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from sqlalchemy import String, create_engine, delete, func, insert, select, text, update
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from sqlalchemy.pool import NullPool

from idempo import StateGuard, UniqueInsert, idempotent
from idempo.contracts import Colour
from idempo.steps import Steps, arun, run
from idempo.testing import drive
from tests.servers import async_url
from tests.traps.support import SECONDS, caught, until

T = TypeVar("T")
Body = Callable[[int, str, Any], Steps[Any]]

MATRIX = ("postgres", "mariadb", "sqlite")
COLOURS: tuple[Colour, Colour] = ("sync", "async")
OURS, SESSION, CONNECTION = CALLERS = ("idempo's transaction", "a session", "a connection")

FLOW = {
    "pending": ["paid", "cancelled"],
    "paid": ["packed"],
    "packed": ["shipped"],
    "shipped": [],
    "cancelled": [],
}


class Base(DeclarativeBase):
    pass


class Order(Base):
    """The row that guards judge. `note` is not unique: several rows may share one."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    status: Mapped[str] = mapped_column(String(20), default="pending")
    version: Mapped[int] = mapped_column(default=1)
    note: Mapped[str] = mapped_column(String(100), default="")


class Payment(Base):
    """What the functions under test write. Nothing keeps two payments of one order apart: a second effect is seen."""

    __tablename__ = "payments"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int]
    no: Mapped[str] = mapped_column(String(100))


@dataclass
class Receipt:
    """What they return."""

    no: str
    attempt: int


# How many wait for a lock on an order.
WAITING = {
    "postgres": "SELECT count(*) FROM pg_stat_activity "
    "WHERE datname = current_database() AND wait_event_type = 'Lock'",
    "mariadb": "SELECT count(*) FROM information_schema.processlist "
    "WHERE db = DATABASE() AND info LIKE '%orders%' AND command <> 'Sleep' AND time_ms > 20",
    "mysql": "SELECT count(*) FROM performance_schema.data_locks "
    "WHERE object_schema = DATABASE() AND lock_status = 'WAITING'",
}


class Declined(Exception):
    """What they raise."""


def create_tables(url: str) -> None:
    engine = create_engine(url, poolclass=NullPool)
    Base.metadata.create_all(engine)
    UniqueInsert(engine).create_schema()


class Shop:
    """A database with orders and payments, and an engine of one colour."""

    def __init__(self, url: str, colour: Colour, **options: Any) -> None:
        self.url = url
        self.colour: Colour = colour
        self.outside = create_engine(url, pool_size=1, isolation_level="AUTOCOMMIT")
        self.engine, self.sessions = self.connect(**options)
        self.name = f"guards.{uuid.uuid4()}"

    def connect(self, **options: Any) -> tuple[Any, Any]:
        """An engine of this colour, and what makes its sessions."""
        if self.colour == "sync":
            engine = create_engine(self.url, **options)
            return engine, sessionmaker(engine)
        url = async_url(self.url)
        async_engine = create_async_engine(url, **options)
        return async_engine, async_sessionmaker(async_engine)

    def close(self) -> Steps[None]:
        self.outside.dispose()
        yield self.engine.dispose()

    def scalar(self, sql: str) -> Any:
        """Ask the server, on a connection of its own."""
        with self.outside.connect() as connection:
            return connection.scalar(text(sql))

    @property
    def server(self) -> str:
        """postgres, mariadb, mysql or sqlite."""
        dialect = self.outside.dialect
        if getattr(dialect, "is_mariadb", False):
            return "mariadb"
        return dialect.name.replace("postgresql", "postgres")

    def until_waiting(self, wanted: int = 1) -> Steps[None]:
        """Wait until the server says that so many wait for a lock on an order."""
        sql = WAITING[self.server]
        yield from until(lambda: self.scalar(sql) == wanted, f"{sql} -> {wanted}")

    def empty(self) -> None:
        with self.outside.connect() as connection:
            for table in (Payment, Order):
                connection.execute(delete(table))

    def add(self, *orders: int, **columns: Any) -> None:
        """Add committed orders."""
        with self.outside.connect() as connection:
            for number in orders:
                connection.execute(insert(Order).values(id=number, **columns))

    def put(self, order: int, **columns: Any) -> None:
        """Change a committed order, as somebody without idempo does."""
        with self.outside.connect() as connection:
            connection.execute(update(Order).where(Order.id == order).values(**columns))

    def row(self, order: int, column: Any = Order.status) -> Any:
        """What is committed of an order."""
        with self.outside.connect() as connection:
            return connection.scalar(select(column).where(Order.id == order))

    def payments(self, order: int) -> int:
        """How many committed payments an order has."""
        query = select(func.count()).select_from(Payment).where(Payment.order_id == order)
        with self.outside.connect() as connection:
            return connection.scalar(query) or 0

    def guard(self, **options: Any) -> StateGuard:
        """The guard of most tests: a pending order is paid."""
        terms: Any = {
            "column": Order.status,
            "where": {Order.id: "{order_id}"},
            "flow": FLOW,
            "to": "paid",
            "engine": self.engine,
        }
        return StateGuard(**(terms | options))

    def function(self, body: Body, using: Any = None, **options: Any) -> Any:
        """Decorate `body(order_id, payment, session)`, given as steps. By default it is guarded as `guard` says."""
        terms: Any = {
            "key": "{payment}",
            "using": self.guard() if using is None else using,
            "name": self.name,
            "wait": SECONDS,
        }

        def plain(order_id: int, payment: str, session: Any = None) -> Any:
            return run(body(order_id, payment, session))

        async def coroutine(order_id: int, payment: str, session: Any = None) -> Any:
            return await arun(body(order_id, payment, session))

        function: Any = plain if self.colour == "sync" else coroutine
        if "returns" in options:
            function.__annotations__["return"] = options.pop("returns")
        return idempotent(**(terms | options))(function)

    def within(self, caller: str, work: Callable[[Any], Steps[T]]) -> Steps[T]:
        """Do `work` with what the caller passes: None, or a session or connection, committed at the end.

        The caller's own transaction begins with a write: order 99.
        """
        if caller == OURS:
            return (yield from work(None))
        holder = self.sessions() if caller == SESSION else self.engine.connect()
        if caller == CONNECTION and self.colour == "async":
            holder = yield holder
        try:
            yield holder.execute(delete(Order).where(Order.id == 99))
            yield holder.execute(insert(Order).values(id=99, status="earlier"))
            result = yield from work(holder)
            yield holder.commit()
            assert self.row(99) == "earlier"
            return result
        finally:
            yield holder.close()

    def call(self, caller: str, f: Any, *arguments: Any) -> Steps[Any]:
        """One call in one transaction."""

        def work(holder: Any) -> Steps[Any]:
            return (yield f(*arguments, session=holder))

        return (yield from self.within(caller, work))

    def outcome(self, caller: str, f: Any, *arguments: Any) -> Steps[Any]:
        return (yield from self.call(caller, f.outcome, *arguments))

    def refused(self, caller: str, kind: type[BaseException], f: Any, *arguments: Any) -> Steps[Any]:
        """One call that must raise this; the caller catches it and commits what it has written before."""

        def work(holder: Any) -> Steps[Any]:
            return (yield from caught(kind, lambda: f(*arguments, session=holder)))

        return (yield from self.within(caller, work))


def pay(order_id: int, payment: str, session: Any) -> Steps[Receipt]:
    """The usual business: one row, one answer."""
    yield session.execute(insert(Payment).values(order_id=order_id, no=payment))
    return Receipt(payment, 1)


def nothing(order_id: int, payment: str, session: Any) -> Steps[None]:
    yield from ()


def driven(test: Callable[..., Steps[None]]) -> Callable[..., None]:
    """Make a test out of steps with a `shop`."""

    @functools.wraps(test)
    def whole(**arguments: Any) -> None:
        shop = next(one for one in arguments.values() if isinstance(one, Shop))

        def steps() -> Steps[None]:
            try:
                yield from test(**arguments)
            finally:
                yield from shop.close()

        drive(shop.colour, steps())

    assert inspect.isgeneratorfunction(test), f"{test} is not made of steps"
    return whole


def on(*databases: str) -> pytest.MarkDecorator:
    """Run a test on these databases only, or on more than the usual ones."""
    return pytest.mark.parametrize("database", databases, indirect=True)


everywhere = on("postgres", "mariadb", "sqlite", "mysql")
sync_only = pytest.mark.parametrize("shop", ["sync"], indirect=True)
callers = pytest.mark.parametrize("caller", CALLERS)
their_own = pytest.mark.parametrize("caller", [SESSION, CONNECTION])


def failing(kind: type[BaseException], steps: Steps[Any]) -> Steps[Any]:
    """Take steps, and return the exception of this kind that must come."""
    try:
        value = yield from steps
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} did not come, but {value!r}")
