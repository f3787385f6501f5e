"""Python's own traps: cancellation, interrupts, forks, loops and threads, decorators upon decorators, methods."""

import asyncio
import functools
import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool
from tenacity import retry, stop_after_attempt, wait_none

import idempo
from idempo import (
    CompositionError,
    ConfigurationError,
    Event,
    FingerprintMismatchError,
    Memory,
    RedisCache,
    ReentrantCallError,
    UniqueInsert,
    idempotent,
)
from idempo.contracts import Colour, Layer, Ledger, Site, Strategy
from idempo.records import Answer, Call, Payload
from idempo.steps import Steps
from idempo.testing import Effects, Gate, drive
from tests.servers import Server, fresh_database
from tests.traps.support import SECONDS, Declined, Running, calling, caught, decorated, output, until

T = TypeVar("T")

colours = pytest.mark.parametrize("colour", ["sync", "async"])


@pytest.fixture(params=["Memory", "SQLite", "Redis"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Any]:
    """Makes a strategy on an empty store."""
    match request.param:
        case "Memory":
            return Memory
        case "SQLite":
            return lambda: UniqueInsert(f"sqlite:///{tmp_path}/idempo.db")
        case _:
            url = fresh_database(request.getfixturevalue("redis_server"))
            return lambda: RedisCache(url)


def closed(strategy: Any) -> Steps[None]:
    if not isinstance(strategy, Memory):
        yield strategy.close()


# ------------------------------------------------------------------------ cancellation and interrupts


@dataclass
class Held:
    """A strategy whose ledger stops at one request, before or after the store has acted, until it may go on."""

    inside: Strategy
    at: str
    before: bool = False
    interrupt: BaseException | None = None

    def __post_init__(self) -> None:
        self.reached, self.gate = asyncio.Event(), asyncio.Event()

    def bind(self, site: Site) -> Layer:
        layer: Any = self.inside.bind(site)
        held: Layer = replace(layer, ledger=HeldLedger(layer.ledger, self))
        return held

    def stop(self) -> Steps[None]:
        self.reached.set()
        if self.interrupt is None:
            yield self.gate.wait()
        else:
            interrupt, self.interrupt = self.interrupt, None
            self.at = ""
            raise interrupt


class HeldLedger:
    def __init__(self, ledger: Ledger, held: Held) -> None:
        self._ledger = ledger
        self._held = held

    def _hold(self, name: str, steps: Steps[T]) -> Steps[T]:
        if name != self._held.at:
            return (yield from steps)
        if self._held.before:
            yield from self._held.stop()
            return (yield from steps)
        answer = yield from steps
        yield from self._held.stop()
        return answer

    def claim(self, call: Call, over: int | None) -> Steps[Answer]:
        return (yield from self._hold("claim", self._ledger.claim(call, over)))

    def complete(self, call: Call, payload: Payload) -> Steps[bool]:
        return (yield from self._hold("complete", self._ledger.complete(call, payload)))

    def release(self, call: Call) -> Steps[bool]:
        return (yield from self._hold("release", self._ledger.release(call)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)


@pytest.mark.parametrize("before", [True, False])
def test_cancelled_while_claiming_runs_nothing_and_hinders_nobody_for_longer_than_the_lease(
    make: Callable[[], Any], before: bool
) -> None:
    async def test() -> None:
        effects, store = Effects(), make()
        held = Held(store, "claim", before)

        def body(order_no: str) -> Steps[Any]:
            yield from ()
            return effects.add(order_no)

        f = decorated(body, "async", using=held, lease=0.3, wait=SECONDS)
        task = asyncio.create_task(f("A-1"))
        await held.reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(effects) == 0
        held.at = ""
        outcome = await f.outcome("A-1")
        assert (outcome.value, outcome.attempt) == (1, 1 if before else 2)
        await _closed(store)

    asyncio.run(test())


async def _closed(store: Any) -> None:
    if not isinstance(store, Memory) and (closing := store.close()) is not None:
        await closing


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("times", [1, 3])
def test_cancelled_while_completing_the_completion_is_written_and_the_caller_is_cancelled(
    make: Callable[[], Any], before: bool, times: int
) -> None:
    async def test() -> None:
        effects, store = Effects(), make()
        held = Held(store, "complete", before)

        def body(order_no: str) -> Steps[Any]:
            yield from ()
            return effects.add(order_no)

        f = decorated(body, "async", using=held)
        task = asyncio.create_task(f("A-1"))
        await held.reached.wait()
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        held.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await f.outcome("A-1")).replayed
        assert len(effects) == 1
        await _closed(store)

    asyncio.run(test())


def test_cancelled_while_releasing_the_key_is_free(make: Callable[[], Any]) -> None:
    async def test() -> None:
        effects, store = Effects(), make()
        held = Held(store, "release", before=True)

        def body(order_no: str) -> Steps[Any]:
            yield from ()
            if effects.add(order_no) == 1:
                raise Declined
            return len(effects)

        f = decorated(body, "async", using=held, wait=0)
        task = asyncio.create_task(f("A-1"))
        await held.reached.wait()
        task.cancel()
        await asyncio.sleep(0)
        held.gate.set()
        with pytest.raises((asyncio.CancelledError, Declined)):
            await task
        assert await f("A-1") == 2
        await _closed(store)

    asyncio.run(test())


def test_a_timeout_around_the_call_leaves_the_claim_to_its_lease(make: Callable[[], Any]) -> None:
    async def test() -> None:
        effects, store = Effects(), make()

        def body(order_no: str) -> Steps[Any]:
            if effects.add(order_no) == 1:
                scope.reschedule(0)  # its time is over now
                yield asyncio.Event().wait()
            return len(effects)

        f = decorated(body, "async", using=store, lease=0.3, wait=SECONDS)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as scope:
                await f("A-1")
        assert (await f.lookup("A-1")).state in ("running", "orphan")
        outcome = await f.outcome("A-1")
        assert (outcome.value, outcome.attempt) == (2, 2)
        await _closed(store)

    asyncio.run(test())


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_leaves_the_claim_to_its_lease(
    make: Callable[[], Any], interrupt: type[BaseException]
) -> None:
    effects, store = Effects(), make()

    def body(order_no: str) -> Steps[Any]:
        yield from ()
        if effects.add(order_no) == 1:
            raise interrupt
        return len(effects)

    f = decorated(body, "sync", using=store, lease=0.3, wait=SECONDS)
    with pytest.raises(interrupt):
        f("A-1")
    assert f.lookup("A-1").attempt == 1
    outcome = f.outcome("A-1")
    assert (outcome.value, outcome.attempt) == (2, 2)
    drive("sync", closed(store))


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [True, False])
def test_an_interrupt_while_completing_does_not_lose_the_completion(
    make: Callable[[], Any], interrupt: type[BaseException], before: bool
) -> None:
    effects, store = Effects(), make()

    def body(order_no: str) -> Steps[Any]:
        yield from ()
        return effects.add(order_no)

    f = decorated(body, "sync", using=Held(store, "complete", before, interrupt()))
    with pytest.raises(interrupt):
        f("A-1")
    assert f.outcome("A-1").replayed
    assert len(effects) == 1
    drive("sync", closed(store))


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_joined_function_leaves_nothing_and_the_next_call_runs_at_once(
    tmp_path: Path, interrupt: type[BaseException]
) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/shop.db", poolclass=NullPool)
    effects = Effects()

    @idempotent(key="{order_no}", using=UniqueInsert(engine, join="session"), lease=3600, wait=0)
    def f(order_no: str, session: Any = None) -> int:
        if effects.add(order_no) == 1:
            raise interrupt
        return len(effects)

    with pytest.raises(interrupt):
        f("A-1")
    outcome = f.outcome("A-1")
    assert (outcome.value, outcome.attempt) == (2, 1)


# ------------------------------------------------------------------------ forks, loops, threads

_FORK = """
import json, os, sys
import redis
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from idempo import RedisCache, UniqueInsert, idempotent

kind, url, folder = sys.argv[1:]
using = {
    "redis url": lambda: RedisCache(url),
    "redis client": lambda: RedisCache(redis.Redis.from_url(url)),
    "url": lambda: UniqueInsert(url),
    "engine": lambda: UniqueInsert(create_engine(url)),
    "joined url": lambda: UniqueInsert(url, join="session"),
    "joined engine": lambda: UniqueInsert(create_engine(url), join="session"),
    "joined sessionmaker": lambda: UniqueInsert(sessionmaker(create_engine(url)), join="session"),
}[kind]()

@idempotent(key="{order_no}", using=using, name="fork", wait=30)
def f(order_no, session=None):
    return [order_no, os.getpid()]

f("warm")
f("warm")

def calls(who):
    found = {f"K-{index}": f(f"K-{index}") for index in range(20)}
    found[who] = f(who)
    with open(f"{folder}/{who}", "w") as file:
        json.dump(found, file)

children = []
for who in ("child-1", "child-2", "child-3"):
    child = os.fork()
    if child == 0:
        try:
            calls(who)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    children.append(child)
calls("parent")
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
"""


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(idempo.__file__))}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize(
    ("server", "kind"),
    [
        ("redis_server", "redis url"),
        ("redis_server", "redis client"),
        ("postgres", "url"),
        ("postgres", "engine"),
        ("postgres", "joined sessionmaker"),
        ("mariadb", "joined engine"),
        ("sqlite", "joined url"),
    ],
)
def test_a_client_made_before_a_fork_serves_parent_and_children(
    request: pytest.FixtureRequest, tmp_path: Path, server: str, kind: str
) -> None:
    """Used before, too: no socket is shared, all see one first result."""
    if server == "sqlite":
        url = f"sqlite:///{tmp_path}/idempo.db"
    else:
        url = fresh_database(request.getfixturevalue(server))
    if server != "redis_server":
        UniqueInsert(create_engine(url, poolclass=NullPool)).create_schema()
    output(_FORK, kind, url, str(tmp_path), env=_environment())
    results: dict[str, Any] = {}
    for who in ("parent", "child-1", "child-2", "child-3"):
        found = json.loads((tmp_path / who).read_text())
        assert len(found) == 21
        for key, value in found.items():
            assert value[0] == key
            assert results.setdefault(key, value) == value


_LOOPS = """
import asyncio, sys, threading
from idempo import RedisCache, UniqueInsert, idempotent

url = sys.argv[1]
using = RedisCache(url) if url.startswith("redis") else UniqueInsert(url)
ran = []

@idempotent(key="{order_no}", using=using, name="loops", wait=30)
async def f(order_no):
    ran.append(order_no)
    await asyncio.sleep(0)
    return order_no

@idempotent(key="{order_no}", using=using, name="loops", wait=30)
def g(order_no):
    ran.append(order_no)
    return order_no

async def many(keys):
    assert await asyncio.gather(*(f(key) for key in keys * 2)) == keys * 2

one_after_the_other = [f"A-{index}" for index in range(5)]
asyncio.run(many(one_after_the_other))
asyncio.run(many(one_after_the_other))

at_once = [f"B-{index}" for index in range(10)]
failed = []

def in_a_loop():
    try:
        asyncio.run(many(at_once))
    except BaseException as error:
        failed.append(error)

def in_a_thread():
    try:
        assert [g(key) for key in at_once] == at_once
    except BaseException as error:
        failed.append(error)

threads = [threading.Thread(target=target) for target in (in_a_loop, in_a_thread) * 3]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failed, failed
assert sorted(ran) == sorted(one_after_the_other + at_once), ran
print("right")
"""


@pytest.mark.parametrize("server", ["redis_server", "postgres", "sqlite"])
def test_loops_one_after_the_other_loops_at_once_and_threads_beside_them_share_a_strategy(
    request: pytest.FixtureRequest, tmp_path: Path, server: str
) -> None:
    if server == "sqlite":
        url = f"sqlite:///{tmp_path}/idempo.db"
    else:
        url = fresh_database(request.getfixturevalue(server))
    if server != "redis_server":
        UniqueInsert(create_engine(url, poolclass=NullPool)).create_schema()
    assert output(_LOOPS, url, env=_environment()) == "right\n"


_THREADS = """
import asyncio, sys, threading
from idempo import Memory, UniqueInsert, idempotent

def names():
    return sorted(thread.name for thread in threading.enumerate())

@idempotent(key="{order_no}", using=Memory())
async def awaited(order_no):
    return order_no

@idempotent(key="{order_no}", using=UniqueInsert(sys.argv[1], join="session"))
def joined(order_no, session=None):
    return order_no

@idempotent(key="{order_no}", using=Memory())
def leased(order_no):
    return order_no

assert names() == ["MainThread"], names()
asyncio.run(awaited("A-1"))
assert names() == ["MainThread"], names()
joined("A-1")
joined("A-1")
assert names() == ["MainThread"], names()
leased("A-1")
leased("A-2")
assert len(names()) <= 2, names()
print("right")
"""


def test_no_thread_before_the_first_lease_that_needs_one(tmp_path: Path) -> None:
    assert output(_THREADS, f"sqlite:///{tmp_path}/idempo.db", env=_environment()) == "right\n"


# ------------------------------------------------------------------------ leases


@colours
def test_a_call_shorter_than_a_third_of_its_lease_sends_no_renewal(
    make: Callable[[], Any], colour: Colour
) -> None:
    events: list[Event] = []

    def test() -> Steps[None]:
        store = make()

        def body(order_no: str) -> Steps[Any]:
            yield from ()
            return order_no

        f = decorated(body, colour, using=store, lease=60, hooks=[events.append])
        for index in range(20):
            yield f(f"A-{index}")
        yield from closed(store)

    drive(colour, test())
    assert {event.kind for event in events} == {"claimed", "completed"}


@colours
def test_a_slow_but_living_owner_keeps_its_claim(make: Callable[[], Any], colour: Colour) -> None:
    """Three renewals of a lease of 0.3 s; a duplicate waits all the while and replays."""

    def test() -> Steps[None]:
        store, effects, renewed, inside, enough = make(), Effects(), Effects(), Gate(colour), Gate(colour)

        def hook(event: Event) -> None:
            if event.kind == "renewed" and renewed.add("renewed") == 3:
                enough.open()

        def body(order_no: str) -> Steps[Any]:
            inside.open()
            yield enough.wait()
            return effects.add(order_no)

        f = decorated(body, colour, using=store, lease=0.3, wait=SECONDS, hooks=[hook])
        owner = Running(colour, [calling(lambda: f("A-1"))])
        yield inside.wait()
        outcome = yield f.outcome("A-1")
        assert (outcome.value, outcome.attempt, outcome.replayed) == (1, 1, True)
        assert (yield from owner.results()) == [1]
        yield from closed(store)

    drive(colour, test())


def test_of_300_duplicates_whose_first_run_fails_exactly_one_more_runs(redis_server: Server) -> None:
    """In one event loop, on Redis."""

    async def test() -> None:
        store, effects = RedisCache(fresh_database(redis_server)), Effects()

        def body(order_no: str) -> Steps[Any]:
            run = effects.add(order_no)
            yield asyncio.sleep(0)
            if run == 1:
                raise Declined
            return run

        f = decorated(body, "async", using=store, wait=60)
        found = await asyncio.gather(*(f("A-1") for _ in range(300)), return_exceptions=True)
        assert sorted(map(repr, found)) == sorted([repr(Declined()), *["2"] * 299])
        assert len(effects) == 2
        await _closed(store)

    asyncio.run(test())


# ------------------------------------------------------------------------ decorators upon decorators


def test_decorated_twice_under_one_name_is_refused() -> None:
    def f(order_no: str) -> str:
        return order_no

    once = idempotent(key="{order_no}", using=Memory())(f)
    with pytest.raises(CompositionError, match="decorated twice"):
        idempotent(key="{order_no}", using=Memory())(once)


@colours
def test_decorated_twice_under_two_names_nests(colour: Colour) -> None:
    effects = Effects()

    def body(order_no: str) -> Steps[Any]:
        yield from ()
        return effects.add(order_no)

    inner = decorated(body, colour, using=Memory(), name="inner")
    outer = idempotent(key="{order_no}", using=Memory(), name="outer")(inner)

    def test() -> Steps[None]:
        assert (yield outer("A-1")) == 1
        assert (yield outer("A-1")) == 1
        assert (yield inner.outcome("A-1")).replayed

    drive(colour, test())
    assert len(effects) == 1


def _failing_twice(effects: Effects) -> Callable[[str], Steps[Any]]:
    def body(order_no: str) -> Steps[Any]:
        yield from ()
        if effects.add(order_no) < 3:
            raise Declined
        return len(effects)

    return body


@colours
def test_a_retry_outside_makes_new_attempts_and_then_sees_replays(colour: Colour) -> None:
    effects = Effects()
    f = decorated(_failing_twice(effects), colour, using=Memory())
    outside: Any = retry(stop=stop_after_attempt(5), wait=wait_none(), reraise=True)(f)

    def test() -> Steps[None]:
        assert (yield outside("A-1")) == 3
        assert (yield outside("A-1")) == 3
        assert (yield f.outcome("A-1")).attempt == 3

    drive(colour, test())
    assert len(effects) == 3


@colours
def test_a_retry_inside_repeats_the_body_under_one_claim(colour: Colour) -> None:
    effects, events = Effects(), list[Event]()
    body = _failing_twice(effects)

    def plain(order_no: str) -> Any:
        return drive("sync", body(order_no))

    async def coroutine(order_no: str) -> Any:
        if effects.add(order_no) < 3:
            raise Declined
        return len(effects)

    repeated: Any = retry(stop=stop_after_attempt(5), wait=wait_none(), reraise=True)
    function = repeated(plain if colour == "sync" else coroutine)
    f: Any = idempotent(key="{order_no}", using=Memory(), hooks=[events.append])(function)

    def test() -> Steps[None]:
        outcome = yield f.outcome("A-1")
        assert (outcome.value, outcome.attempt) == (3, 1)

    drive(colour, test())
    assert [event.kind for event in events] == ["claimed", "completed"]


# ------------------------------------------------------------------------ who calls whom


def test_a_task_that_outlives_its_function_may_call_the_same_key(make: Callable[[], Any]) -> None:
    """While the function runs, that is refused at once."""

    async def test() -> None:
        store, tasks = make(), list[asyncio.Task[Any]]()
        over = asyncio.Event()

        async def later() -> Any:
            await over.wait()
            return (await f.outcome("A-1")).replayed

        @idempotent(key="{order_no}", using=store)
        async def f(order_no: str) -> int:
            tasks.append(asyncio.create_task(later()))
            with pytest.raises(ReentrantCallError):
                await asyncio.create_task(f(order_no))
            return 1

        assert await f("A-1") == 1
        over.set()
        assert await tasks[0] is True
        await _closed(store)

    asyncio.run(test())


@colours
def test_a_key_called_again_through_another_function_is_refused_at_once(colour: Colour) -> None:
    def test() -> Steps[None]:
        def inner_body(order_no: str) -> Steps[Any]:
            return (yield f(order_no))

        def outer_body(order_no: str) -> Steps[Any]:
            return (yield g(order_no))

        g = decorated(inner_body, colour, using=Memory())
        f = decorated(outer_body, colour, using=Memory(), wait=3600)
        error = yield from caught(ReentrantCallError, lambda: f("A-1"))
        assert error.ran is False

    drive(colour, test())


def test_nested_calls_from_many_threads_keep_their_own_current_call() -> None:
    store = Memory()

    @idempotent(key="{order_no}", using=store, name="inner")
    def inner(order_no: str) -> str:
        return idempo.current().key

    @idempotent(key="{order_no}", using=store, name="outer")
    def outer(order_no: str) -> list[str]:
        return [idempo.current().key, inner(f"{order_no}/1"), idempo.current().key]

    found: dict[str, list[str]] = {}
    start = threading.Barrier(16)

    def work(order_no: str) -> None:
        start.wait()
        found[order_no] = outer(order_no)

    threads = [threading.Thread(target=work, args=(f"A-{index}",)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {f"A-{n}": [f"A-{n}", f"A-{n}/1", f"A-{n}"] for n in range(16)}


# ------------------------------------------------------------------------ kinds of callables


def multiply(factor: int, order_no: str) -> int:
    return factor * len(order_no)


class Doubler:
    def __init__(self) -> None:
        self.effects = Effects()

    def __call__(self, order_no: str) -> int:
        return 2 * self.effects.add(order_no)


class AsyncDoubler:
    def __init__(self) -> None:
        self.effects = Effects()

    async def __call__(self, order_no: str) -> int:
        return 2 * self.effects.add(order_no)


def test_a_partial_is_decorated_like_a_function() -> None:
    f: Any = idempotent(key="{order_no}", using=Memory(), name="partial")(functools.partial(multiply, 3))
    assert f("A-1") == 9
    assert f(order_no="A-1") == 9
    assert (f.outcome("A-1").replayed, f.key_for("A-1")) == (True, "A-1")


def test_a_partial_of_a_coroutine_function_is_async() -> None:
    async def coroutine(factor: int, order_no: str) -> int:
        return factor

    f: Any = idempotent(key="{order_no}", using=Memory(), name="partial")(functools.partial(coroutine, 3))

    async def test() -> None:
        assert await f("A-1") == 3
        assert (await f.outcome("A-1")).replayed

    asyncio.run(test())


@colours
def test_a_callable_object_is_decorated_like_a_function(colour: Colour) -> None:
    one: Any = Doubler() if colour == "sync" else AsyncDoubler()
    with pytest.raises(ConfigurationError, match="give it a name="):
        idempotent(key="{order_no}", using=Memory())(one)
    f: Any = idempotent(key="{order_no}", using=Memory(), name="doubler")(one)

    def test() -> Steps[None]:
        assert (yield f("A-1")) == 2
        assert (yield f.outcome("A-1")).replayed
        assert (yield f.lookup("A-1")).value == 2
        assert (yield f.forget("A-1")) is True

    drive(colour, test())


class Shop:
    """Methods of all kinds; `effects` counts."""

    effects = Effects()

    def __init__(self, name: str) -> None:
        self.name = name

    @idempotent(key="{self.name}:{order_no}", using=Memory())
    def order(self, order_no: str, amount: int = 1) -> str:
        """Order something."""
        return f"{type(self).__name__} {self.name} {Shop.effects.add(order_no)}"

    @idempotent(key="{self.name}:{order_no}", using=Memory())
    async def aorder(self, order_no: str) -> str:
        return f"{self.name} {Shop.effects.add(order_no)}"

    @classmethod
    @idempotent(key="{order_no}", using=Memory())
    def below(cls, order_no: str) -> str:
        return f"{cls.__name__} {Shop.effects.add(order_no)}"

    @idempotent(key="{order_no}", using=Memory())
    @classmethod
    def above(cls, order_no: str) -> str:
        return f"{cls.__name__} {Shop.effects.add(order_no)}"

    @staticmethod
    @idempotent(key="{order_no}", using=Memory())
    def static_below(order_no: str) -> str:
        return f"static {Shop.effects.add(order_no)}"

    @idempotent(key="{order_no}", using=Memory())
    @staticmethod
    def static_above(order_no: str) -> str:
        return f"static {Shop.effects.add(order_no)}"


class Outlet(Shop):
    # To pyright a decorated method is a variable, and `self` in its type makes that of a subclass another one.
    @idempotent(key="{self.name}:{order_no}", using=Memory())
    def order(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, order_no: str, amount: int = 1
    ) -> str:
        return "outlet, " + super().order(order_no, amount)


@pytest.fixture
def fresh_shop() -> None:
    """The class above, with a new count."""
    Shop.effects = Effects()


def _names_work(f: Any, key: str, *args: Any) -> None:
    first = f(*args)
    outcome = f.outcome(*args)
    assert (outcome.value, outcome.replayed, outcome.key) == (first, True, key)
    assert f.key_for(*args) == key
    assert f.lookup(*args).value == first
    assert f.forget(*args) is True
    assert f.lookup(*args) is None
    assert "effects" in str(f.explain())


@pytest.mark.parametrize("of_class", [False, True])
@pytest.mark.parametrize("name", ["below", "above", "static_below", "static_above"])
def test_class_and_static_methods_have_all_names(fresh_shop: None, name: str, of_class: bool) -> None:
    for kind in (Shop, Outlet):
        f = getattr(kind if of_class else kind("north"), name)
        key = f"{kind.__name__} {name} {of_class}"
        if name == "below" and sys.version_info >= (3, 13):
            # A class method above another descriptor does not bind it any more: its names take the class themselves.
            assert f(key) == f(key)
            _names_work(f.__func__, key, kind, key)
        else:
            _names_work(f, key, key)


def test_methods_have_all_names_bound_and_unbound(fresh_shop: None) -> None:
    north: Any = Shop("north")
    _names_work(north.order, "north:M-1", "M-1")
    unbound: Any = Shop.order
    _names_work(unbound, "north:M-2", north, "M-2")
    assert north.order.__doc__ == "Order something."
    assert north.order.__name__ == "order"
    assert north.order.__wrapped__("M-3") != north.order.__wrapped__("M-3")


def test_instances_share_keys_only_as_the_key_says(fresh_shop: None) -> None:
    assert Shop("north").order("M-4") == Shop("north").order("M-4")
    assert Shop("north").order("M-4") != Shop("south").order("M-4")


def test_a_subclass_method_and_its_parents_are_two_operations(fresh_shop: None) -> None:
    outlet = Outlet("west")
    assert outlet.order("M-5") == outlet.order("M-5")
    assert outlet.order("M-5").startswith("outlet, Outlet west")
    assert len(Shop.effects) == 1


def test_an_async_method_has_all_names(fresh_shop: None) -> None:
    async def test() -> None:
        north: Any = Shop("north")
        first = await north.aorder("M-6")
        assert (await north.aorder.outcome("M-6")).value == first
        assert (await north.aorder.lookup("M-6")).value == first
        assert await north.aorder.forget("M-6") is True

    asyncio.run(test())


# ------------------------------------------------------------------------ exceptions and arguments


def test_stop_iteration_passes_untouched(make: Callable[[], Any]) -> None:
    store, broken = make(), StopIteration("from the function")

    def f(order_no: str) -> int:
        raise broken

    decorated_f = idempotent(key="{order_no}", using=store)(f)
    for call in (decorated_f, decorated_f.outcome):
        with pytest.raises(StopIteration) as caught_one:
            call("A-1")
        assert caught_one.value is broken
        assert broken.__cause__ is None
    assert decorated_f.lookup("A-1") is None
    drive("sync", closed(store))


def test_stop_async_iteration_and_an_exception_group_pass_untouched() -> None:
    async def test() -> None:
        for broken in (StopAsyncIteration("x"), ExceptionGroup("several", [ValueError(1)])):

            @idempotent(key="{order_no}", using=Memory())
            async def f(order_no: str, broken: Exception = broken) -> int:
                raise broken

            f = idempotent(key="{order_no}", using=Memory(), fingerprint=None)(f.__wrapped__)
            with pytest.raises(type(broken)) as caught_one:
                await f("A-1")
            assert caught_one.value is broken

    asyncio.run(test())


def test_an_exception_that_is_one_of_idempos_own_passes_from_the_function_and_frees_the_key() -> None:
    effects, foreign = Effects(), idempo.InProgressError("from another operation")

    @idempotent(key="{order_no}", using=Memory())
    def f(order_no: str) -> int:
        if effects.add(order_no) == 1:
            raise foreign
        return len(effects)

    with pytest.raises(idempo.InProgressError) as error:
        f("A-1")
    assert error.value is foreign
    assert f("A-1") == 2


def test_by_position_by_name_and_by_default_is_the_same_call() -> None:
    @idempotent(key=("order_no", "amount"), using=Memory())
    def f(order_no: str, amount: int = 7, *rest: int, urgent: bool = False, **more: int) -> str:
        return order_no

    f("A-1")
    for args, kwargs in [
        (("A-1", 7), {}),
        ((), {"order_no": "A-1"}),
        ((), {"amount": 7, "order_no": "A-1"}),
        (("A-1",), {"amount": 7, "urgent": False}),
    ]:
        assert f.outcome(*args, **kwargs).replayed  # type: ignore[arg-type]
    with pytest.raises(FingerprintMismatchError):
        f("A-1", 7, 8)
    with pytest.raises(FingerprintMismatchError):
        f("A-1", extra=1)


@colours
def test_what_the_function_does_to_its_arguments_changes_neither_key_nor_fingerprint(
    make: Callable[[], Any], colour: Colour
) -> None:
    def test() -> Steps[None]:
        store, effects = make(), Effects()

        def change(payload: dict[str, Any]) -> int:
            payload["order_no"] = "changed"
            payload["lines"].append("changed")
            payload["new"] = True
            return effects.add("ran")

        async def achange(payload: dict[str, Any]) -> int:
            return change(payload)

        function: Any = change if colour == "sync" else achange
        f: Any = idempotent(key="{payload[order_no]}", using=store)(function)

        def fresh() -> dict[str, Any]:
            return {"order_no": "A-1", "lines": ["one"]}

        assert (yield f(fresh())) == 1
        outcome = yield f.outcome(fresh())
        assert (outcome.value, outcome.replayed, outcome.key) == (1, True, "A-1")
        yield from caught(FingerprintMismatchError, lambda: f({"order_no": "A-1", "lines": ["two"]}))
        yield from closed(store)

    drive(colour, test())


def test_an_argument_changed_by_another_while_the_duplicate_waits_is_no_matter() -> None:
    """Key and fingerprint are read once, when the call is made."""
    effects, inside, gate = Effects(), threading.Event(), threading.Event()
    waiting = threading.Event()

    def hook(event: Event) -> None:
        if event.kind == "waited":
            waiting.set()

    @idempotent(key="{payload[order_no]}", using=Memory(), hooks=[hook], wait=SECONDS)
    def f(payload: dict[str, Any]) -> int:
        inside.set()
        gate.wait()
        return effects.add("ran")

    owner = Running("sync", [calling(lambda: f({"order_no": "A-1"}))])
    inside.wait()
    payload = {"order_no": "A-1"}
    duplicate = Running("sync", [calling(lambda: f(payload))])
    waiting.wait()
    payload["order_no"] = "A-2"
    gate.set()
    assert drive("sync", owner.results()) == [1]
    assert drive("sync", duplicate.results()) == [1]
    assert len(effects) == 1


def test_the_ledger_holds_no_arguments_alive() -> None:
    import gc
    import weakref

    class Payload:
        def __init__(self) -> None:
            self.order_no = "A-1"

    @idempotent(key="{payload.order_no}", using=Memory(), fingerprint=None)
    def f(payload: Payload) -> int:
        return 1

    payload = Payload()
    gone = weakref.ref(payload)
    f(payload)
    del payload
    drive("sync", until(lambda: gc.collect() >= 0 and gone() is None, "the payload is collected"))


def test_a_client_that_decodes_and_one_that_does_not_share_records(redis_server: Server) -> None:
    url = fresh_database(redis_server)
    plain, decoding = redis.Redis.from_url(url), redis.Redis.from_url(url, decode_responses=True)

    def body(order_no: str) -> Steps[Any]:
        yield from ()
        return {"bytes": b"\xff", "text": "é"}

    f = decorated(body, "sync", using=RedisCache(plain), name="shared")
    g = decorated(body, "sync", using=RedisCache(decoding), name="shared")
    assert f("A-1") == g("A-1")
    assert g.outcome("A-1").replayed
    plain.close()
    decoding.close()


# ------------------------------------------------------------------------ what only looks like a plain function


@pytest.mark.parametrize("replayed", [(), (Exception,)])
def test_a_plain_function_that_returns_a_coroutine_records_nothing(
    replayed: tuple[type[Exception], ...],
) -> None:
    """Nothing of it has run: a repeat that is mended does."""
    sent: list[str] = []
    forgotten = True

    async def send(number: str) -> str:
        sent.append(number)
        return number

    @idempotent(key="{number}", using=Memory(), replay_errors=replayed, name="forgotten")
    def mail(number: str) -> Any:
        return send(number) if forgotten else "sent"

    for _ in range(2):
        with pytest.raises(ConfigurationError, match="async def") as told:
            _ = mail("A-1")
        assert told.value.ran is False
    assert mail.lookup("A-1") is None
    forgotten = False
    assert (mail("A-1"), sent) == ("sent", [])


def test_a_task_that_a_plain_function_returns_is_no_result() -> None:
    async def send(number: str) -> str:
        return number

    async def main() -> None:
        @idempotent(key="{number}", using=Memory(), name="task")
        def mail(number: str) -> Any:
            return asyncio.ensure_future(send(number))

        with pytest.raises(ConfigurationError) as told:
            _ = mail("A-1")
        assert told.value.ran is True  # it is on its way

    asyncio.run(main())


def test_functions_that_are_called_like_others_need_a_name() -> None:
    def _(number: str) -> str:
        return number

    for function in (_, lambda number: number):
        with pytest.raises(ConfigurationError, match="name="):
            idempotent(key="{number}", using=Memory())(function)
        assert idempotent(key="{number}", using=Memory(), name="own")(function)("A") == "A"


def test_stop_iteration_may_be_a_result() -> None:
    @idempotent(key="{number}", using=Memory(), replay_errors=[StopIteration], name="stops")
    def f(number: str) -> str:
        runs.append(number)
        raise StopIteration(number)

    runs: list[str] = []
    for _ in range(2):
        with pytest.raises(StopIteration, match="A-1"):
            f("A-1")
    assert runs == ["A-1"]


def test_other_arguments_of_many_are_a_type_error() -> None:
    @idempotent(key="{number}", using=Memory(), name="many")
    def f(number: str) -> str:
        return number

    wrong: Any = f.many
    for args, kwargs in (((), {}), (([("A",)], [("B",)]), {}), (([("A",)],), {"other": 1})):
        with pytest.raises(TypeError, match=r"many\(\)"):
            wrong(*args, **kwargs)
    assert [one.value for one in wrong(calls=[("A",)])] == ["A"]
    with pytest.raises(TypeError) as told:
        wrong(["4111-1111"])
    assert "4111" not in str(told.value)


def test_two_functions_of_one_name_in_one_file_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """They would get each other's results. The same function, made twice, says nothing."""

    def first() -> Any:
        @idempotent(key="{number}", using=Memory())
        def f(number: str) -> str:
            return number

        return f

    kept = [first(), first()]
    assert not caplog.records
    handlers: dict[str, Any] = {}

    @idempotent(key="{number}", using=Memory())
    def handle(number: str) -> str:  # pyright: ignore[reportRedeclaration]
        return number

    handlers["one"] = handle

    @idempotent(key="{number}", using=Memory())  # type: ignore[no-redef]
    def handle(number: str) -> str:
        return number

    handlers["other"] = handle
    (told,) = [one.getMessage() for one in caplog.records]
    assert "handle is the name of two functions" in told
    assert len(kept) == len(handlers) == 2
