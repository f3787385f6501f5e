"""Ordinary programs around a joined or leased function: listeners, domain errors, odd exceptions, odd codecs."""

import asyncio
import contextvars
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, event, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker
from sqlalchemy.schema import ForeignKey

from idempo import (
    InProgressError,
    OutcomeUnknownError,
    RedisCache,
    ResultUnavailableError,
    UniqueInsert,
    current,
    idempotent,
)
from idempo.errors import ConfigurationError
from idempo.testing import Effects
from tests.servers import Server, fresh_database


class Base(DeclarativeBase):
    pass


class Cart(Base):
    __tablename__ = "carts"
    no: Mapped[str] = mapped_column(primary_key=True)
    items: Mapped[list["Item"]] = relationship(cascade="all")


class Item(Base):
    __tablename__ = "items"
    no: Mapped[str] = mapped_column(primary_key=True)
    quantity: Mapped[int] = mapped_column(default=0)
    cart_no: Mapped[str | None] = mapped_column(ForeignKey("carts.no"))


class AlreadyOrdered(Exception):
    """A domain error that is a result."""


@pytest.fixture(params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/shop.db"
    else:
        url = fresh_database(request.getfixturevalue("postgres"))
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    UniqueInsert(engine).create_schema()
    yield engine
    engine.dispose()


def count(engine: Engine, kind: type[Base]) -> int:
    with Session(engine) as session:
        return session.scalar(select(func.count()).select_from(kind)) or 0


class ApiError(Exception):
    """An error of a payment provider, with a number of its own."""


@pytest.mark.parametrize("error", [KeyError(5), ApiError(1213, "declined"), ApiError(1020), OSError(5, "io")])
def test_a_users_exception_with_a_databases_number_is_no_deadlock(engine: Engine, error: Exception) -> None:
    effects = Effects()

    @idempotent(key="{order}", using=UniqueInsert(engine, join="session"), lease=2)
    def f(order: str, session: Any = None) -> None:
        effects.add(order)
        raise error

    with pytest.raises(type(error)) as raised:
        f("A-1")
    assert raised.value is error
    assert len(effects) == 1


def test_an_engine_that_begins_by_hand_keeps_leased_records(tmp_path: Path) -> None:
    """SQLAlchemy's own recipe for SQLite transactions: no BEGIN by the driver, one by a listener."""
    engine = create_engine(f"sqlite:///{tmp_path}/shop.db")

    @event.listens_for(engine, "connect")
    def quiet(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")

    effects = Effects()

    @idempotent(key="{order}", using=UniqueInsert(engine))
    def f(order: str) -> int:
        return effects.add(order)

    assert [f("A-1") for _ in range(3)] == [1, 1, 1]
    engine.dispose()


def test_what_listens_for_the_commit_is_part_of_it(engine: Engine) -> None:
    """An outbox row written in before_commit commits with the record, and a veto there undoes both."""
    sessions = sessionmaker(engine, expire_on_commit=False)
    veto = [True]

    @event.listens_for(sessions, "before_commit")
    def outbox(session: Session) -> None:
        if veto:
            raise AlreadyOrdered
        session.add(Item(no="outbox"))

    @idempotent(key="{order}", using=UniqueInsert(sessions, join="session"))
    def f(order: str, session: Any = None) -> str:
        session.add(Cart(no=order))
        return order

    with pytest.raises(AlreadyOrdered):
        f("A-1")
    assert (count(engine, Cart), f.lookup("A-1")) == (0, None)
    veto.clear()
    assert f("A-1") == "A-1"
    assert (count(engine, Cart), count(engine, Item)) == (1, 1)


def test_an_open_savepoint_of_the_function_commits_with_it(engine: Engine) -> None:
    @idempotent(key="{order}", using=UniqueInsert(engine, join="session"))
    def f(order: str, session: Any = None) -> str:
        session.begin_nested()
        session.add(Cart(no=order))
        return order

    assert f("A-1") == f("A-1") == "A-1"
    assert count(engine, Cart) == 1


@pytest.mark.parametrize("whose", ["ours", "the caller's"])
def test_a_violation_that_becomes_a_domain_error_is_a_result(engine: Engine, whose: str) -> None:
    """The failed flush has rolled the session back to the function's start, and the claim is still there."""
    effects = Effects()

    @idempotent(key="{order}", using=UniqueInsert(engine, join="session"), replay_errors=[AlreadyOrdered])
    def f(order: str, session: Any = None) -> None:
        effects.add(order)
        session.add(Cart(no="taken"))
        try:
            session.flush()
        except IntegrityError as error:
            raise AlreadyOrdered(order) from error

    with Session(engine) as session, session.begin():
        session.add(Cart(no="taken"))
    for _ in range(2):
        if whose == "ours":
            with pytest.raises(AlreadyOrdered):
                f("A-1")
        else:
            with Session(engine) as session, session.begin():
                session.add(Item(no=f"caller {len(effects)}", quantity=1))
                with pytest.raises(AlreadyOrdered):
                    f("A-1", session)
                session.add(Cart(no=f"after {time.monotonic_ns()}"))
    assert len(effects) == 1


def test_an_unknown_outcome_after_a_failed_flush_is_never_run_again_under_refuse(engine: Engine) -> None:
    effects = Effects()

    @idempotent(
        key="{order}",
        using=UniqueInsert(engine, join="session"),
        unknown_errors=[TimeoutError],
        on_orphan="refuse",
    )
    def f(order: str, session: Any = None) -> None:
        effects.add(order)
        session.add_all([Cart(no="one"), Cart(no="taken")])
        try:
            session.flush()
        except IntegrityError as error:
            raise TimeoutError from error

    with Session(engine) as session, session.begin():
        session.add(Cart(no="taken"))
    for _ in range(2):
        with pytest.raises(OutcomeUnknownError):
            f("A-1")
    assert len(effects) == 1
    assert count(engine, Cart) == 1


def test_a_caught_failure_leaves_the_callers_objects_in_their_session(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        session.add(Item(no="i-1", quantity=10))

    @idempotent(key="{order}", using=UniqueInsert(join="session"))
    def f(order: str, item: Item, session: Session) -> None:
        cart = Cart(no=order)
        session.add(cart)
        cart.items.append(item)
        item.quantity = 7
        session.flush()
        raise AlreadyOrdered

    with Session(engine) as session, session.begin():
        item = session.get_one(Item, "i-1")
        with pytest.raises(AlreadyOrdered):
            idempotent(key="{order}", using=UniqueInsert(join="session"), fingerprint=None)(f.__wrapped__)(
                "A-1", item, session
            )
        assert item.quantity == 10
        item.quantity = 5
    with Session(engine) as session:
        assert session.get_one(Item, "i-1").quantity == 5
    assert count(engine, Cart) == 0


def test_a_function_that_rolls_back_and_raises_leaves_a_usable_transaction(engine: Engine) -> None:
    @idempotent(key="{order}", using=UniqueInsert(join="session"))
    def f(order: str, session: Session) -> None:
        session.rollback()
        raise AlreadyOrdered

    with Session(engine) as session:
        with pytest.raises(AlreadyOrdered):
            f("A-1", session)
        session.add(Cart(no="after"))
        session.commit()
    assert count(engine, Cart) == 1


def test_the_drivers_errors_at_the_commit_are_sqlalchemys(postgres: Server) -> None:
    engine = create_engine(fresh_database(postgres))
    UniqueInsert(engine).create_schema()
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE a (id int PRIMARY KEY)")
        connection.exec_driver_sql("CREATE TABLE b (a int REFERENCES a (id) DEFERRABLE INITIALLY DEFERRED)")

    @idempotent(key="{order}", using=UniqueInsert(engine, join="session"))
    def f(order: str, session: Any = None) -> None:
        session.connection().exec_driver_sql("INSERT INTO b VALUES (1)")

    with pytest.raises(IntegrityError):
        f("A-1")
    assert f.lookup("A-1") is None
    engine.dispose()


def test_a_codec_that_makes_no_bytes_completes_without_a_result(engine: Engine) -> None:
    class Json:
        encode = staticmethod(json.dumps)
        decode = staticmethod(json.loads)

    effects = Effects()
    codec = cast(Any, Json())

    @idempotent(key="{order}", using=UniqueInsert(engine), codec=codec)
    def f(order: str) -> int:
        return effects.add(order)

    assert f("A-1") == 1
    with pytest.raises(ResultUnavailableError):
        f("A-1")
    assert len(effects) == 1


def test_renewals_do_not_need_a_connection_of_the_users_pool(postgres: Server) -> None:
    """The function holds the only connection of its pool for longer than its lease."""
    engine = create_engine(fresh_database(postgres), pool_size=1, max_overflow=0)
    ledger = UniqueInsert(engine)
    ledger.create_schema()
    renewed: list[str] = []
    hooks = [lambda event: renewed.append(event.kind)]

    @idempotent(key="{order}", using=ledger, lease=0.4, keep=60, hooks=hooks)
    def f(order: str) -> int:
        with engine.connect():
            deadline = time.monotonic() + 30
            while renewed.count("renewed") < 4 and time.monotonic() < deadline:
                time.sleep(0.01)  # the function is slow: this is what it is about
        return current().attempt

    assert f("A-1") == 1
    assert renewed.count("renewed") >= 4
    engine.dispose()


def test_a_url_strategy_is_closed_in_the_loop_that_it_was_used_in(redis_server: Server) -> None:
    cache = RedisCache(redis_server.url)

    @idempotent(key="{order}", using=cache, name=f"loops.{time.monotonic_ns()}")
    async def f(order: str) -> int:
        return 1

    async def closing() -> int:
        value = await f("A-1")
        await cache.close()
        return value

    assert [asyncio.run(closing()) for _ in range(3)] == [1, 1, 1]
    assert len(cache._clients._made_in_loop) == 0


def test_a_url_that_cannot_be_read_is_refused_without_showing_its_password() -> None:
    with pytest.raises(ConfigurationError, match="%2F") as refused:
        RedisCache("redis://:sec/ret@localhost:6379")
    assert "sec" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_call_refused_after_its_function_has_run_does_not_say_that_it_has_not(postgres: Server) -> None:
    """Undone by the database after its mail was sent, and then refused by another caller's open transaction."""
    engine = create_engine(fresh_database(postgres))
    ledger = UniqueInsert(engine, join="session")
    ledger.create_schema()
    mails = Effects()
    blocker: Any = idempotent(
        key="{order}", using=UniqueInsert(join="session"), name="refused", fingerprint=None
    )(lambda order, session: 0)

    @idempotent(key="{order}", using=ledger, name="refused", wait=0, fingerprint=None)
    def f(order: str, session: Any = None) -> None:
        mails.add(order)
        session.execute(text("ROLLBACK"))  # as the database does to a deadlock's victim
        blocker_steps(order)
        session.execute(text("DO $$ BEGIN RAISE deadlock_detected; END $$"))

    owner = Session(engine)

    def blocker_steps(order: str) -> None:
        # In a context of its own, as another request would be.
        contextvars.Context().run(blocker, order, owner)

    with pytest.raises(InProgressError) as refused:
        f("A-1")
    assert len(mails) == 1
    assert refused.value.ran is None
    owner.rollback()
    owner.close()
    engine.dispose()


def test_a_domain_error_raised_from_a_conflict_is_the_users_own_and_runs_once(engine: Engine) -> None:
    """Only a nested call of ours may tell a conflict in other words; the user's translation of one stands."""
    effects = Effects()

    class Busy(Exception):
        sqlstate = "40001"

    Busy.__module__ = "psycopg.errors"

    @idempotent(key="{order}", using=UniqueInsert(engine, join="session"), lease=2)
    def f(order: str, session: Any = None) -> None:
        effects.add(order)
        raise AlreadyOrdered from Busy()

    with pytest.raises(AlreadyOrdered):
        f("A-1")
    assert len(effects) == 1


@pytest.mark.parametrize(
    "options", [{}, {"replay_errors": [KeyError]}, {"unknown_errors": [OSError]}], ids=str
)
def test_after_a_failed_function_the_caller_can_commit_whatever_is_a_result(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    """Savepoints of idempo's, and those that the function left open, are gone with it."""
    engine = create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    notes = Table("notes", MetaData(), Column("id", Integer, primary_key=True))
    notes.metadata.create_all(engine)

    @idempotent(key="{order}", using=UniqueInsert(join="session"), **options)
    def failing(order: str, session: Session) -> None:
        session.begin_nested()
        session.execute(notes.insert().values(id=2))
        raise ValueError(order)

    with Session(engine) as session:
        session.execute(notes.insert().values(id=1))
        with pytest.raises(ValueError, match="A-1"):
            failing("A-1", session)
        session.execute(notes.insert().values(id=3))
        session.commit()
        assert session.scalars(select(notes.c.id)).all() == [1, 3]
    engine.dispose()


def test_a_refused_claim_leaves_the_callers_own_savepoint(postgres: Server) -> None:
    engine = create_engine(fresh_database(postgres))
    ledger = UniqueInsert(engine, join="session")
    ledger.create_schema()

    @idempotent(key="{order}", using=UniqueInsert(join="session"), wait=0)
    def place(order: str, session: Session) -> None: ...

    with Session(engine) as first, Session(engine) as second:
        place("A-1", first)
        with second.begin_nested() as savepoint:
            with pytest.raises(InProgressError):
                place("A-1", second)
            assert second.get_nested_transaction() is savepoint
            place("A-2", second)
        second.commit()
    with Session(engine) as third:
        assert place.lookup("A-2", third) is not None
    engine.dispose()
