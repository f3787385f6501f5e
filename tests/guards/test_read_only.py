"""`ReadOnly`: reads pass without a store, and what writes fails in the database."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, delete, insert, inspect, select, text, update
from sqlalchemy.exc import DBAPIError

from idempo import (
    CompositionError,
    ConfigurationError,
    Memory,
    ReadOnly,
    RedisCache,
    UniqueInsert,
    idempotent,
)
from idempo.steps import Steps
from idempo.testing import Effects, drive
from tests.guards.support import (
    CONNECTION,
    OURS,
    SESSION,
    Declined,
    Order,
    Shop,
    driven,
    everywhere,
    on,
    sync_only,
)
from tests.guards.support_rows import check, lock
from tests.servers import Server, fresh_database
from tests.traps.support import caught

in_place = on("postgres", "sqlite")  # MySQL and MariaDB cannot, with a transaction that has begun
theirs = pytest.mark.parametrize("caller", [SESSION, CONNECTION])


def reader(shop: Shop, **options: Any) -> ReadOnly:
    return ReadOnly(shop.engine, **options)


def reading(order_id: int, payment: str, session: Any) -> Steps[str]:
    found = yield session.execute(select(Order.status).where(Order.id == order_id))
    status: str = found.scalar_one()
    return status


def by_orm(order_id: int, payment: str, session: Any) -> Steps[None]:
    order = yield session.get(Order, order_id)
    order.status = "written"
    yield session.flush()


def by_orm_unflushed(order_id: int, payment: str, session: Any) -> Steps[str]:
    order = yield session.get(Order, order_id)
    order.status = "written"
    return "done"


def new_object(order_id: int, payment: str, session: Any) -> Steps[None]:
    session.add(Order(id=77, status="written"))
    yield session.flush()


def executing(statement: Callable[[int], Any]) -> Any:
    def body(order_id: int, payment: str, session: Any) -> Steps[None]:
        yield session.execute(statement(order_id))

    return body


WRITES: dict[str, Any] = {
    "an insert": executing(lambda no: insert(Order).values(id=77, status="written")),
    "an update": executing(lambda no: update(Order).where(Order.id == no).values(status="written")),
    "a delete": executing(lambda no: delete(Order).where(Order.id == no)),
    "raw SQL": executing(lambda no: text("UPDATE orders SET status = 'written'")),
    "DDL": executing(lambda no: text("CREATE TABLE written (id INTEGER)")),
}
BY_ORM: dict[str, Any] = {"a flush": by_orm, "no flush": by_orm_unflushed, "a new object": new_object}


def untouched(shop: Shop) -> bool:
    with shop.outside.connect() as connection:
        rows = connection.execute(select(Order.id, Order.status).where(Order.id != 99)).all()
        return [tuple(row) for row in rows] == [(1, "pending")] and not inspect(connection).has_table(
            "written"
        )


# ------------------------------------------------------------------------ reads


@everywhere
@driven
def test_each_call_reads_anew(shop: Shop) -> Steps[None]:
    shop.add(1)
    f = shop.function(reading, reader(shop))
    for status in ("pending", "paid", "shipped"):
        shop.put(1, status=status)
        outcome = yield f.outcome(1, "P-1")
        assert (outcome.value, outcome.replayed) == (status, False)
    assert (yield f.lookup(1, "P-1")) is None
    assert (yield f.forget(1, "P-1")) is False


@in_place
@theirs
@driven
def test_in_the_callers_transaction_it_sees_what_the_caller_has_written(
    shop: Shop, caller: str
) -> Steps[None]:
    f = shop.function(lambda *given: reading(99, "", given[-1]), ReadOnly("session"))
    for _ in range(2):
        assert (yield from shop.call(caller, f, 1, "P-1")) == "earlier"


@pytest.mark.parametrize("server", ["postgres", "mariadb", "sqlite"])
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_there_is_no_store(server: str, colour: Any, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """No records table is asked for, and none is made."""
    if server == "sqlite":
        url = f"sqlite:///{tmp_path}/empty.db"
    else:
        url = fresh_database(request.getfixturevalue(server))
    shop = Shop(url, colour)

    def body(order_id: int, payment: str, session: Any) -> Steps[int]:
        found = yield session.execute(text("SELECT 41 + 1"))
        return int(found.scalar_one())

    f = shop.function(body, ReadOnly(shop.engine))

    def steps() -> Steps[None]:
        for _ in range(2):
            outcome = yield f.outcome(1, "P-1")
            assert (outcome.value, outcome.replayed) == (42, False)
        yield from shop.close()

    drive(colour, steps())
    engine = create_engine(url)
    assert inspect(engine).get_table_names() == []
    engine.dispose()


@driven
def test_a_function_that_takes_no_session_needs_an_engine(shop: Shop) -> Steps[None]:
    def plain(order_id: int) -> int:
        return order_id

    async def coroutine(order_id: int) -> int:
        return order_id

    function: Any = plain if shop.colour == "sync" else coroutine
    f: Any = idempotent(key="{order_id}", using=reader(shop), name=shop.name)(function)
    assert (yield f(7)) == 7
    with pytest.raises(CompositionError, match="names no parameter"):
        idempotent(key="{order_id}", using=ReadOnly("session"))(function)


@driven
def test_the_function_gets_what_its_annotation_asks_for(shop: Shop, database: str) -> Steps[None]:
    """A connection, or else a session; from an engine, a sessionmaker or a URL."""
    kinds: list[str] = []

    def body(order_id: int, payment: str, session: Any) -> Steps[str]:
        kinds.append(type(session).__name__)
        return (yield from reading(order_id, payment, session))

    shop.add(1)
    by_url = ReadOnly(database)
    for number, guard in enumerate([ReadOnly(shop.engine), ReadOnly(shop.sessions), by_url]):
        f = shop.function(body, guard, name=f"{shop.name}.{number}")
        assert (yield f(1, "P-1")) == "pending"
    assert all(kind.endswith("Session") for kind in kinds)
    yield by_url.close()


# ------------------------------------------------------------------------ writes


@pytest.mark.parametrize(
    ("caller", "write"),
    [
        (caller, write)
        for caller in (OURS, SESSION, CONNECTION)
        for write in [*WRITES, *BY_ORM]
        if caller != CONNECTION or write not in BY_ORM  # a connection has no objects
    ],
)
@in_place
@driven
def test_a_write_fails_with_the_databases_own_error(shop: Shop, caller: str, write: str) -> Steps[None]:
    """And nothing is written, although the caller commits."""
    shop.add(1)
    f = shop.function((WRITES | BY_ORM)[write], reader(shop))
    yield from writing_fails(shop, f, caller, flushed=write in BY_ORM)


@pytest.mark.parametrize("write", [*WRITES, *BY_ORM])
@on("mariadb", "mysql")
@driven
def test_a_write_in_a_transaction_of_idempos_fails_on_mysql_too(shop: Shop, write: str) -> Steps[None]:
    shop.add(1)
    f = shop.function((WRITES | BY_ORM)[write], reader(shop))
    yield from writing_fails(shop, f, OURS, flushed=False)


def writing_fails(shop: Shop, f: Any, caller: str, *, flushed: bool) -> Steps[None]:
    holder: Any = None
    if caller != OURS:
        holder = shop.sessions() if caller == SESSION else shop.engine.connect()
        if caller == CONNECTION and shop.colour == "async":
            holder = yield holder
    try:
        error = yield from caught(DBAPIError, lambda: f(1, "P-1", session=holder))
        assert "read" in str(error).lower()
        if holder is not None:
            if flushed:
                yield holder.rollback()  # a session whose flush has failed must be: a rule of SQLAlchemy's
            yield holder.execute(insert(Order).values(id=99, status="after"))
            yield holder.commit()
            assert shop.row(99) == "after"
    finally:
        if holder is not None:
            yield holder.close()
    assert untouched(shop)
    for number in range(8):  # every connection of the pool can write again
        session = shop.sessions()
        yield session.execute(insert(Order).values(id=100 + number))
        yield session.commit()
        yield session.close()
        assert shop.row(100 + number) == "pending"


@in_place
@theirs
@driven
def test_a_read_in_the_callers_transaction_leaves_it_able_to_write(shop: Shop, caller: str) -> Steps[None]:
    """What the caller has written before, sent or not, is committed, and what he writes after."""
    shop.add(1, 2)
    f = shop.function(reading, ReadOnly("session"))

    def work(holder: Any) -> Steps[None]:
        order: Any = None
        if caller == SESSION:
            order = yield holder.get(Order, 2)
            order.note = "before"
        assert (yield f(1, "P-1", session=holder)) == "pending"
        yield holder.execute(update(Order).where(Order.id == 1).values(note="after"))
        if caller == SESSION:
            order.status = "after"
            yield holder.flush()

    yield from shop.within(caller, work)
    assert shop.row(1, Order.note) == "after"
    if caller == SESSION:
        assert (shop.row(2), shop.row(2, Order.note)) == ("after", "before")


@in_place
@theirs
@driven
def test_a_function_that_raises_leaves_the_callers_transaction_able_to_write(
    shop: Shop, caller: str
) -> Steps[None]:
    def body(order_id: int, payment: str, session: Any) -> Steps[None]:
        yield from reading(order_id, payment, session)
        raise Declined("seen")

    shop.add(1)
    f = shop.function(body, ReadOnly("session"))

    def work(holder: Any) -> Steps[None]:
        error = yield from caught(Declined, lambda: f(1, "P-1", session=holder))
        assert error.args == ("seen",)
        yield holder.execute(update(Order).where(Order.id == 1).values(status="after"))

    yield from shop.within(caller, work)
    assert shop.row(1) == "after"


@in_place
@driven
def test_a_write_that_the_function_swallows_is_not_made_all_the_same(shop: Shop) -> Steps[None]:
    def body(order_id: int, payment: str, session: Any) -> Steps[str]:
        try:
            yield session.execute(update(Order).values(status="written"))
        except DBAPIError:
            return "swallowed"
        return "written"

    shop.add(1)
    f = shop.function(body, reader(shop))
    assert (yield f(1, "P-1")) == "swallowed"
    assert untouched(shop)
    assert (yield from shop.call(SESSION, f, 1, "P-1")) == "swallowed"
    assert untouched(shop)


@on("mariadb", "mysql")
@theirs
@driven
def test_on_mysql_a_transaction_of_the_callers_is_refused_before_the_function(
    shop: Shop, caller: str
) -> Steps[None]:
    effects = Effects()

    def body(order_id: int, payment: str, session: Any) -> Steps[None]:
        effects.add(payment)
        yield from reading(order_id, payment, session)

    shop.add(1)
    f = shop.function(body, reader(shop))
    error = yield from shop.refused(caller, ConfigurationError, f, 1, "P-1")
    assert "leave the session out" in str(error)
    assert len(effects) == 0
    yield f(1, "P-1")
    assert len(effects) == 1


@driven
def test_without_a_transaction_and_without_an_engine_there_is_nothing_to_read_in(shop: Shop) -> Steps[None]:
    f = shop.function(reading, ReadOnly("session"))
    error = yield from caught(ConfigurationError, lambda: f(1, "P-1"))
    assert "no engine" in str(error)


# ------------------------------------------------------------------------ composition


@pytest.mark.parametrize("ledger", ["RedisCache", "Memory", "UniqueInsert"])
@driven
def test_behind_a_ledger_a_repeat_gets_the_first_result(
    shop: Shop, ledger: str, redis_server: Server
) -> Steps[None]:
    cache: Any = RedisCache(redis_server.url)
    store = {"RedisCache": cache, "Memory": Memory(), "UniqueInsert": UniqueInsert(shop.engine)}[ledger]
    shop.add(1)
    f = shop.function(reading, [store, reader(shop)])
    assert (yield f(1, "P-1")) == "pending"
    shop.put(1, status="paid")
    outcome = yield f.outcome(1, "P-1")
    assert (outcome.value, outcome.replayed) == ("pending", True)
    assert (yield f(1, "P-2")) == "paid"
    assert (yield f.forget(1, "P-1")) is True
    assert (yield f(1, "P-1")) == "paid"
    writing = shop.function(WRITES["an update"], [store, reader(shop)], name=f"{shop.name}.writing")
    yield from caught(DBAPIError, lambda: writing(1, "P-1"))
    assert shop.row(1) == "paid"
    yield cache.close()


@driven
def test_errors_that_are_results_are_raised_as_they_are(shop: Shop) -> Steps[None]:
    """Alone it keeps none of them; behind a ledger the first one is raised again."""
    effects = Effects()

    def body(order_id: int, payment: str, session: Any) -> Steps[None]:
        yield from ()
        raise Declined("no", effects.add(payment))

    for number, using in enumerate([reader(shop), [Memory(), reader(shop)]]):
        f = shop.function(body, using, name=f"{shop.name}.{number}", replay_errors=[Declined])
        seen = []
        for _ in range(2):
            error = yield from caught(Declined, lambda: f(1, "P-1"))  # noqa: B023
            seen.append(error.args[1])
        assert seen == ([1, 2] if number == 0 else [3, 3])


@sync_only
@driven
def test_beside_what_writes_it_is_refused(shop: Shop) -> Steps[None]:
    """A record in the same transaction, or another guard, which brings one."""
    yield from ()
    joined = UniqueInsert(shop.engine, join="session")
    others: list[list[Any]] = [
        [joined, reader(shop)],
        [check(shop), reader(shop)],
        [reader(shop), lock(shop)],
        [shop.guard(), reader(shop)],
    ]
    for using in others:
        with pytest.raises(CompositionError, match="ReadOnly"):
            shop.function(reading, using)
    with pytest.raises(CompositionError, match="write Memory, ReadOnly"):
        shop.function(reading, [reader(shop), Memory()])
    with pytest.raises(ConfigurationError, match="takes a URL"):
        ReadOnly(7)  # type: ignore[arg-type]


@sync_only
@driven
def test_explain_says_that_it_only_reads(shop: Shop) -> Steps[None]:
    yield from ()
    explained = shop.function(reading, reader(shop)).explain()
    assert "the function only reads: a write in it fails" in str(explained)
    assert "UniqueInsert" not in str(explained)
