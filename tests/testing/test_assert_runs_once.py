"""`assert_runs_once` on functions that are right: on every kind of ledger, in both colours."""

import asyncio
import functools
import itertools
import uuid
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import String, create_engine, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from idempo import (
    INJECTED,
    RERUN,
    ConfigurationError,
    Found,
    LocalCache,
    Memory,
    MonotonicVersion,
    OneTimeToken,
    RedisCache,
    StateGuard,
    UniqueInsert,
    idempotent,
)
from idempo.assembly import operation_of
from idempo.records import Call
from idempo.steps import Steps
from idempo.testing import assert_runs_once, driven
from tests.servers import fresh_database
from tests.testing.places import OnMemory, OnPostgres, OnRedis, OnSQLite, Place


class OfLeased(Place):
    def decorate(self, **options: Any) -> Any:
        self.done: list[str] = []

        def plain(order: str, amount: int = 1) -> dict[str, Any]:
            self.done.append(order)
            return {"order": order, "amount": amount}

        async def coroutine(order: str, amount: int = 1) -> dict[str, Any]:
            return plain(order, amount)

        terms: Any = {"key": "{order}", "using": self.make(), "name": f"once.{uuid.uuid4()}"} | options
        return idempotent(**terms)(plain if self.colour == "sync" else coroutine)

    def effects(self, order: str, amount: int = 1) -> int:
        return self.done.count(order)

    @driven
    def test_a_function_that_is_right_passes(self) -> Steps[None]:
        f = self.decorate()
        yield assert_runs_once(f, "A-1", amount=2, effects=self.effects)
        assert self.done.count("A-1") > 5, "the crashes make it run again, and that is at least once"
        assert (yield f.lookup("A-1", 2)) is None, "the record is forgotten at the end"

    @driven
    def test_under_refuse_it_passes_too(self) -> Steps[None]:
        yield assert_runs_once(self.decorate(on_orphan="refuse"), "A-1", effects=self.effects)

    @driven
    def test_with_a_probe_that_can_tell_it_runs_exactly_once(self) -> Steps[None]:
        def probe(call: Call) -> Any:
            order: str = call.arguments["order"]
            return Found({"order": order, "amount": 1}) if order in self.done else RERUN

        f = self.decorate(on_orphan=probe)
        yield assert_runs_once(f, arguments=lambda number: f"A-{number}", effects=self.effects)
        assert len(self.done) == len(set(self.done)) > 5

    @driven
    def test_an_exception_that_is_a_result_is_one(self) -> Steps[None]:
        def broken(order: str) -> None:
            raise LookupError("no such order", order)

        async def abroken(order: str) -> None:
            raise LookupError("no such order", order)

        body: Any = broken if self.colour == "sync" else abroken
        using: Any = self.make()
        f: Any = idempotent(key="{order}", using=using, name=f"{uuid.uuid4()}", replay_errors=[LookupError])(
            body
        )
        yield assert_runs_once(f, "A-1")


class TestMemory(OfLeased, OnMemory):
    pass


class TestMemoryAsync(TestMemory):
    colour = "async"


class TestSQLite(OfLeased, OnSQLite):
    pass


class TestSQLiteAsync(TestSQLite):
    colour = "async"


class TestPostgres(OfLeased, OnPostgres):
    pass


class TestPostgresAsync(TestPostgres):
    colour = "async"


class TestRedis(OfLeased, OnRedis):
    pass


class TestRedisAsync(TestRedis):
    colour = "async"


class TestSQLiteJoined(OnSQLite):
    """What the function writes is part of the transaction, and is there exactly once."""

    @driven
    def test_a_function_that_is_right_passes(self) -> Steps[None]:
        books = self.books

        def plain(order: str, session: Session = INJECTED) -> str:
            session.execute(books.entry(order))
            return order

        async def coroutine(order: str, session: AsyncSession = INJECTED) -> str:
            await session.execute(books.entry(order))
            return order

        body: Any = plain if self.colour == "sync" else coroutine
        f = idempotent(key="{order}", using=self.make_joined(), name=f"once.{uuid.uuid4()}")(body)
        yield assert_runs_once(f, "A-1", effects=books.count)
        yield assert_runs_once(f, "A-2")


class TestSQLiteJoinedAsync(TestSQLiteJoined):
    colour = "async"


class TestPostgresJoined(OnPostgres, TestSQLiteJoined):
    pass


class TestPostgresJoinedAsync(TestPostgresJoined):
    colour = "async"


# ------------------------------------------------------------------------ compositions


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    order_no: Mapped[str] = mapped_column(String(50), primary_key=True)
    state: Mapped[str] = mapped_column(String(20))


def test_a_guard_with_a_row_for_each_round(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/shop.db")
    Base.metadata.create_all(engine)
    flow = {"new": ["paid"]}
    guard = StateGuard(Order.state, {Order.order_no: "{order_no}"}, flow, "paid", engine=engine)

    @idempotent(key="{order_no}", using=guard, name="guarded")
    def pay(order_no: str, session: Session = INJECTED) -> str:
        return f"paid {order_no}"

    @functools.cache
    def order(number: int) -> str:
        with Session(engine) as session, session.begin():
            session.add(Order(order_no=f"A-{number}", state="new"))
        return f"A-{number}"

    def paid(order_no: str) -> int:
        with Session(engine) as session:
            of_it = select(func.count()).where(Order.order_no == order_no, Order.state == "paid")
            return int(session.scalar(of_it) or 0)

    assert_runs_once(pay, arguments=order, effects=paid)
    with pytest.raises(AssertionError, match=r"StateConflictError.*give arguments="):
        assert_runs_once(pay, order(99))
    engine.dispose()


@pytest.mark.parametrize("reuse", ["replay", "refuse"])
def test_tokens_that_are_issued_for_each_round(reuse: Any) -> None:
    tokens = OneTimeToken(Memory(), key="{token}", reuse=reuse)

    @idempotent(key="{token}", using=tokens, name=f"tokens.{reuse}")
    def submit(token: str) -> int:
        return 7

    assert_runs_once(submit, arguments=functools.cache(lambda number: (tokens.issue(),)))
    with pytest.raises(AssertionError, match=r"TokenUnknownError.*give arguments="):
        assert_runs_once(submit, tokens.issue())


def test_versions_of_one_entity() -> None:
    using = MonotonicVersion(Memory(), entity="{row}", version="{version}")

    @idempotent(key="{row}-{version}", using=using, name="versions")
    def index(row: str, version: int) -> int:
        return version

    assert_runs_once(index, "A", 1)
    assert_runs_once(index, arguments=lambda number: {"row": "B", "version": number})


def test_ledgers_in_front_of_a_transaction(postgres: Any, redis_server: Any) -> None:
    url = fresh_database(postgres)
    record, cache = UniqueInsert(url, join="session"), RedisCache(fresh_database(redis_server))
    record.create_schema()

    @idempotent(key="{order}", using=[LocalCache(), cache, record], name="tiers")
    def f(order: str, session: Session = INJECTED) -> str:
        return order

    assert_runs_once(f, "A-1")
    record.close()
    cache.close()


# ------------------------------------------------------------------------ how it is called


class Shop:
    def __init__(self) -> None:
        self.sent: list[str] = []

    @idempotent(key="{order}", using=Memory(), name="shop.confirm")
    def confirm(self, order: str) -> str:
        self.sent.append(order)
        return order


def test_a_method_of_an_instance() -> None:
    shop = Shop()
    assert_runs_once(shop.confirm, "A-1", effects=shop.sent.count)


def test_the_function_is_left_as_it_was() -> None:
    runs: list[int] = []

    @idempotent(key="{order}", using=Memory(), name="left")
    def f(order: str) -> int:
        runs.append(1)
        return len(runs)

    operation, before = operation_of(f), dict(vars(f))
    assert_runs_once(f, "A-1", crashes=False)
    assert operation_of(f) is operation
    assert vars(f) == before
    assert len(runs) == 2, "one run in each of the two rounds"


def test_what_the_function_itself_raises_in_the_first_call_passes() -> None:
    @idempotent(key="{order}", using=Memory(), name="raises")
    def f(order: str) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        assert_runs_once(f, "A-1")


def test_async_arguments_and_effects_are_awaited() -> None:
    done: list[str] = []

    @idempotent(key="{order}", using=Memory(), name="awaited")
    async def f(order: str) -> str:
        done.append(order)
        return order

    async def arguments(number: int) -> str:
        return f"A-{number}"

    async def effects(order: str) -> int:
        return done.count(order)

    asyncio.run(assert_runs_once(f, arguments=arguments, effects=effects))


def test_wrong_use_is_told(tmp_path: Path) -> None:
    using = UniqueInsert(f"sqlite:///{tmp_path}/a.db", join="session")

    @idempotent(key="{order}", using=using, name="wrong")
    def f(order: str, session: Any = None) -> str:
        return order

    with pytest.raises(ConfigurationError, match="leave out session"):
        assert_runs_once(f, "A-1", session=object())
    with pytest.raises(ConfigurationError, match="callers=0"):
        assert_runs_once(f, "A-1", callers=0)
    undecorated: Any = len
    with pytest.raises(ConfigurationError, match="decorated with @idempotent"):
        assert_runs_once(undecorated, "A-1")


def test_all_duplicates_ask_while_the_first_one_runs() -> None:
    """So that contention does not depend on how fast the threads are."""
    kinds: list[str] = []
    numbers = itertools.count()

    @idempotent(key="{order}", using=Memory(), name="crowd", hooks=[lambda event: kinds.append(event.kind)])
    def f(order: str) -> int:
        return next(numbers)

    assert_runs_once(f, "A-1", callers=8, crashes=False)
    assert kinds.count("waited") == 7
