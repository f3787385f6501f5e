"""What the tests of this folder share: a shop to do business in, calls at once, facts to wait for."""

import asyncio
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import String, create_engine, delete, func, insert, select, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from sqlalchemy.pool import NullPool

from idempo import UniqueInsert, idempotent
from idempo.contracts import Colour
from idempo.steps import Pause, Steps, arun, run
from idempo.testing import drive
from tests.servers import Server, async_url, fresh_database

SECONDS = 30
THREADS_AND_POOL: dict[str, Any] = {"pool_size": 30, "max_overflow": 30, "pool_timeout": SECONDS}


class Base(DeclarativeBase):
    pass


class Order(Base):
    """A business row. Nothing keeps two rows of one order apart: a second effect is seen."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_no: Mapped[str] = mapped_column(String(100))


class Serial(Base):
    """A business row with a unique constraint of its own."""

    __tablename__ = "serials"
    number: Mapped[str] = mapped_column(String(100), primary_key=True)


class Declined(Exception):
    """What the functions under test raise."""


class Shop:
    """A database with the records table and the business tables, empty, and an engine of one colour."""

    def __init__(self, url: str, colour: Colour, **options: Any) -> None:
        self.url = url
        self.colour: Colour = colour
        self.outside = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        settings = options if "poolclass" in options else THREADS_AND_POOL | options
        self.engine: Any
        self.sessions: Any
        if colour == "sync":
            self.engine = create_engine(url, **settings)
            self.sessions = sessionmaker(self.engine)
        else:
            self.engine = create_async_engine(async_url(url), **settings)
            self.sessions = async_sessionmaker(self.engine)
        self.name = f"traps.{uuid.uuid4()}"

    def close(self) -> Any:
        return self.engine.dispose()

    def decorate(self, body: Callable[[str, Any], Steps[Any]], **options: Any) -> Any:
        """Decorate `body(order_no, session)`, given as steps, as a function of the shop's colour."""
        terms: Any = {
            "key": "{order_no}",
            "using": UniqueInsert(self.engine, join="session"),
            "name": self.name,
            "wait": SECONDS,
        }
        return idempotent(**(terms | options))(function(body, self.colour))

    def orders(self, order_no: str | None = None) -> int:
        """How many committed orders there are."""
        query = select(func.count()).select_from(Order)
        with self.outside.connect() as connection:
            return (
                connection.scalar(query if order_no is None else query.where(Order.order_no == order_no)) or 0
            )

    def scalar(self, sql: str) -> Any:
        """Ask the server, on a connection of its own."""
        with self.outside.connect() as connection:
            return connection.scalar(text(sql))

    def until(self, sql: str, wanted: int) -> Steps[None]:
        """Wait until the server reports this fact."""
        yield from until(lambda: self.scalar(sql) == wanted, f"{sql} -> {wanted}")


def shop_database(server: Server) -> str:
    """The URL of a new database with the records table and the business tables."""
    url = fresh_database(server)
    create_tables(url)
    return url


def create_tables(url: str) -> None:
    engine = create_engine(url, poolclass=NullPool)
    Base.metadata.create_all(engine)
    UniqueInsert(engine).create_schema()


def empty_tables(url: str) -> None:
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        for table in (Order, Serial):
            connection.execute(delete(table))
        connection.execute(text("DELETE FROM idempo_records"))


def function(body: Callable[[str, Any], Steps[Any]], colour: Colour) -> Callable[..., Any]:
    def plain(order_no: str, session: Any = None) -> Any:
        return run(body(order_no, session))

    async def coroutine(order_no: str, session: Any = None) -> Any:
        return await arun(body(order_no, session))

    return plain if colour == "sync" else coroutine


def place(order_no: str, session: Any) -> Steps[str]:
    """The usual business: one row, one answer."""
    yield session.execute(insert(Order).values(order_no=order_no))
    return f"placed {order_no}"


def until(fact: Callable[[], bool], what: str) -> Steps[None]:
    """Wait for a fact, with a deadline."""
    deadline = time.monotonic() + SECONDS
    while not fact():
        assert time.monotonic() < deadline, f"this never came: {what}"
        yield Pause(0.01)


def driven(url: str, colour: Colour, test: Callable[[Shop], Steps[None]], **options: Any) -> None:
    shop = Shop(url, colour, **options)

    def whole() -> Steps[None]:
        try:
            yield from test(shop)
        finally:
            yield shop.close()

    drive(colour, whole())


class Running:
    """Steps that go on meanwhile, in threads or tasks."""

    def __init__(self, colour: Colour, several: Iterable[Callable[[], Steps[Any]]]) -> None:
        self._colour = colour
        several = list(several)
        self._found: list[Any] = [None] * len(several)
        if colour == "sync":
            self._threads = [
                threading.Thread(target=self._work, args=(index, steps), daemon=True)
                for index, steps in enumerate(several)
            ]
            for thread in self._threads:
                thread.start()
        else:
            self._tasks = [asyncio.ensure_future(arun(steps())) for steps in several]

    def _work(self, index: int, steps: Callable[[], Steps[Any]]) -> None:
        try:
            self._found[index] = run(steps())
        except BaseException as error:
            self._found[index] = error

    def cancel(self) -> None:
        """Cancel the tasks; threads cannot be."""
        for task in self._tasks:
            task.cancel()

    def results(self) -> Steps[list[Any]]:
        """Values and exceptions, in order."""
        if self._colour == "sync":
            for thread in self._threads:
                thread.join(2 * SECONDS)
                assert not thread.is_alive()
            return self._found
        found: list[Any] = yield asyncio.gather(*self._tasks, return_exceptions=True)
        return found


def calling(call: Callable[[], Any]) -> Callable[[], Steps[Any]]:
    """One call as steps."""

    def steps() -> Steps[Any]:
        return (yield call())

    return steps


def caught(kind: type[BaseException], call: Callable[[], Any]) -> Steps[Any]:
    """Call, and return the exception of this kind that must come."""
    try:
        value = yield call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} did not come, but {value!r}")


def in_session(shop: Shop, f: Any, order_no: str) -> Callable[[], Steps[Any]]:
    """A call in a session of the caller's own, committed, or rolled back if it raises."""

    def steps() -> Steps[Any]:
        session = shop.sessions()
        try:
            value = yield f(order_no, session=session)
            yield session.commit()
            return value
        finally:
            yield session.close()

    return steps


def in_connection(shop: Shop, f: Any, order_no: str) -> Callable[[], Steps[Any]]:
    def steps() -> Steps[Any]:
        connection = shop.engine.connect()
        if shop.colour == "async":
            connection = yield connection
        try:
            value = yield f(order_no, session=connection)
            yield connection.commit()
            return value
        finally:
            yield connection.close()

    return steps


def in_ours(shop: Shop, f: Any, order_no: str) -> Callable[[], Steps[Any]]:
    return calling(lambda: f(order_no))


CALLERS = {"idempo's transaction": in_ours, "a session": in_session, "a connection": in_connection}


def script(source: str, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
    """Start a program in an interpreter of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", source, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def output(source: str, *arguments: str, **options: Any) -> str:
    """Run a program to its end and return what it printed."""
    with script(source, *arguments, **options) as program:
        out, err = program.communicate(timeout=2 * SECONDS)
        assert program.returncode == 0, err
        return out


def decorated(body: Callable[[str], Steps[Any]], colour: Colour, **options: Any) -> Any:
    """Decorate `body(order_no)`, given as steps, as a function of this colour."""

    def plain(order_no: str) -> Any:
        return run(body(order_no))

    async def coroutine(order_no: str) -> Any:
        return await arun(body(order_no))

    terms: Any = {"key": "{order_no}", "name": f"traps.{uuid.uuid4()}"} | options
    return idempotent(**terms)(plain if colour == "sync" else coroutine)
