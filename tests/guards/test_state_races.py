"""Many at once on one row: who wins, what the others hear, what waits; the usual recipes beside."""

import multiprocessing
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import insert, select, text, update

from idempo import InProgressError, RowMissingError, StateConflictError
from idempo.steps import Steps
from idempo.testing import Gate
from tests.guards import workers
from tests.guards.support import (
    CONNECTION,
    SESSION,
    Order,
    Payment,
    Receipt,
    Shop,
    callers,
    driven,
    on,
    pay,
    sync_only,
    their_own,
)
from tests.traps.support import SECONDS, Running, calling, caught, until

PROCESSES, CALLS = 8, 100

# ------------------------------------------------------------------------ many processes


def at_once(shop: Shop, work: list[tuple[str, int, str]]) -> list[tuple[str, Any]]:
    """Divide the work among processes, which begin together; return what each call came to, by its key."""
    context = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(PROCESSES), context.Queue()
    shares = [work[number::PROCESSES] for number in range(PROCESSES)]
    processes = [
        context.Process(target=workers.serve, args=(shop.url, shop.name, share, start, answers))
        for share in shares
    ]
    for process in processes:
        process.start()
    found = [one for _ in processes for one in answers.get(timeout=2 * SECONDS)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    assert [what for _, what in found if what[0] == "failed"] == []
    assert len(found) == len(work)
    return found


@sync_only
@driven
def test_a_crowd_of_processes_makes_one_transition_of_each_order(shop: Shop) -> Steps[None]:
    """100 payments of order 1 with keys of their own: one is made, 99 hear that it is paid already. 100 payments of
    order 2 with one key: one is made, 99 get its result. A payment and a cancellation of each other order: exactly one
    of them wins, and the other is refused by what it finds."""
    yield from ()
    many, one, others = 1, 2, range(3, 15)
    shop.add(many, one, *others)
    work = [("paid", many, f"P-{number}") for number in range(CALLS)]
    work += [("paid", one, "same")] * CALLS
    work += [(to, order, f"{to} {order}") for order in others for to in ("paid", "cancelled")]
    found = at_once(shop, work)

    own = [(key, came) for key, came in found if key.startswith("P-")]
    (made,) = (key for key, came in own if came == ("ran", "paid", key))
    assert [came for key, came in own if key != made] == [("refused", "already", "paid")] * (CALLS - 1)
    assert shop.scalar(f"SELECT no FROM payments WHERE order_id = {many}") == made

    same = [came for key, came in found if key == "same"]
    assert sorted(same) == [*[("ran", "paid", "same")], *[("replayed", "paid", "same")] * (CALLS - 1)]

    by_key = dict(found)
    for order in others:
        winner = shop.row(order)
        loser = "cancelled" if winner == "paid" else "paid"
        assert by_key[f"{winner} {order}"] == ("ran", winner, f"{winner} {order}")
        assert by_key[f"{loser} {order}"] == ("refused", "illegal", winner)
    assert [shop.payments(order) for order in (many, one, *others)] == [1] * (2 + len(others))


# ------------------------------------------------------------------------ waiting for a row


def holding(shop: Shop, order: int) -> Any:
    """A connection that has locked an order, as somebody without idempo does."""
    engine, _ = Shop(shop.url, "sync").connect()
    connection = engine.connect()
    connection.execute(update(Order).where(Order.id == order).values(note="held"))
    return connection


@on("postgres", "mariadb", "mysql")
@callers
@driven
def test_a_locked_row_is_waited_for_no_longer_than_allowed(shop: Shop, caller: str) -> Steps[None]:
    """Whatever state it is in. Then it is a typed error, nothing has run, and the caller's earlier writes survive."""
    shop.add(1)
    shop.add(2, status="paid")
    f = shop.function(pay, wait=0.2)
    for order in (1, 2):
        connection = holding(shop, order)
        try:
            error = yield from shop.refused(caller, InProgressError, f, order, f"P-{order}")
        finally:
            connection.close()
            connection.engine.dispose()
        assert (error.ran, error.key) == (False, f"P-{order}")
        assert (yield f.lookup(order, f"P-{order}")) is None
        assert shop.payments(order) == 0
    yield from shop.call(caller, f, 1, "P-1")
    assert shop.row(1) == "paid"


@on("postgres", "mariadb", "mysql")
@driven
def test_another_row_is_not_waited_for(shop: Shop) -> Steps[None]:
    shop.add(1, 2)
    f = shop.function(pay, wait=0)
    connection = holding(shop, 1)
    try:
        yield f(2, "P-2")
        assert shop.row(2) == "paid"
        yield from caught(RowMissingError, lambda: f(3, "P-3"))
    finally:
        connection.close()
        connection.engine.dispose()


@on("postgres", "mariadb", "mysql")
@their_own
@pytest.mark.parametrize("busy", [False, True])
@driven
def test_the_callers_own_bound_on_lock_waits_is_as_before(shop: Shop, caller: str, busy: bool) -> Steps[None]:
    name, value = ("lock_timeout", "7s") if shop.server == "postgres" else ("innodb_lock_wait_timeout", 7)
    shown = "SHOW lock_timeout" if value == "7s" else f"SELECT @@SESSION.{name}"
    shop.add(1)
    f = shop.function(pay, wait=0.1)
    connection = holding(shop, 1) if busy else None

    def work(holder: Any) -> Steps[None]:
        yield holder.execute(text(f"SET SESSION {name} = '{value}'" if value == "7s" else f"SET {name} = 7"))
        if busy:
            yield from caught(InProgressError, lambda: f(1, "P-1", session=holder))
        else:
            yield f(1, "P-1", session=holder)
            yield from caught(StateConflictError, lambda: f(1, "P-2", session=holder))
        assert (yield holder.scalar(text(shown))) == value

    try:
        yield from shop.within(caller, work)
    finally:
        if connection is not None:
            connection.close()
            connection.engine.dispose()


@on("postgres", "mariadb")
@callers
@pytest.mark.parametrize("other", ["paid", "cancelled", None])
@driven
def test_who_waits_for_a_row_judges_what_the_other_has_committed(
    shop: Shop, caller: str, other: str | None
) -> Steps[None]:
    """Or finds it as it was, if the other rolls back."""
    shop.add(1)
    f = shop.function(pay)
    connection = holding(shop, 1)

    def call() -> Steps[Any]:
        return (yield from shop.call(caller, f, 1, "P-1"))

    try:
        waiter = Running(shop.colour, [call])
        yield from shop.until_waiting()
        if other is not None:
            connection.execute(update(Order).where(Order.id == 1).values(status=other))
            connection.commit()
    finally:
        connection.close()
        connection.engine.dispose()
    (found,) = yield from waiter.results()
    if other is None:
        assert found == Receipt("P-1", 1)
    else:
        assert isinstance(found, StateConflictError)
        assert (found.verdict, found.state) == ("already" if other == "paid" else "illegal", other)
    assert (shop.row(1), shop.payments(1)) == (other or "paid", 1 if other is None else 0)


# ------------------------------------------------------------------------ snapshots


LEVELS = [
    ("postgres", "READ COMMITTED"),
    ("postgres", "REPEATABLE READ"),
    ("postgres", "SERIALIZABLE"),
    ("mariadb", "READ COMMITTED"),
    ("mariadb", "REPEATABLE READ"),
    ("mariadb", "SERIALIZABLE"),
    ("mysql", "REPEATABLE READ"),
]
levels = pytest.mark.parametrize(("database", "level"), LEVELS, indirect=["database"])


@levels
@their_own
@pytest.mark.parametrize(
    ("before", "now"), [("draft", "pending"), ("pending", "cancelled"), ("pending", "paid")]
)
@driven
def test_the_present_state_decides_and_never_the_callers_snapshot(
    shop: Shop, level: str, caller: str, before: str, now: str
) -> Steps[None]:
    """Where the database does not let an old snapshot see it, a typed error says that a new transaction is needed."""
    if level == "SERIALIZABLE" and shop.server != "postgres":
        return  # a read locks the row there: nobody can change it meanwhile
    shop.add(1, status=before)
    shop.add(2)
    engine, sessions = shop.connect(isolation_level=level)
    f = shop.function(pay)
    holder = sessions() if caller == SESSION else engine.connect()
    if caller == CONNECTION and shop.colour == "async":
        holder = yield holder
    try:
        yield holder.execute(select(Order.status).where(Order.id == 2))
        shop.put(1, status=now)
        if level == "READ COMMITTED" or shop.server != "postgres":
            if now == "pending":
                yield f(1, "P-1", session=holder)
            else:
                error = yield from caught(StateConflictError, lambda: f(1, "P-1", session=holder))
                assert (error.verdict, error.state) == ("already" if now == "paid" else "illegal", now)
        else:
            error = yield from caught(InProgressError, lambda: f(1, "P-1", session=holder))
            assert "roll your transaction back" in str(error)
            assert error.ran is False
            yield holder.rollback()
            if now == "pending":
                yield f(1, "P-1", session=holder)
            else:
                yield from caught(StateConflictError, lambda: f(1, "P-1", session=holder))
        yield holder.commit()
    finally:
        yield holder.close()
        yield engine.dispose()
    assert (shop.row(1), shop.payments(1)) == (("paid", 1) if now == "pending" else (now, 0))


@pytest.mark.parametrize(
    ("database", "level"), [one for one in LEVELS if "COMMITTED" not in one[1]], indirect=["database"]
)
@driven
def test_our_own_transaction_begins_anew_where_its_snapshot_is_too_old(shop: Shop, level: str) -> Steps[None]:
    """Its snapshot is from before it waited for the row."""
    shop.add(1, status="draft")
    engine, _ = shop.connect(isolation_level=level)
    f = shop.function(pay, shop.guard(engine=engine))
    connection = holding(shop, 1)
    connection.execute(update(Order).where(Order.id == 1).values(status="pending"))
    try:
        waiter = Running(shop.colour, [calling(lambda: f(1, "P-1"))])
        yield from shop.until_waiting()
        connection.commit()
        assert (yield from waiter.results()) == [Receipt("P-1", 1)]
    finally:
        connection.close()
        connection.engine.dispose()
        yield engine.dispose()
    assert (shop.row(1), shop.payments(1)) == ("paid", 1)


# ------------------------------------------------------------------------ the usual recipes, beside


def at_or_past_is_success(order_id: int, payment: str, session: Any) -> Steps[str]:
    """The usual conditional UPDATE: no row, then it must have happened already."""
    moved = yield session.execute(
        update(Order).where(Order.id == order_id, Order.status == "pending").values(status="paid")
    )
    if moved.rowcount:
        yield session.execute(insert(Payment).values(order_id=order_id, no=payment))
    return "paid"


@driven
def test_no_row_taken_for_success_tells_the_payer_of_a_cancelled_order_that_it_is_paid(
    shop: Shop,
) -> Steps[None]:
    """And of an order that does not exist. Ours refuses both."""
    shop.add(1, status="cancelled")
    with_session = shop.sessions()
    try:
        for order in (1, 2):
            said = yield from at_or_past_is_success(order, "P-1", with_session)
            assert said == "paid"  # wrong
        yield with_session.commit()
    finally:
        yield with_session.close()
    assert (shop.row(1), shop.payments(1)) == ("cancelled", 0)
    f = shop.function(pay)
    assert (yield from caught(StateConflictError, lambda: f(1, "P-1"))).verdict == "illegal"
    yield from caught(RowMissingError, lambda: f(2, "P-2"))


def read_then_write(gate: Callable[[], Any], order_id: int, payment: str, session: Any) -> Steps[str]:
    """The usual check: look whether the order is pending, and pay it."""
    status = yield session.scalar(select(Order.status).where(Order.id == order_id))
    yield gate()
    if status != "pending":
        return "refused"
    yield session.execute(insert(Payment).values(order_id=order_id, no=payment))
    yield session.execute(update(Order).where(Order.id == order_id).values(status="paid"))
    return "paid"


@on("postgres", "mariadb")
@driven
def test_read_then_write_pays_twice_where_ours_pays_once(shop: Shop) -> Steps[None]:
    """Both have read before either writes: the gate sees to that."""
    shop.add(1, 2)
    gate = Gate(shop.colour)
    read: list[int] = []

    def pass_gate() -> Any:
        read.append(1)
        return gate.wait()

    def naive(payment: str) -> Callable[[], Steps[str]]:
        def steps() -> Steps[str]:
            session = shop.sessions()
            try:
                said = yield from read_then_write(pass_gate, 1, payment, session)
                yield session.commit()
                return said
            finally:
                yield session.close()

        return steps

    running = Running(shop.colour, [naive("P-1"), naive("P-2")])
    yield from until(lambda: len(read) == 2, "both have read")
    gate.open()
    assert (yield from running.results()) == ["paid", "paid"]
    assert shop.payments(1) == 2  # wrong

    inside = Gate(shop.colour)

    def body(order_id: int, payment: str, session: Any) -> Steps[Receipt]:
        yield inside.wait()
        return (yield from pay(order_id, payment, session))

    f = shop.function(body)
    ours = Running(shop.colour, [calling(lambda: f(2, "P-1")), calling(lambda: f(2, "P-2"))])
    yield from shop.until_waiting()
    inside.open()
    found = yield from ours.results()
    paid = [one for one in found if isinstance(one, Receipt)]
    refused = [one for one in found if isinstance(one, StateConflictError)]
    assert (len(paid), [one.verdict for one in refused]) == (1, ["already"])
    assert (shop.row(2), shop.payments(2)) == ("paid", 1)
