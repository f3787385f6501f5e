"""Rules of the protocol that no test held until a mutant of it went unnoticed; see docs/explanation/mutation.md."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from idempo import Event, FingerprintMismatchError, Memory, OutcomeUnknownError, idempotent
from idempo.assembly import operation_of
from idempo.protocol import tier
from idempo.records import Answer, Call, Claimed, Done, Payload
from idempo.steps import Steps, run
from idempo.testing import new_call
from tests.tokens.support import Clock

SECONDS = 30


class Interrupted(Memory):
    """Its caller is interrupted once a claim has arrived, and before the answer has."""

    interrupts = False

    def claim(self, call: Call, over: int | None) -> Steps[Answer]:
        answer = yield from super().claim(call, over)
        if self.interrupts and isinstance(answer, Claimed):
            raise KeyboardInterrupt
        return answer


@pytest.mark.parametrize(("orphan", "left"), [(False, None), (True, "orphan")], ids=["free", "orphan"])
def test_a_caller_that_is_interrupted_while_claiming_leaves_the_key_as_it_was(
    orphan: bool, left: Any
) -> None:
    ledger = Interrupted()

    @idempotent(key="{order}", using=ledger, unknown_errors=[TimeoutError])
    def place(order: str) -> None:
        raise TimeoutError

    if orphan:
        with pytest.raises(OutcomeUnknownError):
            place("A-1")
    ledger.interrupts = True
    with pytest.raises(KeyboardInterrupt):
        place("A-1")
    found = place.lookup("A-1")
    assert (found.state if found else None) == left


def test_an_interrupt_while_a_probe_judges_leaves_the_claim_to_its_lease() -> None:
    def probe(call: Call) -> Any:
        raise KeyboardInterrupt

    @idempotent(key="{order}", using=Memory(), unknown_errors=[TimeoutError], on_orphan=probe)
    def place(order: str) -> None:
        raise TimeoutError

    for error in (OutcomeUnknownError, KeyboardInterrupt):
        with pytest.raises(error):
            place("A-1")
    record = place.lookup("A-1")
    assert record is not None
    assert record.state == "running"


def test_a_key_of_its_own_is_free_after_a_failure_and_after_a_refusal_inside() -> None:
    """Nothing has happened under it, so it is not bound to the order that it was used for."""

    @idempotent(key="{order}", using=[Memory(key="{token}"), Memory()], fingerprint=("amount",), wait=0)
    def place(order: str, token: str, amount: int = 1) -> int:
        if amount < 0:
            raise ValueError(amount)
        return amount

    with pytest.raises(ValueError, match="-1"):
        place("A-1", "t-1", -1)
    assert place("A-2", "t-1") == 1
    with pytest.raises(FingerprintMismatchError) as refused:
        place("A-2", "t-2", 2)
    assert refused.value.differing == ("amount",)
    assert place("A-3", "t-2") == 1


def test_a_key_of_its_own_is_bound_to_its_order_for_as_long_as_the_result_is_kept() -> None:
    clock = Clock()

    @idempotent(key="{order}", using=[Memory(key="{token}", clock=clock), Memory(clock=clock)], keep=100)
    def place(order: str, token: str) -> str:
        return order

    place("A-1", "t-1")
    clock.now += 99
    with pytest.raises(FingerprintMismatchError):
        place("A-2", "t-1")
    clock.now += 1
    assert place("A-2", "t-1") == "A-2"


def fronted(outside: Memory, inside: Callable[[Call], Steps[Done]]) -> Done:
    """The answer of a call with a tier in front of `inside`."""

    @idempotent(key="{order}", using=Memory())
    def unused(order: str) -> None: ...

    return run(tier(outside, new_call(), operation_of(unused).terms, inside, required=True))


def first_result(keep_left: float = 100.0) -> Done:
    return Done("v", None, Payload("completed", b"v"), False, 1, 1, keep_left, durable=True)


@pytest.mark.parametrize(("keep_left", "kept"), [(100.0, 60.0), (40.5, 0.5), (40.0, None), (39.0, None)])
def test_a_tier_keeps_what_comes_from_inside_for_as_long_as_it_is_kept_there(
    keep_left: float, kept: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time that the inside took to answer may have passed since it said how long."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    outside = Memory(clock=clock)

    def inside(call: Call) -> Steps[Done]:
        yield from ()
        clock.now += 40
        return first_result(keep_left)

    fronted(outside, inside)
    record = run(outside.lookup(new_call().digest))
    assert (None if record is None else record.keep_left) == kept


def test_a_claim_in_a_tier_is_no_answer() -> None:
    """It may stand there from a time when this ledger kept the record itself."""
    outside = Memory()
    run(outside.claim(new_call(), None))

    def inside(call: Call) -> Steps[Done]:
        yield from ()
        return first_result()

    assert fronted(outside, inside).value == "v"


class Away(Memory):
    """Does not answer the first two completions, nor the first renewal."""

    def __init__(self) -> None:
        super().__init__()
        self.away = {"complete": 2, "renew": 1}

    def answering(self, request: str) -> None:
        if self.away[request]:
            self.away[request] -= 1
            raise ConnectionError("no route to the store")

    def complete(self, call: Call, payload: Payload) -> Steps[bool]:
        self.answering("complete")
        return (yield from super().complete(call, payload))

    def renew(self, call: Call, lease: float) -> Steps[bool]:
        self.answering("renew")
        return (yield from super().renew(call, lease))


def test_a_ledger_that_does_not_answer_is_asked_again_and_told_of() -> None:
    events: list[Event] = []
    times: list[float] = []
    renewed = threading.Event()

    def hook(event: Event) -> None:
        events.append(event)
        times.append(time.monotonic())
        if event.kind == "renewed":
            renewed.set()

    @idempotent(key="{order}", using=Away(), lease=1.5, hooks=[hook])
    def place(order: str) -> bool:
        return renewed.wait(SECONDS)

    began = time.monotonic()
    assert place("A-1")
    assert times[1] >= began + 0.5, "renewed before a third of the lease was over"
    told = [(event.kind, event.detail) for event in events if event.kind != "renewed"]
    assert told == [
        ("claimed", ""),
        ("unavailable", "renewal: ConnectionError"),
        ("unavailable", "completion: ConnectionError"),
        ("unavailable", "completion: ConnectionError"),
        ("completed", ""),
    ]


def test_a_completion_that_is_never_answered_is_an_unknown_outcome_with_the_result() -> None:
    ledger, many = Away(), 1_000_000
    ledger.away["complete"] = many

    @idempotent(key="{order}", using=ledger, lease=0.2, on_orphan="refuse")
    def place(order: str) -> str:
        return order

    with pytest.raises(OutcomeUnknownError, match="could not be written") as unknown:
        place("A-1")
    assert unknown.value.result == "A-1"
    assert isinstance(unknown.value.__cause__, ConnectionError)
    assert many - ledger.away["complete"] < 50, "asked without a pause"  # of 5 ms at the least, for 200 ms
    record = place.lookup("A-1")
    assert record is not None
    assert record.payload is None


def test_a_renewal_that_ends_with_its_event_loop_is_no_failure_of_the_ledger() -> None:
    events: list[str] = []
    asked = asyncio.Event()

    class Silent(Memory):
        def renew(self, call: Call, lease: float) -> Steps[bool]:
            asked.set()
            yield asyncio.Event().wait()
            return True

    @idempotent(key="{order}", using=Silent(), lease=0.3, hooks=[lambda event: events.append(event.kind)])
    async def place(order: str) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(place("A-1"))
        await asyncio.wait_for(asked.wait(), SECONDS)
        assert not task.done()

    asyncio.run(main())
    assert events == ["claimed"]


def test_what_becomes_of_a_run_is_told() -> None:
    events: list[str] = []

    @idempotent(
        key="{order}", using=Memory(), replay_errors=[KeyError], hooks=[lambda e: events.append(e.kind)]
    )
    def place(order: str) -> None:
        if order == "failed":
            raise KeyError(order)
        if order == "released":
            raise ValueError(order)

    place("completed")
    for order, error in (("failed", KeyError), ("released", ValueError)):
        with pytest.raises(error):
            place(order)
    assert events == ["claimed", "completed", "claimed", "failed", "claimed", "released"]
