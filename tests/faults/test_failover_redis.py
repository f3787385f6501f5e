"""Failovers of Redis and Valkey by Sentinel, with and without the loss of what was acknowledged; too few replicas.

Each story of a failover is told once for its server and colour; each test states one fact of it.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry
from sqlalchemy import insert
from sqlalchemy.pool import NullPool

from idempo import (
    ConfigurationError,
    Event,
    InProgressError,
    LeaseLostError,
    LedgerUnavailableError,
    OneTimeToken,
    OutcomeUnknownError,
    RedisCache,
    TokenUnknownError,
    UniqueInsert,
    current,
    idempotent,
)
from idempo.contracts import Colour
from idempo.records import Outcome
from idempo.steps import Steps, arun, run
from idempo.testing import Effects, Gate, drive
from tests.faults.answers import meanwhile, seen, tried
from tests.faults.proxy import Proxy
from tests.provide.sentinel import NAME, Node, Pair, Sentinels
from tests.servers import Server
from tests.traps.support import Order, Running, calling, caught, shop_database, until
from tests.traps.support import Shop as Orders

PLACES: list[tuple[str, Colour]] = [("redis", "sync"), ("valkey", "async")]
LEASE = 1.5  # of the owners that live through a failover: their heartbeats come often
TOO_FEW = ("--min-replicas-to-write", "1", "--min-replicas-max-lag", "10")

places = pytest.mark.parametrize("place", PLACES, indirect=True, ids="-".join, scope="module")


class Caller:
    """Decorated functions of one colour that count how often they have run, and the clients they are given."""

    def __init__(self, colour: Colour) -> None:
        self.colour: Colour = colour
        self.effects = Effects()
        self.fences: dict[str, list[int]] = {}
        self.beats: dict[str, int] = {}
        self.gates: dict[str, Gate] = {}
        self._open: list[Any] = []

    def named(self, addresses: list[tuple[str, int]], **limits: Any) -> Any:
        """A client of whatever primary the sentinels name."""
        module: Any = redis.sentinel if self.colour == "sync" else redis.asyncio.sentinel
        sentinel = module.Sentinel(addresses, socket_timeout=1)
        client = sentinel.master_for(NAME, socket_timeout=5, **limits)
        self._open += [client, *sentinel.sentinels]
        return client

    def plain(self, port: int, **limits: Any) -> Any:
        """A client of one server, whatever its role."""
        module: Any = redis if self.colour == "sync" else redis.asyncio
        client = module.Redis(port=port, socket_timeout=5, **limits)
        self._open.append(client)
        return client

    def retries(self, number: int) -> Any:
        """How often a client tries again by itself. Those of `master_for` do not, unless they are told to."""
        kind: Any = Retry if self.colour == "sync" else AsyncRetry
        return kind(ExponentialWithJitterBackoff(base=0.01, cap=1), number)

    def function(self, using: Any, last: Callable[[], Any] = lambda: None, **terms: Any) -> Any:
        """Decorate a function that notes its run, waits at the gate of its key, and does `last` in its last line."""

        def body(key: str, session: Any) -> Steps[int]:
            if session is not None:
                yield session.execute(insert(Order).values(order_no=key))
            self.effects.add(key)
            self.fences.setdefault(key, []).append(current().fence)
            count = self.effects.of(key)
            if count == 1 and key in self.gates:
                yield self.gates[key].wait()
            yield last()
            return count

        def plain(key: str, token: str = "", session: Any = None) -> int:
            return run(body(key, session))

        async def coroutine(key: str, token: str = "", session: Any = None) -> int:
            return await arun(body(key, session))

        def beat(event: Event) -> None:
            if event.kind == "renewed":
                self.beats[event.key] = self.beats.get(event.key, 0) + 1

        terms = {"key": "{key}", "fingerprint": None, "wait": 30, "name": "failover", "hooks": [beat]} | terms
        function: Any = plain if self.colour == "sync" else coroutine
        return idempotent(using=using, **terms)(function)

    def enter(self, f: Any, key: str) -> Steps[Running]:
        """Start an owner and return when it is inside its function, where it waits at a gate of its own."""
        self.gates[key] = Gate(self.colour)
        owner = Running(self.colour, [calling(lambda: f(key))])
        yield from until(lambda: self.effects.of(key) == 1, f"{key} is inside")
        return owner

    def leave(self, owner: Running, key: str) -> Steps[Any]:
        """Let the owner end, and return its value or its error."""
        self.gates[key].open()
        (ended,) = yield from owner.results()
        return ended

    def close(self) -> Steps[None]:
        for client in self._open:
            yield client.close() if self.colour == "sync" else client.aclose()


def each(f: Any, *keys: str) -> Steps[list[Any]]:
    """The outcomes, or the errors, of a call with each key."""
    found = []
    for key in keys:
        found.append((yield from seen(f, key)))
    return found


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest) -> tuple[str, Colour]:
    found: tuple[str, Colour] = request.param
    return found


# ------------------------------------------------------------------------ nothing is lost


@dataclass
class Kept:
    """What was seen when a primary was killed whose replica had everything; then the old one came back as a replica,
    and then the new one handed over to it."""

    refused: Any = None
    patient: Any = None
    known: Any = None
    duplicate: Any = None
    beats: int = 0
    spanning: Any = None
    repeated: Any = None
    roles: list[str] = field(default_factory=list)
    back: Any = None
    demoted: Any = None
    demoted_known: Any = None
    demoted_completion: Any = None
    moved: Any = None
    handed_over: Any = None
    runs: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="module")
def kept(place: tuple[str, Colour]) -> Kept:
    kind, colour = place
    story, caller = Kept(), Caller(colour)
    with Sentinels(kind) as group:

        def whole() -> Steps[None]:
            try:
                yield from _killed(story, caller, group)
                yield from _handed_over(story, caller, group)
            finally:
                yield from caller.close()

        drive(colour, whole())
    story.runs = {key: caller.effects.of(key) for key in caller.fences}
    return story


def _killed(story: Kept, caller: Caller, group: Sentinels) -> Steps[None]:
    f = caller.function(RedisCache(caller.named(group.addresses, retry=caller.retries(20))), lease=LEASE)
    hasty = caller.function(RedisCache(caller.named(group.addresses)), wait=0)
    lasting = caller.function(RedisCache(caller.named(group.addresses)), lease=60, wait=0)
    yield f("known")
    yield hasty("other")
    # Nobody can renew while there is no primary: this owner's claim has to last until there is one again.
    owner = yield from caller.enter(lasting, "spanning")
    beating = yield from caller.enter(f, "beating")
    group.replicated()
    group.first.kill()
    story.refused = yield from tried(lambda: hasty("refused"))
    patient = Running(caller.colour, [calling(lambda: f.outcome("patient"))])
    yield from meanwhile(caller.colour, functools.partial(group.elect, group.second))
    (story.patient,) = yield from patient.results()
    story.known = yield from seen(f, "known")
    story.duplicate = yield from tried(lambda: hasty("spanning"))
    before = caller.beats.get("beating", 0)
    with contextlib.suppress(AssertionError):
        yield from until(lambda: caller.beats.get("beating", 0) > before + 1, "two heartbeats")
    story.beats = caller.beats.get("beating", 0) - before
    yield from caller.leave(beating, "beating")
    story.spanning = yield from caller.leave(owner, "spanning")
    story.repeated = yield from seen(f, "spanning")
    group.first.start()
    group.first.follow(group.second.port)
    story.roles = [group.first.role(), group.second.role()]
    story.back = yield from each(f, "known", "patient", "spanning")


def _handed_over(story: Kept, caller: Caller, group: Sentinels) -> Steps[None]:
    """The clients have open connections to the one that is demoted, and it goes on answering."""
    fixed = RedisCache(caller.plain(group.second.port, retry=caller.retries(0)))
    plain = caller.function(fixed, wait=0)
    short = caller.function(fixed, lease=0.5, on_orphan="refuse")
    hasty = caller.function(RedisCache(caller.named(group.addresses)), wait=0)
    f = caller.function(RedisCache(caller.named(group.addresses)), lease=60)
    for one in (plain, hasty):
        yield from seen(one, "known")
    owner = yield from caller.enter(f, "moving")
    left = yield from caller.enter(short, "left behind")
    group.replicated()
    yield from meanwhile(caller.colour, functools.partial(group.hand_over, group.first))
    story.demoted = (yield from each(plain, "refused later")) + (yield from each(hasty, "refused later"))
    story.demoted_known = yield from seen(plain, "known")
    story.demoted_completion = yield from caller.leave(left, "left behind")
    story.moved = yield from caller.leave(owner, "moving")
    story.handed_over = yield from each(hasty, "known", "moving", "refused later")


@places
def test_a_call_without_a_primary_is_refused_and_runs_nothing(kept: Kept) -> None:
    assert type(kept.refused) is LedgerUnavailableError
    assert kept.refused.ran is False
    assert isinstance(kept.refused.__cause__, redis.ConnectionError)
    assert "refused" not in kept.runs


@places
def test_the_drivers_own_retries_carry_a_call_over_the_failover(kept: Kept) -> None:
    assert isinstance(kept.patient, Outcome), kept.patient
    assert (kept.patient.value, kept.patient.replayed) == (1, False)
    assert kept.runs["patient"] == 1


@places
def test_a_first_result_that_the_replica_had_is_replayed_by_the_new_primary(kept: Kept) -> None:
    assert (kept.known.value, kept.known.replayed, kept.known.attempt) == (1, True, 1)
    assert kept.runs["known"] == 1


@places
def test_a_claim_that_the_replica_had_is_honoured_by_the_new_primary(kept: Kept) -> None:
    assert type(kept.duplicate) is InProgressError


@places
def test_heartbeats_go_on_at_the_new_primary(kept: Kept) -> None:
    assert kept.beats >= 2


@places
def test_an_owner_completes_on_the_new_primary(kept: Kept) -> None:
    assert kept.spanning == 1
    assert (kept.repeated.value, kept.repeated.replayed, kept.repeated.attempt) == (1, True, 1)
    assert kept.runs["spanning"] == 1


@places
def test_an_old_primary_that_comes_back_as_a_replica_changes_no_answer(kept: Kept) -> None:
    assert kept.roles == ["slave", "master"]
    assert [(one.value, one.replayed) for one in kept.back] == [(1, True)] * 3


@places
def test_a_demoted_primary_takes_no_claim_over_an_open_connection(kept: Kept) -> None:
    for error in kept.demoted:
        assert type(error) is LedgerUnavailableError, error
        assert error.ran is False
    named = kept.handed_over[2]
    assert (named.value, named.replayed, kept.runs["refused later"]) == (1, False, 1)


@places
def test_a_demoted_primary_replays_what_it_knows(kept: Kept) -> None:
    assert (kept.demoted_known.value, kept.demoted_known.replayed) == (1, True)


@places
def test_a_completion_that_only_reaches_a_demoted_primary_is_no_success(kept: Kept) -> None:
    error = kept.demoted_completion
    assert type(error) is OutcomeUnknownError, error
    assert (error.ran, error.result) == (None, 1)


@places
def test_an_owner_whose_primary_hands_over_completes_on_the_next_one(kept: Kept) -> None:
    assert kept.moved == 1
    assert [(one.value, one.replayed) for one in kept.handed_over[:2]] == [(1, True)] * 2
    assert kept.runs["moving"] == 1


# ------------------------------------------------------------------------ acknowledged writes are lost


@dataclass
class Lost:
    """What was seen when a primary was killed whose replica had not got its last writes."""

    explained: str = ""
    alone: Any = None
    fences: list[int] = field(default_factory=list)
    beaten: Any = None
    left: Any = None
    overtaken: Any = None
    winner: Any = None
    after: Any = None
    fronts: dict[str, Any] = field(default_factory=dict)
    held: dict[str, list[int]] = field(default_factory=dict)
    spent: Any = None
    forgotten: Any = None
    back: Any = None
    same: bool = False
    rows: dict[str, int] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="module")
def lost(place: tuple[str, Colour], postgres: Server) -> Iterator[Lost]:
    kind, colour = place
    url = shop_database(postgres)
    with contextlib.ExitStack() as stack:
        proxies: list[Proxy] = []

        def through(port: int) -> int:
            proxies.append(stack.enter_context(Proxy(port)))
            return proxies[0].port

        group = stack.enter_context(Sentinels(kind, through=through))
        story, caller, orders = Lost(), Caller(colour), Orders(url, colour, poolclass=NullPool)

        def whole() -> Steps[None]:
            try:
                yield from _forgotten(story, caller, group, proxies[0], orders)
            finally:
                yield from caller.close()
                yield orders.close()

        drive(colour, whole())
        story.runs = {key: caller.effects.of(key) for key in caller.fences}
        story.rows = {key: orders.orders(key) for key in ("joined", "spent", "forgotten")}
        yield story


def _forgotten(story: Lost, caller: Caller, group: Sentinels, proxy: Proxy, orders: Orders) -> Steps[None]:
    client = caller.named(group.addresses)
    alone = caller.function(RedisCache(client))
    fronts = {
        "leased": caller.function([RedisCache(client, prefix="leased:"), UniqueInsert(orders.engine)]),
        "joined": caller.function(
            [RedisCache(client, prefix="joined:"), UniqueInsert(orders.engine, join="session")]
        ),
    }
    token = OneTimeToken(RedisCache(client, prefix="token:"), key="{token}")
    submit = caller.function([token, UniqueInsert(orders.engine, join="session")], name="submit")
    story.explained = str(alone.explain())
    early = yield token.issue(operation="submit")
    group.replicated()
    proxy.blackhole()
    late = yield token.issue(operation="submit")
    yield alone("alone")
    for name, f in fronts.items():
        yield f(name)
    yield submit("spent", early)
    left = yield from caller.enter(alone, "left")
    overtaken = yield from caller.enter(alone, "overtaken")
    group.first.kill()
    yield from meanwhile(caller.colour, functools.partial(group.elect, group.second))
    story.alone = yield from seen(alone, "alone")
    story.fences = caller.fences["alone"]
    story.winner = yield from seen(alone, "overtaken")
    story.overtaken = yield from caller.leave(overtaken, "overtaken")
    story.after = yield from seen(alone, "overtaken")
    story.left = yield from caller.leave(left, "left")
    for name, f in fronts.items():
        held = [_completed(group.second, name)]
        story.fronts[name] = yield from seen(f, name)
        story.held[name] = [*held, _completed(group.second, name)]
    story.spent = yield from tried(lambda: submit.outcome("spent", early))
    story.forgotten = yield from tried(lambda: submit("forgotten", late))
    group.first.start()
    had = _records(group.first)
    group.first.follow(group.second.port)
    story.same = had != _records(group.first) == _records(group.second)
    story.back = yield from seen(alone, "alone")


def _records(node: Node) -> dict[bytes, Any]:
    return {name: node.client.hgetall(name) for name in node.client.keys("*")}


def _completed(node: Node, prefix: str) -> int:
    """How many first results the server has under this prefix."""
    return sum(node.client.hget(name, "state") == b"completed" for name in node.client.keys(f"{prefix}:*"))


@places
def test_redis_alone_runs_again_what_a_failover_has_lost_as_explain_says(lost: Lost) -> None:
    assert "a failover that loses acknowledged writes" in lost.explained
    assert (lost.alone.value, lost.alone.replayed, lost.runs["alone"]) == (2, False, 2)


@places
def test_the_run_after_a_loss_has_a_larger_fence(lost: Lost) -> None:
    first, second = lost.fences
    assert second > first


@places
def test_an_owner_whose_claim_was_lost_and_made_anew_is_told(lost: Lost) -> None:
    assert type(lost.overtaken) is LeaseLostError, lost.overtaken
    assert (lost.overtaken.result, lost.overtaken.stored) == (1, 2)
    assert (lost.winner.value, lost.winner.replayed) == (2, False)
    assert (lost.after.value, lost.after.replayed) == (2, True)


@places
def test_an_owner_whose_claim_was_lost_is_told_though_nobody_else_came(lost: Lost) -> None:
    assert type(lost.left) is LeaseLostError, lost.left
    assert lost.left.result == 1
    assert lost.left.ran is True


@places
@pytest.mark.parametrize("name", ["leased", "joined"])
def test_a_database_behind_redis_replays_what_redis_has_lost_and_fills_it(lost: Lost, name: str) -> None:
    outcome = lost.fronts[name]
    assert (outcome.value, outcome.replayed, lost.runs[name]) == (1, True, 1)
    assert lost.held[name] == [0, 1]
    assert lost.rows["joined"] == 1


@places
def test_a_token_whose_spending_was_lost_places_no_second_order(lost: Lost) -> None:
    assert (lost.spent.value, lost.spent.replayed, lost.runs["spent"]) == (1, True, 1)
    assert lost.rows["spent"] == 1


@places
def test_a_token_that_was_lost_is_refused(lost: Lost) -> None:
    assert type(lost.forgotten) is TokenUnknownError
    assert lost.forgotten.ran is False
    assert ("forgotten" in lost.runs, lost.rows["forgotten"]) == (False, 0)


@places
def test_what_only_the_old_primary_had_is_gone_when_it_follows_the_new_one(lost: Lost) -> None:
    assert lost.same
    assert (lost.back.value, lost.back.replayed) == (2, True)


# ------------------------------------------------------------------------ too few replicas


@pytest.fixture(scope="module", params=PLACES, ids="-".join)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Pair, Colour]]:
    kind, colour = request.param
    with Pair(kind, options=TOO_FEW) as pair:
        pair.wait_for_replicas(1)  # until then it takes no writes
        yield pair, colour


def on_pair(pair: tuple[Pair, Colour], test: Callable[[Caller, Any, Pair], Steps[None]]) -> None:
    nodes, colour = pair
    nodes.first.client.flushall()
    caller = Caller(colour)

    def whole() -> Steps[None]:
        try:
            yield from test(caller, RedisCache(caller.plain(nodes.first.port)), nodes)
        finally:
            yield from caller.close()
            nodes.second.kill()
            come_back(nodes)

    drive(colour, whole())


def come_back(nodes: Pair) -> None:
    nodes.second.start()
    nodes.second.follow(nodes.first.port)
    nodes.wait_for_replicas(1)


def go_away(nodes: Pair) -> None:
    nodes.second.kill()
    nodes.wait_for_replicas(0)


def test_a_claim_without_enough_replicas_is_refused_and_runs_nothing(pair: tuple[Pair, Colour]) -> None:
    """redis.conf, "min-replicas-to-write": writes are refused with NOREPLICAS."""

    def test(caller: Caller, ledger: Any, nodes: Pair) -> Steps[None]:
        f = caller.function(ledger)
        yield f("known")
        go_away(nodes)
        error = yield from caught(LedgerUnavailableError, lambda: f("new"))
        assert error.ran is False
        assert "NOREPLICAS" in str(error.__cause__)
        assert (yield f.outcome("known")).replayed
        come_back(nodes)
        assert caller.effects.of("new") == 0
        assert (yield f.outcome("new")).attempt == 1

    on_pair(pair, test)


def test_a_completion_without_enough_replicas_is_tried_again_until_they_are_back(
    pair: tuple[Pair, Colour],
) -> None:
    def test(caller: Caller, ledger: Any, nodes: Pair) -> Steps[None]:
        refused = Effects()

        def hook(event: Event) -> None:
            if event.detail.startswith("completion") and refused.add(event.detail) == 2:
                come_back(nodes)

        f = caller.function(ledger, functools.partial(go_away, nodes), hooks=[hook])
        assert (yield f("key")) == 1
        outcome = yield f.outcome("key")
        assert (outcome.value, outcome.attempt, outcome.replayed) == (1, 1, True)
        assert (len(refused), caller.effects.of("key")) == (2, 1)

    on_pair(pair, test)


def test_a_completion_without_enough_replicas_in_time_makes_the_outcome_unknown(
    pair: tuple[Pair, Colour],
) -> None:
    def test(caller: Caller, ledger: Any, nodes: Pair) -> Steps[None]:
        f = caller.function(ledger, functools.partial(go_away, nodes), lease=0.5, on_orphan="refuse")
        error = yield from caught(OutcomeUnknownError, lambda: f("key"))
        assert (error.ran, error.result) == (None, 1)
        come_back(nodes)
        repeated = yield from caught(OutcomeUnknownError, lambda: f("key"))
        assert repeated.ran is None
        assert caller.effects.of("key") == 1

    on_pair(pair, test)


# ------------------------------------------------------------------------ how Sentinel is named


def test_a_url_cannot_name_sentinels_and_says_what_it_takes() -> None:
    """redis-py has no URL for Sentinel: a client made by `master_for` is what RedisCache takes."""
    with pytest.raises(ConfigurationError, match="RedisCache takes a URL that starts with redis://"):
        RedisCache("redis+sentinel://127.0.0.1:26379/shop")
