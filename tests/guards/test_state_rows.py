"""Which row a guard means: many that match, what makes one unique, odd names of tables and columns."""

from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    insert,
    select,
    text,
)
from sqlalchemy.orm import registry

from idempo import ConfigurationError, RowMissingError, StateConflictError
from idempo.steps import Steps
from tests.guards.support import (
    OURS,
    SESSION,
    Order,
    Shop,
    callers,
    driven,
    everywhere,
    nothing,
    on,
    pay,
    sync_only,
)
from tests.traps.support import caught

# ------------------------------------------------------------------------ many rows


@everywhere
@callers
@driven
def test_a_where_that_matches_many_rows_is_refused_and_changes_none(shop: Shop, caller: str) -> Steps[None]:
    """Whatever states they are in, so that it does not depend on the day."""
    f = shop.function(pay, shop.guard(where={Order.note: "{payment}"}))
    for number, (first, second) in enumerate(
        [("pending", "pending"), ("pending", "paid"), ("cancelled", "pending"), ("paid", "paid")]
    ):
        one, two = 10 + number, 20 + number
        shop.add(one, status=first, note=f"P-{number}")
        shop.add(two, status=second, note=f"P-{number}")
        error = yield from shop.refused(caller, ConfigurationError, f, one, f"P-{number}")
        assert "several rows of orders" in str(error)
        assert (shop.row(one), shop.row(two)) == (first, second)
        assert (yield f.lookup(one, f"P-{number}")) is None
        assert shop.payments(one) == 0


@driven
def test_a_where_that_is_not_unique_by_its_columns_may_match_one_row(shop: Shop) -> Steps[None]:
    shop.add(1, note="P-1")
    shop.add(2, note="P-2")
    f = shop.function(pay, shop.guard(where={Order.note: "{payment}"}))
    yield f(1, "P-1")
    assert (shop.row(1), shop.row(2)) == ("paid", "pending")
    yield from caught(RowMissingError, lambda: f(1, "P-3"))


@driven
def test_unique_constraints_that_the_database_does_not_have_do_not_let_two_rows_change(
    shop: Shop,
) -> Steps[None]:
    """The models say that notes are unique; the table of the database has been made without."""
    wrong = Table(
        "orders",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("status", String(20)),
        Column("note", String(100), unique=True),
    )
    shop.add(1, 2, note="P-1")
    f = shop.function(pay, shop.guard(column=wrong.c.status, where={wrong.c.note: "{payment}"}))
    for caller in (OURS, SESSION):
        yield from shop.refused(caller, ConfigurationError, f, 1, "P-1")
        assert (shop.row(1), shop.row(2)) == ("pending", "pending")


@driven
def test_one_of_two_columns_of_a_unique_constraint_names_no_row(shop: Shop) -> Steps[None]:
    """A whole constraint does, and a unique index."""
    lines = Table(
        "lines",
        MetaData(),
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("order_no", Integer),
        Column("line", Integer),
        Column("code", Integer),
        Column("status", String(20)),
        UniqueConstraint("order_no", "line", name="one_line"),
        Index("one_code", "code", unique=True),
    )
    lines.metadata.create_all(shop.outside)
    try:
        with shop.outside.connect() as connection:
            for number in (1, 2):
                values = {"id": number, "order_no": 1, "line": number, "code": number, "status": "pending"}
                connection.execute(insert(lines).values(values))
        wheres: list[Any] = [
            {lines.c.order_no: "{order_id}"},
            {lines.c.order_no: lambda order_id: 1, lines.c.line: "{order_id}"},
            {lines.c.code: "{order_id}"},
        ]
        some, whole, index = (
            shop.function(nothing, shop.guard(column=lines.c.status, where=one), name=f"{shop.name}.{number}")
            for number, one in enumerate(wheres)
        )
        yield from caught(ConfigurationError, lambda: some(1, "P-1"))
        yield whole(1, "P-1")
        yield index(2, "P-2")
        with shop.outside.connect() as connection:
            assert connection.execute(select(lines.c.status)).scalars().all() == ["paid", "paid"]
    finally:
        lines.metadata.drop_all(shop.outside)


# ------------------------------------------------------------------------ odd names


@everywhere
@sync_only
@pytest.mark.parametrize(
    ("table", "where", "column"),
    [
        ("select", "order", "where"),
        ("Orders: it's", ":id two words", "MixedCase"),
        ("a:b", "q?", ":status"),
        ("old_0", "new", "w_0"),
    ],
)
@driven
def test_tables_and_columns_may_have_any_name(shop: Shop, table: str, where: str, column: str) -> Steps[None]:
    """As Core columns and as mapped attributes."""
    things = Table(
        table,
        MetaData(),
        Column(where, BigInteger, primary_key=True, autoincrement=False, key="number"),
        Column(column, String(20), key="state"),
    )
    mapped: Any = type("Thing", (), {})
    registry().map_imperatively(mapped, things, properties={"status": things.c.state})
    things.metadata.create_all(shop.outside)
    try:
        with shop.outside.connect() as connection:
            for number in (1, 2):
                connection.execute(insert(things).values(number=number, state="pending"))
        guards = [
            shop.guard(column=things.c.state, where={things.c.number: "{order_id}"}),
            shop.guard(column=mapped.status, where={mapped.number: "{order_id}"}),
        ]
        for number, guard in enumerate(guards, 1):
            f = shop.function(nothing, guard, name=f"{shop.name}.{number}")
            yield f(number, "P-1")
            error = yield from caught(StateConflictError, lambda: f(number, "P-2"))  # noqa: B023
            assert error.verdict == "already"
        with shop.outside.connect() as connection:
            assert connection.execute(select(things.c.state)).scalars().all() == ["paid", "paid"]
    finally:
        things.metadata.drop_all(shop.outside)


@on("postgres")
@driven
def test_a_table_in_a_schema_of_its_own(shop: Shop) -> Steps[None]:
    things = Table(
        "orders",
        MetaData(schema="Other Schema"),
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("status", String(20)),
    )
    with shop.outside.connect() as connection:
        connection.execute(text('CREATE SCHEMA IF NOT EXISTS "Other Schema"'))
    things.metadata.create_all(shop.outside)
    try:
        with shop.outside.connect() as connection:
            connection.execute(insert(things).values(id=1, status="pending"))
        shop.add(1)
        f = shop.function(nothing, shop.guard(column=things.c.status, where={things.c.id: "{order_id}"}))
        yield f(1, "P-1")
        with shop.outside.connect() as connection:
            assert connection.scalar(select(things.c.status)) == "paid"
        assert shop.row(1) == "pending"
    finally:
        things.metadata.drop_all(shop.outside)
