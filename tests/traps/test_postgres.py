"""PostgreSQL: waits inside the database, snapshots, aborted transactions, killed owners, lost commits."""

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import event, insert, make_url, text
from sqlalchemy.exc import IntegrityError, PendingRollbackError

from idempo import (
    ConfigurationError,
    InProgressError,
    LedgerUnavailableError,
    Memory,
    OutcomeUnknownError,
    RedisCache,
    UniqueInsert,
    idempotent,
)
from idempo.contracts import Colour
from idempo.steps import Steps, run
from idempo.testing import Effects, drive
from tests.faults.proxy import Proxy
from tests.servers import Server, fresh_database
from tests.traps.support import (
    CALLERS,
    SECONDS,
    Declined,
    Order,
    Running,
    Serial,
    Shop,
    caught,
    driven,
    empty_tables,
    in_ours,
    in_session,
    place,
    script,
    shop_database,
)

WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)

COMMIT = b"COMMIT\x00"  # the whole request: BEGIN ISOLATION LEVEL READ COMMITTED is another one

colours = pytest.mark.parametrize("colour", ["sync", "async"])
levels = pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
snapshots = pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
callers = pytest.mark.parametrize("caller", list(CALLERS))


@pytest.fixture(scope="module")
def url(postgres: Server) -> str:
    return shop_database(postgres)


@pytest.fixture
def empty(url: str) -> str:
    empty_tables(url)
    return url


# ------------------------------------------------------------------------ waits inside the database


@colours
@levels
@callers
def test_waiters_of_an_owner_that_rolls_back_run_once(
    empty: str, colour: Colour, level: str, caller: str
) -> None:
    """The others replay; only a caller's own snapshot may refuse, and then its repeat replays."""
    waiters = 6

    def test(shop: Shop) -> Steps[None]:
        effects = Effects()

        def body(order_no: str, session: Any) -> Steps[Any]:
            effects.add(order_no)
            return (yield from place(order_no, session))

        f, owner = shop.decorate(body), shop.sessions()
        call = CALLERS[caller](shop, f, "A-1")
        try:
            yield f("A-1", session=owner)
            running = Running(colour, [call] * waiters)
            yield from shop.until(WAITING, waiters)
        finally:
            yield owner.close()
        found = yield from running.results()
        refused = [one for one in found if isinstance(one, InProgressError)]
        assert found.count("placed A-1") + len(refused) == waiters
        assert not refused or (level != "READ COMMITTED" and caller != "idempo's transaction")
        for _ in refused:
            assert (yield from call()) == "placed A-1"
        assert len(effects) == 2
        assert shop.orders() == 1

    driven(empty, colour, test, isolation_level=level)


@colours
@levels
def test_a_waiter_in_our_transaction_replays_when_the_owner_commits(
    empty: str, colour: Colour, level: str
) -> None:
    def test(shop: Shop) -> Steps[None]:
        f, owner = shop.decorate(place), shop.sessions()
        try:
            yield f("A-1", session=owner)
            waiter = Running(colour, [lambda: run_outcome(f)])
            yield from shop.until(WAITING, 1)
            yield owner.commit()
        finally:
            yield owner.close()
        (outcome,) = yield from waiter.results()
        assert (outcome.value, outcome.replayed) == ("placed A-1", True)
        assert shop.orders() == 1

    driven(empty, colour, test, isolation_level=level)


def run_outcome(f: Any) -> Steps[Any]:
    return (yield f.outcome("A-1"))


@colours
def test_a_waiter_in_the_callers_transaction_replays_under_read_committed(empty: str, colour: Colour) -> None:
    def test(shop: Shop) -> Steps[None]:
        f, owner = shop.decorate(place), shop.sessions()
        try:
            yield f("A-1", session=owner)
            waiter = Running(colour, [in_session(shop, f, "A-1")])
            yield from shop.until(WAITING, 1)
            yield owner.commit()
        finally:
            yield owner.close()
        assert (yield from waiter.results()) == ["placed A-1"]
        assert shop.orders() == 1

    driven(empty, colour, test)


@colours
@snapshots
def test_a_commit_that_the_callers_snapshot_cannot_see_is_a_typed_error_and_a_repeat_replays(
    empty: str, colour: Colour, level: str
) -> None:
    def test(shop: Shop) -> Steps[None]:
        f, owner, caller = shop.decorate(place), shop.sessions(), shop.sessions()

        def waiting() -> Steps[Any]:
            yield caller.execute(insert(Order).values(order_no="earlier"))
            error = yield from caught(InProgressError, lambda: f("A-1", session=caller))
            assert error.ran is False
            assert "roll" in str(error)
            yield caller.rollback()
            outcome = yield f.outcome("A-1", session=caller)
            yield caller.commit()
            return outcome

        try:
            yield f("A-1", session=owner)
            waiter = Running(colour, [waiting])
            yield from shop.until(WAITING, 1)
            yield owner.commit()
            (outcome,) = yield from waiter.results()
            assert outcome.replayed
        finally:
            yield owner.close()
            yield caller.close()
        assert (shop.orders("A-1"), shop.orders("earlier")) == (1, 0)

    driven(empty, colour, test, isolation_level=level)


@colours
@snapshots
def test_a_snapshot_from_before_the_winners_commit_never_runs_the_function(
    empty: str, colour: Colour, level: str
) -> None:
    def test(shop: Shop) -> Steps[None]:
        f, caller = shop.decorate(place), shop.sessions()
        try:
            assert (yield caller.scalar(text("SELECT count(*) FROM orders"))) == 0
            yield f("A-1")
            yield from caught(InProgressError, lambda: f("A-1", session=caller))
            yield caller.rollback()
            assert (yield f.outcome("A-1", session=caller)).replayed
        finally:
            yield caller.close()
        assert shop.orders() == 1

    driven(empty, colour, test, isolation_level=level)


@colours
@callers
def test_the_wait_inside_the_database_is_bounded(empty: str, colour: Colour, caller: str) -> None:
    """The owner never ends while the duplicate waits."""

    def test(shop: Shop) -> Steps[None]:
        f, owner = shop.decorate(place), shop.sessions()
        hasty = shop.decorate(place, wait=0.2)
        try:
            yield f("A-1", session=owner)
            (error,) = yield from Running(colour, [CALLERS[caller](shop, hasty, "A-1")]).results()
            assert isinstance(error, InProgressError)
            assert (error.ran, error.key) == (False, "A-1")
        finally:
            yield owner.close()
        assert shop.orders() == 0

    driven(empty, colour, test)


# ------------------------------------------------------------------------ the caller's transaction


@colours
def test_a_duplicate_after_earlier_writes_leaves_them_alone(empty: str, colour: Colour) -> None:
    """Replayed or refused, the caller's transaction goes on."""

    def test(shop: Shop) -> Steps[None]:
        f, hasty = shop.decorate(place), shop.decorate(place, wait=0.05)
        owner, caller = shop.sessions(), shop.sessions()
        yield f("A-1")
        try:
            yield f("A-2", session=owner)
            yield caller.execute(insert(Order).values(order_no="earlier"))
            assert (yield f("A-1", session=caller)) == "placed A-1"
            yield caller.execute(insert(Order).values(order_no="between"))
            yield from caught(InProgressError, lambda: hasty("A-2", session=caller))
            yield caller.execute(insert(Order).values(order_no="later"))
            yield caller.commit()
        finally:
            yield caller.close()
            yield owner.close()
        assert [shop.orders(one) for one in ("earlier", "between", "later")] == [1, 1, 1]
        assert (shop.orders("A-1"), shop.orders("A-2")) == (1, 0)

    driven(empty, colour, test)


@colours
@callers
def test_a_violation_of_another_constraint_is_the_users_own_error_and_a_repeat_runs(
    empty: str, colour: Colour, caller: str
) -> None:
    def test(shop: Shop) -> Steps[None]:
        numbers = iter(["taken", "free"])

        def body(order_no: str, session: Any) -> Steps[Any]:
            yield from place(order_no, session)
            yield session.execute(insert(Serial).values(number=next(numbers)))
            return "placed"

        with shop.outside.connect() as connection:
            connection.execute(insert(Serial).values(number="taken"))
        f = shop.decorate(body)
        call = CALLERS[caller](shop, f, "A-1")
        yield from caught_steps(IntegrityError, call)
        assert (yield f.lookup("A-1")) is None
        assert shop.orders() == 0
        assert (yield from call()) == "placed"
        assert (shop.orders(), shop.scalar("SELECT count(*) FROM serials")) == (1, 2)

    driven(empty, colour, test)


def caught_steps(kind: type[BaseException], steps: Callable[[], Steps[Any]]) -> Steps[Any]:
    try:
        yield from steps()
    except kind as error:
        return error
    pytest.fail(f"{kind.__name__} did not come")


@colours
def test_a_violation_that_the_caller_catches_leaves_its_transaction_usable(
    empty: str, colour: Colour
) -> None:
    def test(shop: Shop) -> Steps[None]:
        def body(order_no: str, session: Any) -> Steps[Any]:
            yield from place(order_no, session)
            yield session.execute(insert(Serial).values(number="taken"))
            return "placed"

        f, caller = shop.decorate(body), shop.sessions()
        try:
            yield caller.execute(insert(Serial).values(number="taken"))
            yield from caught(IntegrityError, lambda: f("A-1", session=caller))
            yield caller.execute(insert(Order).values(order_no="instead"))
            yield caller.commit()
        finally:
            yield caller.close()
        assert (shop.orders("A-1"), shop.orders("instead")) == (0, 1)
        assert shop.scalar("SELECT count(*) FROM idempo_records") == 0

    driven(empty, colour, test)


@colours
def test_a_violation_while_flushing_never_commits_by_half(empty: str, colour: Colour) -> None:
    """SQLAlchemy itself then gives up the session's transaction; nothing of it may stay."""

    def test(shop: Shop) -> Steps[None]:
        def body(order_no: str, session: Any) -> Steps[Any]:
            yield from place(order_no, session)
            session.add(Serial(number="taken"))
            yield session.flush()
            return "placed"

        with shop.outside.connect() as connection:
            connection.execute(insert(Serial).values(number="taken"))
        f, caller = shop.decorate(body), shop.sessions()
        try:
            yield caller.execute(insert(Order).values(order_no="earlier"))
            yield from caught(IntegrityError, lambda: f("A-1", session=caller))
            try:
                yield caller.commit()
            except PendingRollbackError:
                yield caller.rollback()
            assert shop.orders("A-1") == 0
            assert (yield f.lookup("A-1")) is None
        finally:
            yield caller.close()
        with shop.outside.connect() as connection:
            connection.execute(text("DELETE FROM serials"))
        assert (yield f("A-1")) == "placed"

    driven(empty, colour, test)


@colours
@pytest.mark.parametrize("where", ["LOCAL", "SESSION"])
def test_the_callers_lock_timeout_is_as_it_was(empty: str, colour: Colour, where: str) -> None:
    """Inside the function, and after a first run, a replay, a refusal and a failure."""
    show = text("SELECT current_setting('lock_timeout')")

    def test(shop: Shop) -> Steps[None]:
        def body(order_no: str, session: Any) -> Steps[Any]:
            inside = yield session.scalar(show)
            if order_no == "fails":
                raise Declined
            return str(inside)

        f, hasty = shop.decorate(body), shop.decorate(body, wait=0.05)
        owner, caller = shop.sessions(), shop.sessions()
        try:
            yield f("held", session=owner)
            yield caller.execute(text(f"SET {where} lock_timeout = '12345ms'"))
            before = yield caller.scalar(show)
            assert before == "12345ms"
            assert (yield f("A-1", session=caller)) == before
            assert (yield caller.scalar(show)) == before
            assert (yield f("A-1", session=caller)) == before
            assert (yield caller.scalar(show)) == before
            yield from caught(InProgressError, lambda: hasty("held", session=caller))
            assert (yield caller.scalar(show)) == before
            yield from caught(Declined, lambda: f("fails", session=caller))
            assert (yield caller.scalar(show)) == before
            yield caller.commit()
            after = yield caller.scalar(show)
            assert after == (before if where == "SESSION" else "0")
        finally:
            yield caller.close()
            yield owner.close()

    driven(empty, colour, test)


@colours
@pytest.mark.parametrize("kind", ["session", "connection"])
def test_nothing_of_a_failed_function_stays_when_the_caller_commits(
    empty: str, colour: Colour, kind: str
) -> None:
    def test(shop: Shop) -> Steps[None]:
        def body(order_no: str, session: Any) -> Steps[Any]:
            yield from place(order_no, session)
            raise Declined

        f = shop.decorate(body)
        caller = shop.sessions() if kind == "session" else shop.engine.connect()
        if kind == "connection" and colour == "async":
            caller = yield caller
        try:
            yield caller.execute(insert(Order).values(order_no="earlier"))
            yield from caught(Declined, lambda: f("A-1", session=caller))
            yield caller.execute(insert(Order).values(order_no="later"))
            yield caller.commit()
        finally:
            yield caller.close()
        assert (shop.orders("earlier"), shop.orders("later"), shop.orders("A-1")) == (1, 1, 0)
        assert shop.scalar("SELECT count(*) FROM idempo_records") == 0

    driven(empty, colour, test)


@colours
def test_no_object_of_a_failed_function_stays_in_the_callers_session(empty: str, colour: Colour) -> None:
    """Pending or flushed by the function: gone. Pending before: kept. Changed by the function: as before."""

    def test(shop: Shop) -> Steps[None]:
        def body(order_no: str, session: Any) -> Steps[Any]:
            session.add(Order(order_no="flushed by the function"))
            yield session.flush()
            session.add(Order(order_no="pending from the function"))
            known.order_no = "changed by the function"
            raise Declined

        f, caller = shop.decorate(body), shop.sessions()
        known = Order(order_no="known")
        try:
            caller.add(known)
            yield caller.flush()
            caller.add(Order(order_no="pending"))
            yield from caught(Declined, lambda: f("A-1", session=caller))
            caller.add(Order(order_no="afterwards"))
            yield caller.commit()
        finally:
            yield caller.close()
        assert {shop.orders(one) for one in ("known", "pending", "afterwards")} == {1}
        assert shop.orders() == 3

    driven(empty, colour, test)


@colours
def test_an_object_that_a_failed_function_deleted_is_still_there(empty: str, colour: Colour) -> None:
    def test(shop: Shop) -> Steps[None]:
        def body(order_no: str, session: Any) -> Steps[Any]:
            yield session.delete(known)
            yield session.flush()
            raise Declined

        f, caller = shop.decorate(body), shop.sessions()
        known = Order(order_no="known")
        try:
            caller.add(known)
            yield caller.flush()
            yield from caught(Declined, lambda: f("A-1", session=caller))
            yield caller.commit()
        finally:
            yield caller.close()
        assert shop.orders("known") == 1

    driven(empty, colour, test)


# ------------------------------------------------------------------------ commits of the function's own


@colours
@callers
def test_a_function_that_commits_leaves_a_record_that_agrees_with_its_writes(
    empty: str, colour: Colour, caller: str
) -> None:
    """Its writes are there, so they must not be made a second time."""

    def test(shop: Shop) -> Steps[None]:
        def body(order_no: str, session: Any) -> Steps[Any]:
            yield from place(order_no, session)
            yield session.commit()
            return "placed"

        f = shop.decorate(body)
        call = CALLERS[caller](shop, f, "A-1")
        assert (yield from call()) == "placed"
        record = yield f.lookup("A-1")
        assert record.state == "completed"
        assert (yield from call()) == "placed"
        assert shop.orders() == 1

    driven(empty, colour, test)


@colours
@pytest.mark.parametrize("caller", ["idempo's transaction", "a session"])
def test_a_function_that_rolls_back_and_goes_on_has_lost_its_claim_and_commits_nothing(
    empty: str, colour: Colour, caller: str
) -> None:
    def test(shop: Shop) -> Steps[None]:
        def body(order_no: str, session: Any) -> Steps[Any]:
            yield session.rollback()
            return (yield from place(order_no, session))

        f = shop.decorate(body)
        (error,) = yield from Running(colour, [CALLERS[caller](shop, f, "A-1")]).results()
        assert isinstance(error, Exception)
        assert shop.orders() == 0
        assert (yield f.lookup("A-1")) is None

    driven(empty, colour, test)


# ------------------------------------------------------------------------ several keys, several tiers


@colours
@callers
def test_nested_calls_with_different_keys_share_one_transaction(
    empty: str, colour: Colour, caller: str
) -> None:
    def test(shop: Shop) -> Steps[None]:
        broken = Effects()
        inner = shop.decorate(place, name=f"{shop.name}.inner")

        def body(order_no: str, session: Any) -> Steps[Any]:
            one = yield inner(f"{order_no}/1", session=session)
            two = yield inner(f"{order_no}/2", session=session)
            if broken.add(order_no) == 1:
                raise Declined
            return [one, two]

        outer = shop.decorate(body)
        call = CALLERS[caller](shop, outer, "A-1")
        yield from caught_steps(Declined, call)
        assert (shop.orders(), shop.scalar("SELECT count(*) FROM idempo_records")) == (0, 0)
        for _ in range(2):
            assert (yield from call()) == ["placed A-1/1", "placed A-1/2"]
        assert (shop.orders(), shop.scalar("SELECT count(*) FROM idempo_records")) == (2, 3)
        assert (yield inner.outcome("A-1/1")).replayed

    driven(empty, colour, test)


@colours
def test_a_nested_failure_that_the_function_catches_undoes_only_the_nested_call(
    empty: str, colour: Colour
) -> None:
    def test(shop: Shop) -> Steps[None]:
        def failing(order_no: str, session: Any) -> Steps[Any]:
            yield from place(order_no, session)
            raise Declined

        inner = shop.decorate(failing, name=f"{shop.name}.inner")

        def body(order_no: str, session: Any) -> Steps[Any]:
            yield from place(order_no, session)
            yield from caught(Declined, lambda: inner("inner", session=session))
            return "placed"

        outer = shop.decorate(body)
        assert (yield outer("A-1")) == "placed"
        assert (shop.orders("A-1"), shop.orders("inner")) == (1, 0)
        assert (yield inner.lookup("inner")) is None

    driven(empty, colour, test)


@pytest.fixture
def tier(request: pytest.FixtureRequest, redis_server: Server) -> Iterator[Any]:
    if request.param == "Memory":
        yield Memory()
    else:
        yield RedisCache(fresh_database(redis_server))


tiers = pytest.mark.parametrize("tier", ["Memory", "RedisCache"], indirect=True)


@colours
@tiers
def test_a_tier_is_not_filled_from_a_transaction_that_may_still_roll_back(
    empty: str, colour: Colour, tier: Any
) -> None:
    """The same key twice in one transaction replays; after its rollback nothing is left to replay anywhere."""

    def test(shop: Shop) -> Steps[None]:
        effects = Effects()

        def body(order_no: str, session: Any) -> Steps[Any]:
            yield from place(order_no, session)
            return effects.add(order_no)

        f = shop.decorate(body, using=[tier, UniqueInsert(shop.engine, join="session")])
        caller = shop.sessions()
        try:
            assert (yield f("A-1", session=caller)) == 1
            again = yield f.outcome("A-1", session=caller)
            assert (again.value, again.replayed) == (1, True)
            yield caller.rollback()
            assert (yield f("A-1", session=caller)) == 2
            yield caller.commit()
        finally:
            yield caller.close()
        assert shop.orders() == 1
        if isinstance(tier, RedisCache):
            yield tier.close()

    driven(empty, colour, test)


@colours
@tiers
def test_a_replay_of_a_committed_record_in_the_callers_transaction_fills_the_tier(
    empty: str, colour: Colour, tier: Any
) -> None:
    def test(shop: Shop) -> Steps[None]:
        f = shop.decorate(place, using=[tier, UniqueInsert(shop.engine, join="session")])
        caller = shop.sessions()
        try:
            yield f("A-1", session=caller)
            yield caller.commit()
            yield f("A-1", session=caller)
            yield caller.rollback()
        finally:
            yield caller.close()
        with shop.outside.connect() as connection:
            connection.execute(text("DELETE FROM idempo_records"))
        assert (yield f.outcome("A-1")).replayed  # there is no other place left to know it from
        assert shop.orders() == 1
        if isinstance(tier, RedisCache):
            yield tier.close()

    driven(empty, colour, test)


@colours
def test_a_tier_is_not_filled_where_the_session_and_its_connection_take_turns(
    empty: str, colour: Colour
) -> None:
    """One transaction, whichever of the two carries it."""

    def test(shop: Shop) -> Steps[None]:
        f = shop.decorate(place, using=[Memory(), UniqueInsert(shop.engine, join="session")])
        caller = shop.sessions()
        try:
            yield f("A-1", session=caller)
            connection = caller.connection()
            if colour == "async":
                connection = yield connection
            yield f("A-1", session=connection)
            yield caller.rollback()
        finally:
            yield caller.close()
        assert not (yield f.outcome("A-1")).replayed
        assert shop.orders() == 1

    driven(empty, colour, test)


# ------------------------------------------------------------------------ killed owners

_OWNER = """
import sys
from sqlalchemy import text, create_engine
from idempo import UniqueInsert, idempotent
url, name, how, lease = sys.argv[1:]
engine = create_engine(url, connect_args={"application_name": name})
using = UniqueInsert(engine, join="session") if how == "joined" else UniqueInsert(engine)

def inside():
    print("inside", flush=True)
    sys.stdin.read()

if how == "joined":
    @idempotent(key="{order_no}", using=using, name=name, lease=float(lease), keep=7200)
    def f(order_no, session=None):
        session.execute(text("INSERT INTO orders (order_no) VALUES ('by the dead')"))
        inside()
else:
    @idempotent(key="{order_no}", using=using, name=name, lease=float(lease), keep=7200)
    def f(order_no, session=None):
        inside()
f("A-1")
"""


@colours
@pytest.mark.parametrize(("how", "lease", "attempt"), [("joined", 3600.0, 1), ("leased", 1.0, 2)])
def test_after_the_owner_was_killed_the_next_caller_runs(
    empty: str, colour: Colour, how: str, lease: float, attempt: int
) -> None:
    """Joined: at once, for the lease of an hour is not waited for. Leased: when its lease is over."""

    def test(shop: Shop) -> Steps[None]:
        using = UniqueInsert(shop.engine, join="session" if how == "joined" else None)

        def body(order_no: str, session: Any) -> Steps[Any]:
            yield from ()
            return "by the living"

        with script(_OWNER, empty, shop.name, how, str(lease), env={**os.environ, **_path()}) as owner:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "inside\n", owner.communicate()[1]
            if how == "joined":
                idle = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' "
                yield from shop.until(f"{idle} AND application_name = '{shop.name[:63]}'", 1)
            os.kill(owner.pid, signal.SIGKILL)
            owner.wait()
        f = shop.decorate(body, using=using, lease=lease, keep=7200, fingerprint=None)
        outcome = yield f.outcome("A-1")
        assert (outcome.value, outcome.attempt, outcome.replayed) == ("by the living", attempt, False)
        assert shop.orders("by the dead") == 0

    driven(empty, colour, test)


def _path() -> dict[str, str]:
    import idempo

    return {"PYTHONPATH": os.path.dirname(os.path.dirname(idempo.__file__))}


# ------------------------------------------------------------------------ lost commits


@pytest.fixture
def proxy(postgres: Server) -> Iterator[Proxy]:
    with Proxy(postgres.port) as proxy:
        yield proxy


def through(proxy: Proxy, url: str) -> str:
    behind = make_url(url).set(host="127.0.0.1", port=proxy.port).update_query_dict({"sslmode": "disable"})
    return behind.render_as_string(hide_password=False)


@colours
@pytest.mark.parametrize("loss", ["reply", "request"])
@pytest.mark.parametrize("pool", [1, 5])
def test_a_lost_commit_has_one_effect_and_the_repeat_is_right(
    empty: str, proxy: Proxy, colour: Colour, loss: str, pool: int
) -> None:
    """The first caller gets the value if it can be read again, otherwise hears that the outcome is unknown."""

    def test(shop: Shop) -> Steps[None]:
        effects = Effects()

        def body(order_no: str, session: Any) -> Steps[Any]:
            yield from place(order_no, session)
            return effects.add(order_no)

        f = shop.decorate(body)
        yield f("warm")
        (proxy.drop_reply if loss == "reply" else proxy.drop_request)(COMMIT)
        (first,) = yield from Running(colour, [lambda: one(f)]).results()
        assert proxy.fired.is_set()
        outcome = yield f.outcome("A-1")
        if loss == "reply":
            assert first == 2
            assert (outcome.value, outcome.replayed, len(effects)) == (2, True, 2)
        else:
            assert isinstance(first, OutcomeUnknownError)
            assert (first.ran, first.result) == (None, 2)
            assert (outcome.value, outcome.replayed, len(effects)) == (3, False, 3)
        assert shop.orders("A-1") == 1

    driven(through(proxy, empty), colour, test, pool_size=pool, max_overflow=0, pool_timeout=3)


def one(f: Any) -> Steps[Any]:
    return (yield f("A-1"))


@colours
def test_a_lost_commit_with_nobody_left_to_ask_is_an_unknown_outcome(
    empty: str, proxy: Proxy, colour: Colour
) -> None:
    def test(shop: Shop) -> Steps[None]:
        f = shop.decorate(place)
        engine = shop.engine if colour == "sync" else shop.engine.sync_engine

        @event.listens_for(engine, "do_connect")
        def cut_off(*_: Any) -> None:
            if proxy.fired.is_set():
                proxy.refuse()

        yield f("warm")
        proxy.drop_reply(COMMIT)
        error = yield from caught(OutcomeUnknownError, lambda: f("A-1"))
        assert (error.ran, error.result) == (None, "placed A-1")
        proxy.fired.clear()
        proxy.restore()
        outcome = yield f.outcome("A-1")
        assert (outcome.value, outcome.replayed) == ("placed A-1", True)
        assert shop.scalar("SELECT count(*) FROM orders WHERE order_no = 'A-1'") == 1

    driven(through(proxy, empty), colour, test)


@colours
@pytest.mark.parametrize("loss", ["reply", "request"])
@pytest.mark.parametrize("match", [b"INSERT INTO idempo_records", b"UPDATE idempo_records"])
def test_a_leased_claim_or_completion_that_is_lost_has_one_effect(
    empty: str, proxy: Proxy, colour: Colour, loss: str, match: bytes
) -> None:
    """Asked again as the same owner, it answers as before."""

    def test(shop: Shop) -> Steps[None]:
        effects = Effects()

        def body(order_no: str, session: Any) -> Steps[Any]:
            yield from ()
            return effects.add(order_no)

        f = shop.decorate(body, using=UniqueInsert(shop.engine))
        yield f("warm")
        (proxy.drop_reply if loss == "reply" else proxy.drop_request)(match)
        assert (yield f("A-1")) == 2
        assert proxy.fired.is_set()
        assert (yield f.outcome("A-1")).replayed
        assert len(effects) == 2

    options = {"connect_args": {"prepare_threshold": None}}
    driven(through(proxy, empty), colour, test, **options)


# ------------------------------------------------------------------------ not set up


@colours
@pytest.mark.parametrize("caller", ["leased", *CALLERS])
def test_a_missing_table_says_how_to_make_it(postgres: Server, colour: Colour, caller: str) -> None:
    def test(shop: Shop) -> Steps[None]:
        effects = Effects()

        def body(order_no: str, session: Any) -> Steps[Any]:
            yield from ()
            effects.add(order_no)

        leased = UniqueInsert(shop.engine)
        using = leased if caller == "leased" else UniqueInsert(shop.engine, join="session")
        f = shop.decorate(body, using=using)
        call = CALLERS.get(caller, in_ours)(shop, f, "A-1")
        error = yield from caught_steps(LedgerUnavailableError, call)
        assert "idempo init" in str(error)
        assert error.ran is False
        assert len(effects) == 0

    driven(fresh_database(postgres), colour, test)


@colours
@callers
def test_autocommit_cannot_be_joined(empty: str, colour: Colour, caller: str) -> None:
    def test(shop: Shop) -> Steps[None]:
        f = shop.decorate(place)
        error = yield from caught_steps(ConfigurationError, CALLERS[caller](shop, f, "A-1"))
        assert "autocommit" in str(error)
        assert shop.orders() == 0

    driven(empty, colour, test, isolation_level="AUTOCOMMIT")


# ------------------------------------------------------------------------ crowds


def test_of_many_duplicates_whose_first_run_fails_exactly_one_more_runs(empty: str) -> None:
    """Fifty threads, joined."""
    shop, effects = Shop(empty, "sync", pool_size=50, max_overflow=10, pool_timeout=SECONDS), Effects()

    def body(order_no: str, session: Any) -> Steps[Any]:
        yield from place(order_no, session)
        if effects.add(order_no) == 1:
            raise Declined
        return len(effects)

    f = shop.decorate(body)
    found = run(Running("sync", [lambda: one(f)] * 50).results())
    assert sorted(map(str, found)) == sorted([str(Declined()), *["2"] * 49])
    assert len(effects) == 2
    assert shop.orders() == 1
    shop.close()


def test_two_names_for_one_key_do_not_wait_for_each_other(empty: str) -> None:
    """A key held by one function is free for another."""

    def test(shop: Shop) -> Steps[None]:
        f = shop.decorate(place)
        g = shop.decorate(place, name=str(uuid.uuid4()), wait=0)
        with shop.sessions() as owner:
            yield f("A-1", session=owner)
            assert (yield g("A-1")) == "placed A-1"

    driven(empty, "sync", test)


def test_an_annotated_connection_is_what_idempo_opens(empty: str) -> None:
    from sqlalchemy import Connection

    shop = Shop(empty, "sync")
    seen = []

    @idempotent(key="{order_no}", using=UniqueInsert(shop.engine, join="connection"), name=shop.name)
    def f(order_no: str, connection: Connection | None = None) -> str:
        seen.append(type(connection))
        return order_no

    assert drive("sync", (value for value in [f("A-1")])) is None
    assert seen == [Connection]
    shop.close()
