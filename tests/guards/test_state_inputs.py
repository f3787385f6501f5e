"""What a call of a guarded function can bring along: wrong values, many rows, other databases, odd names."""

from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    String,
    Table,
    text,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from idempo import (
    ConfigurationError,
    KeyRefusedError,
    RowMissingError,
)
from idempo.steps import Steps
from tests.guards.support import (
    SESSION,
    Order,
    Shop,
    callers,
    create_tables,
    driven,
    everywhere,
    nothing,
    pay,
    their_own,
)
from tests.traps.support import caught

FLOW = {"pending": ["paid", "cancelled"], "paid": ["shipped"]}

# ------------------------------------------------------------------------ values that do not fit


@everywhere
@callers
@driven
def test_a_value_that_does_not_fit_its_column_is_refused_before_the_database_could_guess(
    shop: Shop, caller: str
) -> Steps[None]:
    """MySQL takes '7abc' and 7.9 for 7, and every other text for 0."""
    shop.add(0, 1, 7)
    f = shop.function(pay)
    for number, value in enumerate((None, "7abc", "7", "", "abc", True, 7.0, [7])):
        error = yield from shop.refused(caller, KeyRefusedError, f, value, f"P-{number}")
        assert (error.ran, error.operation, error.key) == (False, shop.name, f"P-{number}")
        assert "orders.id" in str(error)
        assert type(value).__name__ in str(error) or value is None
        assert (yield f.lookup(value, f"P-{number}")) is None
    assert [shop.row(one) for one in (0, 1, 7)] == ["pending"] * 3


@callers
@driven
def test_a_number_is_no_text(shop: Shop, caller: str) -> Steps[None]:
    """MySQL compares a column of texts with the number 0 as numbers: every text matches."""
    shop.add(1, note="abc")
    where = {Order.id: lambda order_id: 1, Order.note: "{order_id}"}
    f = shop.function(nothing, shop.guard(where=where))
    for value in (0, None, 1.0, b"abc"):
        yield from shop.refused(caller, KeyRefusedError, f, value, f"P-{value!r}")
    assert shop.row(1) == "pending"
    yield from shop.call(caller, f, "abc", "P-1")
    assert shop.row(1) == "paid"


@callers
@driven
def test_what_a_callable_in_where_raises_leaves_no_trace(shop: Shop, caller: str) -> Steps[None]:
    def broken(order_id: int) -> int:
        raise LookupError(order_id)

    shop.add(1)
    f = shop.function(pay, shop.guard(where={Order.id: broken}))
    yield from shop.refused(caller, Exception, f, 1, "P-1")
    assert (yield f.lookup(1, "P-1")) is None
    assert shop.row(1) == "pending"


@driven
def test_a_longer_template_is_a_text(shop: Shop) -> Steps[None]:
    shop.add(1, note="A-1/x")
    shop.add(2, note="A-2/x")
    where = {Order.id: "{order_id}", Order.note: "A-{order_id}/x"}
    f = shop.function(pay, shop.guard(where=where))
    yield f(1, "P-1")
    assert (shop.row(1), shop.row(2)) == ("paid", "pending")
    shop.put(2, note="A-1/x")
    yield from caught(RowMissingError, lambda: f(2, "P-2"))
    assert shop.row(2) == "pending"


# ------------------------------------------------------------------------ other databases


@their_own
@driven
def test_a_session_of_a_database_without_the_table_is_told_so(
    shop: Shop, caller: str, tmp_path: Path
) -> Steps[None]:
    shop.add(1)
    other = Shop(f"sqlite:///{tmp_path}/other.db", shop.colour)
    f = shop.function(pay)
    with other.outside.connect() as connection:
        connection.execute(text("CREATE TABLE elsewhere (id INTEGER)"))

    def work() -> Steps[Any]:
        holder = other.sessions() if caller == SESSION else other.engine.connect()
        if caller != SESSION and shop.colour == "async":
            holder = yield holder
        try:
            yield holder.execute(text("INSERT INTO elsewhere VALUES (1)"))
            error = yield from caught(ConfigurationError, lambda: f(1, "P-1", session=holder))
            yield holder.commit()
            return error
        finally:
            yield holder.close()

    try:
        error = yield from work()
        assert "another database" in str(error)
        assert "orders" in str(error)
        assert shop.row(1) == "pending"
        assert other.scalar("SELECT count(*) FROM elsewhere") == 1
        assert (yield f.lookup(1, "P-1")) is None
    finally:
        yield from other.close()


@driven
def test_a_session_that_keeps_row_and_record_in_two_databases_is_refused(
    shop: Shop, tmp_path: Path
) -> Steps[None]:
    """By its binds=: nothing could change both at once."""
    url = f"sqlite:///{tmp_path}/other.db"
    create_tables(url)
    other = Shop(url, shop.colour)
    shop.add(1)
    other.add(1)
    f = shop.function(pay)
    kind: Any = Session if shop.colour == "sync" else AsyncSession
    session = kind(shop.engine, binds={Order: other.engine})
    try:
        error = yield from caught(ConfigurationError, lambda: f(1, "P-1", session=session))
        yield session.commit()
    finally:
        yield session.close()
    try:
        assert "two databases" in str(error)
        assert (shop.row(1), other.row(1)) == ("pending", "pending")
        assert (yield f.lookup(1, "P-1")) is None
    finally:
        yield from other.close()


@callers
@driven
def test_a_column_that_the_database_does_not_have_is_a_typed_error(shop: Shop, caller: str) -> Steps[None]:
    """A migration is missing. The caller's earlier writes survive."""
    newer = Table(
        "orders", MetaData(), Column("id", Integer, primary_key=True), Column("condition", String(20))
    )
    shop.add(1)
    f = shop.function(pay, shop.guard(column=newer.c.condition, where={newer.c.id: "{order_id}"}))
    error = yield from shop.refused(caller, ConfigurationError, f, 1, "P-1")
    assert "migration" in str(error)
    assert error.__cause__ is not None
    assert error.ran is False
