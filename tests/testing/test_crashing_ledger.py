"""The ledger whose callers die, or lose a message: what is left, and that the dead say nothing more."""

import itertools
import uuid
from collections.abc import Callable
from typing import Any, Literal

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from idempo import (
    INJECTED,
    CompositionError,
    LedgerUnavailableError,
    LocalCache,
    Memory,
    MonotonicVersion,
    OneTimeToken,
    OutcomeUnknownError,
    UniqueInsert,
    idempotent,
)
from idempo.assembly import operation_of
from idempo.contracts import Strategy
from idempo.steps import Steps
from idempo.testing import Crashed, CrashingLedger, Effects, driven
from tests.servers import async_url
from tests.testing.places import OnMemory, OnPostgres, OnRedis, OnSQLite, Place

MOMENTS: tuple[Literal["before", "after"], ...] = ("before", "after")


class OfLeased(Place):
    """A ledger that claims under a lease."""

    def crashing(self, **options: Any) -> tuple[CrashingLedger, Any, Effects]:
        effects, ledger = Effects(), CrashingLedger(self.make())

        def plain(order: str) -> int:
            return effects.add(order)

        async def coroutine(order: str) -> int:
            return effects.add(order)

        body: Any = plain if self.colour == "sync" else coroutine
        terms = {"key": "{order}", "using": ledger, "name": f"crash.{uuid.uuid4()}"} | options
        return ledger, idempotent(**terms)(body), effects

    @driven
    def test_at_every_request_a_death_leaves_what_was_done_before_it(self) -> Steps[None]:
        ledger, f, effects = self.crashing()
        left = []
        for number in itertools.count(1):
            for moment in MOMENTS:
                order = f"{number}-{moment}"
                with ledger.die(at=number, moment=moment) as death:
                    yield f(order)
                if not death.reached:
                    break
                record = yield f.lookup(order)
                left.append((death.request, moment, effects.of(order), record and record.state))
            else:
                continue
            break
        assert left == [
            ("claim", "before", 0, None),
            ("claim", "after", 0, "running"),
            ("complete", "before", 1, "running"),
            ("complete", "after", 1, "completed"),
        ]

    @driven
    def test_after_a_death_nothing_more_is_sent(self) -> Steps[None]:
        ledger, f, _ = self.crashing()
        for number, name in enumerate(["claim", "complete"], 1):
            ledger.requests.clear()
            with ledger.die(at=name, moment="after") as death:
                yield f(name)
            assert death.reached
            assert len(ledger.requests) == number

    @driven
    def test_the_heartbeat_and_every_other_request_of_the_dead_change_nothing(self) -> Steps[None]:
        ledger, f, _ = self.crashing()
        with ledger.die(at="claim", moment="after"):
            yield f("A-1")
        before = yield f.lookup("A-1")
        layer: Any = operation_of(f).layers[-1]
        [(_, call)] = layer.ledger.tap._claims.values()
        assert (yield from layer.ledger.renew(call, 60.0)) is False
        assert (yield from layer.ledger.renew(call, 0.0)) is False
        for request in (layer.ledger.release(call), layer.ledger.claim(call, None)):
            with pytest.raises(Crashed):
                yield from request
        after = yield f.lookup("A-1")
        assert (after.state, after.lease_until, after.fence) == ("running", before.lease_until, before.fence)

    @driven
    def test_end_leases_makes_orphans_of_what_the_dead_have_claimed_and_of_nothing_else(self) -> Steps[None]:
        ledger, f, _ = self.crashing(wait=0)
        yield f("done")
        for order in ("A-1", "A-2"):
            with ledger.die(at="complete"):
                yield f(order)
        assert (yield ledger.end_leases()) == 2
        assert (yield ledger.end_leases()) == 0
        assert (yield f.lookup("A-1")).state == (yield f.lookup("A-2")).state == "orphan"
        outcome = yield f.outcome("A-1")
        assert (outcome.attempt, outcome.replayed) == (2, False)
        assert (yield f.outcome("done")).replayed

    @driven
    def test_end_leases_leaves_alone_whoever_lives(self) -> Steps[None]:
        ledger, seen = CrashingLedger(self.make()), []

        def plain(order: str) -> None:
            seen.append(ledger.end_leases())

        async def coroutine(order: str) -> None:
            seen.append(await ledger.end_leases())

        body: Any = plain if self.colour == "sync" else coroutine
        f: Any = idempotent(key="{order}", using=ledger, name=f"crash.{uuid.uuid4()}")(body)
        assert (yield f("A-1")) is None
        assert seen == [0]

    @driven
    def test_under_refuse_a_death_in_between_is_an_unknown_outcome(self) -> Steps[None]:
        ledger, f, effects = self.crashing(on_orphan="refuse")
        with ledger.die(at="complete"):
            yield f("A-1")
        yield ledger.end_leases()
        with pytest.raises(OutcomeUnknownError):
            yield f("A-1")
        assert len(effects) == 1

    @driven
    def test_a_lost_claim_runs_nothing(self) -> Steps[None]:
        ledger, f, effects = self.crashing()
        with ledger.lose("request", at="claim") as fault:
            with pytest.raises(LedgerUnavailableError) as caught:
                yield f("A-1")
        assert isinstance(caught.value.__cause__, ConnectionError)
        assert fault.reached
        assert len(effects) == 0
        assert (yield f.lookup("A-1")) is None
        with ledger.lose("reply", at="claim"), pytest.raises(LedgerUnavailableError):
            yield f("A-2")
        assert len(effects) == 0
        assert (yield f.lookup("A-2")).state == "running"

    @driven
    def test_a_lost_completion_is_sent_again(self) -> Steps[None]:
        ledger, f, effects = self.crashing()
        for what in ("request", "reply"):
            ledger.requests.clear()
            with ledger.lose(what, at="complete"):
                value = yield f(what)
            assert ledger.requests == ["claim", "complete", "complete"]
            assert (yield f(what)) == value
        assert len(effects) == 2

    @driven
    def test_without_a_fault_it_is_as_it_was(self) -> Steps[None]:
        ledger, f, effects = self.crashing()
        assert (yield f("A-1")) == (yield f("A-1")) == 1
        assert ledger.requests == ["claim", "complete", "claim"]
        with ledger.die(at=9) as death:
            yield f("A-1")
        assert not death.reached
        assert len(effects) == 1


class TestMemory(OfLeased, OnMemory):
    pass


class TestMemoryAsync(TestMemory):
    colour = "async"


class TestSQLite(OfLeased, OnSQLite):
    pass


class TestSQLiteAsync(TestSQLite):
    colour = "async"


class TestPostgres(OfLeased, OnPostgres):
    pass


class TestPostgresAsync(TestPostgres):
    colour = "async"


class TestRedis(OfLeased, OnRedis):
    pass


class TestRedisAsync(TestRedis):
    colour = "async"


class OfJoined(OnSQLite):
    """A ledger in the function's own transaction."""

    def crashing(self, strategy: Strategy | None = None) -> tuple[CrashingLedger, Any]:
        ledger, books = CrashingLedger(strategy or self.make_joined()), self.books

        def plain(order: str, session: Session = INJECTED) -> str:
            session.execute(books.entry(order))
            return order

        async def coroutine(order: str, session: AsyncSession = INJECTED) -> str:
            await session.execute(books.entry(order))
            return order

        body: Any = plain if self.colour == "sync" else coroutine
        return ledger, idempotent(key="{order}", using=ledger, name=f"crash.{uuid.uuid4()}")(body)

    def walk(self, ledger: CrashingLedger, f: Any, call: Callable[[str], Any]) -> Steps[list[Any]]:
        """Die at every request; what is left each time."""
        left: list[Any] = []
        for number in itertools.count(1):
            for moment in MOMENTS:
                order = uuid.uuid4().hex
                with ledger.die(at=number, moment=moment) as death:
                    yield call(order)
                if not death.reached:
                    return left
                record = yield f.lookup(order)
                left.append((death.request, moment, self.books.count(order), record and record.state))
                yield ledger.end_leases()
                assert (yield f(order)) == order
                assert self.books.count(order) == 1, left[-1]
        return left

    @driven
    def test_a_death_leaves_all_of_the_transaction_or_nothing(self) -> Steps[None]:
        ledger, f = self.crashing()
        nothing, all_of_it = (0, None), (1, "completed")
        assert (yield from self.walk(ledger, f, f)) == [
            ("open", "before", *nothing),
            ("open", "after", *nothing),
            ("claim", "before", *nothing),
            ("claim", "after", *nothing),
            ("complete", "before", *nothing),
            ("complete", "after", *all_of_it),
            ("close", "before", *all_of_it),
            ("close", "after", *all_of_it),
        ]

    @driven
    def test_a_death_undoes_the_callers_transaction_with_all_that_is_in_it(self) -> Steps[None]:
        ledger, f = self.crashing()
        url = self.url if self.colour == "sync" else async_url(self.url)
        engine: Any = self.engine(url)

        def calling(order: str) -> Steps[None]:
            session = Session(engine) if self.colour == "sync" else AsyncSession(engine)
            try:
                yield session.execute(self.books.entry(f"before {order}"))
                yield f(order, session=session)
                yield session.commit()
            except Crashed:
                yield session.commit()  # which a dead caller does not: there must be nothing to commit
                assert self.books.count(f"before {order}") == 0
                raise
            finally:
                yield session.close()

        left = []
        try:
            for number, moment in itertools.product(range(1, 6), MOMENTS):
                order = uuid.uuid4().hex
                try:
                    with ledger.die(at=number, moment=moment) as death:
                        yield from calling(order)
                except Crashed:
                    pytest.fail("the block did not end where the caller died")
                left.append((death.request, moment, self.books.count(order)))
                assert (yield f.lookup(order)) is None
        finally:
            yield engine.dispose()
        names = ("open", "enter", "claim", "complete", "close")
        assert left == [(name, moment, 0) for name, moment in itertools.product(names, MOMENTS)]

    def engine(self, url: str) -> Any:
        from sqlalchemy import create_engine
        from sqlalchemy.ext.asyncio import create_async_engine

        return create_engine(url) if self.colour == "sync" else create_async_engine(url)

    @driven
    def test_a_lost_reply_to_the_commit_is_cleared_up_by_the_record(self) -> Steps[None]:
        ledger, f = self.crashing()
        order = uuid.uuid4().hex
        with ledger.lose("reply", at="complete"):
            assert (yield f(order)) == order
        assert "recall" in ledger.requests
        assert self.books.count(order) == 1

    @driven
    def test_a_lost_commit_is_an_unknown_outcome_and_the_repeat_runs(self) -> Steps[None]:
        ledger, f = self.crashing()
        order = uuid.uuid4().hex
        with ledger.lose("request", at="complete"), pytest.raises(OutcomeUnknownError):
            yield f(order)
        assert self.books.count(order) == 0
        assert (yield f(order)) == order
        assert self.books.count(order) == 1

    @driven
    def test_a_lost_claim_runs_nothing(self) -> Steps[None]:
        ledger, f = self.crashing()
        for what, at in itertools.product(("request", "reply"), ("open", "claim")):
            order = uuid.uuid4().hex
            with ledger.lose(what, at=at), pytest.raises(LedgerUnavailableError):  # type: ignore[arg-type]
                yield f(order)
            assert self.books.count(order) == 0
            assert (yield f(order)) == order


class TestSQLiteJoined(OfJoined):
    pass


class TestSQLiteJoinedAsync(OfJoined):
    colour = "async"


class TestPostgresJoined(OnPostgres, OfJoined):
    pass


class TestPostgresJoinedAsync(TestPostgresJoined):
    colour = "async"


del OfJoined  # it is no place of its own, and would be collected for its name


# ------------------------------------------------------------------------ what it stands around


def test_it_stands_around_what_encloses_a_ledger_and_inside_it() -> None:
    made = (
        CrashingLedger(OneTimeToken(Memory(), key="{order}")),
        OneTimeToken(CrashingLedger(Memory()), key="{order}"),
    )
    for number, each in enumerate(made):
        tokens: Any = each
        f = idempotent(key="{order}", using=tokens, name=f"enclosed.{number}")(_double)
        token, ledger = tokens.issue(), tokens if isinstance(tokens, CrashingLedger) else tokens._ledger
        with ledger.die(at="complete") as death:
            f(token)
        assert death.reached
        assert ledger.end_leases() == 1
        assert f(token) == token * 2
        assert f.outcome(token).replayed


def test_it_stands_around_versions() -> None:
    ledger = CrashingLedger(MonotonicVersion(Memory(), entity="{order}", version="{version}"))
    applied = []

    @idempotent(key="{order}-{version}", using=ledger, name="versions")
    def f(order: str, version: int) -> int:
        applied.append(version)
        return version

    with ledger.die(at="complete"):
        f("A-1", 1)
    assert ledger.end_leases() == 1
    assert f("A-1", 1) == 1
    assert applied == [1, 1]


def test_what_has_no_ledger_is_refused() -> None:
    with pytest.raises(CompositionError, match="LocalCache asks none"):
        idempotent(key="{order}", using=[CrashingLedger(LocalCache()), Memory()], name="none")(_double)


def test_it_serves_one_colour() -> None:
    ledger = CrashingLedger(Memory())
    idempotent(key="{order}", using=ledger, name="one")(_double)

    async def g(order: str) -> str:
        return order

    with pytest.raises(CompositionError, match="plain functions, or of async ones"):
        idempotent(key="{order}", using=ledger, name="two")(g)


def test_what_the_strategy_has_is_there() -> None:
    strategy = UniqueInsert("sqlite:///never-made.db")
    ledger = CrashingLedger(strategy)
    assert ledger.metadata is strategy.metadata
    with pytest.raises(AttributeError):
        ledger.nothing_of_the_kind  # noqa: B018


def test_a_death_that_another_ledger_meant_passes() -> None:
    with pytest.raises(Crashed), CrashingLedger(Memory()).die(at=1):
        raise Crashed


def _double(order: str) -> str:
    return order * 2
