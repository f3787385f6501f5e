"""The promises as test suites that anybody can subclass: what a ledger must do to be one.

A subclass names its colour and returns a strategy; pytest finds the rest:

    class TestMemory(LedgerContract):
        colour = "sync"

        def make(self) -> Strategy:
            return Memory()

The tests are steps (see `idempo.steps`): `yield f("A")` is a plain call in one colour and an awaited one in the other.
Nothing is decided by timing: what a test waits for, it asks the ledger for.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import threading
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from idempo.assembly import operation_of
from idempo.contracts import Colour, Ledger, Strategy
from idempo.decorator import idempotent
from idempo.errors import (
    FingerprintMismatchError,
    IdempoError,
    InProgressError,
    KeyRefusedError,
    LedgerUnavailableError,
    ReentrantCallError,
    ResultUnavailableError,
)
from idempo.events import Event
from idempo.records import Answer, Call, Claimed, Completed, Done, InProgress, Orphan, Payload, Record
from idempo.running import current
from idempo.steps import Pause, Steps, arun, run

__all__ = ["Effects", "Gate", "LedgerContract", "PromiseContract", "drive", "driven", "ledger_of", "new_call"]

_CALLERS = 12


def drive(colour: Colour, steps: Steps[Any]) -> Any:
    """Take steps to their end in a colour, in an event loop of their own if async."""
    return run(steps) if colour == "sync" else asyncio.run(arun(steps))


def driven(test: Callable[..., Steps[None]]) -> Callable[..., None]:
    """Make a test method out of steps."""

    @functools.wraps(test)
    def method(self: Any, *args: Any, **kwargs: Any) -> None:
        def whole() -> Steps[None]:
            try:
                yield from test(self, *args, **kwargs)
            finally:
                yield from self.closing()

        drive(self.colour, whole())

    return method


def new_call(key: str = "A-1", **changes: Any) -> Call:
    """Return a call as the decorator would make it, with an owner of its own."""
    call = Call(
        operation="contract",
        scope="",
        key=key,
        digest=key.encode().ljust(32, b"\0")[:32],
        fingerprint=b"",
        owner=os.urandom(16),
        lease=30.0,
        keep=3600.0,
        arguments={},
    )
    return replace(call, **changes)


def ledger_of(strategy: Strategy, colour: Colour) -> Ledger:
    """Return the ledger of a strategy that claims under a lease."""

    def probe(order: str) -> int:
        return 0

    async def aprobe(order: str) -> int:
        return 0

    decorated: Any = idempotent(key="{order}", using=strategy)(probe if colour == "sync" else aprobe)
    layer: Any = operation_of(decorated).layers[-1]
    ledger: Ledger = layer.ledger
    return ledger


class Effects:
    """What the functions under test have done, counted over threads and tasks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done: list[str] = []

    def add(self, effect: str) -> int:
        """Note one effect; return how many there are."""
        with self._lock:
            self._done.append(effect)
            return len(self._done)

    def __len__(self) -> int:
        return len(self._done)

    def of(self, effect: str) -> int:
        """How often this one happened."""
        return self._done.count(effect)


class Gate:
    """Holds a function until it is opened, in either colour."""

    def __init__(self, colour: Colour) -> None:
        self._event: Any = threading.Event() if colour == "sync" else asyncio.Event()

    def open(self) -> None:
        self._event.set()

    def wait(self) -> Any:
        return self._event.wait()


def _function(body: Callable[[str, int], Any], colour: Colour, joined: bool) -> Callable[..., Any]:
    """A function with this body, of this colour, with a parameter `session` where there is something to join."""

    async def awaited(order: str, amount: int) -> Any:
        result = body(order, amount)
        return await result if inspect.isawaitable(result) else result

    def plain(order: str, amount: int = 1) -> Any:
        return body(order, amount)

    def plain_joined(order: str, amount: int = 1, session: Any = None) -> Any:
        return body(order, amount)

    async def coroutine(order: str, amount: int = 1) -> Any:
        return await awaited(order, amount)

    async def coroutine_joined(order: str, amount: int = 1, session: Any = None) -> Any:
        return await awaited(order, amount)

    match colour, joined:
        case "sync", False:
            return plain
        case "sync", True:
            return plain_joined
        case _, False:
            return coroutine
        case _:
            return coroutine_joined


class PromiseContract:
    """What everybody who decorates a function may rely on, whatever the strategy."""

    colour: ClassVar[Colour] = "sync"
    joined: ClassVar[bool] = False
    """True if the strategy joins the parameter `session`."""

    def make(self) -> Strategy:
        """Return the strategy under test, on a store that may be shared with other tests."""
        raise NotImplementedError

    def closing(self) -> Steps[None]:
        """Let go of what `make` opened; runs at the end of each test, in its event loop."""
        yield from ()

    def decorate(self, body: Callable[[str, int], Any], **options: Any) -> Any:
        """Decorate `body(order, amount)`, which may return an awaitable under async."""
        terms: Any = {"key": "{order}", "using": self.make(), "name": f"contract.{uuid.uuid4()}"} | options
        return idempotent(**terms)(_function(body, self.colour, self.joined))

    def together(self, calls: Iterable[Callable[[], Any]]) -> Steps[list[Any]]:
        """Call all at once, in threads or tasks; return values and exceptions in order."""
        calls = list(calls)
        if self.colour == "async":
            results: list[Any] = yield asyncio.gather(*(call() for call in calls), return_exceptions=True)
            return results
        found: list[Any] = [None] * len(calls)
        start = threading.Barrier(len(calls))

        def work(index: int) -> None:
            start.wait()
            try:
                found[index] = calls[index]()
            except BaseException as error:
                found[index] = error

        threads = [threading.Thread(target=work, args=(index,)) for index in range(len(calls))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def caught(self, kind: type[BaseException], call: Callable[[], Any]) -> Steps[Any]:
        """Call, and return the exception of this kind that must come."""
        try:
            value = yield call()
        except kind as error:
            return error
        pytest.fail(f"{kind.__name__} did not come, but {value!r}")

    # -------------------------------------------------------------------------------- first call and replay

    @driven
    def test_the_function_runs_once_and_every_repeat_gets_the_first_result(self) -> Steps[None]:
        effects = Effects()
        f = self.decorate(lambda order, amount: {"order": order, "number": effects.add(order)})
        first = yield f("A-1")
        assert first == {"order": "A-1", "number": 1}
        assert (yield f("A-1")) == first
        outcome = yield f.outcome(order="A-1")
        assert (outcome.value, outcome.replayed, outcome.attempt) == (first, True, 1)
        assert len(effects) == 1

    @driven
    def test_a_falsy_first_result_is_a_result(self) -> Steps[None]:
        effects = Effects()
        values: list[Any] = [None, 0, "", [], False, {}]

        def returning(value: Any) -> Callable[[str, int], Any]:
            return lambda order, amount: (effects.add(order), value)[1]

        for value in values:
            f = self.decorate(returning(value))
            assert (yield f("A-1")) == value
            again = yield f("A-1")
            assert again == value and type(again) is type(value)
        assert len(effects) == 6

    @driven
    def test_one_result_for_all_who_come_at_once(self) -> Steps[None]:
        effects = Effects()
        f = self.decorate(lambda order, amount: effects.add(order), wait=60)
        found = yield from self.together([lambda: f("A-1")] * _CALLERS)
        assert found == [1] * _CALLERS

    @driven
    def test_the_callers_object_and_the_stored_result_share_no_state(self) -> Steps[None]:
        f = self.decorate(lambda order, amount: {"items": [1]})
        first = yield f("A-1")
        first["items"].append(2)
        assert (yield f("A-1")) == {"items": [1]}

    @driven
    def test_lookup_finds_the_record_and_forget_lets_it_run_again(self) -> Steps[None]:
        effects = Effects()
        f = self.decorate(lambda order, amount: effects.add(order))
        assert (yield f.lookup("A-1")) is None
        yield f("A-1")
        record = yield f.lookup("A-1")
        assert (record.state, record.key, record.value, record.attempt) == ("completed", "A-1", 1, 1)
        assert (yield f.forget("A-1")) is True
        assert (yield f.lookup("A-1")) is None
        assert (yield f.forget("A-1")) is False
        assert (yield f("A-1")) == 2

    # -------------------------------------------------------------------------------- no cross-talk

    @driven
    def test_another_function_has_other_keys(self) -> Steps[None]:
        f = self.decorate(lambda order, amount: "f")
        g = self.decorate(lambda order, amount: "g")
        assert (yield f("A-1")) == "f"
        assert (yield g("A-1")) == "g"

    @driven
    def test_another_scope_has_other_keys(self) -> Steps[None]:
        f = self.decorate(lambda order, amount: amount, scope="{amount}", fingerprint=None)
        assert (yield f("A-1", 1)) == 1
        assert (yield f("A-1", 2)) == 2

    @driven
    def test_other_arguments_under_one_key_are_refused_by_name(self) -> Steps[None]:
        effects = Effects()
        f = self.decorate(lambda order, amount: effects.add(order))
        yield f("A-1", 1)
        error = yield from self.caught(FingerprintMismatchError, lambda: f("A-1", 2))
        assert error.differing == ("amount",) and error.ran is False and error.key == "A-1"
        assert len(effects) == 1

    @driven
    def test_keys_that_a_collation_would_confuse_are_different(self) -> Steps[None]:
        f = self.decorate(lambda order, amount: order)
        for key in ("Order-A", "order-a", "Order-A ", "Order-Á", "Order-A\u0301", "Order-\x00A", "0", "00"):
            assert (yield f(key)) == key

    # -------------------------------------------------------------------------------- failure

    @driven
    def test_the_functions_own_exception_passes_untouched_and_frees_the_key(self) -> Steps[None]:
        effects, broken = Effects(), ValueError("declined")

        def body(order: str, amount: int) -> int:
            if effects.add(order) == 1:
                raise broken
            return len(effects)

        f = self.decorate(body)
        assert (yield from self.caught(ValueError, lambda: f("A-1"))) is broken
        assert broken.__cause__ is None and not broken.__suppress_context__
        outcome = yield f.outcome("A-1")
        assert (outcome.value, outcome.replayed) == (2, False)

    @driven
    def test_waiters_take_over_if_the_first_run_fails(self) -> Steps[None]:
        effects = Effects()

        def body(order: str, amount: int) -> int:
            number = effects.add(order)
            if number == 1:
                raise ValueError("the first one fails")
            return number

        f = self.decorate(body, wait=60)
        found = yield from self.together([lambda: f("A-1")] * _CALLERS)
        assert len(effects) == 2
        assert sorted(map(str, found)) == ["2"] * (_CALLERS - 1) + ["the first one fails"]

    @driven
    def test_an_exception_that_is_a_result_is_raised_again(self) -> Steps[None]:
        effects = Effects()

        def body(order: str, amount: int) -> None:
            effects.add(order)
            raise LookupError("no such account", amount)

        f = self.decorate(body, replay_errors=[LookupError])
        for _ in range(3):
            error = yield from self.caught(LookupError, lambda: f("A-1"))
            assert type(error) is LookupError and error.args == ("no such account", 1)
        assert len(effects) == 1
        assert (yield f.lookup("A-1")).state == "failed"

    @driven
    def test_a_result_that_cannot_be_stored_is_given_once_and_never_runs_again(self) -> Steps[None]:
        effects, odd = Effects(), object()
        f = self.decorate(lambda order, amount: (effects.add(order), odd)[1])
        assert (yield f("A-1")) is odd
        error = yield from self.caught(ResultUnavailableError, lambda: f("A-1"))
        assert error.ran is True
        assert len(effects) == 1

    @driven
    def test_a_result_over_its_limit_is_given_once_and_never_runs_again(self) -> Steps[None]:
        effects = Effects()
        f = self.decorate(lambda order, amount: (effects.add(order), "x" * 5000)[1], max_result=4096)
        assert (yield f("A-1")) == "x" * 5000
        yield from self.caught(ResultUnavailableError, lambda: f("A-1"))
        assert len(effects) == 1

    @driven
    def test_a_large_result_comes_back_whole(self) -> Steps[None]:
        large = os.urandom(1_000_000)
        f = self.decorate(lambda order, amount: large)
        assert (yield f("A-1")) == large
        assert (yield f("A-1")) == large

    @driven
    def test_a_key_over_4_kib_is_refused_before_anything_runs(self) -> Steps[None]:
        effects = Effects()
        f = self.decorate(lambda order, amount: effects.add(order))
        keys: list[Any] = ["x" * 5000, "", None, 1.5]
        for key in keys:
            error = yield from self.caught(KeyRefusedError, functools.partial(f, key))
            assert error.ran is False
        assert len(effects) == 0

    # -------------------------------------------------------------------------------- nested calls

    @driven
    def test_a_call_of_its_own_key_from_inside_is_refused_at_once(self) -> Steps[None]:
        f = self.decorate(lambda order, amount: f(order), wait=60)
        error = yield from self.caught(ReentrantCallError, lambda: f("A-1"))
        assert error.ran is False

    @driven
    def test_current_tells_the_running_function_who_it_is(self) -> Steps[None]:
        seen: list[Call] = []

        def body(order: str, amount: int) -> str:
            seen.append(current())
            if len(seen) == 1:
                raise ValueError("once more")
            return current().downstream_key("stripe")

        f = self.decorate(body)
        yield from self.caught(ValueError, lambda: f("A-1"))
        yield f("A-1")
        first, second = seen
        assert first.key == second.key == "A-1"
        assert (
            first.downstream_key("stripe") == second.downstream_key("stripe") != first.downstream_key("mail")
        )
        assert second.fence > first.fence > 0
        assert first.owner != second.owner
        with pytest.raises(IdempoError):
            current()


class LedgerContract(PromiseContract):
    """What a ledger that claims under a lease must do, request by request."""

    def ledger(self) -> Ledger:
        self._strategy = self.make()
        return ledger_of(self._strategy, self.colour)

    def orphaned(self, ledger: Ledger, call: Call) -> Steps[int]:
        """Wait until the ledger calls this key an orphan; return its fence. The ledger's clock decides."""
        for _ in range(10_000):
            answer: Answer = yield from ledger.claim(replace(call, owner=os.urandom(16)), None)
            match answer:
                case Orphan(_, fence):
                    return fence
                case InProgress():
                    yield Pause(0.005)
                case _:
                    pytest.fail(f"neither in progress nor an orphan: {answer}")
        pytest.fail("the lease never ended")

    def claimed(self, ledger: Ledger, call: Call, over: int | None = None) -> Steps[Call]:
        answer = yield from ledger.claim(call, over)
        assert isinstance(answer, Claimed)
        return replace(call, fence=answer.fence, attempt=answer.attempt)

    def record(self, ledger: Ledger, call: Call) -> Steps[Record]:
        record = yield from ledger.lookup(call.digest)
        assert record is not None
        return record

    def key(self) -> str:
        return uuid.uuid4().hex

    @driven
    def test_single_claim(self) -> Steps[None]:
        """At any instant at most one current owner of a key."""
        ledger, key = self.ledger(), self.key()
        calls = [new_call(key) for _ in range(_CALLERS)]

        def claiming(call: Call) -> Any:
            steps = ledger.claim(call, None)
            return run(steps) if self.colour == "sync" else arun(steps)

        found = yield from self.together([functools.partial(claiming, call) for call in calls])
        assert [type(answer) for answer in found].count(Claimed) == 1
        assert [type(answer) for answer in found].count(InProgress) == _CALLERS - 1

    @driven
    def test_each_takeover_has_a_larger_fence(self) -> Steps[None]:
        ledger, key = self.ledger(), self.key()
        fences, over = [], None
        for attempt in range(1, 4):
            mine = yield from self.claimed(ledger, new_call(key, lease=0.05), over)
            assert mine.attempt == attempt
            fences.append(mine.fence)
            over = yield from self.orphaned(ledger, mine)
            assert over == mine.fence
        assert fences == sorted(set(fences))

    @driven
    def test_an_orphan_is_taken_over_by_one(self) -> Steps[None]:
        ledger, key = self.ledger(), self.key()
        dead = yield from self.claimed(ledger, new_call(key, lease=0.05))
        over = yield from self.orphaned(ledger, dead)

        def claiming(call: Call) -> Any:
            steps = ledger.claim(call, over)
            return run(steps) if self.colour == "sync" else arun(steps)

        calls = [functools.partial(claiming, new_call(key)) for _ in range(_CALLERS)]
        found = yield from self.together(calls)
        assert [type(answer) for answer in found].count(Claimed) == 1

    @driven
    def test_the_fence_grows_over_release_and_forget(self) -> Steps[None]:
        ledger, key = self.ledger(), self.key()
        one = yield from self.claimed(ledger, new_call(key))
        assert (yield from ledger.release(one))
        two = yield from self.claimed(ledger, new_call(key))
        assert two.attempt == 2
        assert (yield from ledger.complete(two, Payload("completed", b"2")))
        assert (yield from ledger.forget(two.digest))
        three = yield from self.claimed(ledger, new_call(key))
        assert one.fence < two.fence < three.fence

    @driven
    def test_stale_owners_are_powerless(self) -> Steps[None]:
        """Renew, complete, fail, release with an old owner change nothing and say so."""
        ledger, key = self.ledger(), self.key()
        old = yield from self.claimed(ledger, new_call(key, lease=0.05))
        over = yield from self.orphaned(ledger, old)
        new = yield from self.claimed(ledger, new_call(key), over)
        before = yield from self.record(ledger, old)
        yield from self._powerless(ledger, old)
        assert (yield from self.record(ledger, old)).lease_until == before.lease_until
        assert (yield from ledger.complete(new, Payload("completed", b"new")))
        yield from self._powerless(ledger, old)
        assert (yield from self.record(ledger, old)).payload == Payload("completed", b"new")

    def _powerless(self, ledger: Ledger, old: Call) -> Steps[None]:
        assert not (yield from ledger.renew(old, 60.0))
        assert not (yield from ledger.renew(old, 0.0))
        assert not (yield from ledger.complete(old, Payload("completed", b"old")))
        assert not (yield from ledger.complete(old, Payload("failed", b"old")))
        assert not (yield from ledger.release(old))

    @driven
    def test_an_owner_that_released_has_nothing_more_to_say(self) -> Steps[None]:
        ledger, key = self.ledger(), self.key()
        old = yield from self.claimed(ledger, new_call(key))
        assert (yield from ledger.release(old))
        assert not (yield from ledger.complete(old, Payload("completed", b"old")))
        assert not (yield from ledger.renew(old, 60.0))
        assert (yield from ledger.lookup(old.digest)) is None

    @driven
    def test_a_request_sent_again_by_the_driver_answers_as_before(self) -> Steps[None]:
        ledger, key = self.ledger(), self.key()
        call = new_call(key)
        first = yield from ledger.claim(call, None)
        assert (yield from ledger.claim(call, None)) == first
        payload = Payload("completed", b"\x00\xff result")
        assert (yield from ledger.complete(call, payload))
        assert (yield from ledger.complete(call, payload))
        answer = yield from ledger.claim(new_call(key), None)
        assert isinstance(answer, Completed) and answer.payload == payload and answer.owner == call.owner

    @driven
    def test_a_renewed_lease_is_honoured(self) -> Steps[None]:
        ledger, key = self.ledger(), self.key()
        call = yield from self.claimed(ledger, new_call(key, lease=0.2))
        assert (yield from ledger.renew(call, 60.0))
        answer = yield from ledger.claim(new_call(key), None)
        assert isinstance(answer, InProgress) and 1 < answer.lease_left <= 60

    @driven
    def test_a_renewal_with_no_lease_makes_an_orphan_at_once(self) -> Steps[None]:
        ledger, key = self.ledger(), self.key()
        call = yield from self.claimed(ledger, new_call(key))
        assert (yield from ledger.renew(call, 0.0))
        assert isinstance((yield from ledger.claim(new_call(key), None)), Orphan)

    @driven
    def test_a_record_is_gone_when_its_retention_is_over(self) -> Steps[None]:
        ledger, key = self.ledger(), self.key()
        call = yield from self.claimed(ledger, new_call(key, keep=0.05, lease=0.05))
        yield from ledger.complete(call, Payload("completed", b"1"))
        for _ in range(10_000):
            if (yield from ledger.lookup(call.digest)) is None:
                break
            yield Pause(0.005)
        again = yield from self.claimed(ledger, new_call(key))
        assert again.attempt == 1 and again.fence > call.fence

    @driven
    def test_a_claim_is_never_deleted_by_others(self) -> Steps[None]:
        """Not by a waiter whose time is over, not by forget."""
        ledger, key = self.ledger(), self.key()
        call = yield from self.claimed(ledger, new_call(key))
        assert not (yield from ledger.forget(call.digest))
        assert isinstance((yield from ledger.claim(new_call(key), None)), InProgress)
        assert not (yield from ledger.release(new_call(key)))
        assert (yield from ledger.complete(call, Payload("completed", b"1")))

    @driven
    def test_fill_keeps_what_another_ledger_has_recorded(self) -> Steps[None]:
        ledger, key = self.ledger(), self.key()
        done = Done("v", None, Payload("completed", b"v"), False, 3, 77, keep_left=60.0, durable=True)
        for _ in range(2):
            yield from ledger.fill(new_call(key), done)
        record = yield from self.record(ledger, new_call(key))
        assert (record.payload, record.attempt, record.fence) == (done.payload, 3, 77)
        assert 1 < record.keep_left <= 60

    # -------------------------------------------------------------------------------- seen through the decorator

    @driven
    def test_a_duplicate_waits_no_longer_than_it_was_told(self) -> Steps[None]:
        gate, inside = Gate(self.colour), Gate(self.colour)

        def body(order: str, amount: int) -> Any:
            inside.open()
            return gate.wait()

        strategy = self.make()
        name = f"contract.{uuid.uuid4()}"
        f = self.decorate(body, using=strategy, name=name)
        hasty = self.decorate(body, using=strategy, name=name, wait=0)

        def refused() -> Steps[None]:
            yield inside.wait()
            error = yield from self.caught(InProgressError, lambda: hasty("A-1"))
            assert error.ran is False and 0 < error.retry_after <= 30
            error = yield from self.caught(InProgressError, lambda: hasty.forget("A-1"))
            gate.open()

        def second() -> Any:
            return drive("sync", refused()) if self.colour == "sync" else arun(refused())

        found = yield from self.together([lambda: f("A-1"), second])
        assert found == [True, None]

    @driven
    def test_cancellation_is_not_failure(self) -> Steps[None]:
        """An interrupt mid-run leaves the claim to its lease; then a repeat takes over."""
        effects, events = Effects(), list[Event]()
        interrupt = KeyboardInterrupt if self.colour == "sync" else asyncio.CancelledError

        def body(order: str, amount: int) -> int:
            if effects.add(order) == 1:
                raise interrupt
            return len(effects)

        f = self.decorate(body, lease=0.3, keep=60, hooks=[events.append], wait=60)
        yield from self.caught(interrupt, lambda: f("A-1"))
        assert (yield f.lookup("A-1")).attempt == 1
        outcome = yield f.outcome("A-1")
        assert (outcome.value, outcome.attempt, outcome.replayed) == (2, 2, False)
        assert [event.kind for event in events if event.kind != "waited"] == [
            "claimed",
            "took over",
            "completed",
        ]

    @driven
    def test_fail_closed(self) -> Steps[None]:
        """If the store cannot decide, the function does not run."""
        effects = Effects()
        f = self.decorate(lambda order, amount: effects.add(order))
        ledger: Any = operation_of(f).layers[-1].ledger  # type: ignore[attr-defined]
        broken = _Unreachable(ledger)
        object.__setattr__(operation_of(f).layers[-1], "ledger", broken)
        error = yield from self.caught(LedgerUnavailableError, lambda: f("A-1"))
        assert error.ran is False and isinstance(error.__cause__, ConnectionError)
        assert len(effects) == 0


class _Unreachable:
    """A ledger whose store does not answer."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def claim(self, call: Call, over: int | None) -> Steps[Answer]:
        yield from ()
        raise ConnectionError("no route to the store")
