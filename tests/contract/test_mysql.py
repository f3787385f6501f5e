"""`UniqueInsert` on MySQL itself: the promises, and the traps where it is not like MariaDB."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError

from idempo import InProgressError
from idempo.contracts import Colour
from idempo.steps import Steps
from idempo.testing import LedgerContract, PromiseContract
from tests.contract.test_unique_insert import OnDatabase
from tests.servers import Server
from tests.traps import test_mysql as traps
from tests.traps.support import Running, Shop, calling, caught, driven, empty_tables, place, shop_database

NOWAIT_FAILED = 3572

# There is no time_ms in the list of processes, which cannot even be read while a statement with bytes in it runs.
WAITING = (
    "SELECT count(*) FROM performance_schema.data_locks "
    "WHERE object_schema = DATABASE() AND lock_status = 'WAITING'"
)


class TestMySQL(OnDatabase, LedgerContract):
    server = "mysql"


class TestMySQLAsync(TestMySQL):
    colour = "async"


class TestMySQLJoined(OnDatabase, PromiseContract):
    server = "mysql"
    joined = True


class TestMySQLJoinedAsync(TestMySQLJoined):
    colour = "async"


@pytest.fixture(scope="module")
def url(mysql: Server) -> str:
    url = shop_database(mysql)
    with Shop(url, "sync").outside.connect() as connection:
        connection.execute(text("CREATE TABLE accounts (id INT PRIMARY KEY, amount INT NOT NULL)"))
        connection.execute(text("INSERT INTO accounts VALUES (1, 0), (2, 0)"))
    return url


@pytest.fixture
def empty(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    empty_tables(url)
    monkeypatch.setattr(traps, "WAITING", WAITING)
    return url


# On this module's server: the bounded wait is set in the session and not in the statement, and all else may differ.
test_waiters = traps.test_one_of_many_waiters_runs_when_the_owner_rolls_back
test_many_keys = traps.test_many_keys_whose_first_run_fails_run_once_more_each
test_deadlock_inside = traps.test_a_deadlock_among_the_functions_own_statements_runs_the_whole_once_more
test_deadlock_of_the_caller = traps.test_a_deadlock_in_the_callers_transaction_is_raised_and_never_a_duplicate
test_hidden_deadlock = traps.test_a_function_that_hides_a_deadlock_is_not_taken_for_done
test_lock_wait = (
    traps.test_a_lock_wait_that_is_over_is_a_typed_error_and_leaves_the_callers_transaction_as_it_was
)
test_missing_keys = traps.test_claims_of_different_missing_keys_never_deadlock
test_collations = traps.test_keys_that_a_collation_confuses_are_different
test_leased_waiters = traps.test_leased_waiters_in_autocommit_take_over_without_a_deadlock


@traps.colours
@pytest.mark.parametrize(("wait", "number"), [(0, NOWAIT_FAILED), (1, traps.LOCK_WAIT)])
def test_the_server_ends_the_wait(empty: str, colour: Colour, wait: float, number: int) -> None:
    def test(shop: Shop) -> Steps[None]:
        f, hasty = shop.decorate(place), shop.decorate(place, wait=wait)
        owner, numbers = shop.sessions(), set()

        def note(context: ExceptionContext) -> None:
            numbers.add(context.original_exception.args[0])

        event.listen(getattr(shop.engine, "sync_engine", shop.engine), "handle_error", note)
        try:
            yield f("A-1", session=owner)
            error = yield from caught(InProgressError, lambda: hasty("A-1"))
            assert error.ran is False
            assert numbers == {number}
        finally:
            yield owner.close()
        assert shop.orders() == 0

    driven(empty, colour, test)


@traps.colours
def test_a_lock_that_is_not_waited_for_inside_the_function_undoes_all_of_it(
    empty: str, colour: Colour
) -> None:
    def test(shop: Shop) -> Steps[None]:
        def body(order_no: str, session: Any) -> Steps[Any]:
            yield from place(order_no, session)
            yield session.execute(text("SELECT * FROM accounts WHERE id = 1 FOR UPDATE NOWAIT"))
            return "placed"

        f, other = shop.decorate(body), shop.sessions()
        try:
            yield other.execute(text("SELECT * FROM accounts WHERE id = 1 FOR UPDATE"))
            error = yield from caught(DBAPIError, lambda: f("A-1"))
            assert traps.number(error) == NOWAIT_FAILED
        finally:
            yield other.close()
        assert shop.orders() == 0
        assert (yield f("A-1")) == "placed"
        assert shop.orders() == 1

    driven(empty, colour, test)


def test_a_waiter_that_is_cancelled_ends_as_cancelled(empty: str) -> None:
    """Its bound on lock waits went with its connection."""

    def test(shop: Shop) -> Steps[None]:
        f, owner = shop.decorate(place), shop.sessions()
        try:
            yield f("A-1", session=owner)
            waiter = Running("async", [calling(lambda: f("A-1"))])
            yield from shop.until(WAITING, 1)
            waiter.cancel()
            (error,) = yield from waiter.results()
            assert isinstance(error, asyncio.CancelledError)
            yield owner.commit()
        finally:
            yield owner.close()
        assert (yield f("A-1")) == "placed A-1"
        assert shop.orders() == 1

    driven(empty, "async", test)
