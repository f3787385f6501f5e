"""Redis and Valkey: stalled owners, vanished records, a server that is away, lost replies, flushes."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import create_engine, text

from idempo import (
    MISSING,
    Event,
    LeaseLostError,
    LedgerUnavailableError,
    OutcomeUnknownError,
    RedisCache,
    UniqueInsert,
)
from idempo.contracts import Colour
from idempo.records import Claimed, InProgress
from idempo.steps import Steps, run
from idempo.testing import Effects, Gate, drive, ledger_of, new_call
from tests.faults.proxy import Proxy
from tests.servers import Server, fresh_database
from tests.traps.support import Declined, Running, calling, caught, decorated, until

colours = pytest.mark.parametrize("colour", ["sync", "async"])


class Store:
    """A database of its own on a server, asked directly or through a proxy that can be cut."""

    def __init__(self, url: str, proxy: Proxy) -> None:
        self.url = url
        self.proxy = proxy
        self.direct: Any = redis.Redis.from_url(url)
        self.number = int(url.rpartition("/")[2])

    def client(self, colour: Colour, *, retries: int = 0) -> Any:
        """A client behind the proxy."""
        kind: Any = redis.Redis if colour == "sync" else redis.asyncio.Redis
        retry_kind: Any = Retry if colour == "sync" else AsyncRetry
        return kind(port=self.proxy.port, db=self.number, retry=retry_kind(NoBackoff(), retries))

    def keys(self) -> list[bytes]:
        found: list[bytes] = self.direct.keys("*")
        return found


@pytest.fixture(params=["redis_server", "valkey"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    server: Server = request.getfixturevalue(request.param)
    with Proxy(server.port) as proxy:
        store = Store(fresh_database(server), proxy)
        yield store
        store.direct.close()


Body = Callable[[str], Steps[Any]]


def behind(store: Store, colour: Colour, test: Callable[[Any], Steps[None]], *, retries: int = 0) -> None:
    """Run a test with a client behind the proxy, in an event loop if async."""

    def whole() -> Steps[None]:
        client = store.client(colour, retries=retries)
        try:
            yield from test(client)
        finally:
            yield (client.close() if colour == "sync" else client.aclose())

    drive(colour, whole())


# ------------------------------------------------------------------------ stalled owners


@colours
def test_a_stalled_owner_hears_of_the_second_run_and_its_record_is_untouched(
    store: Store, colour: Colour
) -> None:
    """The owner hears nothing and says nothing for longer than its lease; then its network is back."""

    def test(client: Any) -> Steps[None]:
        inside, gate = Gate(colour), Gate(colour)

        def first(order_no: str) -> Steps[Any]:
            inside.open()
            yield gate.wait()
            return "first"

        def second(order_no: str) -> Steps[Any]:
            yield from ()
            return "second"

        direct = RedisCache(store.url)
        slow = decorated(first, colour, using=RedisCache(client), name="stalled", lease=0.5)
        quick = decorated(second, colour, using=direct, name="stalled", wait=30)
        owner = Running(colour, [calling(lambda: slow("A-1"))])
        yield inside.wait()
        store.proxy.blackhole()
        outcome = yield quick.outcome("A-1")
        assert (outcome.value, outcome.attempt, outcome.replayed) == ("second", 2, False)
        before = store.direct.hgetall(store.keys()[0])
        store.proxy.restore()
        gate.open()
        (error,) = yield from owner.results()
        assert isinstance(error, LeaseLostError)
        assert (error.ran, error.result, error.stored) == (True, "first", "second")
        assert store.direct.hgetall(store.keys()[0]) == before
        assert (yield quick("A-1")) == "second"
        yield direct.close()

    behind(store, colour, test)


@colours
def test_a_stalled_owner_that_ends_while_the_second_runs_changes_nothing(
    store: Store, colour: Colour
) -> None:
    """Whether it returns or raises: a release must not free the second's claim for a third."""

    def test(client: Any) -> Steps[None]:
        direct = RedisCache(store.url)
        for ending in ("returns", "raises"):
            inside, gate, inside_too, gate_too = (Gate(colour) for _ in range(4))

            def first(order_no: str, inside: Gate = inside, gate: Gate = gate) -> Steps[Any]:
                inside.open()
                yield gate.wait()
                if order_no == "raises":
                    raise Declined
                return "first"

            def second(order_no: str, inside: Gate = inside_too, gate: Gate = gate_too) -> Steps[Any]:
                inside.open()
                yield gate.wait()
                return "second"

            slow = decorated(first, colour, using=RedisCache(client), name="stalled", lease=0.5)
            quick = decorated(second, colour, using=direct, name="stalled", wait=30)
            hasty = decorated(second, colour, using=direct, name="stalled", wait=0)
            owner = Running(colour, [calling(functools.partial(slow, ending))])
            yield inside.wait()
            store.proxy.blackhole()
            other = Running(colour, [calling(functools.partial(quick, ending))])
            yield inside_too.wait()
            store.proxy.restore()
            gate.open()
            (error,) = yield from owner.results()
            if ending == "returns":
                assert isinstance(error, LeaseLostError)
                assert (error.result, error.stored) == ("first", MISSING)
            else:
                assert isinstance(error, Declined)
            record = yield hasty.lookup(ending)
            assert (record.state, record.attempt) == ("running", 2)
            gate_too.open()
            assert (yield from other.results()) == ["second"]
        yield direct.close()

    behind(store, colour, test)


@colours
def test_a_record_that_vanishes_is_claimed_again_and_never_run_without(store: Store, colour: Colour) -> None:
    """A waiter was told "in progress", then the key is gone: it claims; the first owner has lost its lease."""

    def test(client: Any) -> Steps[None]:
        gates, inside, effects, waited = [Gate(colour), Gate(colour)], Gate(colour), Effects(), Gate(colour)

        def body(order_no: str) -> Steps[Any]:
            run = effects.add(order_no)
            if run == 1:
                inside.open()
            yield gates[run - 1].wait()
            return run

        def hook(event: Event) -> None:
            if event.kind == "waited":
                waited.open()

        f = decorated(body, colour, using=RedisCache(client), wait=30, hooks=[hook])
        first = Running(colour, [calling(lambda: f("A-1"))])
        yield inside.wait()
        second = Running(colour, [calling(lambda: f("A-1"))])
        yield waited.wait()
        store.direct.flushdb()
        yield from until(lambda: len(effects) == 2, "the waiter runs")
        record = yield f.lookup("A-1")
        assert (record.state, record.attempt) == ("running", 1)
        gates[0].open()
        (error,) = yield from first.results()
        assert isinstance(error, LeaseLostError)
        assert (error.result, error.stored) == (1, MISSING)
        gates[1].open()
        assert (yield from second.results()) == [2]
        assert (yield f("A-1")) == 2

    behind(store, colour, test)


# ------------------------------------------------------------------------ the server is away


@colours
def test_nothing_runs_while_the_server_is_down_at_the_claim(store: Store, colour: Colour) -> None:
    def test(client: Any) -> Steps[None]:
        effects = Effects()

        def body(order_no: str) -> Steps[Any]:
            yield from ()
            return effects.add(order_no)

        f = decorated(body, colour, using=RedisCache(client))
        store.proxy.refuse()
        error = yield from caught(LedgerUnavailableError, lambda: f("A-1"))
        assert error.ran is False
        assert isinstance(error.__cause__, redis.ConnectionError)
        assert len(effects) == 0
        store.proxy.restore()
        assert (yield f("A-1")) == 1

    behind(store, colour, test)


@colours
def test_down_at_the_completion_is_an_unknown_outcome_and_the_claim_stays(
    store: Store, colour: Colour
) -> None:
    """The tries are bounded by the lease."""

    def test(client: Any) -> Steps[None]:
        events = list[Event]()

        def body(order_no: str) -> Steps[Any]:
            yield from ()
            store.proxy.refuse()
            return "done"

        terms: dict[str, Any] = {"lease": 0.6, "on_orphan": "refuse", "hooks": [events.append]}
        f = decorated(body, colour, using=RedisCache(client), **terms)
        error = yield from caught(OutcomeUnknownError, lambda: f("A-1"))
        assert (error.ran, error.result) == (None, "done")
        assert any(event.detail.startswith("completion") for event in events)
        assert len(store.keys()) == 1
        store.proxy.restore()
        yield from caught(OutcomeUnknownError, lambda: f("A-1"))
        assert (yield f.lookup("A-1")).state == "orphan"

    behind(store, colour, test)


@colours
def test_a_server_that_comes_back_during_the_tries_gets_the_completion(store: Store, colour: Colour) -> None:
    def test(client: Any) -> Steps[None]:
        tries, effects = Effects(), Effects()

        def hook(event: Event) -> None:
            if event.detail.startswith("completion") and tries.add(event.kind) == 3:
                store.proxy.restore()

        def body(order_no: str) -> Steps[Any]:
            yield from ()
            store.proxy.refuse()
            return effects.add(order_no)

        f = decorated(body, colour, using=RedisCache(client), hooks=[hook])
        assert (yield f("A-1")) == 1
        outcome = yield f.outcome("A-1")
        assert (outcome.value, outcome.replayed) == (1, True)
        assert (len(tries), len(effects)) == (3, 1)

    behind(store, colour, test)


@colours
def test_down_at_the_release_leaves_the_claim_and_passes_the_functions_own_error(
    store: Store, colour: Colour
) -> None:
    def test(client: Any) -> Steps[None]:
        def body(order_no: str) -> Steps[Any]:
            yield from ()
            store.proxy.refuse()
            raise Declined

        f = decorated(body, colour, using=RedisCache(client))
        yield from caught(Declined, lambda: f("A-1"))
        store.proxy.restore()
        assert (yield f.lookup("A-1")).state == "running"

    behind(store, colour, test)


# ------------------------------------------------------------------------ lost replies, with the driver's retries on


@colours
@pytest.mark.parametrize("loss", ["reply", "request"])
@pytest.mark.parametrize("at", ["the claim", "the completion", "the release", "the replay"])
def test_a_lost_request_or_reply_has_one_effect_and_no_error(
    store: Store, colour: Colour, loss: str, at: str
) -> None:
    def test(client: Any) -> Steps[None]:
        effects = Effects()
        lose = store.proxy.drop_reply if loss == "reply" else store.proxy.drop_request

        def body(order_no: str) -> Steps[Any]:
            yield from ()
            effects.add(order_no)
            if order_no == "warm" or effects.of(order_no) > 1:
                return effects.of(order_no)
            if at in ("the completion", "the release"):
                lose(b"EVALSHA")
            if at == "the release":
                raise Declined
            return 1

        f = decorated(body, colour, using=RedisCache(client))
        yield f("warm")
        if at == "the claim":
            lose(b"EVALSHA")
        if at == "the release":
            yield from caught(Declined, lambda: f("A-1"))
            assert store.proxy.fired.is_set()
            assert (yield f("A-1")) == 2
            return
        assert (yield f("A-1")) == 1
        if at == "the replay":
            lose(b"EVALSHA")
        outcome = yield f.outcome("A-1")
        assert store.proxy.fired.is_set()
        assert (outcome.value, outcome.replayed) == (1, True)
        assert effects.of("A-1") == 1

    behind(store, colour, test, retries=3)


@colours
def test_a_lost_reply_to_a_renewal_loses_no_lease(store: Store, colour: Colour) -> None:
    def test(client: Any) -> Steps[None]:
        renewed, enough = Effects(), Gate(colour)

        def hook(event: Event) -> None:
            if event.kind == "renewed" and renewed.add(event.kind) == 2:
                enough.open()

        def body(order_no: str) -> Steps[Any]:
            store.proxy.drop_reply(b"EVALSHA")
            yield enough.wait()
            return "done"

        f = decorated(body, colour, using=RedisCache(client), lease=0.6, hooks=[hook])
        assert (yield f("A-1")) == "done"
        assert store.proxy.fired.is_set()
        assert (yield f.outcome("A-1")).attempt == 1

    behind(store, colour, test, retries=3)


@colours
def test_a_lost_reply_to_lookup_or_forget_is_asked_again(store: Store, colour: Colour) -> None:
    def test(client: Any) -> Steps[None]:
        def body(order_no: str) -> Steps[Any]:
            yield from ()
            return "done"

        f = decorated(body, colour, using=RedisCache(client))
        yield f("A-1")
        store.proxy.drop_reply(b"EVALSHA")
        assert (yield f.lookup("A-1")).value == "done"
        yield f.lookup("A-1")
        yield f.forget("A-1")
        yield f("A-1")
        store.proxy.drop_reply(b"EVALSHA")
        assert (yield f.forget("A-1")) is True
        assert store.proxy.fired.is_set()
        assert (yield f.lookup("A-1")) is None

    behind(store, colour, test, retries=3)


@colours
def test_scripts_that_the_server_has_forgotten_are_sent_again(store: Store, colour: Colour) -> None:
    """After a SCRIPT FLUSH, which a restart amounts to; and where the reply to the text is lost as well."""

    def test(client: Any) -> Steps[None]:
        effects = Effects()

        def body(order_no: str) -> Steps[Any]:
            yield from ()
            store.direct.script_flush()
            return effects.add(order_no)

        f = decorated(body, colour, using=RedisCache(client))
        assert (yield f("A-1")) == 1
        store.direct.script_flush()
        assert (yield f.outcome("A-1")).replayed
        store.direct.script_flush()
        store.proxy.drop_reply(b"EVAL\r\n")
        assert (yield f("A-2")) == 2
        assert store.proxy.fired.is_set()
        store.direct.script_flush()
        assert (yield f.lookup("A-2")).value == 2
        store.direct.script_flush()
        assert (yield f.forget("A-2")) is True
        assert len(effects) == 2

    behind(store, colour, test, retries=3)


# ------------------------------------------------------------------------ in front of a database


@colours
def test_a_flush_in_front_of_a_database_replays_and_refills(
    store: Store, colour: Colour, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/idempo.db"

    def test(client: Any) -> Steps[None]:
        effects = Effects()

        def body(order_no: str) -> Steps[Any]:
            yield from ()
            return effects.add(order_no)

        inside = UniqueInsert(url)
        f = decorated(body, colour, using=[RedisCache(client), inside])
        assert (yield f("A-1")) == 1
        store.direct.flushdb()
        assert (yield f.outcome("A-1")).replayed
        assert len(store.keys()) == 1
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM idempo_records"))
        engine.dispose()
        assert (yield f.outcome("A-1")).replayed
        assert len(effects) == 1
        yield inside.close()

    behind(store, colour, test)


@colours
def test_a_tier_that_is_not_required_falls_through_while_it_is_down(
    store: Store, colour: Colour, tmp_path: Path
) -> None:
    def test(client: Any) -> Steps[None]:
        effects = Effects()

        def body(order_no: str) -> Steps[Any]:
            yield from ()
            return effects.add(order_no)

        inside = UniqueInsert(f"sqlite:///{tmp_path}/idempo.db")
        f = decorated(body, colour, using=[RedisCache(client, required=False), inside], name="f")
        strict = decorated(body, colour, using=[RedisCache(client), inside], name="f")
        store.proxy.refuse()
        assert (yield f("A-1")) == 1
        assert (yield f.outcome("A-1")).replayed
        yield from caught(LedgerUnavailableError, lambda: strict("A-1"))
        store.proxy.restore()
        assert (yield f.outcome("A-1")).replayed
        assert len(store.keys()) == 1
        assert len(effects) == 1
        yield inside.close()

    behind(store, colour, test)


@pytest.mark.parametrize("server", ["redis_server", "redis62", "valkey"])
def test_the_first_who_asks_after_the_clock_was_set_back_does_not_take_a_living_owner_for_dead(
    server: str, request: pytest.FixtureRequest
) -> None:
    url = fresh_database(request.getfixturevalue(server))
    strategy, client = RedisCache(url), redis.Redis.from_url(url)
    ledger = ledger_of(strategy, "sync")
    owner, other = new_call("A-1"), new_call("A-1")
    assert isinstance(run(ledger.claim(owner, None)), Claimed)
    name = b"idempo:" + owner.digest.hex().encode()
    for field in ("lease", "leased"):
        began = client.hget(name, field)
        assert isinstance(began, bytes)
        client.hset(name, field, int(began) + 3600 * 1_000_000)  # as if the clock had been an hour ahead then
    answer = run(ledger.claim(other, None))
    assert isinstance(answer, InProgress)
    assert 0 < answer.lease_left <= owner.lease
    assert run(ledger.renew(owner, 30)) is True
    strategy.close()
    client.close()
