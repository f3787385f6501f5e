"""A PostgreSQL standby is promoted, with and without the loss of what was acknowledged; a standby as the ledger.

Each story of a failover is told once in each colour; each test states one fact of it. The URL names both servers:
SQLAlchemy, "Specifying multiple fallback hosts", with `target_session_attrs` of libpq.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from idempo import (
    Event,
    LeaseLostError,
    LedgerUnavailableError,
    OutcomeUnknownError,
    UniqueInsert,
    current,
)
from idempo.contracts import Colour
from idempo.steps import Steps
from idempo.testing import Effects, Gate, drive
from tests.faults.answers import meanwhile, seen, tried
from tests.faults.proxy import Proxy
from tests.provide.standby import Replicated
from tests.traps.support import Running, Shop, calling, create_tables, decorated, place, until

LEASE = 1.5  # of the owner whose heartbeats are counted

colours = pytest.mark.parametrize("colour", ["sync", "async"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def colour(request: pytest.FixtureRequest) -> Colour:
    found: Colour = request.param
    return found


class Caller:
    """Functions on whichever of the two servers takes writes: leased ones, and ones in the business transaction."""

    def __init__(self, url: str, colour: Colour, **options: Any) -> None:
        self.colour: Colour = colour
        self.shop = Shop(url, colour, **options)
        self.ledger = UniqueInsert(url)
        self.effects = Effects()
        self.fences: dict[str, list[int]] = {}
        self.told = Effects()
        self._gates: dict[str, Gate] = {}
        self.leased = self.under_lease()
        self.joined = self.shop.decorate(self._place, hooks=[self._hear])

    def under_lease(self, **terms: Any) -> Any:
        terms = {"using": self.ledger, "name": "leased", "wait": 0, "hooks": [self._hear]} | terms
        return decorated(self._send, self.colour, **terms)

    def _hear(self, event: Event) -> None:
        self.told.add(f"{event.kind} {event.key} {event.detail.partition(':')[0]}".strip())

    def _send(self, key: str) -> Steps[int]:
        """A foreign effect."""
        self.effects.add(key)
        self.fences.setdefault(key, []).append(current().fence)
        count = self.effects.of(key)
        if count == 1 and key in self._gates:
            yield self._gates[key].wait()
        return count

    def _place(self, key: str, session: Any) -> Steps[int]:
        yield from place(key, session)
        self.effects.add(key)
        count = self.effects.of(key)
        if count == 1 and key in self._gates:
            yield self._gates[key].wait()
            if key.startswith("asks"):
                yield session.execute(text("SELECT 1"))
        return count

    def enter(self, f: Any, key: str) -> Steps[Running]:
        """Start an owner and return when it is inside its function, where it waits at a gate of its own."""
        self._gates[key] = Gate(self.colour)
        owner = Running(self.colour, [calling(lambda: f(key))])
        yield from until(lambda: self.effects.of(key) == 1, f"{key} is inside")
        return owner

    def open(self, key: str) -> None:
        self._gates[key].open()

    def leave(self, owner: Running, key: str) -> Steps[Any]:
        """Let the owner end, and return its value or its error."""
        self.open(key)
        (ended,) = yield from owner.results()
        return ended

    def close(self) -> Steps[None]:
        self.shop.outside.dispose()
        yield self.shop.close()
        yield self.ledger.close()


def told(colour: Colour, caller: Caller, steps: Steps[None]) -> None:
    def whole() -> Steps[None]:
        try:
            yield from steps
        finally:
            yield from caller.close()

    drive(colour, whole())


# ------------------------------------------------------------------------ nothing is lost


@dataclass
class Kept:
    """What was seen when a primary was killed whose commits had waited for the standby."""

    refused: list[Any] = field(default_factory=list)
    interrupted: Any = None
    asking: Any = None
    late: Any = None
    known: list[Any] = field(default_factory=list)
    beats: int = 0
    beating: Any = None
    spanning: Any = None
    repeats: list[Any] = field(default_factory=list)
    again: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="module")
def kept(colour: Colour) -> Kept:
    story = Kept()
    with Replicated() as pair:
        create_tables(pair.primary.url)
        pair.wait_for_commits()
        caller = Caller(pair.url, colour)
        told(colour, caller, _promoted(story, caller, pair))
    return story


def _promoted(story: Kept, caller: Caller, pair: Replicated) -> Steps[None]:
    yield caller.leased("sent")
    yield caller.joined("placed")
    spanning = yield from caller.enter(caller.under_lease(lease=60), "spanning")
    late = yield from caller.enter(caller.under_lease(lease=60), "late")
    beating = yield from caller.enter(caller.under_lease(lease=LEASE), "beating")
    inside = {}
    for key in ("interrupted", "asks"):
        inside[key] = yield from caller.enter(caller.joined, key)
    pair.primary.kill()
    story.refused = [
        (yield from tried(functools.partial(caller.leased, "refused"))),
        (yield from tried(functools.partial(caller.joined, "refused"))),
    ]
    story.interrupted = yield from caller.leave(inside["interrupted"], "interrupted")
    story.asking = yield from caller.leave(inside["asks"], "asks")
    caller.open("late")
    yield from until(lambda: caller.told.of("unavailable late completion") > 0, "a completion that fails")
    yield from meanwhile(caller.colour, pair.promote)
    (story.late,) = yield from late.results()
    before = caller.told.of("renewed beating")
    with contextlib.suppress(AssertionError):
        yield from until(lambda: caller.told.of("renewed beating") > before + 1, "two heartbeats")
    story.beats = caller.told.of("renewed beating") - before
    story.beating = yield from caller.leave(beating, "beating")
    story.spanning = yield from caller.leave(spanning, "spanning")
    story.known = [(yield from seen(caller.leased, "sent")), (yield from seen(caller.joined, "placed"))]
    for key in ("late", "beating", "spanning"):
        story.repeats.append((yield from seen(caller.leased, key)))
    for key in ("interrupted", "asks"):
        story.again[key] = [(yield from seen(caller.joined, key)), (yield from seen(caller.joined, key))]
    story.rows = {key: caller.shop.orders(key) for key in ("placed", "refused", "interrupted", "asks")}
    story.runs = {key: caller.effects.of(key) for key in ("sent", "placed", "refused", "late", "spanning")}


@colours
def test_a_call_without_a_primary_is_refused_and_runs_nothing(kept: Kept) -> None:
    for error in kept.refused:
        assert type(error) is LedgerUnavailableError, error
        assert error.ran is False
        assert isinstance(error.__cause__, DBAPIError)
    assert (kept.runs["refused"], kept.rows["refused"]) == (0, 0)


@colours
def test_a_transaction_that_died_with_its_primary_has_an_unknown_outcome(kept: Kept) -> None:
    """Nobody can be asked whether the commit was heard: there is no primary."""
    assert type(kept.interrupted) is OutcomeUnknownError, kept.interrupted
    assert (kept.interrupted.ran, kept.interrupted.result) == (None, 1)


@colours
def test_a_function_that_asks_the_dead_primary_fails_with_its_own_error(kept: Kept) -> None:
    assert isinstance(kept.asking, DBAPIError), kept.asking


@colours
@pytest.mark.parametrize("key", ["interrupted", "asks"])
def test_the_repeat_of_a_transaction_that_died_has_the_one_effect(kept: Kept, key: str) -> None:
    outcome, repeat = kept.again[key]
    assert (outcome.value, outcome.replayed) == (2, False)
    assert (repeat.value, repeat.replayed) == (2, True)
    assert kept.rows[key] == 1


@colours
def test_what_the_standby_had_is_replayed_after_its_promotion(kept: Kept) -> None:
    assert [(one.value, one.replayed, one.attempt) for one in kept.known] == [(1, True, 1)] * 2
    assert (kept.runs["sent"], kept.runs["placed"], kept.rows["placed"]) == (1, 1, 1)


@colours
def test_heartbeats_go_on_at_the_promoted_standby(kept: Kept) -> None:
    assert kept.beats >= 2


@colours
def test_leased_owners_complete_on_the_promoted_standby(kept: Kept) -> None:
    assert (kept.late, kept.beating, kept.spanning) == (1, 1, 1)
    assert [(one.value, one.replayed, one.attempt) for one in kept.repeats] == [(1, True, 1)] * 3
    assert (kept.runs["late"], kept.runs["spanning"]) == (1, 1)


# ------------------------------------------------------------------------ acknowledged writes are lost


@dataclass
class Lost:
    """What was seen when a primary was killed whose standby had not got its last commits."""

    lost_rows: int = 0
    held_rows: int = -1
    placed: list[Any] = field(default_factory=list)
    sent: list[Any] = field(default_factory=list)
    fences: list[int] = field(default_factory=list)
    left: Any = None
    overtaken: Any = None
    interrupted: Any = None
    rows: dict[str, int] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="module")
def lost(colour: Colour) -> Lost:
    story = Lost()
    with contextlib.ExitStack() as stack:
        proxies: list[Proxy] = []

        def through(port: int) -> int:
            proxies.append(stack.enter_context(Proxy(port)))
            return proxies[0].port

        pair = stack.enter_context(Replicated(through))
        create_tables(pair.primary.url)
        caller = Caller(pair.url, colour, poolclass=NullPool)
        told(colour, caller, _forgotten(story, caller, pair, proxies[0]))
    return story


def _forgotten(story: Lost, caller: Caller, pair: Replicated, proxy: Proxy) -> Steps[None]:
    pair.caught_up()
    proxy.blackhole()
    yield caller.joined("placed")
    yield caller.leased("sent")
    story.held_rows = caller.shop.orders("placed")
    left = yield from caller.enter(caller.leased, "left")
    overtaken = yield from caller.enter(caller.leased, "overtaken")
    interrupted = yield from caller.enter(caller.joined, "interrupted")
    pair.primary.kill()
    yield from meanwhile(caller.colour, pair.promote)
    story.lost_rows = caller.shop.orders("placed")
    story.interrupted = yield from caller.leave(interrupted, "interrupted")
    for _ in range(2):
        story.placed.append((yield from seen(caller.joined, "placed")))
        story.sent.append((yield from seen(caller.leased, "sent")))
    yield from seen(caller.joined, "interrupted")
    yield from seen(caller.leased, "overtaken")
    story.overtaken = yield from caller.leave(overtaken, "overtaken")
    story.left = yield from caller.leave(left, "left")
    story.fences = caller.fences["sent"]
    story.rows = {key: caller.shop.orders(key) for key in ("placed", "interrupted")}
    story.runs = {key: caller.effects.of(key) for key in ("placed", "sent", "left", "overtaken")}


@colours
def test_a_record_and_its_writes_are_lost_together_and_made_again_together(lost: Lost) -> None:
    assert (lost.held_rows, lost.lost_rows) == (1, 0)
    assert [(one.value, one.replayed) for one in lost.placed] == [(2, False), (2, True)]
    assert lost.rows["placed"] == 1


@colours
def test_a_foreign_effect_whose_record_was_lost_happens_again_with_a_larger_fence(lost: Lost) -> None:
    assert [(one.value, one.replayed) for one in lost.sent] == [(2, False), (2, True)]
    assert lost.runs["sent"] == 2
    first, second = lost.fences
    assert second > first


@colours
def test_an_owner_whose_claim_was_lost_and_made_anew_is_told(lost: Lost) -> None:
    assert type(lost.overtaken) is LeaseLostError, lost.overtaken
    assert (lost.overtaken.result, lost.overtaken.stored, lost.runs["overtaken"]) == (1, 2, 2)


@colours
def test_an_owner_whose_claim_was_lost_is_told_though_nobody_else_came(lost: Lost) -> None:
    assert type(lost.left) is LeaseLostError, lost.left
    assert (lost.left.ran, lost.left.result) == (True, 1)


@colours
def test_a_transaction_begun_on_the_old_primary_is_no_success_on_the_new_one(lost: Lost) -> None:
    assert type(lost.interrupted) is OutcomeUnknownError, lost.interrupted
    assert lost.rows["interrupted"] == 1


# ------------------------------------------------------------------------ a standby as the ledger


@pytest.fixture(scope="module")
def following() -> Iterator[Replicated]:
    """A standby that follows: nobody breaks this pair."""
    with Replicated() as pair:
        create_tables(pair.primary.url)
        yield pair


def on_standby(pair: Replicated, colour: Colour, test: Callable[[Caller], Steps[None]]) -> None:
    caller = Caller(pair.standby_url, colour, poolclass=NullPool)
    told(colour, caller, test(caller))


@colours
@pytest.mark.parametrize("name", ["leased", "joined"])
def test_a_standby_takes_no_claim_and_nothing_runs(following: Replicated, colour: Colour, name: str) -> None:
    def test(caller: Caller) -> Steps[None]:
        error = yield from tried(lambda: getattr(caller, name)(f"{name} {colour}"))
        assert type(error) is LedgerUnavailableError, error
        assert error.ran is False
        assert "read-only transaction" in str(error.__cause__)
        assert len(caller.effects) == 0

    on_standby(following, colour, test)


@colours
def test_a_callers_transaction_on_a_standby_is_refused_and_nothing_runs(
    following: Replicated, colour: Colour
) -> None:
    def test(caller: Caller) -> Steps[None]:
        session = caller.shop.sessions()
        error = yield from tried(lambda: caller.joined("theirs", session=session))
        yield session.close()
        assert type(error) is LedgerUnavailableError, error
        assert error.ran is False
        assert len(caller.effects) == 0

    on_standby(following, colour, test)


@colours
def test_a_url_of_both_servers_works_while_the_standby_is_named_first(
    following: Replicated, colour: Colour
) -> None:
    def test(caller: Caller) -> Steps[None]:
        key = f"both {colour}"
        assert (yield caller.leased(key)) == 1
        assert (yield caller.leased.outcome(key)).replayed

    caller = Caller(following.url_standby_first, colour)
    told(colour, caller, test(caller))
