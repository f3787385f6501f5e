"""Many who use one token at once; next to each, the usual recipe and what it lets happen."""

import multiprocessing
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy import String, create_engine, insert, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import NullPool

from idempo import InProgressError, OneTimeToken, RedisCache, TokenSpentError, UniqueInsert, idempotent
from idempo.steps import Steps
from idempo.testing import Effects, Gate
from tests.servers import Server
from tests.tokens import support, workers
from tests.tokens.support import InDatabase, InRedis, Store, driven, on
from tests.traps.support import SECONDS, Declined, Running, Serial, caught, empty_tables
from tests.traps.support import calling as as_steps

store = support.store
CLICKS = 50
PROCESSES = 8
RACES = ("memory", "redis", "postgres", "postgres joined", "mariadb", "mariadb joined", "sqlite joined")


# ------------------------------------------------------------------------ ours


@on(*RACES)
@driven
def test_fifty_clicks_with_one_token_run_once_and_all_get_that_result(store: Store) -> Steps[None]:
    effects = Effects()

    def body(order: str) -> Steps[list[Any]]:
        yield from ()
        return [order, effects.add(order)]

    tokens = OneTimeToken(store.ledger())
    f = store.decorate(body, tokens, wait=60)
    token = yield tokens.issue()
    clicks = Running(store.colour, [as_steps(partial(f.outcome, token)) for _ in range(CLICKS)])
    found = yield from clicks.results()
    assert [outcome.value for outcome in found] == [["A-1", 1]] * CLICKS
    assert Counter(outcome.replayed for outcome in found) == {False: 1, True: CLICKS - 1}
    assert len(effects) == 1


@on(*RACES)
@driven
def test_of_fifty_clicks_under_refuse_exactly_one_succeeds(store: Store) -> Steps[None]:
    effects = Effects()

    def body(order: str) -> Steps[int]:
        yield from ()
        return effects.add(order)

    tokens = OneTimeToken(store.ledger(), reuse="refuse")
    f = store.decorate(body, tokens, wait=60)
    token = yield tokens.issue()
    clicks = Running(store.colour, [as_steps(partial(f, token)) for _ in range(CLICKS)])
    found = yield from clicks.results()
    assert Counter(type(one) for one in found) == {int: 1, TokenSpentError: CLICKS - 1}
    assert len(effects) == 1


@on("memory", "redis", "postgres", "mariadb joined")
@driven
def test_without_a_wait_clicks_are_refused_while_the_first_one_runs(store: Store) -> Steps[None]:
    inside, gate, effects = Gate(store.colour), Gate(store.colour), Effects()

    def body(order: str) -> Steps[int]:
        inside.open()
        yield gate.wait()
        return effects.add(order)

    tokens = OneTimeToken(store.ledger(), reuse="refuse")
    f = store.decorate(body, tokens, wait=0)
    token = yield tokens.issue()
    first = Running(store.colour, [as_steps(partial(f, token))])
    yield inside.wait()
    clicks = Running(store.colour, [as_steps(partial(f, token)) for _ in range(10)])
    found = yield from clicks.results()
    assert {type(one) for one in found} == {InProgressError}
    gate.open()
    assert (yield from first.results()) == [1]
    yield from caught(TokenSpentError, partial(f, token))


@on("memory", "redis", "postgres", "postgres joined", "mariadb joined")
@driven
def test_if_the_first_click_fails_exactly_one_of_the_others_runs(store: Store) -> Steps[None]:
    effects = Effects()

    def body(order: str) -> Steps[int]:
        yield from ()
        if effects.add(order) == 1:
            raise Declined(order)
        return len(effects)

    tokens = OneTimeToken(store.ledger())
    f = store.decorate(body, tokens, wait=60)
    token = yield tokens.issue()
    clicks = Running(store.colour, [as_steps(partial(f, token)) for _ in range(20)])
    found = yield from clicks.results()
    assert Counter(map(str, found)) == {"A-1": 1, "2": 19}
    assert len(effects) == 2


@pytest.mark.parametrize(
    ("kind", "reuse"),
    [("redis", "replay"), ("redis", "refuse"), ("postgres", "refuse"), ("postgres joined", "replay")],
)
def test_eight_processes_with_one_token_run_once(
    kind: str,
    reuse: Any,
    request: pytest.FixtureRequest,
    redis_server: Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    database = support.database_url("postgres", request, tmp_path_factory)
    empty_tables(database)
    url = redis_server.url if kind == "redis" else database
    prefix = f"race:{kind}:{reuse}:"
    ledger = workers.ledger(kind, url, prefix)
    tokens = OneTimeToken(ledger, reuse=reuse)
    workers.submitting(tokens, database, wait=60)
    token = tokens.issue(keep=60)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.tokens.workers"])  # imported once
    start, answers = context.Barrier(PROCESSES), context.Queue()
    arguments = (kind, url, prefix, database, reuse, token, start, answers)
    clicks = [context.Process(target=workers.click, args=arguments) for _ in range(PROCESSES)]
    for click in clicks:
        click.start()
    found = [answers.get(timeout=2 * SECONDS) for _ in clicks]
    for click in clicks:
        click.join(SECONDS)
    assert tokens.revoke(token) is False
    ledger.close()
    engine = create_engine(database, poolclass=NullPool)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM orders")) == 1
    (winner,) = {pid for pid in found if isinstance(pid, int)}
    others: list[Any] = [winner] if reuse == "replay" else ["TokenSpentError"]
    assert sorted(map(str, found)) == sorted(map(str, [winner, *others * (PROCESSES - 1)]))


# ------------------------------------------------------------------------ the usual recipes, and ours

THREADS = 8


def together(several: list[Callable[[], Any]]) -> list[Any]:
    return list(_drained(Running("sync", [as_steps(one) for one in several])))


def _drained(running: Running) -> list[Any]:
    try:
        next(steps := running.results())
        raise AssertionError(f"{steps} waits")
    except StopIteration as stop:
        found: list[Any] = stop.value
        return found


class Naive:
    """Scheme 1 as it is often written: GET, and if there was one, DEL."""

    def __init__(self, client: Any, key: str) -> None:
        self.client, self.key = client, key
        self.between = threading.Barrier(THREADS)

    def submit(self, effects: Effects) -> str:
        known = self.client.get(self.key)
        self.between.wait(SECONDS)
        if known is None:
            return "unknown token"
        self.client.delete(self.key)
        effects.add("order")
        return "placed"


@on("redis", colours=("sync",))
@driven
def test_get_then_del_lets_several_pass_and_ours_one(store: Store) -> Steps[None]:
    assert isinstance(store, InRedis)
    naive, effects = Naive(store.client, f"{store.prefix}naive"), Effects()
    store.client.set(naive.key, "issued", ex=60)
    assert together([partial(naive.submit, effects)] * THREADS) == ["placed"] * THREADS
    assert len(effects) == THREADS

    effects = Effects()
    start = threading.Barrier(THREADS)

    def body(order: str) -> Steps[str]:
        yield from ()
        effects.add(order)
        return "placed"

    tokens = OneTimeToken(store.ledger(), reuse="refuse")
    f = store.decorate(body, tokens, wait=60)
    token = tokens.issue()

    def click() -> Any:
        start.wait(SECONDS)
        return f(token)

    found = together([click] * THREADS)
    assert sorted(type(one).__name__ for one in found) == ["TokenSpentError"] * (THREADS - 1) + ["str"]
    assert len(effects) == 1
    yield from ()


@on("redis", colours=("sync",))
@driven
def test_look_up_run_write_runs_for_all_who_come_at_once_and_ours_once(store: Store) -> Steps[None]:
    """Scheme 2c as it is often written."""
    assert isinstance(store, InRedis)
    client, key = store.client, f"{store.prefix}naive"
    effects, between = Effects(), threading.Barrier(THREADS)

    def naive() -> str:
        known = client.get(key)
        between.wait(SECONDS)
        if known is not None:
            return f"replayed {known.decode()}"
        value = f"order {effects.add('order')}"
        client.set(key, value, ex=60)
        return value

    assert len(set(together([naive] * THREADS))) == THREADS
    assert len(effects) == THREADS

    effects = Effects()
    f = idempotent(
        key="{no}", using=store.opened(RedisCache(store.url, prefix=store.prefix)), name=store.name, wait=60
    )(lambda no: f"order {effects.add(no)}")
    start = threading.Barrier(THREADS)

    def ours() -> Any:
        start.wait(SECONDS)
        return f("A-1")

    assert together([ours] * THREADS) == ["order 1"] * THREADS
    yield from ()


class Base(DeclarativeBase):
    pass


class Placed(Base):
    __tablename__ = "placed"
    order_no: Mapped[str] = mapped_column(String(50), primary_key=True)


class Shop:
    """Two who place one order; the first one's transaction is undone after its insert."""

    def __init__(self, store: InDatabase) -> None:
        self.engine = create_engine(store.url, poolclass=NullPool)
        Base.metadata.drop_all(self.engine)
        Base.metadata.create_all(self.engine)
        self.inserted, self.declined = threading.Event(), threading.Event()
        self.first = True
        self.one = threading.Lock()

    def orders(self) -> int:
        with self.engine.connect() as connection:
            return int(connection.scalar(text("SELECT count(*) FROM placed")) or 0)

    def is_first(self) -> bool:
        with self.one:
            first, self.first = self.first, False
            return first


@on("postgres joined", "mariadb joined", colours=("sync",))
@driven
def test_a_unique_violation_is_no_success_where_the_winner_rolls_back(store: Store) -> Steps[None]:
    """Scheme 2a as it is often written: any unique violation means it was done before. The order is lost."""
    assert isinstance(store, InDatabase)
    shop = Shop(store)
    undone: set[str] = set()

    def naive(order_no: str) -> str:
        """A marker that commits first, then the work; a marker that is there means success."""
        try:
            with shop.engine.begin() as connection:
                connection.execute(insert(Serial).values(number=order_no))
        except IntegrityError:
            return "already done"
        shop.inserted.set()
        assert shop.declined.wait(SECONDS)
        undone.add(order_no)
        with shop.engine.begin() as connection:  # the work has failed: the marker is taken back
            connection.execute(text("DELETE FROM serials"))
        raise Declined(order_no)

    def second() -> str:
        assert shop.inserted.wait(SECONDS)
        try:
            return naive("A-1")
        finally:
            shop.declined.set()

    lost, told = together([partial(naive, "A-1"), second])
    assert isinstance(lost, Declined)
    assert told == "already done"
    assert shop.orders() == 0  # told that it was done, and nothing was

    shop = Shop(store)

    @idempotent(key="{order_no}", using=UniqueInsert(shop.engine, join="session"), name=store.name, wait=60)
    def ours(order_no: str, session: Any = None) -> str:
        session.execute(insert(Placed).values(order_no=order_no))
        if shop.is_first():
            shop.inserted.set()
            assert shop.declined.wait(SECONDS)
            raise Declined(order_no)
        return "placed"

    def again() -> str:
        assert shop.inserted.wait(SECONDS)
        threading.Timer(0.0, shop.declined.set).start()
        return ours("A-1")

    lost, told = together([partial(ours, "A-1"), again])
    assert isinstance(lost, Declined)
    assert (told, shop.orders()) == ("placed", 1)
    assert ours("A-1") == "placed"
    yield from ()
