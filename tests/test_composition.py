"""Several strategies in one list: who is asked first, who is filled, who decides."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from idempo import (
    CompositionError,
    FingerprintMismatchError,
    InProgressError,
    LedgerUnavailableError,
    Memory,
    RedisCache,
    UniqueInsert,
    idempotent,
)
from idempo.contracts import Colour
from idempo.steps import Steps
from idempo.testing import Effects, drive
from tests.servers import Server

COLOURS: list[Colour] = ["sync", "async"]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/shop.db"


class Unreachable(Memory):
    """A ledger whose store can be away."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.asked = 0

    def lookup(self, digest: bytes) -> Steps[Any]:
        self.asked += 1
        if self.away:
            raise ConnectionError("away")
        return (yield from super().lookup(digest))


def deciding(colour: Colour, effects: Effects) -> Any:
    def plain(order: str, token: str = "t", amount: int = 1) -> int:
        return effects.add(order)

    async def coroutine(order: str, token: str = "t", amount: int = 1) -> int:
        return effects.add(order)

    return plain if colour == "sync" else coroutine


@pytest.mark.parametrize("colour", COLOURS)
def test_a_tier_is_filled_from_inside_and_then_answers_alone(colour: Colour, url: str) -> None:
    effects, tier, record = Effects(), Memory(), UniqueInsert(url)
    f: Any = idempotent(key="{order}", using=[tier, record])(deciding(colour, effects))

    def steps() -> Steps[None]:
        assert (yield f("A-1")) == 1
        yield record.close()
        os.rename(url.removeprefix("sqlite:///"), url.removeprefix("sqlite:///") + ".gone")
        outcome = yield f.outcome("A-1")
        assert (outcome.value, outcome.replayed) == (1, True)
        with pytest.raises(FingerprintMismatchError):
            yield f("A-1", amount=2)
        yield record.close()

    drive(colour, steps())


@pytest.mark.parametrize("colour", COLOURS)
def test_a_flushed_tier_is_filled_again_by_a_replay_from_inside(colour: Colour, url: str) -> None:
    effects, record = Effects(), UniqueInsert(url)
    tier = Memory()
    f: Any = idempotent(key="{order}", using=[tier, record])(deciding(colour, effects))

    def steps() -> Steps[None]:
        yield f("A-1")
        tier._rows.clear()
        assert (yield f.outcome("A-1")).replayed
        assert len(tier._rows) == 1
        yield record.close()

    drive(colour, steps())
    assert len(effects) == 1


def test_a_tier_never_outlives_the_record_behind_it() -> None:
    tier, record = Memory(), Memory()
    f = idempotent(key="{order}", using=[tier, record], keep=50, lease=10)(deciding("sync", Effects()))
    f("A-1")
    [kept] = tier._rows.values()
    [first] = record._rows.values()
    assert kept.keep_until <= first.keep_until + 0.001


def test_forget_forgets_in_the_record_and_in_the_tier() -> None:
    effects = Effects()
    f: Any = idempotent(key="{order}", using=[Memory(), Memory()])(deciding("sync", effects))
    assert f("A-1") == 1
    assert f.forget("A-1")
    assert f("A-1") == 2


def test_a_tier_that_is_away_refuses_the_call_unless_it_is_not_required(url: str) -> None:
    effects, tier, record = Effects(), Unreachable(), UniqueInsert(url)
    f: Any = idempotent(key="{order}", using=[tier, record])(deciding("sync", effects))
    tier.away = True
    with pytest.raises(LedgerUnavailableError) as refused:
        f("A-1")
    assert refused.value.ran is False
    assert len(effects) == 0
    record.close()


@pytest.mark.parametrize("colour", COLOURS)
def test_redis_down_in_front_of_a_database_costs_speed_only(colour: Colour, url: str) -> None:
    effects, record = Effects(), UniqueInsert(url)
    nobody = "redis://127.0.0.1:1"  # a port that nobody listens on
    f: Any = idempotent(key="{order}", using=[RedisCache(nobody, required=False), record])(
        deciding(colour, effects)
    )

    def steps() -> Steps[None]:
        assert (yield f("A-1")) == 1
        assert (yield f("A-1")) == 1
        yield record.close()

    drive(colour, steps())


@pytest.fixture
def shop(url: str) -> Iterator[Any]:
    engine = create_engine(url)
    yield engine
    engine.dispose()


def test_a_tier_is_not_filled_from_a_transaction_that_could_still_roll_back(shop: Any) -> None:
    effects, tier = Effects(), Memory()

    @idempotent(key="{order}", using=[tier, UniqueInsert(join="session")])
    def f(order: str, session: Session) -> int:
        return effects.add(order)

    with Session(shop) as session:
        assert f("A-1", session) == 1
        assert f("A-1", session) == 1  # its own record, not committed yet
        assert not tier._rows
        session.rollback()
    with Session(shop) as session, session.begin():
        assert f("A-1", session) == 2
    assert not tier._rows
    with Session(shop) as session:
        assert f("A-1", session) == 2  # committed: now it may be kept
    assert len(tier._rows) == 1


# ------------------------------------------------------------------------------------ a key of its own


@pytest.mark.parametrize("colour", COLOURS)
def test_a_ledger_with_a_key_of_its_own_claims_it(colour: Colour, url: str) -> None:
    """One order number per token, and one token per order number."""
    effects, record = Effects(), UniqueInsert(url)
    f: Any = idempotent(key="{order}", using=[Memory(key="{token}"), record])(deciding(colour, effects))

    def steps() -> Steps[None]:
        assert (yield f("A-1", "t-1")) == 1
        assert (yield f("A-1", "t-1")) == 1
        with pytest.raises(FingerprintMismatchError) as refused:
            yield f("A-2", "t-1")
        assert refused.value.differing == ("order",)
        with pytest.raises(FingerprintMismatchError) as refused:
            yield f("A-1", "t-2")
        assert refused.value.differing == ("token",)
        assert (yield f("A-2", "t-3")) == 2
        yield record.close()

    drive(colour, steps())


def test_an_outer_claim_of_a_crashed_call_is_taken_over_and_answered_from_inside() -> None:
    effects, outer, record = Effects(), Memory(key="{token}"), Memory()
    f: Any = idempotent(key="{order}", using=[outer, record], lease=0.2, keep=60)(deciding("sync", effects))
    assert f("A-1", "t-1") == 1
    [(digest, row)] = outer._rows.items()
    outer._rows[digest] = replace(
        row, payload=None, owner=b"dead", completed_at=None
    )  # as if it had died here
    outcome = f.outcome("A-1", "t-1")
    assert (outcome.value, outcome.replayed) == (1, True)


def test_an_outer_claim_that_is_running_makes_a_duplicate_wait() -> None:
    outer = Memory(key="{token}")
    f: Any = idempotent(key="{order}", using=[outer, Memory()], wait=0)(deciding("sync", Effects()))
    f("A-1", "t-1")
    [(digest, row)] = outer._rows.items()
    outer._rows[digest] = replace(row, payload=None, owner=b"alive", completed_at=None)
    with pytest.raises(InProgressError):
        f("A-1", "t-1")


# ------------------------------------------------------------------------------------ what is refused


def test_compositions_that_break_the_inner_promise_are_refused() -> None:
    one = Memory()
    join = UniqueInsert(join="session")

    def f(order: str, session: Any) -> None: ...

    for using in ([], [one, one], [join, Memory()], [object()]):
        with pytest.raises(CompositionError):
            idempotent(key="{order}", using=using)(f)  # type: ignore[arg-type]


def test_explain_tells_what_the_composition_guarantees(url: str) -> None:
    def f(order: str, session: Any) -> None: ...

    def guarantees(using: Any, **terms: Any) -> tuple[str, str]:
        explained = idempotent(key="{order}", using=using, **terms)(f).explain()
        assert str(explained).startswith(explained.operation)
        return explained.joined_effects, explained.foreign_effects

    assert guarantees(UniqueInsert(join="session")) == ("exactly once", "at least once")
    assert guarantees(UniqueInsert(url)) == ("at least once", "at least once")
    assert guarantees(UniqueInsert(url), on_orphan="refuse") == ("at most once", "at most once")
    probed = "exactly once by the probe"
    assert guarantees(UniqueInsert(url), on_orphan=lambda call: None) == (probed, probed)
    assert guarantees([RedisCache("redis://"), UniqueInsert(join="session")]) == (
        "exactly once",
        "at least once",
    )
    assert "failover" in str(idempotent(key="{order}", using=RedisCache("redis://"))(f).explain())


def test_a_sql_ledger_may_stand_in_front_of_another(url: str, valkey: Server) -> None:
    effects, local, remote = Effects(), UniqueInsert(url), RedisCache(valkey.url, prefix=os.urandom(8).hex())
    f: Any = idempotent(key="{order}", using=[local, remote])(deciding("sync", effects))
    for _ in range(3):
        assert f("A-1") == 1

    local.close()
    remote.close()


def test_only_a_tier_can_be_passed_by() -> None:
    def f(order: str, token: str) -> None: ...

    strategies: list[Any] = [
        RedisCache("redis://", required=False),
        [RedisCache("redis://", required=False, key="{token}"), Memory()],
    ]
    for using in strategies:
        with pytest.raises(CompositionError, match="required=False"):
            idempotent(key="{order}", using=using)(f)


def test_functions_of_a_factory_without_a_name_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    def make(price: int, name: str | None = None) -> Any:
        @idempotent(key="{order}", using=Memory(), name=name)
        def f(order: str) -> int:
            return price

        return f

    kept = [make(1, "cheap"), make(2, "dear"), make(3)]
    assert not caplog.messages
    kept.append(make(4))
    assert "shares its keys; give each a name=" in caplog.messages[0]
