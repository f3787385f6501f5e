"""Servers that are killed at the claim, in the function, at the completion; paused; emptied; out of memory."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from idempo import (
    Event,
    IdempoError,
    LeaseLostError,
    LedgerUnavailableError,
    OutcomeUnknownError,
    TokenUnknownError,
)
from idempo.steps import Steps
from idempo.testing import Effects, Gate, drive
from tests.faults.gone import IN_TRANSACTION, ON_REDIS, ON_SQL, Place, Shop
from tests.servers import start
from tests.traps.support import Running, calling, caught

AFTERWARDS = 0.5  # a lease that is over when the server is back


PLACES = [("postgres", "redis", "sync"), ("mariadb", "valkey", "async")]


@pytest.fixture(scope="module", params=PLACES, ids="-".join)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    sql, cache, colour = request.param
    with start(sql) as database, start(cache) as server:
        place = Place(database, server, colour)
        place.fresh()
        yield place


def driven(place: Place, test: Callable[[Shop], Steps[None]], **limits: Any) -> None:
    def whole() -> Steps[None]:
        shop = place.shop(**limits)
        shop.orders.empty()
        shop.direct.flushall()
        _empty_database(shop)
        try:
            yield from test(shop)
        finally:
            yield from shop.close()

    drive(place.colour, whole())


def _empty_database(shop: Shop) -> None:
    with shop.orders.outside.connect() as connection:
        connection.exec_driver_sql("DELETE FROM idempo_records")


# ------------------------------------------------------------------------ killed


@pytest.mark.parametrize("gone", ["the database", "redis"])
def test_nothing_runs_while_a_server_is_gone_at_the_claim(place: Place, gone: str) -> None:
    server, needed = (place.sql, ON_SQL) if gone == "the database" else (place.redis, ON_REDIS)

    def test(shop: Shop) -> Steps[None]:
        made = {name: shop.function(name) for name in needed}
        given = {}
        for number, name in enumerate(needed):
            given[name] = yield from shop.arguments(name, number)
        server.kill()
        for name, f in made.items():
            error = yield from caught(LedgerUnavailableError, functools.partial(f, *given[name]))
            assert error.ran is False, name
            assert error.__cause__ is not None, name
        assert len(shop.effects) == 0
        server.start()
        for number, (name, f) in enumerate(made.items()):
            assert (yield f(*given[name])) == 1, name
            assert (yield f.outcome(*given[name])).replayed, name
            assert shop.orders.payments(number) == int(name in IN_TRANSACTION), name

    driven(place, test)


@pytest.mark.parametrize("name", ["leased", "redis", "cache"])
def test_a_completion_is_tried_again_until_the_server_is_back(place: Place, name: str) -> None:
    server = place.redis if name == "redis" else place.sql

    def test(shop: Shop) -> Steps[None]:
        tries = Effects()

        def hook(event: Event) -> None:
            if event.detail.startswith("completion") and tries.add(event.kind) == 2:
                server.start()

        f = shop.function(name, server.kill, hooks=[hook])
        given = yield from shop.arguments(name, 1)
        assert (yield f(*given)) == 1
        outcome = yield f.outcome(*given)
        assert (outcome.value, outcome.attempt, outcome.replayed) == (1, 1, True)
        assert (len(tries), len(shop.effects)) == (2, 1)

    driven(place, test)


@pytest.mark.parametrize("name", ["leased", "redis", "cache"])
def test_a_server_that_is_not_back_in_time_makes_the_outcome_unknown(place: Place, name: str) -> None:
    """The claim is still there when it is back: an orphan, for `on_orphan` to decide."""
    server = place.redis if name == "redis" else place.sql

    def test(shop: Shop) -> Steps[None]:
        f = shop.function(name, server.kill, lease=AFTERWARDS, on_orphan="refuse")
        given = yield from shop.arguments(name, 1)
        error = yield from caught(OutcomeUnknownError, lambda: f(*given))
        assert (error.ran, error.result) == (None, 1)
        server.start()
        yield from caught(OutcomeUnknownError, lambda: f(*given))
        assert len(shop.effects) == 1
        again = shop.function(name, on_orphan="rerun")
        outcome = yield again.outcome(*given)
        assert (outcome.value, outcome.attempt, outcome.replayed) == (2, 2, False)
        assert (yield again(*given)) == 2

    driven(place, test)


@pytest.mark.parametrize("name", IN_TRANSACTION)
def test_a_transaction_goes_with_its_server_and_the_repeat_has_the_one_effect(
    place: Place, name: str
) -> None:
    def test(shop: Shop) -> Steps[None]:
        first = shop.function(name, place.sql.kill, lease=AFTERWARDS)
        given = yield from shop.arguments(name, 1)
        error = yield from caught(IdempoError, lambda: first(*given))
        assert (type(error), error.ran, error.result) == (OutcomeUnknownError, None, 1)
        place.sql.start()
        assert shop.orders.payments(1) == 0
        outcome = yield shop.function(name).outcome(*given)
        assert (outcome.value, outcome.attempt, outcome.replayed) == (2, 1, False)
        assert (yield shop.function(name)(*given)) == 2
        assert shop.orders.payments(1) == 1

    driven(place, test)


@pytest.mark.parametrize("name", ["cache", "token"])
def test_redis_gone_in_front_of_a_database_loses_nothing(place: Place, name: str) -> None:
    """Killed while the function runs: what the database has committed is the first result, then and for good."""

    def test(shop: Shop) -> Steps[None]:
        f = shop.function(name, place.redis.kill, lease=AFTERWARDS)
        given = yield from shop.arguments(name, 1)
        assert (yield f(*given)) == 1
        place.redis.start()
        outcome = yield f.outcome(*given)
        assert (outcome.value, outcome.replayed) == (1, True)
        assert len(shop.effects) == 1
        assert shop.orders.payments(1) == int(name == "token")

    driven(place, test)


# ------------------------------------------------------------------------ paused


def test_a_paused_redis_fails_the_claim_within_the_clients_own_timeout(place: Place) -> None:
    """It may find the request when it goes on: then the claim is one of an owner that has gone, for a lease."""

    def test(shop: Shop) -> Steps[None]:
        made = {name: shop.function(name, lease=AFTERWARDS) for name in ON_REDIS}
        given = {}
        for number, name in enumerate(ON_REDIS):
            given[name] = yield from shop.arguments(name, number)
        place.redis.pause()
        try:
            for name, f in made.items():
                error = yield from caught(LedgerUnavailableError, functools.partial(f, *given[name]))
                assert error.ran is False
        finally:
            place.redis.resume()
        assert len(shop.effects) == 0
        for name, f in made.items():
            assert (yield f(*given[name])) == 1

    driven(place, test, socket_timeout=0.5, socket_connect_timeout=0.5)


def test_a_redis_paused_at_the_completion_gets_it_when_it_goes_on(place: Place) -> None:
    def test(shop: Shop) -> Steps[None]:
        def hook(event: Event) -> None:
            if event.detail.startswith("completion"):
                place.redis.resume()

        f = shop.function("redis", place.redis.pause, hooks=[hook])
        assert (yield f(1)) == 1
        outcome = yield f.outcome(1)
        assert (outcome.value, outcome.attempt, outcome.replayed) == (1, 1, True)

    driven(place, test, socket_timeout=0.5, socket_connect_timeout=0.5)


# ------------------------------------------------------------------------ emptied, evicting, out of memory


@pytest.mark.parametrize("at", ["during the run", "between completion and fill"])
def test_a_flush_in_front_of_a_database_has_one_effect_and_is_refilled(place: Place, at: str) -> None:
    def test(shop: Shop) -> Steps[None]:
        def hook(event: Event) -> None:
            if event.kind == "completed" and at == "between completion and fill":
                shop.direct.flushall()

        last: Callable[[], Any] = shop.direct.flushall if at == "during the run" else lambda: None
        f = shop.function("cache", last, hooks=[hook])
        assert (yield f(1)) == 1
        assert len(shop.direct.keys("*")) == 1
        _empty_database(shop)
        assert (yield f.outcome(1)).replayed  # from the tier
        assert len(shop.effects) == 1

    driven(place, test)


def test_a_token_flushed_during_the_run_is_unknown_and_the_effect_is_one(place: Place) -> None:
    """The order number that it came with has its first result, whatever token brings it."""

    def test(shop: Shop) -> Steps[None]:
        f = shop.function("token", shop.direct.flushall)
        order, token = yield from shop.arguments("token", 1)
        assert (yield f(order, token)) == 1
        yield from caught(TokenUnknownError, lambda: f(order, token))
        other = yield shop.tokens["token"].issue(operation="token")
        assert (yield f.outcome(order, other)).replayed
        assert shop.orders.payments(1) == 1

    driven(place, test)


def evict_all(shop: Shop) -> None:
    """Let the server itself drop what it has, by writing more than it may keep."""
    full = shop.direct.info("memory")["used_memory"] + 300_000
    shop.direct.config_set("maxmemory-policy", "allkeys-lru")
    shop.direct.config_set("maxmemory", full)
    try:
        names = shop.direct.keys("*")
        for number in range(10_000):
            if not (names and shop.direct.exists(*names)):
                return
            shop.direct.set(f"other {number}", b"x" * 10_000)
        raise AssertionError("nothing is evicted")
    finally:
        shop.direct.config_set("maxmemory", 0)
        shop.direct.config_set("maxmemory-policy", "noeviction")


def test_an_owner_whose_claim_is_evicted_is_told(place: Place) -> None:
    """The record is gone: another call runs, and the first is not the owner any more."""

    def test(shop: Shop) -> Steps[None]:
        inside, gate = Gate(shop.colour), Gate(shop.colour)

        def held() -> Any:
            inside.open()
            return gate.wait()

        owner = Running(shop.colour, [calling(lambda: shop.function("redis", held)(1))])
        yield inside.wait()
        evict_all(shop)
        assert (yield shop.function("redis")(1)) == 2
        gate.open()
        (error,) = yield from owner.results()
        assert isinstance(error, LeaseLostError)
        assert (error.result, error.stored) == (1, 2)
        assert (yield shop.function("redis")(1)) == 2

    driven(place, test)


@pytest.mark.parametrize("name", ["cache", "token"])
def test_what_is_evicted_in_front_of_a_database_has_one_effect(place: Place, name: str) -> None:
    def test(shop: Shop) -> Steps[None]:
        f = shop.function(name, lambda: evict_all(shop))
        given = yield from shop.arguments(name, 1)
        assert (yield f(*given)) == 1
        evict_all(shop)
        again = given if name == "cache" else (1, (yield shop.tokens[name].issue(operation=name)))
        assert (yield f.outcome(*again)).replayed
        assert len(shop.effects) == 1
        assert shop.orders.payments(1) == int(name == "token")

    driven(place, test)


def test_a_claim_that_redis_has_no_memory_for_runs_nothing(place: Place) -> None:
    """Redis documentation, "Key eviction": under noeviction, what would take memory is refused."""

    def test(shop: Shop) -> Steps[None]:
        f = shop.function("redis", lambda: None)
        shop.direct.config_set("maxmemory", 1)
        try:
            error = yield from caught(LedgerUnavailableError, lambda: f(1))
            assert error.ran is False
            assert len(shop.effects) == 0
        finally:
            shop.direct.config_set("maxmemory", 0)
        assert (yield f.outcome(1)).attempt == 1

    driven(place, test)


def test_a_completion_is_written_though_redis_has_no_memory_left(place: Place) -> None:
    """The function has run: what keeps its result is not refused."""

    def test(shop: Shop) -> Steps[None]:
        f = shop.function("redis", lambda: shop.direct.config_set("maxmemory", 1))
        try:
            assert (yield f(1)) == 1
            assert (yield f.outcome(1)).replayed
        finally:
            shop.direct.config_set("maxmemory", 0)

    driven(place, test)
