"""The flow of `StateGuard`: where it comes from, what a column can hold, what is refused while decorating."""

import enum
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Enum,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    create_engine,
    insert,
    select,
)
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import aliased
from statemachine import State, StateMachine
from transitions import Machine

from idempo import (
    ColourMismatchError,
    CompositionError,
    ConfigurationError,
    KeyTemplateError,
    Memory,
    StateConflictError,
    StateGuard,
    UniqueInsert,
    idempotent,
)
from idempo.steps import Steps
from tests.guards.support import Order, Payment, Shop, driven, everywhere, pay, sync_only
from tests.traps.support import caught


class Status(enum.Enum):
    """Name, value and text differ, so that no two of them are confused."""

    PENDING = "p"
    PAID = "d"
    SHIPPED = "s"
    CANCELLED = "c"


class Text(enum.StrEnum):
    PENDING = "pending"
    PAID = "paid"
    SHIPPED = "shipped"
    CANCELLED = "cancelled"


class Level(enum.IntEnum):
    PENDING = 10
    PAID = 20
    SHIPPED = 30
    CANCELLED = 40


def flow_in(kind: type[enum.Enum], by: Callable[[Any], Any] = lambda state: state) -> dict[Any, Any]:
    pending, paid, shipped, cancelled = (by(kind[name]) for name in Status.__members__)
    return {pending: [paid, cancelled], paid: (shipped,), shipped: set(), cancelled: []}


def values_of(kind: type[enum.Enum]) -> list[str]:
    return [one.value for one in kind]


class Life(StateMachine):
    """As python-statemachine writes it. The value is what the column holds."""

    waiting = State("Waiting", value="pending", initial=True)
    paid = State("Paid", value="paid")
    shipped = State("Shipped", value="shipped", final=True)
    stopped = State("Stopped", value="cancelled", final=True)
    pay = waiting.to(paid)
    ship = paid.to(shipped)
    stop = waiting.to(stopped)


STATES = ["pending", "paid", "shipped", "cancelled"]
TRANSITIONS: list[Any] = [
    {"trigger": "pay", "source": "pending", "dest": "paid"},
    {"trigger": "ship", "source": "paid", "dest": "shipped"},
    {"trigger": "stop", "source": "pending", "dest": "cancelled"},
    {"trigger": "look", "source": "*", "dest": None},
]


def machine(**options: Any) -> Machine:
    return Machine(states=STATES, initial="pending", transitions=TRANSITIONS, **options)


def machine_of(kind: type[enum.Enum]) -> Machine:
    by_name = {name: kind[name.upper()] for name in STATES}
    transitions = [
        {"trigger": one["trigger"], "source": by_name[str(one["source"])], "dest": by_name[str(one["dest"])]}
        for one in TRANSITIONS
        if one["dest"]
    ]
    return Machine(states=kind, initial=by_name["pending"], transitions=transitions)


# ------------------------------------------------------------------------ every kind of flow, every kind of column


def table(kind: Any) -> Table:
    return Table(
        f"life_{uuid.uuid4().hex[:8]}",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("status", kind),
    )


TEXT: Any = String(20)
NAMED = Enum(Status, name="by_name", native_enum=False)
VALUED = Enum(Status, name="by_value", native_enum=False, values_callable=values_of)
NATIVE = Enum(Status, name="native", values_callable=values_of)
LETTERS = Enum("pending", "paid", "shipped", "cancelled", name="letters")
SHORT = {"pending": ["paid", "cancelled"], "paid": ["shipped"]}
PLAIN = {state: state for state in STATES}
NUMBERS = {name.lower(): int(member) for name, member in Level.__members__.items()}
MEMBERS = {name.lower(): member for name, member in Status.__members__.items()}
VALUES = {name: member.value for name, member in MEMBERS.items()}

# What the column is; the flow; `to`; what the row holds, as SQLAlchemy reads it, for each of STATES.
KINDS: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
    "a dict of texts": (TEXT, SHORT, "paid", PLAIN),
    "a StrEnum, a column of texts": (TEXT, flow_in(Text), Text.PAID, PLAIN),
    "a StrEnum, `to` by its text": (TEXT, flow_in(Text), "paid", PLAIN),
    "an Enum, a column of texts": (TEXT, flow_in(Status), Status.PAID, VALUES),
    "an Enum, a column of its names": (NAMED, flow_in(Status), Status.PAID, MEMBERS),
    "names, a column of an Enum": (NAMED, flow_in(Status, lambda one: one.name), "PAID", MEMBERS),
    "an Enum, a column of its values": (VALUED, flow_in(Status), Status.PAID, MEMBERS),
    "values, a column of an Enum": (VALUED, flow_in(Status, lambda one: one.value), "d", MEMBERS),
    "an Enum, a type of the database": (NATIVE, flow_in(Status), Status.PAID, MEMBERS),
    "values, a type of the database": (NATIVE, flow_in(Status, lambda one: one.value), "d", MEMBERS),
    "a type of the database without a class": (LETTERS, SHORT, "paid", PLAIN),
    "numbers": (Integer(), {10: [20, 40], 20: [30]}, 20, NUMBERS),
    "an IntEnum, a column of numbers": (
        SmallInteger(),
        flow_in(Level),
        Level.PAID,
        NUMBERS,
    ),
    "a StateMachine": (TEXT, Life, "paid", PLAIN),
    "a started StateMachine": (TEXT, Life(), "paid", PLAIN),
    "a Machine": (TEXT, machine(), "paid", PLAIN),
    "a Machine without automatic events": (TEXT, machine(auto_transitions=False), "paid", PLAIN),
    "a Machine of an Enum": (NAMED, machine_of(Status), Status.PAID, MEMBERS),
    "a Machine of an Enum, a column of texts": (TEXT, machine_of(Text), "paid", PLAIN),
}


@sync_only
@pytest.mark.parametrize("kind", list(KINDS))
@driven
def test_the_four_verdicts_are_right_for_every_kind_of_flow_and_column(shop: Shop, kind: str) -> Steps[None]:
    """And what is written is what SQLAlchemy itself reads there."""
    column, flow, to, held = KINDS[kind]
    lives = table(column)
    lives.metadata.create_all(shop.outside)
    try:
        with shop.outside.connect() as connection:
            for number, state in enumerate(STATES, 1):
                connection.execute(insert(lives).values(id=number, status=held[state]))
        where = {lives.c.id: "{order_id}"}
        guard = StateGuard(lives.c.status, where, flow, to, engine=shop.engine)

        def body(order_id: int, payment: str, session: Any) -> Steps[None]:
            found = yield session.scalar(select(lives.c.status).where(lives.c.id == order_id))
            assert found == held["paid"]

        f = shop.function(body, guard)
        yield f(1, "P-1")
        verdicts = []
        for number in (2, 3, 4):
            error = yield from caught(StateConflictError, lambda: f(number, f"P-{number}"))  # noqa: B023
            assert error.state == held[STATES[number - 1]]
            verdicts.append(error.verdict)
        assert verdicts == ["already", "superseded", "illegal"]
        with shop.outside.connect() as connection:
            rows = connection.execute(select(lives.c.status).order_by(lives.c.id)).scalars().all()
        assert rows == [held["paid"], held["paid"], held["shipped"], held["cancelled"]]
    finally:
        lives.metadata.drop_all(shop.outside)


# ------------------------------------------------------------------------ refused while decorating

DATABASE = create_engine("sqlite:///shop.db")
ELSEWHERE = create_engine("sqlite:///other.db")
HERE: Any = {Order.id: "{order_id}"}
CYCLE = {"pending": ["paid"], "paid": ["shipped"], "shipped": ["pending"]}


def guarded(**options: Any) -> StateGuard:
    terms: Any = {"column": Order.status, "where": HERE, "flow": SHORT, "to": "paid", "engine": DATABASE}
    return StateGuard(**(terms | options))


def of(column: Any, flow: Any, to: Any) -> StateGuard:
    lives = table(column)
    return StateGuard(lives.c.status, {lives.c.id: "{order_id}"}, flow, to, engine=DATABASE)


class Nested(StateMachine):
    class inner(State.Compound):
        first = State(initial=True)

    last = State(final=True)
    go = inner.to(last)


CONSTRUCTED: dict[str, tuple[Callable[[], Any], str]] = {
    "a target that is no state": (lambda: guarded(to="refunded"), "'refunded' is no state of the flow"),
    "a target that nothing leads to": (lambda: guarded(to="pending"), "cannot be reached"),
    "no target": (lambda: guarded(to=None), "None is no state"),
    "a flow without transitions": (lambda: guarded(flow={"pending": [], "paid": []}), "no transition"),
    "an empty flow": (lambda: guarded(flow={}), "no transition"),
    "a flow that is none": (lambda: guarded(flow=["pending", "paid"]), "takes a mapping"),
    "a text instead of a list": (lambda: guarded(flow={"pending": "paid"}), "write a list"),
    "a machine of machines": (lambda: guarded(flow=Nested, to="last"), "flat machine"),
    "a number for a column of texts": (lambda: guarded(flow={1: [2]}, to=2), "is no state of orders.status"),
    "a target of another kind": (lambda: guarded(to=1), "1 is no state of orders.status"),
    "texts for a column of numbers": (lambda: of(Integer(), SHORT, "paid"), "'paid' is no state"),
    "truth for a column of numbers": (lambda: of(Integer(), {0: [True]}, 1), "True is no state"),
    "an Enum of texts for a column of numbers": (
        lambda: of(Integer(), flow_in(Text), Text.PAID),
        "is no state",
    ),
    "a name that the Enum does not have": (lambda: of(NAMED, {"PENDING": ["PAYED"]}, "PAYED"), "'PAYED'"),
    "a text that the type does not have": (lambda: of(LETTERS, SHORT | {"paid": ["gone"]}, "paid"), "'gone'"),
    "another Enum": (lambda: of(NAMED, flow_in(Level), Level.PAID), "which knows 'PENDING'"),
    "a state that is nothing": (lambda: guarded(flow={"pending": ["paid"], None: ["pending"]}), "None"),
    "a where of another table": (lambda: guarded(where={Payment.id: "{order_id}"}), "payments.id"),
    "no where": (lambda: guarded(where={}), "where="),
    "a where that is no mapping": (lambda: guarded(where="{order_id}"), "where="),
    "a where that names no column": (lambda: guarded(where={"id": "{order_id}"}), "mapped attribute"),
    "a column that is none": (lambda: guarded(column="status"), "mapped attribute"),
    "a column of nothing": (lambda: guarded(column=Column("status", TEXT)), "mapped attribute"),
    "a relation that is an alias": (lambda: guarded(column=aliased(Order).status), "mapped attribute"),
    "an engine that is none": (lambda: guarded(engine=7), "takes a URL"),
    "a join that is no name": (lambda: guarded(join="the session"), "no name of a parameter"),
}


@pytest.mark.parametrize("mistake", list(CONSTRUCTED))
def test_what_cannot_work_is_refused_while_it_is_made(mistake: str) -> None:
    make, reason = CONSTRUCTED[mistake]
    with pytest.raises(ConfigurationError) as refused:
        make()
    assert reason in str(refused.value)


def plain(order_id: int, payment: str, session: Any = None) -> int:
    return 1


def without_session(order_id: int, payment: str) -> int:
    return 1


async def coroutine(order_id: int, payment: str, session: Any = None) -> int:
    return 1


async def slow_answer(state: str) -> int:
    return 1


def mixed(order_id: int, payment: str, session: AsyncSession | None = None) -> int:
    return 1


DECORATED: dict[str, tuple[Callable[[], Any], Any, type[Exception], str]] = {
    "a where template that names no parameter": (
        lambda: guarded(where={Order.id: "{order_no}"}), plain, KeyTemplateError, "order_no",
    ),
    "a where template without a field": (
        lambda: guarded(where={Order.id: "order_id"}), plain, KeyTemplateError, "order_id",
    ),
    "a where that is no template": (
        lambda: guarded(where={Order.id: 7}), plain, ConfigurationError, "template",
    ),
    "a join that names no parameter, and no engine": (
        lambda: guarded(engine=None), without_session, CompositionError, "no engine= was given",
    ),
    "a flow that leads back, and no ledger": (
        lambda: guarded(flow=CYCLE), plain, CompositionError, "UniqueInsert(join='session')",
    ),
    "a state that leads to itself, and no ledger": (
        lambda: guarded(flow={"pending": ["paid"], "paid": ["paid"]}), plain, CompositionError, "back to 'paid'",
    ),
    "a guard before the ledger": (
        lambda: [guarded(), Memory()], plain, CompositionError, "write Memory, StateGuard",
    ),
    "a guard in another parameter than the record": (
        lambda: [UniqueInsert(DATABASE, join="session"), guarded(join="payment")], plain, CompositionError,
        "another parameter",
    ),
    "a guard in another database than the record": (
        lambda: [UniqueInsert(ELSEWHERE, join="session"), guarded()], plain, CompositionError, "two databases",
    ),
    "two guards in two databases": (
        lambda: [guarded(), guarded(engine=ELSEWHERE)], plain, CompositionError, "two databases",
    ),
    "two guards in two parameters": (
        lambda: [guarded(), guarded(join="payment")], plain, CompositionError, "another parameter",
    ),
    "an answer that cannot be stored": (
        lambda: guarded(already=object()), plain, ConfigurationError, "already=",
    ),
    "an async answer of a plain function": (
        lambda: guarded(already=slow_answer), plain, ConfigurationError, "async already=",
    ),
    "a sync engine under async def": (guarded, coroutine, ColourMismatchError, "sync engine"),
    "an async engine under def": (
        lambda: guarded(engine=create_async_engine("sqlite+aiosqlite:///shop.db")), plain, ColourMismatchError,
        "async",
    ),
    "an async session under def": (guarded, mixed, ColourMismatchError, "AsyncSession"),
    "the class instead of a guard": (lambda: StateGuard, plain, CompositionError, "the class StateGuard"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", list(DECORATED))
def test_what_does_not_fit_the_function_is_refused_while_decorating(mistake: str) -> None:
    using, function, kind, reason = DECORATED[mistake]
    with pytest.raises(kind) as refused:
        idempotent(key="{payment}", using=using())(function)
    assert isinstance(refused.value, ConfigurationError)
    assert reason in str(refused.value)


@driven
def test_a_flow_that_leads_back_is_fine_with_a_ledger_that_knows_the_key(shop: Shop) -> Steps[None]:
    """A late repeat replays, although the row could go there once more; a new key takes it there once more."""
    shop.add(1)
    using = [UniqueInsert(shop.engine, join="session"), shop.guard(flow=CYCLE)]
    f = shop.function(pay, using)
    yield f(1, "P-1")
    shop.put(1, status="pending")
    assert (yield f.outcome(1, "P-1")).replayed
    assert (shop.row(1), shop.payments(1)) == ("pending", 1)
    assert not (yield f.outcome(1, "P-2")).replayed
    assert (shop.row(1), shop.payments(1)) == ("paid", 2)


@everywhere
@driven
def test_a_state_that_leads_to_itself_is_entered_again_by_each_new_key(shop: Shop) -> Steps[None]:
    shop.add(1)
    flow = {"pending": ["paid"], "paid": ["paid"]}
    f = shop.function(pay, [UniqueInsert(shop.engine, join="session"), shop.guard(flow=flow)])
    for number in range(3):
        for _ in range(2):
            yield f(1, f"P-{number}")
    assert (shop.row(1), shop.payments(1)) == ("paid", 3)
