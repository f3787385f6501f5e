"""Types and names that a guard must take as SQLAlchemy does: enums, types of the user's own, schemas, odd names."""

import enum
import uuid
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    Column,
    Enum,
    Index,
    Integer,
    MetaData,
    Numeric,
    String,
    Table,
    TypeDecorator,
    Uuid,
    insert,
    text,
)
from sqlalchemy.orm import registry

from idempo import ConfigurationError, KeyRefusedError, UniqueInsert
from idempo.steps import Steps
from tests.guards.support import OURS, SESSION, Shop, driven, everywhere, nothing, on, sync_only
from tests.traps.support import caught


class Text(enum.StrEnum):
    PENDING = "pending"
    PAID = "paid"


class Status(enum.Enum):
    PENDING = 1
    PAID = 2


class Aliased(enum.Enum):
    PENDING = "p"
    PAID = "d"
    SETTLED = "d"


class Number(TypeDecorator[Any]):
    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value.value

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else Status(value)


def life(shop: Shop, kind: Any, first: Any, no: Any = Integer, number: Any = 1) -> Any:
    lives = Table(
        f"life_{uuid.uuid4().hex[:8]}",
        MetaData(),
        Column("id", no, primary_key=True),
        Column("status", kind),
    )
    lives.metadata.create_all(shop.outside)
    with shop.outside.connect() as connection:
        connection.execute(insert(lives).values(id=number, status=first))
    return lives


@sync_only
@driven
def test_a_percent_sign_in_a_name_is_a_percent_sign(shop: Shop) -> Steps[None]:
    things = Table(
        "100% t", MetaData(), Column("id", Integer, primary_key=True), Column("%s", String(20), key="state")
    )
    things.metadata.drop_all(shop.outside)
    things.metadata.create_all(shop.outside)
    with shop.outside.connect() as connection:
        connection.execute(insert(things).values(id=1, state="pending"))
    f = shop.function(nothing, shop.guard(column=things.c.state, where={things.c.id: "{order_id}"}))
    yield f(1, "P-1")


@sync_only
@driven
def test_an_object_shows_the_member_of_the_enum_and_not_its_text(shop: Shop) -> Steps[None]:
    lives = life(
        shop, Enum(Text, native_enum=False, values_callable=lambda k: [o.value for o in k]), Text.PENDING
    )
    mapped: Any = type("Life", (), {})
    registry().map_imperatively(mapped, lives)
    for to in ("paid", Text.PAID):
        f = shop.function(
            nothing,
            shop.guard(
                column=mapped.status, where={mapped.id: "{order_id}"}, flow={"pending": ["paid"]}, to=to
            ),
            name=shop.name + repr(to),
        )
        with shop.sessions() as session:
            one = session.get(mapped, 1)
            yield f(1, "P-1", session=session)
            assert type(one.status) is Text
            session.rollback()


@sync_only
@driven
def test_states_of_a_type_of_the_users_own(shop: Shop) -> Steps[None]:
    lives = life(shop, Number(), Status.PENDING)
    f = shop.function(
        nothing,
        shop.guard(
            column=lives.c.status,
            where={lives.c.id: "{order_id}"},
            flow={Status.PENDING: [Status.PAID]},
            to=Status.PAID,
        ),
    )
    yield f(1, "P-1")


@sync_only
@driven
def test_an_enum_may_have_aliases(shop: Shop) -> Steps[None]:
    lives = life(shop, Enum(Aliased, native_enum=False, omit_aliases=False), Aliased.PENDING)
    f = shop.function(
        nothing,
        shop.guard(
            column=lives.c.status,
            where={lives.c.id: "{order_id}"},
            flow={Aliased.PENDING: [Aliased.PAID]},
            to=Aliased.PAID,
        ),
    )
    yield f(1, "P-1")


@sync_only
@driven
def test_a_text_is_no_uuid(shop: Shop) -> Steps[None]:
    no = uuid.uuid4()
    lives = life(shop, String(20), "pending", Uuid(), no)
    f = shop.function(
        nothing,
        shop.guard(column=lives.c.status, where={lives.c.id: "{order_id}"}),
    )
    for bad in (str(no), "x", 7):
        yield from shop.refused(SESSION, KeyRefusedError, f, bad, f"P-{bad}")
    yield f(no, "P-1")


@everywhere
@sync_only
@driven
def test_a_text_is_no_decimal(shop: Shop) -> Steps[None]:
    lives = life(shop, String(20), "pending", Numeric(10, 0), Decimal(7))
    f = shop.function(
        nothing,
        shop.guard(column=lives.c.status, where={lives.c.id: "{order_id}"}),
    )
    yield from shop.refused(OURS, KeyRefusedError, f, "7abc", "P-1")


@on("postgres")
@sync_only
@driven
def test_a_translated_schema_is_the_one_that_is_changed(shop: Shop) -> Steps[None]:
    with shop.outside.connect() as connection:
        connection.execute(text("CREATE SCHEMA IF NOT EXISTS tenant"))
        connection.execute(text("DROP TABLE IF EXISTS tenant.orders"))
        connection.execute(text("CREATE TABLE tenant.orders (LIKE orders INCLUDING ALL)"))
        connection.execute(
            text("INSERT INTO tenant.orders (id, status, version, note) VALUES (1, 'pending', 1, '')")
        )
    shop.add(1)
    engine = shop.engine.execution_options(schema_translate_map={None: "tenant"})
    UniqueInsert(engine).create_schema()
    f = shop.function(nothing, shop.guard(engine=engine))
    yield f(1, "P-1")
    assert shop.scalar("SELECT status FROM tenant.orders") == "paid"
    assert shop.row(1) == "pending"


@on("postgres", "sqlite")  # MariaDB has no such index
@sync_only
@driven
def test_a_unique_index_on_an_expression_names_no_row(shop: Shop) -> Steps[None]:
    lives = Table(
        f"life_{uuid.uuid4().hex[:8]}",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("a", String(20)),
        Column("b", String(20)),
        Column("status", String(20)),
    )
    Index("both" + lives.name, lives.c.a + lives.c.b, unique=True)
    lives.metadata.create_all(shop.outside)
    with shop.outside.connect() as connection:
        connection.execute(insert(lives).values(id=1, a="x", b="1", status="pending"))
        connection.execute(insert(lives).values(id=2, a="x", b="2", status="cancelled"))
    f = shop.function(
        nothing,
        shop.guard(column=lives.c.status, where={lives.c.a: "{order_id}"}),
    )
    yield from caught(ConfigurationError, lambda: f("x", "P-1"))
