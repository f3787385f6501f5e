"""`StateGuard` behind ledgers of every kind, and what `explain()` says of it; its requests, counted on the wire."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from sqlalchemy import create_engine, insert, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from idempo import RedisCache, StateConflictError, StateGuard, UniqueInsert, idempotent
from idempo.contracts import Colour
from idempo.steps import Steps
from idempo.strategies.local_cache import LocalCache
from idempo.testing import drive
from tests.faults.proxy import Proxy
from tests.guards.support import (
    COLOURS,
    FLOW,
    OURS,
    Order,
    Receipt,
    Shop,
    callers,
    driven,
    pay,
    sync_only,
)
from tests.servers import Server, fresh_database
from tests.traps.support import caught


@dataclass
class Front:
    """What stands in front of a guard, and how it loses all it has kept."""

    name: str
    ledger: Any
    flush: Callable[[], Any]


@pytest.fixture(params=["RedisCache", "LocalCache", "UniqueInsert"])
def front(request: pytest.FixtureRequest, shop: Shop) -> Iterator[Front]:
    match request.param:
        case "RedisCache":
            server: Server = request.getfixturevalue("redis_server")
            prefix = f"{shop.name}:"  # database 0, which no test ever flushes
            with redis.Redis.from_url(server.url) as client:

                def flush() -> None:
                    keys: Any = client.keys(f"{prefix}*")
                    client.delete(*keys)

                yield Front("RedisCache", RedisCache(server.url, prefix=prefix), flush)
        case "LocalCache":
            cache = LocalCache()
            yield Front("LocalCache", cache, cache._entries.begin_anew)
        case _:
            UniqueInsert(shop.outside, table="front").create_schema()
            _emptied(shop)
            yield Front("UniqueInsert", UniqueInsert(shop.engine, table="front"), lambda: _emptied(shop))


def _emptied(shop: Shop) -> None:
    with shop.outside.connect() as connection:
        connection.execute(text("DELETE FROM front"))


def closed(front: Front) -> Steps[None]:
    if isinstance(front.ledger, RedisCache):
        yield front.ledger.close()


@callers
@driven
def test_a_tier_replays_without_a_look_at_the_database_and_losing_it_runs_nothing_twice(
    shop: Shop, front: Front, caller: str
) -> Steps[None]:
    if shop.server == "sqlite" and front.name == "UniqueInsert" and caller != OURS:
        return  # the caller's own transaction holds the one lock, so that nobody can fill this tier
    shop.add(1)
    f = shop.function(pay, [front.ledger, shop.guard()], returns=Receipt)
    assert (yield from shop.call(caller, f, 1, "P-1")) == Receipt("P-1", 1)
    assert (yield from shop.outcome(caller, f, 1, "P-1")).replayed  # by the record, which fills the tier
    forget_record(shop)
    shop.put(1, status="pending")
    outcome = yield from shop.outcome(caller, f, 1, "P-1")
    assert (outcome.value, outcome.replayed) == (Receipt("P-1", 1), True)
    assert (shop.row(1), shop.payments(1)) == ("pending", 1)
    yield from closed(front)


@driven
def test_after_a_flush_of_the_tier_it_is_still_once(shop: Shop, front: Front) -> Steps[None]:
    """And another key is judged by the row."""
    shop.add(1)
    f = shop.function(pay, [front.ledger, shop.guard()], returns=Receipt)
    first = yield from shop.call(OURS, f, 1, "P-1")
    front.flush()
    outcome = yield from shop.outcome(OURS, f, 1, "P-1")
    assert (outcome.value, outcome.replayed) == (first, True)
    error = yield from shop.refused(OURS, StateConflictError, f, 1, "P-2")
    assert error.verdict == "already"
    assert (shop.row(1), shop.payments(1)) == ("paid", 1)
    yield from closed(front)


@driven
def test_a_refusal_is_not_kept_by_the_tier(shop: Shop, front: Front) -> Steps[None]:
    shop.add(1, status="cancelled")
    f = shop.function(pay, [front.ledger, shop.guard()])
    for _ in range(2):
        yield from caught(StateConflictError, lambda: f(1, "P-1"))
    shop.put(1, status="pending")
    assert not (yield f.outcome(1, "P-1")).replayed
    assert shop.payments(1) == 1
    yield from closed(front)


@driven
def test_a_tier_keeps_an_answer_as_it_keeps_a_result(shop: Shop, front: Front) -> Steps[None]:
    shop.add(1, status="paid")
    f = shop.function(pay, [front.ledger, shop.guard(already={"paid": True})])
    assert (yield f(1, "P-1")) == {"paid": True}
    forget_record(shop)
    shop.put(1, status="pending")
    outcome = yield f.outcome(1, "P-1")
    assert (outcome.value, outcome.replayed) == ({"paid": True}, True)
    assert shop.payments(1) == 0
    yield from closed(front)


@callers
@driven
def test_a_named_ledger_that_joins_is_the_record(shop: Shop, caller: str) -> Steps[None]:
    """A guard without an engine of its own works in its transaction."""
    shop.add(1, 2)
    for order, guard in enumerate((shop.guard(), shop.guard(engine=None)), 1):
        using = [UniqueInsert(shop.engine, join="session"), guard]
        f = shop.function(pay, using, returns=Receipt, name=f"{shop.name}.{order}")
        first = yield from shop.outcome(caller, f, order, "P-1")
        again = yield from shop.outcome(caller, f, order, "P-1")
        assert (first.replayed, again.replayed, again.value) == (False, True, first.value)
        assert (yield from shop.refused(caller, StateConflictError, f, order, "P-2")).verdict == "already"
        assert (shop.row(order), shop.payments(order)) == ("paid", 1)


@driven
def test_two_guards_admit_together_or_not_at_all(shop: Shop) -> Steps[None]:
    """What the first has changed is undone when the second refuses."""
    shop.add(1, 2)
    where: Any = {Order.id: lambda payment: int(payment)}  # noqa: PLW0108
    f = shop.function(pay, [shop.guard(), shop.guard(where=where)])
    shop.put(2, status="cancelled")
    yield from caught(StateConflictError, lambda: f(1, "2"))
    assert (shop.row(1), shop.row(2)) == ("pending", "cancelled")
    shop.put(2, status="pending")
    yield f(1, "2")
    assert (shop.row(1), shop.row(2)) == ("paid", "paid")


def forget_record(shop: Shop) -> None:
    with shop.outside.connect() as connection:
        connection.execute(text("DELETE FROM idempo_records"))


# ------------------------------------------------------------------------ a function without the session


@driven
def test_a_function_that_does_not_take_the_session_is_guarded_all_the_same(shop: Shop) -> Steps[None]:
    shop.add(1, status="pending")
    seen: list[int] = []

    def plain(order_id: int, payment: str) -> int:
        seen.append(order_id)
        return len(seen)

    async def coroutine(order_id: int, payment: str) -> int:
        return plain(order_id, payment)

    function: Any = plain if shop.colour == "sync" else coroutine
    f: Any = idempotent(key="{payment}", using=shop.guard(), name=shop.name)(function)
    assert "session" not in inspect.signature(f).parameters
    assert (yield f(1, "P-1")) == 1
    assert (yield f.outcome(1, "P-1")).replayed
    assert (yield from caught(StateConflictError, lambda: f(1, "P-2"))).verdict == "already"
    assert (shop.row(1), seen) == ("paid", [1])
    assert "what the function writes is elsewhere" in str(f.explain())


# ------------------------------------------------------------------------ explain()


@sync_only
@driven
def test_explain_says_what_the_guard_admits_and_what_holds(shop: Shop) -> Steps[None]:
    yield from ()
    explained = shop.function(pay).explain()
    assert [(part.strategy, part.role, part.joined) for part in explained.parts] == [
        ("UniqueInsert", "record", True),
        ("StateGuard", "guard", True),
    ]
    assert (explained.joined_effects, explained.foreign_effects) == ("exactly once", "at least once")
    said = str(explained)
    assert "StateGuard: admits by the business row" in said
    assert "admits 'pending' to 'paid'" in said
    assert "effects in the joined database: exactly once" in said
    assert "elsewhere" not in said.replace("effects elsewhere", "")


@sync_only
@driven
def test_explain_names_the_tiers_in_front(shop: Shop, front: Front) -> Steps[None]:
    explained = shop.function(pay, [front.ledger, shop.guard()]).explain()
    assert [(part.strategy, part.role) for part in explained.parts] == [
        (front.name, "tier"),
        ("UniqueInsert", "record"),
        ("StateGuard", "guard"),
    ]
    assert explained.joined_effects == "exactly once"
    assert f"{front.name}: replays in front of the record" in str(explained)
    yield from closed(front)


# ------------------------------------------------------------------------ requests on the wire


@pytest.fixture
def wire(postgres: Server) -> Iterator[tuple[Proxy, str]]:
    url = fresh_database(postgres)
    engine = create_engine(url)
    UniqueInsert(engine).create_schema()
    Order.metadata.create_all(engine)
    with engine.begin() as connection:
        for number in range(20):
            connection.execute(insert(Order).values(id=number, status="pending"))
    engine.dispose()
    with Proxy(postgres.port) as proxy:
        shown = make_url(url).set(port=proxy.port).render_as_string(hide_password=False)
        yield proxy, f"{shown}?sslmode=disable"


@pytest.mark.parametrize("colour", COLOURS)
def test_a_guard_adds_one_request_to_a_first_call_and_none_to_a_replay(
    wire: tuple[Proxy, str], colour: Colour
) -> None:
    """In a transaction of ours: a look at the key, BEGIN, claim, guard, and the completion with the commit."""
    proxy, url = wire
    engine: Any = create_engine(url) if colour == "sync" else create_async_engine(url)
    record = UniqueInsert(engine, join="session")
    guard = StateGuard(Order.status, {Order.id: "{order_id}"}, FLOW, "paid", engine=engine)

    def plain(order_id: int, payment: str, session: Any = None) -> int:
        return 1

    async def coroutine(order_id: int, payment: str, session: Any = None) -> int:
        return 1

    function: Any = plain if colour == "sync" else coroutine
    bare, guarded = (
        idempotent(key="{payment}", using=using, name=name)(function)
        for using, name in ((record, "bare"), (guard, "guarded"))
    )

    def taken(f: Any, order: int) -> Steps[int]:
        proxy.reset_count()
        yield f(order, f"P-{order}")
        return proxy.requests

    def steps() -> Steps[None]:
        for number in range(8):  # until the driver has prepared its statements
            for f in (bare, guarded, bare, guarded):
                yield f(number, f"P-{number}")
        first = yield from taken(guarded, 11)
        assert first == 5
        assert first - (yield from taken(bare, 11)) == 1
        assert (yield from taken(guarded, 11)) == 1
        yield engine.dispose()

    drive(colour, steps())
