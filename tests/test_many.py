"""`f.many(...)` beyond one ledger alone: ledgers that are away, compositions that are asked one by one, methods."""

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from idempo import INJECTED, LocalCache, Memory, OneTimeToken, RedisCache, UniqueInsert, idempotent
from idempo.batches import MOST
from idempo.contracts import Strategy
from idempo.errors import (
    LeaseLostError,
    LedgerUnavailableError,
    OutcomeUnknownError,
    ReentrantCallError,
    ResultUnavailableError,
    TokenUnknownError,
)
from idempo.events import Event
from idempo.records import Answer, Call, Outcome, Payload
from idempo.steps import Steps
from tests.servers import Server


class Failing(Memory):
    """A ledger whose requests for many fail, before they are heard or after."""

    def __init__(self, *, claims: str = "", completions: str = "", away: bool = False) -> None:
        super().__init__()
        self.claims, self.completions, self.away = claims, completions, away
        self.asked = 0

    def claim(self, call: Call, over: int | None) -> Steps[Answer]:
        self.asked += 1
        if self.away:
            raise ConnectionError("away")
        return (yield from super().claim(call, over))

    def claim_many(self, calls: Sequence[Call]) -> Steps[list[Answer]]:
        answers = (yield from super().claim_many(calls)) if self.claims != "unheard" else []
        if self.claims:
            raise ConnectionError("no answer")
        return answers

    def complete_many(self, firsts: Sequence[tuple[Call, Payload]]) -> Steps[list[bool]]:
        lost = self.completions and len(firsts) > 1
        kept = [] if lost and self.completions == "unheard" else (yield from super().complete_many(firsts))
        if lost:
            raise ConnectionError("no answer")
        return kept


def place(using: Strategy | Sequence[Strategy], ran: list[str], **options: Any) -> Any:
    @idempotent(key="{order}", using=using, name=uuid.uuid4().hex, **options)
    def place(order: str) -> str:
        ran.append(order)
        return order.lower()

    return place


def values(came: Sequence[Any]) -> list[Any]:
    return [one.value if isinstance(one, Outcome) else type(one) for one in came]


@pytest.mark.parametrize("claims", ["unheard", "heard"])
def test_calls_whose_claims_brought_no_answer_are_asked_for_alone_and_run_once(claims: str) -> None:
    ran: list[str] = []
    f = place(Failing(claims=claims), ran)
    assert values(f.many([("A",), ("B",)])) == ["a", "b"]
    assert values(f.many([("A",), ("B",)])) == ["a", "b"]
    assert ran == ["A", "B"]


def test_a_ledger_that_is_away_is_not_asked_for_every_call_of_a_batch() -> None:
    ran: list[str] = []
    ledger = Failing(claims="unheard", away=True)
    came = place(ledger, ran).many([(str(number),) for number in range(100)])
    assert {type(one) for one in came} == {LedgerUnavailableError}
    assert {one.ran for one in came} == {False}
    assert [one.key for one in came] == [str(number) for number in range(100)]
    assert ledger.asked == 3
    assert ran == []


@pytest.mark.parametrize("completions", ["unheard", "heard"])
def test_completions_that_brought_no_answer_are_sent_again_one_by_one(completions: str) -> None:
    ran: list[str] = []
    f = place(Failing(completions=completions), ran)
    assert values(f.many([("A",), ("B",)])) == ["a", "b"]
    assert [one.replayed for one in f.many([("A",), ("B",)])] == [True, True]
    assert ran == ["A", "B"]


def test_a_completion_that_cannot_be_written_leaves_the_outcome_unknown_with_the_result() -> None:
    ran: list[str] = []

    class Gone(Failing):
        def complete_many(self, firsts: Sequence[tuple[Call, Payload]]) -> Steps[list[bool]]:
            yield from ()
            if any(call.key == "A" for call, _ in firsts):
                raise ConnectionError("away")
            return (yield from super().complete_many(firsts))

    f = place(Gone(), ran, lease=0.2)
    unknown, kept = f.many([("A",), ("B",)])
    assert isinstance(unknown, OutcomeUnknownError)
    assert unknown.result == "a"
    assert isinstance(unknown.__cause__, ConnectionError)
    assert kept.value == "b"


def test_an_owner_that_lost_its_lease_is_told_so_alone() -> None:
    ledger = Memory()

    @idempotent(key="{order}", using=ledger, name="lost")
    def f(order: str) -> str:
        if order == "A":
            lost = f.__idempo__.call(("A",), {})  # type: ignore[attr-defined]
            del ledger._rows[lost.digest]  # its record was removed meanwhile
        return order

    lost, kept = f.many([("A",), ("B",)])
    assert isinstance(lost, LeaseLostError)
    assert lost.result == "A"
    assert isinstance(kept, Outcome)


def test_a_batch_of_more_than_a_request_takes_is_answered_whole() -> None:
    ran: list[str] = []
    orders = [str(number) for number in range(2 * MOST + 1)]
    assert values(place(Memory(), ran).many([(order,) for order in orders])) == orders
    assert ran == orders


def test_results_of_many_mebibytes_are_recorded_in_several_requests() -> None:
    requests: list[int] = []

    class Counting(Memory):
        def complete_many(self, firsts: Sequence[tuple[Call, Payload]]) -> Steps[list[bool]]:
            requests.append(sum(len(payload.data or b"") for _, payload in firsts))
            return (yield from super().complete_many(firsts))

    @idempotent(key="{order}", using=Counting(), name="large")
    def f(order: int) -> bytes:
        return bytes(1_000_000)

    came = f.many([(number,) for number in range(10)])
    assert {len(one.value) for one in came if isinstance(one, Outcome)} == {1_000_000}
    assert len(requests) > 1
    assert max(requests) <= 4 * 1024 * 1024


def test_a_result_that_cannot_be_stored_goes_to_its_first_caller_and_to_no_repeat() -> None:
    @idempotent(key="{order}", using=Memory(), name="unstorable")
    def f(order: int) -> object:
        return object() if order else "stored"

    first, repeat, other = f.many([(1,), (1,), (0,)])
    assert isinstance(first, Outcome)
    assert isinstance(repeat, ResultUnavailableError)
    assert isinstance(other, Outcome)


def test_repeats_in_a_batch_share_no_mutable_state() -> None:
    @idempotent(key="{order}", using=Memory(), name="mutable")
    def f(order: str) -> list[int]:
        return [1]

    first, repeat = f.many([("A",), ("A",)])
    assert isinstance(first, Outcome)
    assert isinstance(repeat, Outcome)
    first.value.append(2)
    assert repeat.value == [1]


def test_hooks_are_told_of_each_call() -> None:
    told: list[tuple[str, str]] = []

    def hook(event: Event) -> None:
        told.append((event.kind, event.key))

    f = place(Memory(), [], hooks=[hook])
    f.many([("A",), ("B",), ("A",)])
    assert told == [
        *[("claimed", "A"), ("claimed", "B")],
        *[("completed", "A"), ("completed", "B")],
        ("replayed", "A"),
    ]


def test_a_call_inside_of_one_with_its_key_is_refused_in_its_place() -> None:
    came: list[Any] = []

    @idempotent(key="{order}", using=Memory(), name="nested")
    def f(order: str) -> str:
        if order == "A":
            came.extend(f.many([("A",), ("B",)]))
        return order

    f("A")
    assert isinstance(came[0], ReentrantCallError)
    assert came[1].value == "B"


def test_the_many_of_a_method_belongs_to_its_instance() -> None:
    class Shop:
        def __init__(self, name: str) -> None:
            self.name = name

        @idempotent(key="{self.name}/{order}", using=Memory(), name="method")
        def place(self, order: str) -> str:
            return f"{self.name}: {order}"

    here, there = Shop("here"), Shop("there")
    assert values(here.place.many([("A",), {"order": "B"}])) == ["here: A", "here: B"]
    assert values(there.place.many([("A",)])) == ["there: A"]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'shop.db'}"


def test_a_record_in_the_callers_transaction_is_made_call_by_call(url: str) -> None:
    engine = create_engine(url)
    ran: list[str] = []

    @idempotent(key="{order}", using=UniqueInsert(engine, join="session"), name="joined")
    def f(order: str, session: Session = INJECTED) -> str:
        ran.append(order)
        if order == "fails":
            raise ValueError(order)
        return order

    for _ in range(2):
        assert values(f.many([("A",), ("fails",), ("B",), ("A",)])) == ["A", ValueError, "B", "A"]
    assert ran == ["A", "fails", "B", "fails"]
    engine.dispose()


def test_a_tier_in_front_is_filled_call_by_call() -> None:
    ran: list[str] = []
    f = place([LocalCache(), Memory()], ran)
    assert values(f.many([("A",), ("B",)])) == ["a", "b"]
    assert [one.replayed for one in f.many([("A",), ("B",)])] == [True, True]
    assert ran == ["A", "B"]


def test_tokens_are_spent_call_by_call() -> None:
    token = OneTimeToken(Memory())
    ran: list[str] = []
    f = place(token, ran)
    assert values(f.many([("never issued",)])) == [TokenUnknownError]
    assert ran == []


def test_a_redis_that_knows_no_script_yet_is_told_them(redis_server: Server) -> None:
    import redis

    client = redis.Redis.from_url(redis_server.url)
    strategy = RedisCache(redis_server.url)
    ran: list[str] = []
    f = place(strategy, ran)
    client.script_flush()
    assert values(f.many([("A",), ("B",)])) == ["a", "b"]
    assert ran == ["A", "B"]
    strategy.close()
    client.close()
