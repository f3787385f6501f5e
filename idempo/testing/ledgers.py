"""What a ledger that claims under a lease must do, request by request."""

from __future__ import annotations

import asyncio
import functools
import os
import uuid
from typing import Any

import pytest

from idempo.assembly import operation_of
from idempo.contracts import Ledger
from idempo.errors import FingerprintMismatchError, InProgressError, LedgerUnavailableError
from idempo.events import Event
from idempo.records import (
    Answer,
    Call,
    Claimed,
    Completed,
    Done,
    InProgress,
    Orphan,
    Payload,
    Record,
    replace,
)
from idempo.steps import Pause, Steps, arun, run
from idempo.testing.promises import PromiseContract
from idempo.testing.tools import CALLERS, Effects, Gate, drive, driven, ledger_of, new_call

__all__ = ["LedgerContract"]


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
        calls = [new_call(key) for _ in range(CALLERS)]

        def claiming(call: Call) -> Any:
            steps = ledger.claim(call, None)
            return run(steps) if self.colour == "sync" else arun(steps)

        found = yield from self.together([functools.partial(claiming, call) for call in calls])
        assert [type(answer) for answer in found].count(Claimed) == 1
        assert [type(answer) for answer in found].count(InProgress) == CALLERS - 1

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

        calls = [functools.partial(claiming, new_call(key)) for _ in range(CALLERS)]
        found = yield from self.together(calls)
        assert [type(answer) for answer in found].count(Claimed) == 1

    @driven
    def test_an_orphan_is_taken_over_by_its_own_fence_only(self) -> Steps[None]:
        """Who accepts to take over one orphan has not accepted the next."""
        ledger, key = self.ledger(), self.key()
        one = yield from self.claimed(ledger, new_call(key))
        assert (yield from ledger.renew(one, 0.0))
        two = yield from self.claimed(ledger, new_call(key), one.fence)
        assert (yield from ledger.renew(two, 0.0))
        answer = yield from ledger.claim(new_call(key), one.fence)
        assert isinstance(answer, Orphan)
        assert answer.fence == two.fence

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
    def test_a_release_sent_again_by_the_driver_answers_as_before(self) -> Steps[None]:
        ledger, key = self.ledger(), self.key()
        call = yield from self.claimed(ledger, new_call(key))
        assert (yield from ledger.release(call))
        assert (yield from ledger.release(call))
        yield from self.claimed(ledger, new_call(key))
        assert not (yield from ledger.release(call))

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
    def test_other_arguments_are_refused_while_the_first_run_goes_on(self) -> Steps[None]:
        gate, inside = Gate(self.colour), Gate(self.colour)

        def body(order: str, amount: int) -> Any:
            inside.open()
            return gate.wait()

        f = self.decorate(body, wait=0)

        def refused() -> Steps[None]:
            yield inside.wait()
            try:
                yield from self.caught(FingerprintMismatchError, lambda: f("A-1", 2))
            finally:
                gate.open()

        def second() -> Any:
            return drive("sync", refused()) if self.colour == "sync" else arun(refused())

        found = yield from self.together([lambda: f("A-1", 1), second])
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
    def test_a_caller_that_is_cancelled_while_claiming_leaves_no_claim_behind(self) -> Steps[None]:
        effects = Effects()
        interrupt = KeyboardInterrupt if self.colour == "sync" else asyncio.CancelledError
        f = self.decorate(lambda order, amount: effects.add(order), wait=0)
        layer: Any = operation_of(f).layers[-1]
        ledger = layer.ledger
        object.__setattr__(layer, "ledger", _Interrupted(ledger, interrupt))
        yield from self.caught(interrupt, lambda: f("A-1"))
        object.__setattr__(layer, "ledger", ledger)
        assert (yield f("A-1")) == 1

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


class _Interrupted:
    """A ledger whose caller is cancelled after the claim has arrived, and before its answer has."""

    def __init__(self, ledger: Any, interrupt: type[BaseException]) -> None:
        self._ledger = ledger
        self._interrupt = interrupt

    def claim(self, call: Call, over: int | None) -> Steps[Answer]:
        yield from self._ledger.claim(call, over)
        raise self._interrupt

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)


class _Unreachable:
    """A ledger whose store does not answer."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def claim(self, call: Call, over: int | None) -> Steps[Answer]:
        yield from ()
        raise ConnectionError("no route to the store")
