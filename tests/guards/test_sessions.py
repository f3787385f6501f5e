"""Whatever happens behind a guard, the caller's session goes on as SQLAlchemy's own rules have it."""

import threading
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, PendingRollbackError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from idempo import (
    ConfigurationError,
    InProgressError,
    LeaseLostError,
    LedgerUnavailableError,
    ReadOnly,
    RowMissingError,
    StateGuard,
    VersionCheck,
    VersionConflictError,
)
from idempo.steps import Steps
from tests.guards.support import Declined, Order, Payment, Shop, driven, nothing, on, sync_only
from tests.guards.support_rows import HERE, check, versioned
from tests.traps.support import caught

every = on("postgres", "mariadb", "sqlite")


def row(shop: Shop, number: int = 1) -> tuple[Any, ...]:
    with shop.outside.connect() as connection:
        found = connection.execute(select(Order.status, Order.note, Order.version).where(Order.id == number))
        return tuple(found.one())


@every
@sync_only
@driven
def test_objects_that_a_failed_function_has_loaded_are_still_written(shop: Shop) -> Steps[None]:
    loaded: list[Any] = []

    def body(order_id: int, payment: str, session: Any) -> Steps[None]:
        loaded.append((yield session.get(Order, 2)))
        raise Declined(payment)

    shop.add(1, 2)
    f = shop.function(body, shop.guard())
    with shop.sessions() as session:
        yield from caught(Declined, lambda: f(1, "P-1", session=session))
        loaded[0].note = "the caller's"
        session.commit()
    assert row(shop, 2)[1] == "the caller's"


@every
@sync_only
@pytest.mark.parametrize("expected", [None, "{version}"])
@driven
def test_no_update_is_lost_to_an_object_that_was_loaded_before(shop: Shop, expected: Any) -> Steps[None]:
    """Somebody else's change is seen by the function, or refused, whatever the session had loaded."""

    def body(order_id: int, payment: str, session: Any) -> Steps[None]:
        order = yield session.get(Order, order_id)
        order.note += payment

    shop.add(1)
    f = versioned(shop, body, check(shop, expected=expected))
    with shop.sessions() as session:
        session.get(Order, 1)
        with shop.outside.connect() as connection:
            if shop.engine.dialect.name == "sqlite":
                session.commit()  # its snapshot would be refused
            connection.execute(update(Order).where(Order.id == 1).values(note="a", version=2))
        try:
            f(1, "b", version=2, session=session)
            session.commit()
        except VersionConflictError:
            session.rollback()
            f(1, "b", version=2, session=session)
            session.commit()
    assert row(shop)[1:] == ("ab", 3)
    yield from ()


@every
@sync_only
@driven
def test_savepoints_that_the_function_left_open_do_not_undo_the_callers_commit(shop: Shop) -> Steps[None]:
    def body(order_id: int, payment: str, session: Any) -> Steps[str]:
        session.begin_nested()
        yield session.execute(insert(Payment).values(order_id=order_id, no=payment))
        return payment

    shop.add(1)
    f = shop.function(body, shop.guard())
    with shop.sessions() as session:
        assert (yield f(1, "P-1", session=session)) == "P-1"
        session.commit()
    assert (row(shop)[0], shop.payments(1)) == ("paid", 1)


@every
@sync_only
@driven
def test_a_function_that_rolls_back_by_itself_counts_no_version(shop: Shop) -> Steps[None]:
    def body(order_id: int, payment: str, session: Any) -> Steps[None]:
        yield session.rollback()

    shop.add(1)
    f = shop.function(body, VersionCheck(Order.version, HERE))
    with shop.sessions() as session:
        yield from caught(LeaseLostError, lambda: f(1, "P-1", session=session))
        session.commit()
    assert row(shop)[2] == 1


@every
@sync_only
@driven
def test_what_the_function_has_not_flushed_is_its_own_error(shop: Shop) -> Steps[None]:
    def body(order_id: int, payment: str, session: Any) -> Steps[None]:
        yield from ()
        session.add(Order(id=2))

    shop.add(1, 2)
    f = shop.function(body, check(shop))
    yield from caught(IntegrityError, lambda: f(1, "P-1"))
    assert row(shop)[2] == 1


@on("postgres")
@sync_only
@driven
def test_a_comparison_that_fails_after_the_function_says_that_it_ran(shop: Shop) -> Steps[None]:
    holding = shop.outside.engine.execution_options(isolation_level="READ COMMITTED").connect()

    def locked(order_id: int, payment: str, session: Any) -> Steps[None]:
        yield holding.execute(text("SELECT 1 FROM orders WHERE id = 1 FOR UPDATE"))

    def cut(order_id: int, payment: str, session: Any) -> Steps[None]:
        mine = session.scalar(text("SELECT pg_backend_pid()"))
        with shop.outside.connect() as connection:
            connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": mine})
        yield from ()

    shop.add(1)
    f = shop.function(locked, check(shop), wait=0)
    error = yield from caught(InProgressError, lambda: f(1, "P-1"))
    assert error.ran is True
    holding.rollback()
    holding.close()
    g = shop.function(cut, check(shop), wait=0, name=f"{shop.name}.cut")
    error = yield from caught(LedgerUnavailableError, lambda: g(1, "P-1"))
    assert error.ran is True


@on("postgres")
@sync_only
@driven
def test_a_guard_whose_update_changes_nothing_admits_nobody(shop: Shop) -> Steps[None]:
    """A trigger that keeps the row as it is."""
    kept = Table("kept", MetaData(), Column("id", Integer, primary_key=True), Column("status", String(20)))
    kept.metadata.drop_all(shop.outside)
    kept.metadata.create_all(shop.outside)
    runs: list[str] = []

    def body(order_id: int, payment: str, session: Any) -> Steps[None]:
        yield from ()
        runs.append(payment)

    with shop.outside.connect() as connection:
        connection.execute(insert(kept).values(id=1, status="pending"))
        connection.execute(
            text(
                "CREATE OR REPLACE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
            )
        )
        connection.execute(
            text("CREATE TRIGGER keeping BEFORE UPDATE ON kept FOR EACH ROW EXECUTE FUNCTION keep()")
        )
    guard = StateGuard(
        kept.c.status, {kept.c.id: "{order_id}"}, {"pending": ["paid"]}, "paid", engine=shop.engine
    )
    f = shop.function(body, guard)
    for payment in ("P-1", "P-2"):
        yield from caught(ConfigurationError, partial(f, 1, payment))
    assert runs == []


@on("mariadb", "mysql")
@sync_only
@driven
def test_after_a_deadlock_the_callers_transaction_cannot_be_committed_by_half(shop: Shop) -> Steps[None]:
    """InnoDB undoes all of the victim's transaction; what it wrote before must not be missing from a commit."""
    shop.add(1, 2)
    f = shop.function(nothing, shop.guard())
    ready = threading.Barrier(2)
    told: dict[int, Any] = {}

    def one(own: int, other: int) -> None:
        with shop.sessions() as session:
            session.add(Order(id=10 + own))
            session.flush()
            session.execute(update(Order).where(Order.id == own).values(note="mine"))
            ready.wait()
            try:
                f(other, f"P-{own}", session=session)
            except InProgressError:
                session.add(Order(id=20 + own))
                try:
                    session.commit()
                except (PendingRollbackError, DBAPIError):
                    session.rollback()
                    told[own] = "refused"
                return
            session.add(Order(id=20 + own))
            session.commit()
            told[own] = "done"

    threads = [threading.Thread(target=one, args=pair) for pair in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield from ()
    with shop.outside.connect() as connection:
        there = set(connection.scalars(select(Order.id).where(Order.id > 2)))
    for own in (1, 2):
        assert {10 + own, 20 + own} & there in (set(), {10 + own, 20 + own})
    assert "done" in told.values()


@on("postgres")
@sync_only
@pytest.mark.parametrize("end", ["commit", "rollback", "begin_nested"])
@driven
def test_a_reading_function_that_ends_the_transaction_leaves_a_session_that_works(
    shop: Shop, end: str
) -> Steps[None]:
    def body(order_id: int, payment: str, session: Any) -> Steps[None]:
        yield getattr(session, end)()

    shop.add(1)
    f = shop.function(body, ReadOnly("session"))
    with shop.sessions() as session:
        session.get(Order, 1)
        yield f(1, "P-1", session=session)
        session.get(Order, 1).note = "the caller's"
        session.commit()
    assert row(shop)[1] == "the caller's"


@every
@sync_only
@driven
def test_a_row_of_another_class_in_the_same_table_is_missing(shop: Shop) -> Steps[None]:
    """Single-table inheritance: the class that is meant is part of the question."""

    class Base(DeclarativeBase):
        pass

    class Paper(Base):
        __tablename__ = "papers"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        kind: Mapped[str] = mapped_column(String(20))
        status: Mapped[str] = mapped_column(String(20), default="pending")
        __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "paper"}  # noqa: RUF012

    class Invoice(Paper):
        __mapper_args__ = {"polymorphic_identity": "invoice"}  # noqa: RUF012

    class Reminder(Invoice):
        __mapper_args__ = {"polymorphic_identity": "reminder"}  # noqa: RUF012

    Base.metadata.drop_all(shop.outside)
    Base.metadata.create_all(shop.outside)
    with shop.sessions() as session:
        session.add_all([Paper(id=1), Invoice(id=2), Reminder(id=3)])
        session.commit()
    guard = StateGuard(
        Invoice.status, {Invoice.id: "{order_id}"}, {"pending": ["paid"]}, "paid", engine=shop.engine
    )
    f = shop.function(nothing, guard)
    yield from caught(RowMissingError, lambda: f(1, "P-1"))
    yield f(2, "P-2")
    yield f(3, "P-3")
    with shop.sessions() as session:
        states = {one.id: one.status for one in session.scalars(select(Paper))}
    assert states == {1: "pending", 2: "paid", 3: "paid"}
