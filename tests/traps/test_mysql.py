"""MariaDB: deadlocks among waiters, lock waits, snapshots, gap locks, collations, and a pool of one connection."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import insert, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

from idempo import InProgressError, LeaseLostError, UniqueInsert
from idempo.contracts import Colour
from idempo.steps import Steps
from idempo.testing import Effects, Gate, drive
from tests.servers import Server
from tests.traps.support import (
    CALLERS,
    Declined,
    Order,
    Running,
    Shop,
    calling,
    caught,
    driven,
    empty_tables,
    in_session,
    place,
    shop_database,
)

WAITERS = 9
LEVELS = ("REPEATABLE READ", "READ COMMITTED")
DEADLOCK, LOCK_WAIT, CHANGED = 1213, 1205, 1020

# A locking read of one row that goes on has not got its lock. (innodb_trx is a cache, which polling keeps stale.)
WAITING = (
    "SELECT count(*) FROM information_schema.processlist "
    "WHERE db = DATABASE() AND info LIKE 'SELECT%FOR UPDATE%' AND command <> 'Sleep' AND time_ms > 20"
)

colours = pytest.mark.parametrize("colour", ["sync", "async"])
levels = pytest.mark.parametrize("level", LEVELS)


@pytest.fixture(scope="module")
def url(mariadb: Server) -> str:
    url = shop_database(mariadb)
    with Shop(url, "sync").outside.connect() as connection:
        connection.execute(
            text("CREATE TABLE accounts (id INT PRIMARY KEY, amount INT NOT NULL) ENGINE=InnoDB")
        )
        connection.execute(text("INSERT INTO accounts VALUES (1, 0), (2, 0)"))
    return url


@pytest.fixture
def empty(url: str) -> str:
    empty_tables(url)
    return url


def number(error: Any) -> int:
    return int(error.orig.args[0])


callers = pytest.mark.parametrize("caller", list(CALLERS))


@colours
@levels
@callers
def test_one_of_many_waiters_runs_when_the_owner_rolls_back(
    empty: str, colour: Colour, level: str, caller: str
) -> None:
    def test(shop: Shop) -> Steps[None]:
        effects, inside, gate = Effects(), Gate(colour), Gate(colour)

        def body(order_no: str, session: Any) -> Steps[Any]:
            run = effects.add(order_no)
            yield from place(order_no, session)
            if run == 1:
                inside.open()
                yield gate.wait()
                raise Declined
            return run

        call = CALLERS[caller](shop, shop.decorate(body), "A-1")
        owner = Running(colour, [call])
        yield inside.wait()
        waiters = Running(colour, [call] * WAITERS)
        yield from shop.until(WAITING, WAITERS)
        gate.open()
        assert [type(one) for one in (yield from owner.results())] == [Declined]
        assert (yield from waiters.results()) == [2] * WAITERS
        assert len(effects) == 2
        assert shop.orders() == 1

    driven(empty, colour, test, isolation_level=level)


@colours
@levels
@pytest.mark.parametrize("caller", ["idempo's transaction", "a session"])
def test_many_keys_whose_first_run_fails_run_once_more_each(
    empty: str, colour: Colour, level: str, caller: str
) -> None:
    """Nobody sees a deadlock, though all keys are new and lie in the same gaps of the index."""
    keys = [f"K-{index:02}" for index in range(16)]

    def test(shop: Shop) -> Steps[None]:
        effects = Effects()

        def body(order_no: str, session: Any) -> Steps[Any]:
            effects.add(order_no)
            yield from place(order_no, session)
            if effects.of(order_no) == 1:
                raise Declined
            return order_no

        f = shop.decorate(body)

        def worker(shift: int) -> Callable[[], Steps[Any]]:
            def steps() -> Steps[Any]:
                found = []
                for order_no in keys[shift:] + keys[:shift]:
                    try:
                        found.append((yield from CALLERS[caller](shop, f, order_no)()))
                    except Declined:
                        found.append("declined")
                return found

            return steps

        workers = Running(colour, [worker(shift) for shift in (0, 0, 0, 0, 4, 8, 12, 15)])
        found = yield from workers.results()
        assert [one for one in found if isinstance(one, BaseException)] == []
        answers = [answer for answers in found for answer in answers]
        assert sorted(answers) == sorted([*keys * 7, *["declined"] * 16])
        assert [effects.of(key) for key in keys] == [2] * 16
        assert [shop.orders(key) for key in keys] == [1] * 16

    driven(empty, colour, test, isolation_level=level)


def crossing(colour: Colour, effects: Effects) -> Callable[[str, Any], Steps[Any]]:
    """A function whose first runs under "1" and "2" lock two rows crosswise: the server must undo one of them."""
    holds = {"1": Gate(colour), "2": Gate(colour)}

    def body(order_no: str, session: Any) -> Steps[Any]:
        effects.add(order_no)
        other = "2" if order_no == "1" else "1"
        yield from place(order_no, session)
        yield session.execute(text(f"UPDATE accounts SET amount = amount + 1 WHERE id = {order_no}"))
        holds[order_no].open()
        yield holds[other].wait()
        yield session.execute(text(f"UPDATE accounts SET amount = amount + 1 WHERE id = {other}"))
        return f"placed {order_no}"

    return body


@colours
@levels
def test_a_deadlock_among_the_functions_own_statements_runs_the_whole_once_more(
    empty: str, colour: Colour, level: str
) -> None:
    def test(shop: Shop) -> Steps[None]:
        effects = Effects()
        before = shop.scalar("SELECT sum(amount) FROM accounts")
        f = shop.decorate(crossing(colour, effects))
        found = yield from Running(colour, [calling(lambda: f("1")), calling(lambda: f("2"))]).results()
        assert found == ["placed 1", "placed 2"]
        assert len(effects) == 3
        assert (shop.orders("1"), shop.orders("2")) == (1, 1)
        assert shop.scalar("SELECT sum(amount) FROM accounts") == before + 4

    driven(empty, colour, test, isolation_level=level)


@colours
def test_a_deadlock_in_the_callers_transaction_is_raised_and_never_a_duplicate(
    empty: str, colour: Colour
) -> None:
    def test(shop: Shop) -> Steps[None]:
        effects = Effects()
        f = shop.decorate(crossing(colour, effects))
        calls = [in_session(shop, f, "1"), in_session(shop, f, "2")]
        found = yield from Running(colour, calls).results()
        (victim,) = (index for index, one in enumerate(found) if isinstance(one, DBAPIError))
        assert number(found[victim]) == DEADLOCK
        assert isinstance(found[1 - victim], str)
        assert shop.orders() == 1
        assert (yield from calls[victim]()) == f"placed {victim + 1}"
        assert (shop.orders("1"), shop.orders("2")) == (1, 1)

    driven(empty, colour, test)


@colours
@pytest.mark.parametrize("caller", ["idempo's transaction", "a session"])
def test_a_function_that_hides_a_deadlock_is_not_taken_for_done(
    empty: str, colour: Colour, caller: str
) -> None:
    """The server has undone its claim and its writes; what it wrote afterwards goes too."""

    def test(shop: Shop) -> Steps[None]:
        whole = crossing(colour, Effects())

        def body(order_no: str, session: Any) -> Steps[Any]:
            try:
                return (yield from whole(order_no, session))
            except DBAPIError:
                yield from place(order_no, session)
                return "as if nothing had happened"

        f = shop.decorate(body)
        call = CALLERS[caller]
        found = yield from Running(colour, [call(shop, f, "1"), call(shop, f, "2")]).results()
        (victim,) = (index for index, one in enumerate(found) if isinstance(one, BaseException))
        assert isinstance(found[victim], LeaseLostError)
        assert shop.orders(str(victim + 1)) == 0
        assert (yield from call(shop, f, str(victim + 1))()) == f"placed {victim + 1}"
        assert shop.orders() == 2

    driven(empty, colour, test)


@colours
@pytest.mark.parametrize("wait", [0, 1])
def test_a_lock_wait_that_is_over_is_a_typed_error_and_leaves_the_callers_transaction_as_it_was(
    empty: str, colour: Colour, wait: float
) -> None:
    def test(shop: Shop) -> Steps[None]:
        f, hasty = shop.decorate(place), shop.decorate(place, wait=wait)
        owner, caller = shop.sessions(), shop.sessions()
        try:
            yield f("A-1", session=owner)
            yield caller.execute(text("SET SESSION innodb_lock_wait_timeout = 17"))
            yield caller.execute(insert(Order).values(order_no="earlier"))
            error = yield from caught(InProgressError, lambda: hasty("A-1", session=caller))
            assert error.ran is False
            assert error.key == "A-1"
            assert (yield caller.scalar(text("SELECT @@SESSION.innodb_lock_wait_timeout"))) == 17
            yield caller.execute(insert(Order).values(order_no="later"))
            yield caller.commit()
            assert (shop.orders("earlier"), shop.orders("later"), shop.orders("A-1")) == (1, 1, 0)
            yield owner.commit()
            assert (yield hasty("A-1", session=caller)) == "placed A-1"
            assert (yield caller.scalar(text("SELECT @@SESSION.innodb_lock_wait_timeout"))) == 17
        finally:
            yield caller.close()
            yield owner.close()
        assert shop.orders("A-1") == 1

    driven(empty, colour, test)


@colours
def test_a_lock_wait_that_is_over_inside_the_function_undoes_all_of_it(empty: str, colour: Colour) -> None:
    def test(shop: Shop) -> Steps[None]:
        def body(order_no: str, session: Any) -> Steps[Any]:
            yield from place(order_no, session)
            yield session.execute(text("SELECT * FROM accounts WHERE id = 1 FOR UPDATE NOWAIT"))
            return "placed"

        f, other = shop.decorate(body), shop.sessions()
        try:
            yield other.execute(text("SELECT * FROM accounts WHERE id = 1 FOR UPDATE"))
            error = yield from caught(DBAPIError, lambda: f("A-1"))
            assert number(error) == LOCK_WAIT
        finally:
            yield other.close()
        assert shop.orders() == 0
        assert (yield f("A-1")) == "placed"
        assert shop.orders() == 1

    driven(empty, colour, test)


@colours
@levels
def test_a_snapshot_from_before_the_winners_commit_gets_the_first_result(
    empty: str, colour: Colour, level: str
) -> None:
    def test(shop: Shop) -> Steps[None]:
        f, caller = shop.decorate(place), shop.sessions()
        try:
            assert (yield caller.scalar(text("SELECT count(*) FROM orders"))) == 0
            yield f("A-1")
            outcome = yield f.outcome("A-1", session=caller)
            assert (outcome.value, outcome.replayed) == ("placed A-1", True)
            yield caller.commit()
        finally:
            yield caller.close()
        assert shop.orders() == 1

    driven(empty, colour, test, isolation_level=level)


@colours
def test_a_first_result_that_a_strict_snapshot_does_not_see_is_replayed_all_the_same(
    empty: str, colour: Colour
) -> None:
    """To lock its row would be error 1020, record has changed since last read."""

    def test(shop: Shop) -> Steps[None]:
        if shop.scalar("SHOW VARIABLES LIKE 'innodb_snapshot_isolation'") is None:
            pytest.skip("this server has no strict snapshots")
        f, caller = shop.decorate(place), shop.sessions()
        try:
            yield caller.execute(text("SET SESSION innodb_snapshot_isolation = ON"))
            yield caller.commit()
            connection = caller.connection()
            yield connection
            assert (yield caller.scalar(text("SELECT count(*) FROM orders"))) == 0
            yield f("A-1")
            assert (yield f.outcome("A-1", session=caller)).replayed
            yield caller.rollback()
            yield caller.execute(text("SET SESSION innodb_snapshot_isolation = DEFAULT"))
        finally:
            yield caller.close()
        assert shop.orders() == 1

    driven(empty, colour, test, isolation_level="REPEATABLE READ", pool_size=1, max_overflow=2)


@colours
@levels
def test_claims_of_different_missing_keys_never_deadlock(empty: str, colour: Colour, level: str) -> None:
    """Eight transactions hold a new key each, at once, and claim another new one while they do."""
    callers = 8

    def test(shop: Shop) -> Steps[None]:
        inside, all_inside = Effects(), Gate(colour)

        def body(order_no: str, session: Any) -> Steps[Any]:
            if inside.add(order_no) == callers:
                all_inside.open()
            yield all_inside.wait()
            return (yield from place(order_no, session))

        f = shop.decorate(body)

        def two_keys(index: int) -> Callable[[], Steps[Any]]:
            def steps() -> Steps[Any]:
                session = shop.sessions()
                try:
                    yield f(f"A-{index}", session=session)
                    yield f(f"B-{index}", session=session)
                    yield session.commit()
                finally:
                    yield session.close()

            return steps

        found = yield from Running(colour, [two_keys(index) for index in range(callers)]).results()
        assert found == [None] * callers
        assert shop.orders() == 2 * callers

    driven(empty, colour, test, isolation_level=level)


@colours
@callers
def test_keys_that_a_collation_confuses_are_different(empty: str, colour: Colour, caller: str) -> None:
    def test(shop: Shop) -> Steps[None]:
        effects = Effects()

        def body(order_no: str, session: Any) -> Steps[Any]:
            yield from ()
            effects.add(order_no)
            return order_no

        f = shop.decorate(body)
        keys = ["Order-A", "order-a", "Order-A ", "Order-Á", "ORDER-A", "Straße", "Strasse"]
        for order_no in keys * 2:
            assert (yield from CALLERS[caller](shop, f, order_no)()) == order_no
        assert len(effects) == len(keys)

    driven(empty, colour, test)


@colours
@callers
def test_a_pool_with_one_connection_is_enough(empty: str, colour: Colour, caller: str) -> None:
    """Though the caller holds it."""
    pool = QueuePool if colour == "sync" else AsyncAdaptedQueuePool

    def test(shop: Shop) -> Steps[None]:
        f = shop.decorate(place)
        for _ in range(2):
            assert (yield from CALLERS[caller](shop, f, "A-1")()) == "placed A-1"
        assert shop.orders() == 1

    driven(empty, colour, test, poolclass=pool, pool_size=1, max_overflow=0, pool_timeout=5)


def test_leased_waiters_in_autocommit_take_over_without_a_deadlock(empty: str) -> None:
    """The same trap without join=: sixteen threads, eight keys, every first run fails."""
    shop, effects = Shop(empty, "sync"), Effects()
    start = threading.Barrier(16)

    def body(order_no: str, session: Any) -> Steps[Any]:
        yield from ()
        effects.add(order_no)
        if effects.of(order_no) == 1:
            raise Declined
        return order_no

    f = shop.decorate(body, using=UniqueInsert(shop.engine))

    def worker() -> Steps[Any]:
        yield from ()
        start.wait()
        found = []
        for index in range(8):
            try:
                found.append(f(f"L-{index}"))
            except Declined:
                found.append("declined")
        return found

    found = drive("sync", Running("sync", [worker] * 16).results())
    assert sorted(one for answers in found for one in answers) == sorted(
        [*[f"L-{index}" for index in range(8)] * 15, *["declined"] * 8]
    )
    assert len(effects) == 16
    shop.close()
