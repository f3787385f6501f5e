"""`SelectForUpdate`: locks by key alone, judges, hands over; what is missing is missing, and nobody waits for ever."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import ForeignKey, String, create_engine, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.pool import NullPool

from idempo import (
    CompositionError,
    ConfigurationError,
    InProgressError,
    KeyRefusedError,
    RowMissingError,
    SelectForUpdate,
    StateConflictError,
    VersionCheck,
    VersionConflictError,
    idempotent,
)
from idempo.contracts import Strategy
from idempo.steps import Steps
from idempo.testing import Effects, Gate
from tests.faults.proxy import Proxy
from tests.guards.support import (
    CONNECTION,
    SESSION,
    Declined,
    Order,
    Payment,
    Shop,
    callers,
    driven,
    everywhere,
    nothing,
    on,
    pay,
    sync_only,
    their_own,
)
from tests.guards.support_rows import HERE, PLACES, RowPromises, handed, lock, versioned
from tests.servers import Server
from tests.test_round_trips import counted, ending
from tests.traps.support import Running, calling, caught, until

servers = on("postgres", "mariadb")
WAITING = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
    "AND wait_event_type = 'Lock'",
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = database() "
    "AND info LIKE '%FOR UPDATE%' AND command <> 'Sleep' AND id <> connection_id() AND time_ms > 20",
}


def waiting(shop: Shop) -> Any:
    """How many calls wait for a row now."""
    return shop.scalar(WAITING[shop.outside.dialect.name])


def paid(row: Any) -> bool:
    return bool(row.status == "paid")


def look(row: Any, session: Any) -> Steps[tuple[str, int, str, int]]:
    """What was handed over."""
    yield from ()
    return type(row).__name__, row.id, row.status, row.version


# ------------------------------------------------------------------------ lock, judge, hand over


@everywhere
@callers
@pytest.mark.parametrize("target", [Order, Order.__table__])
@driven
def test_the_locked_row_is_handed_over_and_callers_leave_it_out(
    shop: Shop, caller: str, target: Any
) -> Steps[None]:
    """An object of the mapped class with a session, otherwise a Row. A repeat replays, whatever the row has become."""
    shop.add(1, 2, version=7)
    column = Order.id if target is Order else target.c.id
    f = handed(shop, look, lock(shop, target=target, where={column: "{order_id}"}, into="row"))
    kind = "Row" if caller == CONNECTION or target is not Order else "Order"
    assert (yield from shop.call(caller, f, 1, "P-1")) == (kind, 1, "pending", 7)
    shop.put(1, version=8)
    outcome = yield from shop.outcome(caller, f, 1, "P-1")
    assert (outcome.replayed, tuple(outcome.value)) == (True, (kind, 1, "pending", 7))
    assert (yield from shop.call(caller, f, 1, "P-2")) == (kind, 1, "pending", 8)


@callers
@driven
def test_an_object_that_is_handed_over_is_changed_in_the_same_transaction(
    shop: Shop, caller: str
) -> Steps[None]:
    def body(row: Any, session: Any) -> Steps[int]:
        if caller == CONNECTION:
            yield session.execute(update(Order).where(Order.id == row.id).values(version=row.version + 1))
        else:
            assert row in session
            row.version += 1
        return 1

    shop.add(1)
    f = handed(shop, body)
    for number in (1, 2, 3):
        for _ in range(2):
            yield from shop.call(caller, f, 1, f"P-{number}")
        assert shop.row(1, Order.version) == number + 1


@callers
@driven
def test_a_row_in_another_state_is_judged_and_not_called_missing(shop: Shop, caller: str) -> Steps[None]:
    """Another key's work: a typed refusal, or the answer. The function does not run, and the row is as it was."""
    shop.add(1, status="paid")
    shop.add(2)
    refusing = shop.function(pay, lock(shop, done=paid))
    error = yield from shop.refused(caller, StateConflictError, refusing, 1, "P-1")
    assert (error.verdict, error.ran, error.key) == ("already", False, "P-1")
    assert (yield refusing.lookup(1, "P-1")) is None
    yield from shop.call(caller, refusing, 2, "P-2")
    assert (shop.payments(1), shop.payments(2)) == (0, 1)


@callers
@driven
def test_an_answer_is_the_first_result_of_a_key_that_came_too_late(shop: Shop, caller: str) -> Steps[None]:
    """A value, or what a callable makes of the row. Repeats replay it, although the row moves on."""

    def answer(row: Any) -> dict[str, Any]:
        return {"was": row.status}

    async def slow_answer(row: Any) -> dict[str, Any]:
        return answer(row)

    async def slow_paid(row: Any) -> bool:
        return paid(row)

    ways: list[tuple[Any, Any]] = [({"was": "paid"}, paid), (answer, paid)]
    ways += [(slow_answer, slow_paid)] * (shop.colour == "async")
    for order, (way, judge) in enumerate(ways):
        shop.add(order, status="paid")
        f = shop.function(pay, lock(shop, done=judge, answer=way), name=f"{shop.name}.{order}")
        for replayed in (False, True):
            outcome = yield from shop.outcome(caller, f, order, "P-1")
            assert (outcome.replayed, outcome.value) == (replayed, {"was": "paid"})
            shop.put(order, status="pending")
        assert shop.payments(order) == 0


@driven
def test_falsy_answers_are_answers_and_what_done_raises_is_the_callers(shop: Shop) -> Steps[None]:
    def broken(row: Any) -> bool:
        raise Declined(row.status)

    shop.add(1, status="paid")
    answers: list[Any] = [None, 0, "", False]
    for number, answer in enumerate(answers):
        f = shop.function(pay, lock(shop, done=paid, answer=answer), name=f"{shop.name}.{number}")
        assert (yield f(1, "P-1")) is answer or answer == ""
    g = shop.function(pay, lock(shop, done=broken), name=f"{shop.name}.broken")
    error = yield from shop.refused(SESSION, Declined, g, 1, "P-1")
    assert error.args == ("paid",)
    assert (yield g.lookup(1, "P-1")) is None


@everywhere
@callers
@driven
def test_a_missing_row_is_an_error_and_no_call_without_a_lock(shop: Shop, caller: str) -> Steps[None]:
    shop.add(1)
    f = shop.function(pay, lock(shop))
    error = yield from shop.refused(caller, RowMissingError, f, 2, "P-2")
    assert (error.ran, error.key) == (False, "P-2")
    assert "id={order_id}" in str(error)
    assert (yield f.lookup(2, "P-2")) is None
    shop.add(2)
    yield from shop.call(caller, f, 2, "P-2")
    assert (shop.payments(1), shop.payments(2)) == (0, 1)


@driven
def test_the_row_is_no_part_of_the_fingerprint(shop: Shop) -> Steps[None]:
    """Nor do callers fill it in: what they pass is replaced."""
    shop.add(1)
    f = handed(shop, look)
    first = yield f(1, "P-1")
    outcome = yield f.outcome(1, "P-1", None, "something else")
    assert (outcome.replayed, tuple(outcome.value)) == (True, first)
    assert (yield f(1, "P-2", None, "something else"))[1:] == (1, "pending", 1)


@callers
@driven
def test_several_rows_are_refused_and_so_is_a_value_that_the_database_would_guess(
    shop: Shop, caller: str
) -> Steps[None]:
    shop.add(1, 2, note="both")
    f = shop.function(pay, lock(shop, where={Order.note: "{order_id}"}))
    yield from shop.refused(caller, ConfigurationError, f, "both", "P-1")
    g = shop.function(pay, lock(shop), name=f"{shop.name}.values")
    for value in (None, "1", True, 1.0):
        yield from shop.refused(caller, KeyRefusedError, g, value, f"P-{value}")


@sync_only
@driven
def test_two_guards_judge_one_after_the_other(shop: Shop) -> Steps[None]:
    shop.add(1)
    check = VersionCheck(Order.version, HERE, expected=lambda payment: int(payment[-1]), engine=shop.engine)
    f = shop.function(pay, [lock(shop, done=paid), check])
    yield f(1, "P-1")
    yield from caught(VersionConflictError, lambda: f(1, "P-5"))
    assert (shop.row(1, Order.version), shop.payments(1)) == (2, 1)


# ------------------------------------------------------------------------ the present row


@on("mariadb", "mysql")
@their_own
@driven
def test_the_row_is_the_present_one_under_an_old_snapshot(shop: Shop, caller: str) -> Steps[None]:
    """InnoDB's REPEATABLE READ shows an older one to a read that does not lock."""
    shop.add(1)
    f = handed(shop, look)

    def work(holder: Any) -> Steps[None]:
        seen = yield holder.execute(select(Order.status).where(Order.id == 1))
        assert seen.scalar() == "pending"
        shop.put(1, status="paid", version=9)
        assert (yield f(1, "P-1", session=holder))[2:] == ("paid", 9)

    yield from shop.within(caller, work)


@servers
@driven
def test_a_session_that_has_loaded_the_row_before_gets_the_present_one(shop: Shop) -> Steps[None]:
    shop.add(1)
    f = handed(shop, look)

    def work(session: Any) -> Steps[None]:
        order = yield session.get(Order, 1)
        shop.put(1, status="paid", version=9)
        assert (yield f(1, "P-1", session=session))[2:] == ("paid", 9)
        assert (order.status, order.version) == ("paid", 9)

    yield from shop.within(SESSION, work)


@driven
def test_what_the_caller_has_not_sent_yet_is_not_lost(shop: Shop) -> Steps[None]:
    shop.add(1)
    f = handed(shop, look)

    def work(session: Any) -> Steps[None]:
        order = yield session.get(Order, 1)
        order.status = "packed"
        assert (yield f(1, "P-1", session=session))[2] == "packed"

    yield from shop.within(SESSION, work)
    assert shop.row(1) == "packed"


# ------------------------------------------------------------------------ turns


def adding(shop: Shop, effects: Effects) -> Any:
    """A body that would lose updates without a lock: reads, and writes what it has read, plus one."""

    def body(row: Any, session: Any) -> Steps[int]:
        effects.add("run")
        found = row.version
        yield session.execute(update(Order).where(Order.id == row.id).values(version=found + 1))
        return int(found)

    return body


@driven
def test_calls_for_one_row_take_turns(shop: Shop) -> Steps[None]:
    """On SQLite too: its transaction is the one that writes, from the beginning."""
    effects = Effects()
    shop.add(1)
    f = handed(shop, adding(shop, effects))
    calls = [calling(lambda number=number: f(1, f"P-{number}")) for number in range(5)]  # type: ignore[misc]
    found = yield from Running(shop.colour, calls).results()
    assert sorted(found) == [1, 2, 3, 4, 5]
    assert (shop.row(1, Order.version), len(effects)) == (6, 5)


def holding(shop: Shop, order: int, work: Any) -> Steps[Any]:
    """Do `work` while another transaction holds the row."""
    other = shop.sessions()
    try:
        yield other.execute(update(Order).where(Order.id == order).values(note="held"))
        return (yield from work())
    finally:
        yield other.rollback()
        yield other.close()


SETTING = {
    "postgresql": "SELECT current_setting('lock_timeout')",
    "mysql": "SELECT @@innodb_lock_wait_timeout",
    "mariadb": "SELECT @@innodb_lock_wait_timeout",
}


@servers
@callers
@pytest.mark.parametrize("how", [{"nowait": True}, {"timeout": 0.2}])
@driven
def test_a_row_that_another_transaction_holds_is_in_progress_after_the_time_to_wait(
    shop: Shop, caller: str, how: dict[str, Any]
) -> Steps[None]:
    """Nothing runs, the caller's writes and his own limit are as before, the key is free, another row is at hand."""
    shop.add(1, 2)
    f = shop.function(pay, lock(shop, **how))
    asked = text(SETTING[shop.engine.dialect.name])

    def work(holder: Any) -> Steps[None]:
        before = None if holder is None else (yield holder.execute(asked)).scalar()
        error = yield from caught(InProgressError, lambda: f(1, "P-1", session=holder))
        assert (error.ran, error.key) == (False, "P-1")
        yield f(2, "P-2", session=holder)
        if holder is not None:
            assert (yield holder.execute(asked)).scalar() == before

    yield from holding(shop, 1, lambda: shop.within(caller, work))
    assert (yield f.lookup(1, "P-1")) is None
    yield from shop.call(caller, f, 1, "P-1")
    assert (shop.payments(1), shop.payments(2)) == (1, 1)


@servers
@driven
def test_a_row_that_is_let_go_in_time_is_locked_then(shop: Shop) -> Steps[None]:
    gate, seen = Gate(shop.colour), Effects()

    def body(row: Any, session: Any) -> Steps[int]:
        if seen.add("run") == 1:
            yield gate.wait()
        found: int = row.version
        row.version += 1
        return found

    shop.add(1)
    f = handed(shop, body, lock(shop, into="row", timeout=20))
    running = Running(shop.colour, [calling(lambda: f(1, "P-1"))])
    yield from until(lambda: len(seen) == 1, "the first one holds the row")
    later = Running(shop.colour, [calling(lambda: f(1, "P-2"))])
    yield from until(lambda: waiting(shop) == 1, "the second one waits")
    gate.open()
    assert sorted((yield from running.results()) + (yield from later.results())) == [1, 2]
    assert shop.row(1, Order.version) == 3


@on("sqlite")
@callers
@driven
def test_on_sqlite_another_writer_is_in_progress_too(shop: Shop, caller: str) -> Steps[None]:
    """The claim of the record waits for it. The caller's busy timeout is as before."""
    shop.add(1)
    f = shop.function(pay, lock(shop), wait=0.1)

    def work() -> Steps[None]:
        holder = None
        if caller != "idempo's transaction":
            holder = shop.sessions() if caller == SESSION else shop.engine.connect()
            if caller == CONNECTION and shop.colour == "async":
                holder = yield holder
        try:
            yield from caught(InProgressError, lambda: f(1, "P-1", session=holder))
            if holder is not None:
                assert (yield holder.execute(text("PRAGMA busy_timeout"))).scalar() == 5000
        finally:
            if holder is not None:
                yield holder.close()

    yield from holding(shop, 1, work)
    yield from shop.call(caller, f, 1, "P-1")
    assert shop.payments(1) == 1


@on("mariadb", "mysql")
@pytest.mark.parametrize("theirs", [False, True])
@driven
def test_two_missing_rows_are_missing_and_no_deadlock(shop: Shop, theirs: bool) -> Steps[None]:
    """Both callers are told, and go on and create their rows. A plain locking read takes the gap between two rows."""
    shop.add(1, 100)
    f = shop.function(pay, lock(shop))
    if not theirs:
        many = [calling(lambda number=number: f(number, f"P-{number}")) for number in range(40, 48)]  # type: ignore[misc]
        found = yield from Running(shop.colour, many).results()
        assert {type(one) for one in found} == {RowMissingError}
        return
    one, two = shop.sessions(), shop.sessions()
    try:
        yield from caught(RowMissingError, lambda: f(50, "P-50", session=one))
        yield from caught(RowMissingError, lambda: f(60, "P-60", session=two))
        one.add(Order(id=50))
        two.add(Order(id=60))
        adding = Running(shop.colour, [calling(one.commit), calling(two.commit)])
        assert (yield from adding.results()) == [None, None]
    finally:
        yield one.close()
        yield two.close()
    assert (shop.row(50), shop.row(60)) == ("pending", "pending")


# ------------------------------------------------------------------------ mapped classes of every kind


class Base(DeclarativeBase):
    pass


class Basket(Base):
    __tablename__ = "baskets"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    lines: Mapped[list["Line"]] = relationship(lazy="joined")


class Line(Base):
    __tablename__ = "lines_of_baskets"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    basket_id: Mapped[int] = mapped_column(ForeignKey("baskets.id"))
    basket: Mapped[Basket] = relationship(lazy="joined", innerjoin=True, viewonly=True)


class Person(Base):
    __tablename__ = "persons"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(String(20))
    name: Mapped[str] = mapped_column(String(20), default="")
    __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "person"}  # noqa: RUF012


class Clerk(Person):
    __tablename__ = "clerks"
    id: Mapped[int] = mapped_column(ForeignKey("persons.id"), primary_key=True, autoincrement=False)
    desk: Mapped[str] = mapped_column(String(20))
    __mapper_args__ = {"polymorphic_identity": "clerk"}  # noqa: RUF012


@pytest.fixture
def tables(database: str) -> Iterator[None]:
    engine = create_engine(database, poolclass=NullPool)
    Base.metadata.create_all(engine)
    yield
    Base.metadata.drop_all(engine)


@pytest.mark.usefixtures("tables")
@driven
def test_relationships_that_are_loaded_by_a_join_come_along(shop: Shop) -> Steps[None]:
    """Many lines are many rows of the statement, and one basket."""
    with shop.outside.connect() as connection:
        connection.execute(text("INSERT INTO baskets (id) VALUES (1), (2)"))
        connection.execute(text("INSERT INTO lines_of_baskets (id, basket_id) VALUES (1, 1), (2, 1), (3, 1)"))

    def lines(row: Any, session: Any) -> Steps[int]:
        yield from ()
        return len(row.lines)

    def basket(row: Any, session: Any) -> Steps[int]:
        yield from ()
        return int(row.basket.id)

    f = handed(shop, lines, lock(shop, target=Basket, where={Basket.id: "{order_id}"}, into="row"))
    assert (yield f(1, "P-1")) == 3
    assert (yield f(2, "P-2")) == 0
    yield from caught(RowMissingError, lambda: f(3, "P-3"))
    g = handed(
        shop,
        basket,
        lock(shop, target=Line, where={Line.id: "{order_id}"}, into="row"),
        name=f"{shop.name}.lines",
    )
    assert (yield g(2, "P-1")) == 1


@pytest.mark.usefixtures("tables")
@driven
def test_a_class_that_inherits_from_another_table_is_handed_over_whole(shop: Shop) -> Steps[None]:
    """Its own row is locked and named; asked for as the parent, the parent's is, and the child comes."""
    with shop.outside.connect() as connection:
        connection.execute(
            text("INSERT INTO persons (id, kind, name) VALUES (1, 'clerk', 'Ann'), (2, 'person', 'Bo')")
        )
        connection.execute(text("INSERT INTO clerks (id, desk) VALUES (1, 'left')"))

    def both(row: Any, session: Any) -> Steps[str]:
        yield from ()
        return f"{type(row).__name__} {row.name}"

    clerks: Any = Clerk.__table__
    wheres: list[tuple[Any, Any]] = [(Clerk, clerks.c.id), (Person, Person.id)]
    for number, (target, column) in enumerate(wheres):
        f = handed(
            shop,
            both,
            lock(shop, target=target, where={column: "{order_id}"}, into="row"),
            name=f"{shop.name}.{number}",
        )
        assert (yield f(1, "P-1")) == "Clerk Ann"
        if target is Clerk:
            yield from caught(RowMissingError, lambda: f(2, "P-2"))  # noqa: B023
        else:
            assert (yield f(2, "P-2")) == "Person Bo"


# ------------------------------------------------------------------------ refused


def plain(order_id: int, payment: str, session: Any = None, row: Any = None) -> int:
    return 1


async def slow(row: Any) -> bool:
    return True


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "nowait and a timeout": ({"nowait": True, "timeout": 1}, ConfigurationError, "leave timeout= out"),
    "an answer without done": ({"answer": 1}, ConfigurationError, "give both"),
    "a negative timeout": ({"timeout": -1}, ConfigurationError, "timeout"),
    "an endless timeout": ({"timeout": float("inf")}, ConfigurationError, "timeout"),
    "a timeout that is a bool": ({"timeout": True}, ConfigurationError, "timeout"),
    "done that is none": ({"done": "paid"}, ConfigurationError, "callable"),
    "into that names nothing": ({"into": "order"}, CompositionError, "into='order'"),
    "into that is the session": ({"into": "session"}, CompositionError, "one parameter"),
    "a class that is not mapped": ({"target": Shop}, ConfigurationError, "mapped class or a table"),
    "a where of another table": ({"where": {Payment.id: "{order_id}"}}, ConfigurationError, "payments.id"),
    "no where": ({"where": {}}, ConfigurationError, "where="),
    "an answer that cannot be stored": (
        {"done": paid, "answer": object()}, ConfigurationError, "answer=",
    ),
    "an async answer of a plain function": ({"done": paid, "answer": slow}, ConfigurationError, "async answer="),
}  # fmt: skip


@pytest.mark.parametrize("mistake", list(WRONG))
def test_what_cannot_work_is_refused_while_decorating(mistake: str) -> None:
    options, kind, reason = WRONG[mistake]
    terms: Any = {"target": Order, "where": HERE, "engine": "sqlite:///shop.db"} | options
    with pytest.raises(kind) as refused:
        idempotent(key="{payment}", using=SelectForUpdate(**terms))(plain)
    assert isinstance(refused.value, ConfigurationError)
    assert reason in str(refused.value)


@driven
def test_a_function_that_does_not_take_the_session_is_locked_for_all_the_same(shop: Shop) -> Steps[None]:
    shop.add(1, status="paid")
    seen = Effects()

    def plain(order_id: int) -> int:
        return seen.add("run")

    async def coroutine(order_id: int) -> int:
        return seen.add("run")

    terms: Any = {"key": "{order_id}", "name": shop.name}
    function: Any = plain if shop.colour == "sync" else coroutine
    f: Any = idempotent(using=lock(shop, done=paid, answer=-1), **terms)(function)
    assert (yield f(1)) == -1
    assert (yield f.forget(1)) is True
    shop.put(1, status="pending")
    assert (yield f(1)) == 1
    yield from caught(RowMissingError, lambda: f(2))
    assert len(seen) == 1


@driven
def test_a_function_that_fails_leaves_nothing(shop: Shop) -> Steps[None]:
    def body(order_id: int, payment: str, session: Any) -> Steps[None]:
        yield from pay(order_id, payment, session)
        raise Declined

    shop.add(1)
    f = shop.function(body, lock(shop))
    yield from shop.refused(SESSION, Declined, f, 1, "P-1")
    assert (yield f.lookup(1, "P-1")) is None
    assert shop.payments(1) == 0
    g = shop.function(nothing, lock(shop))
    assert not (yield g.outcome(1, "P-1")).replayed


# ------------------------------------------------------------------------ the promises that every strategy keeps


class TestPostgres(RowPromises):
    server = "postgres"

    def make(self) -> Strategy:
        return SelectForUpdate(PLACES, self.where, engine=self.at.engine)


class TestPostgresAsync(TestPostgres):
    colour = "async"


class TestMariaDB(TestPostgres):
    server = "mariadb"


class TestMariaDBAsync(TestMariaDB):
    colour = "async"


class TestSQLite(TestPostgres):
    server = "sqlite"


class TestSQLiteAsync(TestSQLite):
    colour = "async"


# ------------------------------------------------------------------------ requests


@on("postgres")
@sync_only
@driven
def test_how_many_requests_a_locked_call_takes(shop: Shop, postgres: Server) -> Steps[None]:
    """A look for the record, BEGIN, the claim; what the guard asks; completion and COMMIT. A replay is the look."""
    shop.add(1)
    with Proxy(postgres.port) as proxy:
        engine = create_engine(ending(shop.url, proxy.port) + "?sslmode=disable")
        taken = {}
        for name, guard in {"lock": lock(shop, engine=engine)}.items():
            f = versioned(shop, nothing, guard, name=f"{shop.name}.{name}")
            for number in range(8):  # until the driver has prepared its statements
                shop.put(1, version=1)
                yield f(1, f"warm {number}", 1)
                yield f(1, f"warm {number}", 1)
            shop.put(1, version=1)
            first = yield from counted(proxy, lambda: f(1, "P-1", 1))  # noqa: B023
            replay = yield from counted(proxy, lambda: f(1, "P-1", 1))  # noqa: B023
            taken[name] = first, replay
        assert taken == {"lock": (6, 1)}
        engine.dispose()
