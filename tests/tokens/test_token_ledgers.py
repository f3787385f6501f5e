"""What ledgers do for tokens and versions, request by request; and the contracts, kept by tokens alone."""

import contextvars
import functools
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from msgspec.structs import replace

from idempo import Memory, OneTimeToken
from idempo.contracts import Colour, Ledger, Strategy
from idempo.records import (
    Above,
    Answer,
    Call,
    Claimed,
    Completed,
    InProgress,
    Issued,
    NotIssued,
    Orphan,
    Payload,
    Record,
)
from idempo.steps import Steps
from idempo.testing import LedgerContract, PromiseContract, driven, ledger_of, new_call
from tests.contract.test_redis_cache import OnServer
from tests.contract.test_unique_insert import OnDatabase, OnFile
from tests.tokens import support
from tests.tokens.support import LEASED, InDatabase, Store, on
from tests.tokens.support import driven as with_store

store = support.store
ledgers = on(*LEASED, "mysql")
DEMANDS = (Issued("replay"), Issued("refuse"))


def spending(key: str = "T-1", **changes: Any) -> Call:
    """A call that demands an issued key."""
    return new_call(key, **({"demand": Issued("replay")} | changes))


def issuing(store: Store) -> Any:
    """The ledger that tokens are kept in."""
    return ledger_of(store.ledger(), store.colour)


def claimed(ledger: Any, call: Call, over: int | None = None) -> Steps[Call]:
    answer = yield from ledger.claim(call, over)
    assert isinstance(answer, Claimed), answer
    return replace(call, fence=answer.fence, attempt=answer.attempt)


def state(ledger: Any, call: Call) -> Steps[str | None]:
    record: Record | None = yield from ledger.lookup(call.digest)
    return None if record is None else record.state


# ------------------------------------------------------------------------ issued keys


@ledgers
@with_store
def test_an_issued_key_is_claimed_with_attempt_1_and_a_fence(store: Store) -> Steps[None]:
    ledger = issuing(store)
    for number, demand in enumerate(DEMANDS):
        call = spending(f"T-{number}", demand=demand)
        assert (yield from ledger.issue(call)) is True
        assert (yield from state(ledger, call)) == "issued"
        mine = yield from claimed(ledger, call)
        assert mine.attempt == 1
        assert mine.fence > 0
        assert (yield from state(ledger, call)) == "running"


@ledgers
@with_store
def test_the_same_owner_who_claims_an_issued_key_again_is_answered_the_same(store: Store) -> Steps[None]:
    ledger, call = issuing(store), spending()
    yield from ledger.issue(call)
    first = yield from ledger.claim(call, None)
    before = store.records()
    assert (yield from ledger.claim(call, None)) == first
    assert store.records() == before


@ledgers
@with_store
def test_issuing_a_known_key_changes_nothing_whatever_its_state(store: Store) -> Steps[None]:
    ledger, call = issuing(store), spending()
    yield from ledger.issue(call)

    def changed_nothing() -> Steps[None]:
        before = store.records()
        assert (yield from ledger.issue(new_call("T-1", keep=5.0))) is False
        assert store.records() == before

    yield from changed_nothing()
    mine = yield from claimed(ledger, call)
    yield from changed_nothing()
    yield from ledger.release(mine)
    yield from changed_nothing()
    mine = yield from claimed(ledger, spending())
    yield from ledger.renew(mine, 0)
    yield from changed_nothing()
    mine = yield from claimed(ledger, spending(), mine.fence)
    yield from ledger.complete(mine, Payload("completed", b"1"))
    yield from changed_nothing()


@ledgers
@with_store
def test_a_claim_that_demands_an_issued_key_changes_nothing_where_there_is_none(store: Store) -> Steps[None]:
    ledger = issuing(store)
    for demand in DEMANDS:
        assert (yield from ledger.claim(spending(demand=demand), None)) == NotIssued()
        assert (yield from ledger.claim(spending(demand=demand), 77)) == NotIssued()
    assert store.records() == []


@ledgers
@with_store
def test_a_claim_that_demands_an_issued_key_changes_nothing_where_its_time_is_over(
    store: Store,
) -> Steps[None]:
    """Issued, running, an orphan, completed or failed: all are over."""
    ledger = issuing(store)
    calls = [spending(f"T-{number}") for number in range(5)]
    for call in calls:
        yield from ledger.issue(call)
    mine = [(yield from claimed(ledger, calls[1]))]
    mine += [(yield from claimed(ledger, calls[2])), (yield from claimed(ledger, calls[3]))]
    mine += [(yield from claimed(ledger, calls[4]))]
    yield from ledger.renew(mine[1], 0)
    yield from ledger.complete(mine[2], Payload("completed", b"1"))
    yield from ledger.complete(mine[3], Payload("failed", b"1"))
    store.end_retention()
    before = store.records()
    for call in calls:
        for over in (None, 77):
            assert (yield from ledger.claim(replace(call, owner=b"x" * 16), over)) == NotIssued()
        assert (yield from ledger.lookup(call.digest)) is None
        assert (yield from ledger.revoke(call.digest)) is False
    assert store.records() == before


@ledgers
@with_store
def test_a_spent_key_answers_as_any_other(store: Store) -> Steps[None]:
    ledger, call = issuing(store), spending(fingerprint=b"")
    yield from ledger.issue(call)
    mine = yield from claimed(ledger, call)
    assert isinstance((yield from ledger.claim(spending(), None)), InProgress)
    yield from ledger.renew(mine, 0)
    answer = yield from ledger.claim(spending(), None)
    assert answer == Orphan(b"", mine.fence)
    taken = yield from claimed(ledger, spending(), mine.fence)
    assert taken.attempt == 2
    assert taken.fence > mine.fence
    assert not (yield from ledger.complete(mine, Payload("completed", b"stale")))
    assert (yield from ledger.complete(taken, Payload("completed", b"1")))
    answer = yield from ledger.claim(spending(), None)
    assert isinstance(answer, Completed)
    assert (answer.payload, answer.attempt, answer.fence) == (Payload("completed", b"1"), 2, taken.fence)


@ledgers
@with_store
def test_a_release_brings_the_key_back_to_issued(store: Store) -> Steps[None]:
    """Its count of attempts and its fence go on; the driver may send it twice; the owner has nothing more to say."""
    ledger, call = issuing(store), spending()
    yield from ledger.issue(call)
    mine = yield from claimed(ledger, call)
    assert (yield from ledger.release(mine)) is True
    assert (yield from state(ledger, call)) == "issued"
    assert (yield from ledger.complete(mine, Payload("completed", b"stale"))) is False
    assert (yield from ledger.renew(mine, 60.0)) is False
    assert (yield from state(ledger, call)) == "issued"
    again = yield from claimed(ledger, spending())
    assert again.attempt == 2
    assert again.fence > mine.fence
    assert (yield from ledger.release(mine)) is False
    assert (yield from state(ledger, call)) == "running"


@ledgers
@with_store
def test_an_issued_key_is_not_forgotten_but_revoked(store: Store) -> Steps[None]:
    ledger, call = issuing(store), spending()
    assert (yield from ledger.revoke(call.digest)) is False
    yield from ledger.issue(call)
    assert (yield from ledger.forget(call.digest)) is False
    assert (yield from state(ledger, call)) == "issued"
    assert (yield from ledger.revoke(call.digest)) is True
    assert (yield from ledger.revoke(call.digest)) is False
    assert store.records() == []


@ledgers
@with_store
def test_only_an_issued_key_is_revoked(store: Store) -> Steps[None]:
    ledger, call = issuing(store), spending()
    yield from ledger.issue(call)
    mine = yield from claimed(ledger, call)
    for change in (
        functools.partial(ledger.renew, mine, 0),
        functools.partial(ledger.renew, mine, 60.0),
        functools.partial(ledger.complete, mine, Payload("completed", b"1")),
    ):
        assert (yield from ledger.revoke(call.digest)) is False
        assert (yield from change()) is True
    assert (yield from ledger.revoke(call.digest)) is False
    plain = yield from claimed(ledger, new_call("P-1"))
    yield from ledger.release(plain)
    assert (yield from ledger.revoke(plain.digest)) is False
    assert (yield from state(ledger, call)) == "completed"


@ledgers
@with_store
def test_a_claim_without_a_demand_takes_an_issued_key_too(store: Store) -> Steps[None]:
    """The digests of tokens have a role of their own, so that this never happens by accident."""
    ledger, call = issuing(store), new_call("T-1")
    yield from ledger.issue(call)
    assert (yield from claimed(ledger, call)).attempt == 1


@on("postgres", "mariadb", "sqlite", "mysql")
@with_store
def test_a_purge_takes_issued_keys_whose_time_is_over_and_no_others(store: Store) -> Steps[None]:
    assert isinstance(store, InDatabase)
    strategy = store.insert()
    ledger: Any = ledger_of(strategy, store.colour)
    yield from ledger.issue(spending("T-1"))
    yield from ledger.issue(spending("T-2"))
    yield from claimed(ledger, spending("T-2"))
    assert (yield strategy.purge()) == 0
    store.end_retention()
    yield from ledger.issue(spending("T-3"))
    assert (yield strategy.purge()) == 2
    assert (yield from ledger.lookup(spending("T-3").digest)).state == "issued"
    assert (yield from ledger.issue(spending("T-1"))) is True


# ------------------------------------------------------------------------ replacing a first result


def above(call: Call, fence: int) -> Call:
    return replace(call, owner=new_call().owner, demand=Above(fence), fingerprint=b"higher")


@ledgers
@with_store
def test_above_replaces_exactly_the_first_result_with_that_fence(store: Store) -> Steps[None]:
    for number, kind in enumerate(("completed", "failed")):
        ledger, call = issuing(store), new_call(f"E-{number}")
        mine = yield from claimed(ledger, call)
        yield from ledger.complete(mine, Payload(kind, b"1"))  # type: ignore[arg-type]
        before = store.records()
        for other in (mine.fence - 1, mine.fence + 1, 0):
            answer = yield from ledger.claim(above(call, other), None)
            assert isinstance(answer, Completed)
            assert answer.payload == Payload(kind, b"1")  # type: ignore[arg-type]
        assert store.records() == before
        higher = yield from claimed(ledger, above(call, mine.fence))
        assert higher.fence > mine.fence
        assert (yield from state(ledger, call)) == "running"
        assert (yield from ledger.claim(higher, None)) == Claimed(higher.fence, higher.attempt)
        assert not (yield from ledger.complete(mine, Payload("completed", b"stale")))
        assert (yield from ledger.complete(higher, Payload("completed", b"2")))
        record = yield from ledger.lookup(call.digest)
        assert (record.payload, record.fence) == (Payload("completed", b"2"), higher.fence)


@ledgers
@with_store
def test_above_replaces_no_newer_result(store: Store) -> Steps[None]:
    ledger, call = issuing(store), new_call("E-1")
    old = yield from claimed(ledger, call)
    yield from ledger.complete(old, Payload("completed", b"1"))
    new = yield from claimed(ledger, above(call, old.fence))
    yield from ledger.complete(new, Payload("completed", b"2"))
    before = store.records()
    answer = yield from ledger.claim(above(call, old.fence), None)
    assert isinstance(answer, Completed)
    assert (answer.payload, answer.fence) == (Payload("completed", b"2"), new.fence)
    assert store.records() == before


@ledgers
@with_store
def test_above_replaces_nothing_that_runs_and_no_orphan(store: Store) -> Steps[None]:
    ledger, call = issuing(store), new_call("E-1")
    old = yield from claimed(ledger, call)
    yield from ledger.complete(old, Payload("completed", b"1"))
    new = yield from claimed(ledger, above(call, old.fence))
    for fence in (old.fence, new.fence):
        assert isinstance((yield from ledger.claim(above(call, fence), None)), InProgress)
    yield from ledger.renew(new, 0)
    for fence in (old.fence, new.fence):
        assert isinstance((yield from ledger.claim(above(call, fence), None)), Orphan)
    assert (yield from claimed(ledger, above(call, old.fence), new.fence)).fence > new.fence


@ledgers
@with_store
def test_above_claims_a_key_that_is_free(store: Store) -> Steps[None]:
    """Released, forgotten, or over: there is no result to replace."""
    ledger, call = issuing(store), new_call("E-1")
    assert (yield from claimed(ledger, above(call, 5))).attempt == 1
    other = new_call("E-2")
    mine = yield from claimed(ledger, other)
    yield from ledger.release(mine)
    assert (yield from claimed(ledger, above(other, mine.fence))).attempt == 2


@ledgers
@with_store
def test_one_of_two_who_replace_the_same_result_is_the_one_who_runs(store: Store) -> Steps[None]:
    ledger, call = issuing(store), new_call("E-1")
    old = yield from claimed(ledger, call)
    yield from ledger.complete(old, Payload("completed", b"1"))
    one, other = above(call, old.fence), above(call, old.fence)
    yield from claimed(ledger, one)
    assert isinstance((yield from ledger.claim(other, None)), InProgress)


# ------------------------------------------------------------------------ the same in a transaction


joined = on("postgres joined", "mariadb joined", "mysql joined", "sqlite joined")


def _unit(ledger: Any, call: Call) -> Steps[Any]:
    """A transaction of ours, open, with its claim answered; or None, where none was needed for the answer."""
    unit = yield from ledger.open(call)
    if isinstance(unit, Completed | NotIssued):
        return None, unit
    yield from unit.enter()
    return unit, (yield from unit.claim(call, None, 1.0))


def joined_ledger(store: Store) -> tuple[Any, Callable[[Call], Steps[Any]]]:
    """The joined ledger, and what looks a record up from outside."""
    ledger: Any = ledger_of_joined(store.ledger(), store.colour)
    outside = lambda call: ledger.outside(call, lambda at, c: at.lookup(c, call.digest))  # noqa: E731
    return ledger, outside


def ledger_of_joined(strategy: Strategy, colour: Colour) -> Any:
    from idempo import idempotent
    from idempo.assembly import operation_of

    function = support.submitting(lambda order: iter(()), colour)  # type: ignore[arg-type,return-value]
    layer: Any = operation_of(idempotent(key="{token}", using=strategy, name="joined")(function)).layers[-1]
    return layer.ledger


@joined
@with_store
def test_a_joined_claim_of_an_issued_key_commits_or_leaves_it_issued(store: Store) -> Steps[None]:
    ledger, outside = joined_ledger(store)
    call = spending()
    assert (yield from ledger.issue(call)) is True
    assert (yield from ledger.issue(call)) is False
    unit, answer = yield from _unit(ledger, call)
    assert isinstance(answer, Claimed)
    assert answer.attempt == 1
    assert answer.fence > 0
    yield from unit.close()
    assert (yield from outside(call)).state == "issued"
    unit, answer = yield from _unit(ledger, call)
    assert (yield from unit.complete(call, Payload("completed", b"1"))) is True
    yield from unit.close()
    assert (yield from outside(call)).state == "completed"
    assert (yield from ledger.revoke(call.digest)) is False
    unit, answer = yield from _unit(ledger, spending())
    assert unit is None
    assert answer.payload == Payload("completed", b"1")


@joined
@with_store
def test_a_joined_claim_that_demands_an_issued_key_leaves_no_row_where_there_is_none(
    store: Store,
) -> Steps[None]:
    ledger, _ = joined_ledger(store)
    unit, answer = yield from _unit(ledger, spending())
    assert answer == NotIssued()
    if unit is not None:
        yield from unit.close()
    assert store.records() == []
    call = spending("T-2")
    yield from ledger.issue(call)
    store.end_retention()
    before = store.records()
    unit, answer = yield from _unit(ledger, call)
    assert answer == NotIssued()
    if unit is not None:
        yield from unit.close()
    assert store.records() == before
    assert (yield from ledger.revoke(call.digest)) is False


@joined
@with_store
def test_a_joined_claim_above_replaces_exactly_that_first_result(store: Store) -> Steps[None]:
    ledger, outside = joined_ledger(store)
    call = new_call("E-1")
    unit, first = yield from _unit(ledger, call)
    yield from unit.complete(call, Payload("completed", b"1"))
    yield from unit.close()
    unit, answer = yield from _unit(ledger, above(call, first.fence - 1))
    assert unit is None
    assert answer.payload == Payload("completed", b"1")
    higher = above(call, first.fence)
    for commit in (False, True):
        unit, answer = yield from _unit(ledger, higher)
        assert isinstance(answer, Claimed)
        assert answer.fence > first.fence
        if commit:
            yield from unit.complete(higher, Payload("completed", b"2"))
        yield from unit.close()
        assert (yield from outside(call)).payload == Payload("completed", b"2" if commit else b"1")
    unit, answer = yield from _unit(ledger, above(call, first.fence))
    assert unit is None
    assert answer.payload == Payload("completed", b"2")


# ------------------------------------------------------------------------ the contracts


wanted: contextvars.ContextVar[Any] = contextvars.ContextVar("wanted")


class Issuing:
    """A decorated function whose key is issued, as a token, before each call, unless it is known."""

    def __init__(self, decorated: Any, tokens: OneTimeToken, colour: Colour, scoped: bool) -> None:
        self._decorated = decorated
        self._tokens = tokens
        self._colour = colour
        self._scoped = scoped

    def _issue(self, order: Any, amount: Any = 1, **others: Any) -> Any:
        wanted.set(order)
        return self._tokens.issue(scope=amount if self._scoped else None)

    def _asking(self, call: Any) -> Callable[..., Any]:
        @functools.wraps(call)
        def plain(*args: Any, **kwargs: Any) -> Any:
            with suppress(Exception):  # known already, or no token: what then happens is the call's business
                self._issue(*args, **kwargs)
            return call(*args, **kwargs)

        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            with suppress(Exception):
                await self._issue(*args, **kwargs)
            return await call(*args, **kwargs)

        return plain if self._colour == "sync" else coroutine

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._asking(self._decorated)(*args, **kwargs)

    @property
    def outcome(self) -> Callable[..., Any]:
        return self._asking(self._decorated.outcome)

    @property
    def __idempo__(self) -> Any:
        """The suites look for the ledger in the innermost layer."""
        return SimpleNamespace(layers=[self._decorated.__idempo__.layers[-1].layer])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decorated, name)


class WithTokens(PromiseContract):
    """The promises of a function whose key is a token. What names the key is left out: a token is not shown."""

    def decorate(self, body: Callable[[str, int], Any], **options: Any) -> Any:
        ledger = options.pop("using", None) or self.make()
        tokens = OneTimeToken(ledger, make=wanted.get)
        decorated = super().decorate(body, using=tokens, **options)
        self.beside = {"using": ledger}
        return Issuing(decorated, tokens, self.colour, "scope" in options)

    test_other_arguments_under_one_key_are_refused_by_name = None  # type: ignore[assignment]
    test_lookup_finds_the_record_and_forget_lets_it_run_again = None  # type: ignore[assignment]
    test_a_probe_that_finds_the_effect_makes_it_the_first_result = None  # type: ignore[assignment]
    test_current_tells_the_running_function_who_it_is = None  # type: ignore[assignment]
    # The wrapper would issue the key from inside.
    test_a_call_of_its_own_key_from_inside_is_refused_at_once = None  # type: ignore[assignment]


class Spent:
    """A ledger whose keys are issued before they are claimed."""

    def __init__(self, ledger: Any) -> None:
        self._ledger = ledger

    def claim(self, call: Call, over: int | None) -> Steps[Answer]:
        yield from self._ledger.issue(call)
        answer: Answer = yield from self._ledger.claim(replace(call, demand=Issued("replay")), over)
        return answer

    def release(self, call: Call) -> Steps[bool]:
        released: bool = yield from self._ledger.release(replace(call, demand=Issued("replay")))
        return released

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)


class WithSpentKeys(WithTokens, LedgerContract):
    """The same, and what the ledger must do request by request."""

    def ledger(self) -> Ledger:
        ledger: Any = Spent(super().ledger())
        made: Ledger = ledger
        return made

    @driven
    def test_an_owner_that_released_has_nothing_more_to_say(self) -> Steps[None]:
        """The key is issued again."""
        ledger, key = self.ledger(), self.key()
        old = yield from self.claimed(ledger, new_call(key))
        assert (yield from ledger.release(old))
        assert not (yield from ledger.complete(old, Payload("completed", b"old")))
        assert not (yield from ledger.renew(old, 60.0))
        assert (yield from self.record(ledger, old)).state == "issued"


class TestTokensInMemory(WithSpentKeys):
    def make(self) -> Strategy:
        return Memory()


class TestTokensInMemoryAsync(TestTokensInMemory):
    colour = "async"


class TestTokensInRedis(OnServer, WithSpentKeys):
    server = "redis_server"


class InTable(WithSpentKeys):
    # A key whose time is over can be issued again when it has been purged.
    test_a_record_is_gone_when_its_retention_is_over = None  # type: ignore[assignment]


class InPostgres(OnDatabase, InTable):
    server = "postgres"


class TestTokensInPostgres(InPostgres):
    colour = "async"


class TestTokensInSQLite(OnFile, InTable):
    pass


class TestTokensJoined(OnDatabase, WithTokens):
    server = "postgres"
    joined = True


class JoinedInMariaDB(OnDatabase, WithTokens):
    server = "mariadb"
    joined = True


class TestTokensJoinedMariaDB(JoinedInMariaDB):
    colour = "async"
