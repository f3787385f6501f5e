"""Crowds on one row, in real processes; and the usual recipes beside ours, on the same work."""

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, func, insert, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from idempo import (
    ReadOnly,
    RowMissingError,
    SelectForUpdate,
    StateConflictError,
    UniqueInsert,
    VersionCheck,
    VersionConflictError,
    idempotent,
)
from idempo.testing import Effects
from tests.guards.row_workers import Base, Sale, Stock, adder, buy, count, engine_for, naive_buy
from tests.guards.support import Order, Payment, create_tables
from tests.servers import fresh_database
from tests.traps.support import SECONDS

PROCESSES = 8


@pytest.fixture(params=["postgres", "mariadb", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database of its own: ten items in stock, none in another row, no order."""
    if request.param == "sqlite":
        made = f"sqlite:///{tmp_path_factory.mktemp('races')}/shop.db"
    else:
        made = fresh_database(request.getfixturevalue(request.param))
    create_tables(made)
    engine = create_engine(made, poolclass=NullPool)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(
            insert(Stock), [{"id": 1, "items": 10, "version": 1}, {"id": 2, "items": 0, "version": 1}]
        )
    return made


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = engine_for(url)
    yield engine
    engine.dispose()


def in_processes(work: Callable[..., None], url: str, shares: list[list[Any]]) -> list[tuple[Any, Any]]:
    """Let each process do its share, all at once; return what they were told."""
    context = multiprocessing.get_context("spawn")
    start, told = context.Barrier(len(shares)), context.Queue()
    workers = [context.Process(target=work, args=(url, share, start, told)) for share in shares]
    for worker in workers:
        worker.start()
    found = [one for _ in workers for one in told.get(timeout=2 * SECONDS)]
    for worker in workers:
        worker.join(SECONDS)
        assert worker.exitcode == 0
    return found


def left(engine: Engine, number: int = 1) -> int:
    with engine.connect() as connection:
        return connection.scalar(select(Stock.left).where(Stock.id == number)) or 0


def many(engine: Engine, table: Any) -> int:
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(table)) or 0


# ------------------------------------------------------------------------ crowds


def test_ten_items_are_sold_to_ten_buyers_of_fifty_and_to_nobody_twice(url: str, engine: Engine) -> None:
    """Each buyer tries three times, from two processes at once: the first result is the one that he keeps."""
    number = 16 if url.startswith("sqlite") else 50
    shares = [
        [one for one in range(number) if one % (PROCESSES // 2) == at % (PROCESSES // 2)]
        for at in range(PROCESSES)
    ]
    told = in_processes(buy, url, shares)
    assert len(told) == 6 * number
    results: dict[int, set[str]] = {}
    for buyer, result in told:
        results.setdefault(buyer, set()).add(result)
    assert all(len(one) == 1 for one in results.values())
    winners = {buyer for buyer, one in results.items() if one == {"sold"}}
    with engine.connect() as connection:
        sales = Counter(connection.execute(select(Sale.buyer)).scalars().all())
        version = connection.scalar(select(Stock.version).where(Stock.id == 1))
    assert len(winners) == 10
    assert sales == dict.fromkeys(winners, 1)
    assert (left(engine), version) == (0, number + 1)


def test_fifty_calls_that_lock_one_row_lose_no_update(url: str, engine: Engine) -> None:
    """Each reads it and writes what it has read, plus one."""
    calls = [f"C-{number}" for number in range(50)]
    told = in_processes(count, url, [calls[at::5] for at in range(5)])
    assert sorted(result for _, result in told) == list(range(11, 61))
    assert left(engine) == 60


@pytest.mark.parametrize("url", ["postgres", "mariadb"], indirect=True)
def test_different_rows_do_not_wait_for_each_other(engine: Engine) -> None:
    """The other row is locked and let go while the first is held."""
    inner: list[int] = []
    add = adder(engine)
    guard = SelectForUpdate(Stock, {Stock.id: lambda: 1}, engine=engine)

    @idempotent(key="{call}", using=guard, name="outer", wait=SECONDS)
    def outer(call: str, session: Session | None = None) -> str:
        inner.append(add("inside", 2))
        return call

    assert outer("A-1") == "A-1"
    assert inner == [1]


# ------------------------------------------------------------------------ the usual recipes beside ours


def test_no_affected_rows_taken_for_a_repeat_is_a_promise_without_a_sale(engine: Engine) -> None:
    """Two buyers have seen version 1. The second is told "sold", and has nothing. Ours tells him what happened."""
    assert [naive_buy(engine, buyer, 1) for buyer in (1, 2)] == ["sold", "sold"]
    assert (many(engine, Sale), left(engine)) == (1, 9)

    guard = VersionCheck(Stock.version, {Stock.id: lambda: 1}, expected="{seen}", engine=engine)

    @idempotent(key="{buyer}", using=guard)
    def sell(buyer: int, seen: int, session: Session | None = None) -> str:
        assert session is not None
        session.execute(text("UPDATE stock SET items = items - 1 WHERE id = 1"))
        session.add(Sale(buyer=buyer))
        return "sold"

    assert sell(3, 2) == "sold"
    with pytest.raises(VersionConflictError):
        sell(4, 2)
    assert sell(3, 2) == "sold"  # a repeat is one, and is told from it
    assert (many(engine, Sale), left(engine)) == (2, 8)


def test_two_changes_within_one_tick_of_a_clock_both_succeed(engine: Engine) -> None:
    """The version is a time stamp in seconds: the first change leaves it as the second expects it."""
    tick = "2024-05-06 07:08:09"
    set_note = text("UPDATE orders SET note = :tick, status = :status WHERE id = 1 AND note = :tick")
    with engine.begin() as connection:
        connection.execute(insert(Order).values(id=1, note=tick))
        found = [
            connection.execute(set_note, {"tick": tick, "status": one}).rowcount
            for one in ("paid", "cancelled")
        ]
    assert found == [1, 1]

    @idempotent(
        key="{call}",
        using=VersionCheck(Order.version, {Order.id: lambda: 1}, expected="{seen}", engine=engine),
    )
    def change(call: str, status: str, seen: int, session: Session | None = None) -> str:
        assert session is not None
        session.execute(text("UPDATE orders SET status = :status WHERE id = 1"), {"status": status})
        return status

    assert change("C-1", "paid", 1) == "paid"
    with pytest.raises(VersionConflictError):
        change("C-2", "cancelled", 1)
    with engine.connect() as connection:
        assert connection.scalar(select(Order.status)) == "paid"


PENDING = text("SELECT id FROM orders WHERE id = 1 AND status = 'pending'")


def naive_pay(engine: Engine, meanwhile: Callable[[], None] = lambda: None) -> str:
    """The recipe: lock the pending row; without one there was none."""
    lock = "" if engine.dialect.name == "sqlite" else " FOR UPDATE"
    with engine.connect() as connection:
        found = connection.scalar(text(f"{PENDING.text}{lock}"))
        if found is None:
            connection.rollback()
            return "not found"
        meanwhile()
        connection.execute(text("UPDATE orders SET status = 'paid' WHERE id = 1"))
        connection.execute(insert(Payment).values(order_id=1, no="P"))
        connection.commit()
        return "paid"


def payer(engine: Engine, **options: Any) -> Any:
    guard = SelectForUpdate(
        Order,
        {Order.id: lambda: 1},
        done=lambda row: row.status == "paid",
        into="order",
        engine=engine,
        **options,
    )

    @idempotent(key="{no}", using=guard)
    def pay(no: str, session: Session | None = None, order: Order | None = None) -> str:
        assert session is not None
        assert order is not None
        order.status = "paid"
        session.add(Payment(order_id=1, no=no))
        return "paid"

    return pay


def test_a_lock_by_the_state_calls_a_paid_order_not_found(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(insert(Order).values(id=1))
    assert [naive_pay(engine) for _ in range(2)] == ["paid", "not found"]
    pay, answering = payer(engine), payer(engine, answer="paid before")
    with pytest.raises(StateConflictError) as refused:
        pay("P-1")
    assert refused.value.verdict == "already"
    assert answering("P-2") == "paid before"
    assert many(engine, Payment) == 1


def test_where_there_is_no_row_there_is_no_lock_and_the_effect_is_doubled(engine: Engine) -> None:
    """The recipe creates what it does not find. Two of them find nothing, one after the other, and both create."""
    lock = "" if engine.dialect.name == "sqlite" else " FOR UPDATE"
    query = text(f"SELECT id FROM sales WHERE buyer = 7{lock}")

    def naive(between: Callable[[], None]) -> None:
        with engine.connect() as connection:
            if connection.scalar(query) is None:
                connection.rollback()  # nothing is locked, so this changes nothing on PostgreSQL and SQLite
                between()
                connection.execute(insert(Sale).values(buyer=7))
                connection.commit()

    naive(lambda: naive(lambda: None))
    assert many(engine, Sale) == 2

    pay = payer(engine)
    for _ in range(2):
        with pytest.raises(RowMissingError):
            pay("P-1")
    assert many(engine, Payment) == 0
    with engine.begin() as connection:
        connection.execute(insert(Order).values(id=1))
    assert [pay("P-1"), pay("P-1")] == ["paid", "paid"]
    assert many(engine, Payment) == 1


def test_a_read_that_writes_in_secret_writes_at_each_repeat(engine: Engine) -> None:
    """A GET is trusted, and counts its visitors. Ours finds it out at the first call."""
    seen = Effects()

    def show(session: Session) -> int:
        seen.add("shown")
        session.execute(text("UPDATE stock SET items = items + 1 WHERE id = 2"))
        return 1

    for _ in range(2):
        with Session(engine) as session, session.begin():
            show(session)
    assert left(engine, 2) == 2

    guarded = idempotent(key="{page}", using=ReadOnly(engine), name="show")(visit)
    for _ in range(2):
        with pytest.raises(DBAPIError):
            guarded("home")
    assert left(engine, 2) == 2


def visit(page: str, session: Session | None = None) -> int:
    assert session is not None
    session.execute(text("UPDATE stock SET items = items + 1 WHERE id = 2"))
    return 1


def test_beside_a_record_of_the_users_own_the_promise_is_the_same(engine: Engine) -> None:
    guard = SelectForUpdate(Stock, {Stock.id: lambda: 1})

    @idempotent(key="{no}", using=[UniqueInsert(engine, join="session"), guard], name="beside")
    def take(no: str, session: Session | None = None) -> int:
        assert session is not None
        session.execute(text("UPDATE stock SET items = items - 1 WHERE id = 1"))
        return 1

    for _ in range(3):
        assert take("T-1") == 1
    assert left(engine) == 9
