"""What a ledger must do to be asked about many keys at once, and what `f.many(...)` then promises."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

import pytest

from idempo.contracts import BatchingLedger, Colour, Strategy
from idempo.decorator import idempotent
from idempo.errors import FingerprintMismatchError, InProgressError, KeyRefusedError
from idempo.records import Call, Claimed, Completed, Outcome, Payload
from idempo.running import current
from idempo.steps import Steps
from idempo.testing.tools import driven, ledger_of, new_call

__all__ = ["BatchingContract"]


class _Refused(Exception):
    """A failure of the function."""


class BatchingContract:
    """What a ledger must do to be asked about many keys at once; subclass it beside `LedgerContract`."""

    colour: ClassVar[Colour] = "sync"

    def make(self) -> Strategy:
        """Return the strategy under test, on a store that may be shared with other tests."""
        raise NotImplementedError

    def closing(self) -> Steps[None]:
        """Let go of what `make` opened; runs at the end of each test, in its event loop."""
        yield from ()

    def ledger(self) -> BatchingLedger:
        self._strategy = self.make()
        ledger: Any = ledger_of(self._strategy, self.colour)
        return ledger  # type: ignore[no-any-return]

    def calls(self, number: int) -> list[Call]:
        return [new_call(uuid.uuid4().hex) for _ in range(number)]

    def place(self, ran: list[str], **options: Any) -> Any:
        """A function that notes its runs and returns its attempt and amount; some orders fail, or are interrupted."""

        def body(order: str, amount: int) -> tuple[int, int]:
            ran.append(order)
            if order.endswith("fails"):
                raise _Refused(order)
            if order.endswith("interrupts"):
                raise KeyboardInterrupt
            return current().attempt, amount

        def plain(order: str, amount: int = 1) -> Any:
            return body(order, amount)

        async def coroutine(order: str, amount: int = 1) -> Any:
            return body(order, amount)

        self._strategy = self.make()
        function: Any = plain if self.colour == "sync" else coroutine
        terms: dict[str, Any] = {"using": self._strategy, "name": uuid.uuid4().hex, "wait": 0} | options
        return idempotent(key="{order}", **terms)(function)

    # ---------------------------------------------------------------------------------- the ledger

    @driven
    def test_free_keys_are_claimed_each_for_its_owner_and_again_for_a_request_that_is_sent_again(
        self,
    ) -> Steps[None]:
        ledger, calls = self.ledger(), self.calls(5)
        answers = yield from ledger.claim_many(calls)
        assert all(isinstance(answer, Claimed) and answer.attempt == 1 for answer in answers)
        assert list((yield from ledger.claim_many(calls))) == list(answers)
        for call, answer in zip(calls, answers, strict=True):
            record = yield from ledger.lookup(call.digest)
            assert record is not None
            assert isinstance(answer, Claimed)
            assert (record.state, record.fence, record.key) == ("running", answer.fence, call.key)

    @driven
    def test_a_key_that_is_not_free_is_not_claimed_and_hinders_no_other(self) -> Steps[None]:
        ledger, calls = self.ledger(), self.calls(5)
        running, done, orphan, free, also = calls
        for call in (running, done, orphan):
            yield from ledger.claim(call, None)
        yield from ledger.complete(done, Payload("completed", b"first"))
        yield from ledger.renew(orphan, 0)
        others = [new_call(call.key, digest=call.digest) for call in calls]
        answers = yield from ledger.claim_many(others)
        assert [isinstance(answer, Claimed) for answer in answers] == [False, False, False, True, True]
        assert isinstance(answers[1], Completed)
        assert answers[1].payload == Payload("completed", b"first")
        for call in (running, orphan):
            assert (yield from ledger.renew(call, 30)) is True, "the claim was taken away"
        assert (yield from ledger.renew(free, 30)) is False
        assert (yield from ledger.renew(also, 30)) is False

    @driven
    def test_first_results_are_recorded_by_their_owners_only_and_once(self) -> Steps[None]:
        ledger, calls = self.ledger(), self.calls(4)
        yield from ledger.claim_many(calls)
        stranger = new_call(calls[1].key, digest=calls[1].digest)
        mine = [calls[0], stranger, calls[2], calls[3]]
        payloads = [Payload("completed", b"0"), Payload("completed", b"1"), Payload("failed", b"2")]
        firsts = list(zip(mine, [*payloads, Payload("completed", None)], strict=True))
        assert list((yield from ledger.complete_many(firsts))) == [True, False, True, True]
        assert list((yield from ledger.complete_many(firsts))) == [True, False, True, True], "sent again"
        found = []
        for call in calls:
            record = yield from ledger.lookup(call.digest)
            assert record is not None
            found.append(record.payload)
        assert found == [payloads[0], None, payloads[2], Payload("completed", None)]

    # ---------------------------------------------------------------------------------- f.many(...)

    @driven
    def test_many_calls_are_answered_and_run_in_their_order(self) -> Steps[None]:
        ran: list[str] = []
        f = self.place(ran)
        first = yield f.many([("A-3", 3), {"order": "A-1"}, ("A-2", 2)])
        assert first == [
            Outcome((1, 3), False, "A-3", 1),
            Outcome((1, 1), False, "A-1", 1),
            Outcome((1, 2), False, "A-2", 1),
        ]
        assert ran == ["A-3", "A-1", "A-2"]
        again = yield f.many([("A-2", 2), ("A-4", 4), ("A-3", 3)])
        assert [(one.value, one.replayed) for one in again] == [
            ((1, 2), True),
            ((1, 4), False),
            ((1, 3), True),
        ]
        assert ran == ["A-3", "A-1", "A-2", "A-4"]
        assert (yield f("A-4", 4)) == (1, 4)
        assert (yield f.many([])) == []

    @driven
    def test_a_key_that_stands_in_the_batch_twice_runs_once(self) -> Steps[None]:
        ran: list[str] = []
        f = self.place(ran)
        first, repeat, other = yield f.many([("A-1",), ("A-1",), ("A-1", 7)])
        assert (first.value, first.replayed) == ((1, 1), False)
        assert (repeat.value, repeat.replayed) == ((1, 1), True)
        assert isinstance(other, FingerprintMismatchError)
        assert ran == ["A-1"]

    @driven
    def test_one_that_fails_fails_alone_and_its_key_is_free(self) -> Steps[None]:
        ran: list[str] = []
        f = self.place(ran)
        for attempt in (1, 2):
            good, failed, refused, last = yield f.many([("A-1",), ("A-2 fails",), ("",), ("A-3",)])
            assert good.value == last.value == (1, 1)
            assert good.replayed == last.replayed == (attempt == 2)
            assert isinstance(failed, _Refused)
            assert isinstance(refused, KeyRefusedError)
        assert ran == ["A-1", "A-2 fails", "A-3", "A-2 fails"]

    @driven
    def test_an_exception_that_is_a_result_is_kept(self) -> Steps[None]:
        ran: list[str] = []
        f = self.place(ran, replay_errors=[_Refused])
        for _ in range(2):
            (failed,) = yield f.many([("A-1 fails",)])
            assert isinstance(failed, _Refused)
        assert ran == ["A-1 fails"]

    @driven
    def test_one_that_runs_elsewhere_is_waited_for_by_itself(self) -> Steps[None]:
        ran: list[str] = []
        f = self.place(ran)
        ledger: Any = f.__idempo__.layers[-1].ledger
        elsewhere = f.__idempo__.call(("A-2",), {})
        yield from ledger.claim(elsewhere, None)
        one, two, three = yield f.many([("A-1",), ("A-2",), ("A-3",)])
        assert (one.value, three.value) == ((1, 1), (1, 1))
        assert isinstance(two, InProgressError)
        assert ran == ["A-1", "A-3"]

    @driven
    def test_the_claims_of_a_batch_that_crashed_are_taken_over(self) -> Steps[None]:
        ran: list[str] = []
        f = self.place(ran)
        ledger: Any = f.__idempo__.layers[-1].ledger
        crashed = [f.__idempo__.call((f"A-{number}",), {}) for number in range(3)]
        yield from ledger.claim_many(crashed)
        for call in crashed:
            yield from ledger.renew(call, 0)  # their leases are over
        came = yield f.many([(f"A-{number}",) for number in range(4)])
        assert [one.value for one in came] == [(2, 1), (2, 1), (2, 1), (1, 1)]
        late = yield from ledger.complete_many([(call, Payload("completed", b"late")) for call in crashed])
        assert list(late) == [False, False, False]

    @driven
    def test_an_interrupt_keeps_what_has_run_and_frees_what_has_not(self) -> Steps[None]:
        ran: list[str] = []
        f = self.place(ran)
        batch = [("A-1",), ("A-2",), ("A-3 interrupts",), ("A-4",), ("A-5",)]
        with pytest.raises(KeyboardInterrupt):
            yield f.many(batch)
        one, two, three, four, five = yield f.many(batch)
        assert one.replayed
        assert two.replayed
        assert isinstance(three, InProgressError), "it may have had its effect: it is left to its lease"
        assert [four.replayed, five.replayed] == [False, False]
        assert ran == ["A-1", "A-2", "A-3 interrupts", "A-4", "A-5"]

    @driven
    def test_what_is_no_call_is_refused_before_anything_runs(self) -> Steps[None]:
        ran: list[str] = []
        f = self.place(ran)
        with pytest.raises(TypeError, match="a tuple of its arguments"):
            yield f.many([("A-1",), "A-2"])
        assert ran == []
