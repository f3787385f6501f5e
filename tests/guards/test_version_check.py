"""`VersionCheck`: from the expected version only, one step for each call; a conflict is told from a repeat."""

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Float,
    Integer,
    MetaData,
    Numeric,
    SmallInteger,
    String,
    Table,
    Uuid,
    create_engine,
    insert,
    update,
)

from idempo import (
    ConfigurationError,
    IdempoError,
    KeyRefusedError,
    OutcomeUnknownError,
    RowMissingError,
    UniqueInsert,
    VersionCheck,
    VersionConflictError,
    idempotent,
)
from idempo.contracts import Strategy
from idempo.events import Event
from idempo.steps import Steps
from idempo.testing import Effects
from tests.faults.proxy import Proxy
from tests.guards.support import (
    OURS,
    SESSION,
    Declined,
    Order,
    Payment,
    Receipt,
    Shop,
    callers,
    driven,
    everywhere,
    failing,
    nothing,
    on,
    pay,
    sync_only,
    their_own,
)
from tests.guards.support_rows import (
    HERE,
    PLACES,
    RowPromises,
    check,
    stock_table,
    versioned,
    without_found_rows,
)
from tests.servers import Server
from tests.test_round_trips import counted, ending
from tests.traps.support import caught

servers = on("postgres", "mariadb")  # SQLite has one writer at a time: nobody comes in between


def version(shop: Shop, order: int) -> Any:
    return shop.row(order, Order.version)


# ------------------------------------------------------------------------ with the version that the caller has seen


@everywhere
@callers
@driven
def test_from_the_expected_version_the_function_runs_and_the_version_counts_up_by_one(
    shop: Shop, caller: str
) -> Steps[None]:
    shop.add(1, 2)
    f = versioned(shop, pay, returns=Receipt)
    assert (yield from shop.call(caller, f, 1, "P-1", 1)) == Receipt("P-1", 1)
    assert (version(shop, 1), shop.payments(1)) == (2, 1)
    assert (version(shop, 2), shop.payments(2)) == (1, 0)


@callers
@driven
def test_a_repeat_is_a_replay_and_never_a_conflict_with_itself(shop: Shop, caller: str) -> Steps[None]:
    """The version has moved on by this very call, and by others afterwards."""
    shop.add(1)
    f = versioned(shop, pay, returns=Receipt)
    first = yield from shop.call(caller, f, 1, "P-1", 1)
    for found in (2, 7, 1):
        shop.put(1, version=found)
        outcome = yield from shop.outcome(caller, f, 1, "P-1", 1)
        assert (outcome.replayed, outcome.value) == (True, first)
        assert (version(shop, 1), shop.payments(1)) == (found, 1)


@callers
@driven
def test_from_another_version_nothing_runs_and_the_error_says_what_is_there(
    shop: Shop, caller: str
) -> Steps[None]:
    """Row, record and the caller's earlier writes are as they were."""
    effects = Effects()

    def body(order_id: int, payment: str, session: Any) -> Steps[None]:
        effects.add(payment)
        yield from pay(order_id, payment, session)

    f = versioned(shop, body)
    for order, found in enumerate((2, 0, 9)):
        shop.add(order, version=found)
        error = yield from shop.refused(caller, VersionConflictError, f, order, f"P-{order}", 1)
        assert (error.expected, error.found, error.ran) == (1, found, False)
        assert (error.operation, error.key) == (shop.name, f"P-{order}")
        assert all(one in str(error) for one in ("orders.version", "should be 1", f"to {found}", shop.name))
        assert (version(shop, order), shop.payments(order), len(effects)) == (found, 0, 0)
        assert (yield f.lookup(order, f"P-{order}", 1)) is None


@callers
@driven
def test_a_refused_key_is_free_and_may_come_again_with_another_version(
    shop: Shop, caller: str
) -> Steps[None]:
    shop.add(1, version=5)
    f = versioned(shop, pay)
    for _ in range(2):
        yield from shop.refused(caller, VersionConflictError, f, 1, "P-1", 4)
    outcome = yield from shop.outcome(caller, f, 1, "P-1", 5)
    assert (outcome.replayed, outcome.attempt) == (False, 1)
    assert (version(shop, 1), shop.payments(1)) == (6, 1)


@callers
@pytest.mark.parametrize("expected", ["{version}", None])
@driven
def test_a_missing_row_is_called_missing(shop: Shop, caller: str, expected: str | None) -> Steps[None]:
    shop.add(1)
    f = versioned(shop, pay, check(shop, expected=expected))
    error = yield from shop.refused(caller, RowMissingError, f, 2, "P-2", 1)
    assert (error.ran, error.key, error.operation) == (False, "P-2", shop.name)
    assert "id={order_id}" in str(error)
    assert (yield f.lookup(2, "P-2", 1)) is None
    shop.add(2)
    yield from shop.call(caller, f, 2, "P-2", 1)
    assert (version(shop, 1), version(shop, 2)) == (1, 2)


@their_own
@driven
def test_after_a_refusal_the_callers_transaction_goes_on(shop: Shop, caller: str) -> Steps[None]:
    shop.add(1, version=3)
    shop.add(2)
    f = versioned(shop, pay)

    def work(holder: Any) -> Steps[None]:
        yield from caught(VersionConflictError, lambda: f(1, "P-1", 2, session=holder))
        yield from caught(RowMissingError, lambda: f(3, "P-3", 1, session=holder))
        yield f(2, "P-2", 1, session=holder)
        yield f(2, "P-4", 2, session=holder)

    yield from shop.within(caller, work)
    assert (version(shop, 1), version(shop, 2), shop.payments(2)) == (3, 3, 2)


@their_own
@driven
def test_a_caller_who_rolls_back_undoes_version_effect_and_record(shop: Shop, caller: str) -> Steps[None]:
    shop.add(1)
    f = versioned(shop, pay)

    def work(holder: Any) -> Steps[None]:
        yield f(1, "P-1", 1, session=holder)
        raise Declined

    yield from failing(Declined, shop.within(caller, work))
    assert (version(shop, 1), shop.payments(1)) == (1, 0)
    assert not (yield from shop.outcome(caller, f, 1, "P-1", 1)).replayed


@on("mariadb", "mysql")
@callers
@pytest.mark.parametrize("expected", ["{version}", None])
@driven
def test_without_found_rows_the_answers_are_the_same(
    shop: Shop, caller: str, expected: str | None
) -> Steps[None]:
    """MySQL then counts the rows that were changed. A version always changes."""
    yield shop.engine.dispose()
    shop.engine = without_found_rows(shop)
    shop.sessions.configure(bind=shop.engine)
    shop.add(1)
    f = versioned(shop, pay, check(shop, expected=expected))

    def matched(holder: Any) -> Steps[int]:
        found = yield holder.execute(update(Order).where(Order.id == 1).values(version=1))
        count: int = found.rowcount
        return count

    assert (yield from shop.within(SESSION, matched)) == 0
    for number in (1, 2):
        for replayed in (False, True):
            outcome = yield from shop.outcome(caller, f, 1, f"P-{number}", number)
            assert outcome.replayed is replayed
    if expected is not None:
        error = yield from shop.refused(caller, VersionConflictError, f, 1, "P-3", 1)
        assert (error.expected, error.found) == (1, 3)
    yield from shop.refused(caller, RowMissingError, f, 2, "P-4", 1)
    assert (version(shop, 1), shop.payments(1)) == (3, 2)


@on("postgres")
@sync_only
@driven
def test_a_lost_reply_to_the_commit_is_a_replay_and_no_conflict(shop: Shop, postgres: Server) -> Steps[None]:
    """The naive compare-and-set finds its own version there, and says that somebody else was faster."""
    with Proxy(postgres.port) as proxy:

        def body(order_id: int, payment: str, session: Any) -> Steps[None]:
            yield from pay(order_id, payment, session)
            if payment == "P-1":
                proxy.drop_reply(b"COMMIT\x00")

        shop.add(1, 2)
        engine = create_engine(ending(shop.url, proxy.port) + "?sslmode=disable")
        f = versioned(shop, body, check(shop, expected="{version}", engine=engine))
        yield f(2, "warm", 1)
        assert (yield f(1, "P-1", 1)) is None  # idempo has read its record again
        assert proxy.fired.is_set()
        assert (yield f.outcome(1, "P-1", 1)).replayed
        assert (version(shop, 1), shop.payments(1)) == (2, 1)
        engine.dispose()


# ------------------------------------------------------------------------ with the version that idempo reads


def interfering(shop: Shop, times: int, effects: Effects) -> Any:
    """A body whose first runs meet somebody else's committed change of the row."""

    def body(order_id: int, payment: str, session: Any) -> Steps[Receipt]:
        number = effects.add(payment)
        if number <= times:  # before the payment: its foreign key would lock the order on MariaDB
            shop.put(order_id, version=10 * number, note=f"change {number}")
        return (yield from pay(order_id, payment, session))

    return body


@everywhere
@callers
@driven
def test_without_expected_the_version_counts_up_by_one_after_the_function(
    shop: Shop, caller: str
) -> Steps[None]:
    shop.add(1)
    f = versioned(shop, pay, check(shop), returns=Receipt)
    for number in (1, 2, 3):
        for _ in range(2):
            yield from shop.call(caller, f, 1, f"P-{number}")
        assert (version(shop, 1), shop.payments(1)) == (number + 1, number)


@servers
@callers
@driven
def test_a_change_while_the_function_runs_is_a_conflict_and_its_writes_are_undone(
    shop: Shop, caller: str
) -> Steps[None]:
    """The caller's earlier writes are committed, and the key is free."""
    effects = Effects()
    shop.add(1)
    f = versioned(shop, interfering(shop, 1, effects), check(shop))
    error = yield from shop.refused(caller, VersionConflictError, f, 1, "P-1")
    assert (error.expected, error.found, error.ran) == (1, 10, True)
    assert "undone" in str(error)
    assert (version(shop, 1), shop.payments(1), len(effects)) == (10, 0, 1)
    assert (yield f.lookup(1, "P-1")) is None
    assert not (yield from shop.outcome(caller, f, 1, "P-1")).replayed
    assert (version(shop, 1), shop.payments(1), len(effects)) == (11, 1, 2)


@servers
@callers
@driven
def test_a_state_that_goes_there_and_back_meanwhile_is_noticed(shop: Shop, caller: str) -> Steps[None]:
    """A -> B -> A: the state is the same, and the version is not."""

    def body(order_id: int, payment: str, session: Any) -> Steps[None]:
        shop.put(order_id, status="paid", version=2)
        shop.put(order_id, status="pending", version=3)
        yield from pay(order_id, payment, session)

    shop.add(1)
    f = versioned(shop, body, check(shop))
    error = yield from shop.refused(caller, VersionConflictError, f, 1, "P-1")
    assert (error.expected, error.found, error.ran) == (1, 3, True)
    assert (shop.row(1), shop.payments(1)) == ("pending", 0)


@servers
@driven
def test_a_row_that_is_deleted_meanwhile_is_a_conflict_without_a_found_version(shop: Shop) -> Steps[None]:
    def body(order_id: int, payment: str, session: Any) -> Steps[None]:
        shop.empty()
        yield from nothing(order_id, payment, session)

    shop.add(1)
    f = versioned(shop, body, check(shop))
    error = yield from shop.refused(OURS, VersionConflictError, f, 1, "P-1")
    assert (error.expected, error.found, error.ran) == (1, None, True)


@driven
def test_a_function_that_counts_by_itself_is_told_and_never_counted_twice(shop: Shop) -> Steps[None]:
    def body(order_id: int, payment: str, session: Any) -> Steps[None]:
        yield session.execute(update(Order).where(Order.id == order_id).values(version=Order.version + 1))

    shop.add(1)
    f = versioned(shop, body, check(shop))
    error = yield from shop.refused(OURS, VersionConflictError, f, 1, "P-1")
    assert (error.expected, error.found, version(shop, 1)) == (1, 2, 1)


# ------------------------------------------------------------------------ retries


@servers
@pytest.mark.parametrize("conflicts", [1, 3])
@driven
def test_retries_run_it_again_in_a_fresh_transaction(shop: Shop, conflicts: int) -> Steps[None]:
    """Each run sees what the one before has missed, also under REPEATABLE READ. Only the last one leaves anything."""
    effects, events, seen = Effects(), list[Event](), list[Any]()
    inner = interfering(shop, conflicts, effects)

    def body(order_id: int, payment: str, session: Any) -> Steps[Receipt]:
        order = yield session.get(Order, order_id)
        seen.append((order.version, order.note))
        receipt: Receipt = yield from inner(order_id, payment, session)
        return receipt

    shop.add(1)
    f = versioned(shop, body, check(shop, retries=3), returns=Receipt, hooks=[events.append])
    outcome = yield f.outcome(1, "P-1")
    assert (outcome.value, outcome.replayed) == (Receipt("P-1", 1), False)
    assert seen == [(1, ""), *((10 * one, f"change {one}") for one in range(1, conflicts + 1))]
    assert (version(shop, 1), shop.payments(1), len(effects)) == (10 * conflicts + 1, 1, conflicts + 1)
    assert [one.kind for one in events] == ["claimed", "released"] * conflicts + ["claimed", "completed"]
    assert (yield f.outcome(1, "P-1")).replayed
    assert len(effects) == conflicts + 1


@servers
@pytest.mark.parametrize("retries", [0, 1, 4])
@driven
def test_it_runs_so_many_times_more_and_no_more(shop: Shop, retries: int) -> Steps[None]:
    effects = Effects()
    shop.add(1)
    f = versioned(shop, interfering(shop, 99, effects), check(shop, retries=retries))
    error = yield from caught(VersionConflictError, lambda: f(1, "P-1"))
    last = 10 * len(effects)
    assert len(effects) == retries + 1
    assert (error.found, error.ran, version(shop, 1), shop.payments(1)) == (last, True, last, 0)
    assert (yield f.lookup(1, "P-1")) is None


@servers
@their_own
@driven
def test_in_the_callers_transaction_retries_do_nothing(shop: Shop, caller: str) -> Steps[None]:
    """Only the caller can begin a new one: he gets the error at once."""
    effects = Effects()
    shop.add(1)
    f = versioned(shop, interfering(shop, 1, effects), check(shop, retries=5))
    error = yield from shop.refused(caller, VersionConflictError, f, 1, "P-1")
    assert (error.expected, error.found, error.ran, len(effects)) == (1, 10, True, 1)
    assert (version(shop, 1), shop.payments(1)) == (10, 0)
    yield from shop.call(caller, f, 1, "P-1")
    assert (version(shop, 1), shop.payments(1), len(effects)) == (11, 1, 2)


@servers
@driven
def test_an_error_of_the_second_run_is_the_functions_own(shop: Shop) -> Steps[None]:
    effects = Effects()
    inner = interfering(shop, 1, effects)

    def body(order_id: int, payment: str, session: Any) -> Steps[Any]:
        if len(effects):
            raise Declined("by the bank")
        return (yield from inner(order_id, payment, session))

    shop.add(1)
    f = versioned(shop, body, check(shop, retries=3))
    error = yield from caught(Declined, lambda: f(1, "P-1"))
    assert error.args == ("by the bank",)
    assert (version(shop, 1), shop.payments(1)) == (10, 0)


@servers
@driven
def test_a_row_that_is_missing_on_the_second_run_says_that_it_has_run(shop: Shop) -> Steps[None]:
    """It has not run to its end this time, but it did before: nobody may take that for "nothing happened"."""

    def body(order_id: int, payment: str, session: Any) -> Steps[None]:
        shop.empty()
        yield from nothing(order_id, payment, session)

    shop.add(1)
    f = versioned(shop, body, check(shop, retries=3))
    error = yield from caught(IdempoError, lambda: f(1, "P-1"))
    assert isinstance(error, RowMissingError)
    assert error.ran is not False


# ------------------------------------------------------------------------ failure, objects


@callers
@pytest.mark.parametrize("expected", ["{version}", None])
@driven
def test_a_function_that_fails_counts_nothing(shop: Shop, caller: str, expected: str | None) -> Steps[None]:
    """Whether its error frees the key, is a result, or leaves the outcome unknown."""

    def body(order_id: int, payment: str, session: Any) -> Steps[None]:
        yield from pay(order_id, payment, session)
        raise Declined("by the bank")

    ways: list[tuple[dict[str, Any], type[Exception], str | None]] = [
        ({}, Declined, None),
        ({"replay_errors": [Declined]}, Declined, "failed"),
        ({"unknown_errors": [Declined]}, OutcomeUnknownError, "orphan"),
    ]
    shop.add(1)
    for number, (terms, kind, state) in enumerate(ways):
        f = versioned(shop, body, check(shop, expected=expected), name=f"{shop.name}.{number}", **terms)
        yield from shop.refused(caller, kind, f, 1, "P-1", 1)
        assert (version(shop, 1), shop.payments(1)) == (1, 0)
        record = yield f.lookup(1, "P-1", 1)
        assert (None if record is None else record.state) == state


@pytest.mark.parametrize("expected", ["{version}", None])
@driven
def test_objects_loaded_before_show_the_new_version_and_the_old_one_after_a_failure(
    shop: Shop, expected: str | None
) -> Steps[None]:
    def body(order_id: int, payment: str, session: Any) -> Steps[None]:
        yield from pay(order_id, payment, session)
        if payment == "P-1":
            raise Declined

    shop.add(1)
    f = versioned(shop, body, check(shop, expected=expected))

    def work(session: Any) -> Steps[None]:
        order = yield session.get(Order, 1)
        yield from caught(Declined, lambda: f(1, "P-1", 1, session=session))
        yield session.refresh(order, ["id"])
        assert order.version == 1
        yield f(1, "P-2", 1, session=session)
        assert order.version == 2
        assert not session.dirty
        order.note = "and on"

    yield from shop.within(SESSION, work)
    assert (version(shop, 1), shop.row(1, Order.note)) == (2, "and on")


@callers
@driven
def test_beside_a_ledger_of_the_users_own_and_with_core_columns(shop: Shop, caller: str) -> Steps[None]:
    table: Any = Order.__table__
    shop.add(1)
    guard = check(
        shop, column=table.c.version, where={table.c.id: "{order_id}"}, expected="{version}", engine=None
    )
    f = versioned(shop, pay, [UniqueInsert(shop.engine, join="session"), guard])
    yield from shop.call(caller, f, 1, "P-1", 1)
    yield from shop.refused(caller, VersionConflictError, f, 1, "P-2", 1)
    assert (version(shop, 1), shop.payments(1)) == (2, 1)


def test_explain_tells_what_is_undone_and_what_is_not() -> None:
    def f(order_id: int, payment: str, version: int, session: Any = None) -> None: ...

    seen, read = (
        idempotent(key="{payment}", using=VersionCheck(Order.version, HERE, expected=one))(f).explain()
        for one in ("{version}", None)
    )
    assert "before the function runs" in str(seen)
    assert "after the function has run" in str(read)


# ------------------------------------------------------------------------ the promises that every strategy keeps


class TestPostgres(RowPromises):
    server = "postgres"

    def make(self) -> Strategy:
        return VersionCheck(PLACES.c.version, self.where, engine=self.at.engine)


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
def test_how_many_requests_a_call_takes(shop: Shop, postgres: Server) -> Steps[None]:
    """A look for the record, BEGIN, the claim; what the guard asks; completion and COMMIT. A replay is the look."""
    shop.add(1)
    with Proxy(postgres.port) as proxy:
        engine = create_engine(ending(shop.url, proxy.port) + "?sslmode=disable")
        taken = {}
        for name, guard in {
            "expected": check(shop, expected="{version}", engine=engine),
            "read": check(shop, engine=engine),
        }.items():
            f = versioned(shop, nothing, guard, name=f"{shop.name}.{name}")
            for number in range(8):  # until the driver has prepared its statements
                shop.put(1, version=1)
                yield f(1, f"warm {number}", 1)
                yield f(1, f"warm {number}", 1)
            shop.put(1, version=1)
            first = yield from counted(proxy, lambda: f(1, "P-1", 1))  # noqa: B023
            replay = yield from counted(proxy, lambda: f(1, "P-1", 1))  # noqa: B023
            taken[name] = first, replay
        assert taken == {"expected": (5, 1), "read": (6, 1)}
        engine.dispose()


# ------------------------------------------------------------------------ refused


def plain(order_id: int, payment: str, version: int = 1, session: Any = None) -> int:
    return 1


def by_time(order_id: int, payment: str, version: dt.datetime, session: Any = None) -> int:
    return 1


def by_float(order_id: int, payment: str, version: float, session: Any = None) -> int:
    return 1


def by_text(order_id: int, payment: str, version: str, session: Any = None) -> int:
    return 1


def by_decimal(order_id: int, payment: str, version: Decimal, session: Any = None) -> int:
    return 1


def with_version(kind: Any) -> dict[str, Any]:
    table = Table("things", MetaData(), Column("id", Integer, primary_key=True), Column("version", kind))
    return {"column": table.c.version, "where": {table.c.id: "{order_id}"}}


SEEN = {"expected": "{version}"}
WRONG: dict[str, tuple[dict[str, Any], Any, str]] = {
    "a time stamp": (with_version(DateTime()), plain, "one time stamp"),
    "a date": (with_version(Date()), plain, "an integer"),
    "a float": (with_version(Float()), plain, "an integer"),
    "a numeric": (with_version(Numeric()), plain, "an integer"),
    "a text": (with_version(String(10)), plain, "an integer"),
    "a bool": (with_version(Boolean()), plain, "an integer"),
    "a UUID": (with_version(Uuid()), plain, "an integer"),
    "no column": ({"column": "version"}, plain, "mapped attribute"),
    "an expected time": (SEEN, by_time, "datetime"),
    "an expected float": (SEEN, by_float, "float"),
    "an expected text": (SEEN, by_text, "str"),
    "an expected decimal": (SEEN, by_decimal, "Decimal"),
    "a longer template": ({"expected": "v{version}"}, plain, "str"),
    "a parameter that is not there": ({"expected": "{seen}"}, plain, "seen"),
    "expected and retries": (SEEN | {"retries": 1}, plain, "retries= is for"),
    "negative retries": ({"retries": -1}, plain, "retries=-1"),
    "retries that are a bool": ({"retries": True}, plain, "retries=True"),
    "retries without an end": ({"retries": 10**6}, plain, "between 0 and 1000"),
    "a where of another table": ({"where": {Payment.id: "{order_id}"}}, plain, "payments.id"),
    "no where": ({"where": {}}, plain, "where="),
}


@pytest.mark.parametrize("mistake", list(WRONG))
def test_what_cannot_work_is_refused_while_decorating(mistake: str) -> None:
    options, function, reason = WRONG[mistake]
    terms: Any = {"column": Order.version, "where": HERE, "engine": "sqlite:///shop.db"} | options
    with pytest.raises(ConfigurationError) as refused:
        idempotent(key="{payment}", using=VersionCheck(**terms))(function)
    assert reason in str(refused.value)


@pytest.mark.parametrize("kind", [Integer, SmallInteger, BigInteger])
def test_every_integer_is_a_version(kind: Any) -> None:
    terms: Any = with_version(kind()) | {"engine": "sqlite:///shop.db"}
    f: Any = idempotent(key="{payment}", using=VersionCheck(**terms))(plain)
    assert "VersionCheck" in str(f.explain())


@callers
@driven
def test_a_version_that_is_no_whole_number_is_refused_before_anything_runs(
    shop: Shop, caller: str
) -> Steps[None]:
    shop.add(1)
    f = versioned(shop, pay, fingerprint=None)
    for value in (True, "1", 1.0, None, dt.datetime(2024, 5, 6), Decimal(1)):
        error = yield from shop.refused(caller, KeyRefusedError, f, 1, "P-1", value)
        assert (error.ran, error.key) == (False, "P-1")
    assert (version(shop, 1), shop.payments(1)) == (1, 0)
    yield from shop.call(caller, f, 1, "P-1", 1)


@callers
@pytest.mark.parametrize("expected", ["{version}", None])
@driven
def test_many_rows_are_refused_and_none_is_changed(
    shop: Shop, caller: str, expected: str | None
) -> Steps[None]:
    shop.add(1, 2, note="both")
    f = versioned(shop, nothing, check(shop, where={Order.note: "{order_id}"}, expected=expected))
    error = yield from shop.refused(caller, ConfigurationError, f, "both", "P-1", 1)
    assert "several rows" in str(error)
    assert (version(shop, 1), version(shop, 2)) == (1, 1)
    assert (yield f.lookup("both", "P-1", 1)) is None


@callers
@pytest.mark.parametrize("expected", ["{version}", None])
@driven
def test_a_version_that_is_null_is_refused(shop: Shop, caller: str, expected: str | None) -> Steps[None]:
    with stock_table(shop) as (table, _):
        with shop.outside.connect() as connection:
            connection.execute(insert(table).values(id=1, version=None))
        where = {table.c.id: "{order_id}"}
        f = versioned(shop, nothing, check(shop, column=table.c.version, where=where, expected=expected))
        error = yield from shop.refused(caller, ConfigurationError, f, 1, "P-1", 1)
        assert "never null" in str(error)
        assert (yield f.lookup(1, "P-1", 1)) is None


@their_own
@pytest.mark.parametrize("expected", ["{version}", None])
@driven
def test_a_transaction_of_another_database_is_told_so(
    shop: Shop, caller: str, expected: str | None, tmp_path: Path
) -> Steps[None]:
    shop.add(1)
    other = Shop(f"sqlite:///{tmp_path}/other.db", shop.colour)
    f = versioned(shop, pay, check(shop, expected=expected))
    holder = other.sessions() if caller == SESSION else other.engine.connect()
    if caller != SESSION and shop.colour == "async":
        holder = yield holder
    try:
        error = yield from caught(ConfigurationError, lambda: f(1, "P-1", 1, session=holder))
        assert "another database" in str(error)
    finally:
        yield holder.close()
        yield from other.close()
    assert (version(shop, 1), shop.payments(1)) == (1, 0)
