"""What a ledger must do to issue keys beforehand, so that `OneTimeToken` can stand on it."""

from __future__ import annotations

import functools
import os
import uuid
from typing import Any, ClassVar, Literal

import pytest

from idempo.contracts import Colour, IssuingLedger, Strategy
from idempo.records import (
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
    replace,
)
from idempo.steps import Pause, Steps, arun, run
from idempo.testing.tools import CALLERS, driven, ledger_of, new_call, together

__all__ = ["IssuingContract"]

REUSES: tuple[Literal["replay", "refuse"], ...] = ("replay", "refuse")
reuses = pytest.mark.parametrize("reuse", REUSES)


class IssuingContract:
    """What a ledger must do to issue keys beforehand; subclass it beside `LedgerContract`."""

    colour: ClassVar[Colour] = "sync"

    def make(self) -> Strategy:
        """Return the strategy under test, on a store that may be shared with other tests."""
        raise NotImplementedError

    def closing(self) -> Steps[None]:
        """Let go of what `make` opened; runs at the end of each test, in its event loop."""
        yield from ()

    def ledger(self) -> IssuingLedger:
        self._strategy = self.make()
        ledger: Any = ledger_of(self._strategy, self.colour)
        return ledger  # type: ignore[no-any-return]

    def token(self, reuse: Literal["replay", "refuse"] = "replay", **changes: Any) -> Call:
        """A call that demands an issued key, for a key of its own."""
        return new_call(uuid.uuid4().hex, demand=Issued(reuse), **changes)

    def other(self, call: Call, **changes: Any) -> Call:
        """Another call of the same key."""
        return replace(call, owner=os.urandom(16), **changes)

    def claimed(self, ledger: IssuingLedger, call: Call, over: int | None = None) -> Steps[Call]:
        answer: Answer = yield from ledger.claim(call, over)
        assert isinstance(answer, Claimed)
        return replace(call, fence=answer.fence, attempt=answer.attempt)

    def state(self, ledger: IssuingLedger, call: Call) -> Steps[str]:
        record: Record | None = yield from ledger.lookup(call.digest)
        return "absent" if record is None else record.state

    # -------------------------------------------------------------------------------- issue and revoke

    @driven
    def test_an_issued_key_is_known_as_issued_for_as_long_as_it_is_kept(self) -> Steps[None]:
        ledger, call = self.ledger(), self.token(keep=60.0)
        assert (yield from ledger.issue(call)) is True
        record = yield from ledger.lookup(call.digest)
        assert record is not None
        assert (record.state, record.attempt, record.payload) == ("issued", 0, None)
        assert 1 < record.keep_left <= 60

    @driven
    def test_a_key_is_issued_once(self) -> Steps[None]:
        ledger, call = self.ledger(), self.token()
        assert (yield from ledger.issue(call)) is True
        assert (yield from ledger.issue(self.other(call))) is False
        mine = yield from self.claimed(ledger, call)
        assert (yield from ledger.issue(self.other(call))) is False
        yield from ledger.complete(mine, Payload("completed", b"1"))
        assert (yield from ledger.issue(self.other(call))) is False
        assert (yield from self.state(ledger, call)) == "completed"

    @driven
    def test_a_key_is_issued_once_among_many(self) -> Steps[None]:
        ledger, call = self.ledger(), self.token()
        found = yield from self.all_at_once(ledger.issue, call)
        assert sorted(found) == [False] * (CALLERS - 1) + [True]

    @driven
    def test_a_revoked_key_is_unknown(self) -> Steps[None]:
        ledger, call = self.ledger(), self.token()
        yield from ledger.issue(call)
        assert (yield from ledger.revoke(call.digest)) is True
        assert (yield from ledger.revoke(call.digest)) is False
        assert (yield from ledger.claim(call, None)) == NotIssued()
        assert (yield from ledger.issue(call)) is True

    @driven
    def test_revoke_leaves_alone_what_was_claimed(self) -> Steps[None]:
        """Neither one that runs, nor its result."""
        ledger, call = self.ledger(), self.token()
        assert (yield from ledger.revoke(call.digest)) is False
        yield from ledger.issue(call)
        mine = yield from self.claimed(ledger, call)
        assert (yield from ledger.revoke(call.digest)) is False
        assert (yield from ledger.complete(mine, Payload("completed", b"1"))) is True
        assert (yield from ledger.revoke(call.digest)) is False
        assert (yield from self.state(ledger, call)) == "completed"

    # -------------------------------------------------------------------------------- claim with a demand

    @reuses
    @driven
    def test_a_key_that_was_never_issued_cannot_be_claimed(self, reuse: Any) -> Steps[None]:
        ledger, call = self.ledger(), self.token(reuse)
        assert (yield from ledger.claim(call, None)) == NotIssued()
        assert (yield from ledger.lookup(call.digest)) is None, "the refusal left a record behind"

    @reuses
    @driven
    def test_an_issued_key_is_claimed_as_any_other(self, reuse: Any) -> Steps[None]:
        """While it runs others wait; once completed they are told so, whatever is made of it."""
        ledger, call = self.ledger(), self.token(reuse)
        yield from ledger.issue(call)
        mine = yield from self.claimed(ledger, call)
        assert mine.attempt == 1 and mine.fence > 0
        assert (yield from ledger.claim(call, None)) == Claimed(mine.fence, 1)  # sent again by the driver
        assert isinstance((yield from ledger.claim(self.other(call), None)), InProgress)
        assert (yield from ledger.complete(mine, Payload("completed", b"first")))
        answer = yield from ledger.claim(self.other(call), None)
        assert isinstance(answer, Completed) and answer.payload == Payload("completed", b"first")

    @reuses
    @driven
    def test_an_issued_key_is_spent_once_among_many(self, reuse: Any) -> Steps[None]:
        ledger, call = self.ledger(), self.token(reuse)
        yield from ledger.issue(call)
        found = yield from self.all_at_once(lambda one: ledger.claim(one, None), call)
        assert [type(answer) for answer in found].count(Claimed) == 1
        assert [type(answer) for answer in found].count(InProgress) == CALLERS - 1

    @reuses
    @driven
    def test_a_released_key_is_issued_again(self, reuse: Any) -> Steps[None]:
        ledger, call = self.ledger(), self.token(reuse)
        yield from ledger.issue(call)
        first = yield from self.claimed(ledger, call)
        assert (yield from ledger.release(first)) is True
        assert (yield from self.state(ledger, call)) == "issued"
        second = yield from self.claimed(ledger, self.other(call))
        assert second.fence > first.fence and second.attempt == 2

    @driven
    def test_a_released_key_can_be_revoked(self) -> Steps[None]:
        ledger, call = self.ledger(), self.token()
        yield from ledger.issue(call)
        yield from ledger.release((yield from self.claimed(ledger, call)))
        assert (yield from ledger.revoke(call.digest)) is True
        assert (yield from ledger.claim(self.other(call), None)) == NotIssued()

    @driven
    def test_the_orphan_of_an_issued_key_is_taken_over(self) -> Steps[None]:
        ledger, call = self.ledger(), self.token()
        yield from ledger.issue(call)
        dead = yield from self.claimed(ledger, call)
        assert (yield from ledger.renew(dead, 0.0)) is True
        answer = yield from ledger.claim(self.other(call), None)
        assert isinstance(answer, Orphan) and answer.fence == dead.fence
        mine = yield from self.claimed(ledger, self.other(call), answer.fence)
        assert mine.fence > dead.fence
        assert (yield from ledger.release(dead)) is False
        assert (yield from ledger.complete(dead, Payload("completed", b"dead"))) is False

    # -------------------------------------------------------------------------------- its time

    @driven
    def test_an_issued_key_is_unknown_when_its_time_is_over(self) -> Steps[None]:
        ledger, call = self.ledger(), self.token(keep=0.05)
        yield from ledger.issue(call)
        yield from self.gone(ledger, call)
        assert (yield from ledger.claim(self.other(call, keep=60.0), None)) == NotIssued()
        assert (yield from ledger.revoke(call.digest)) is False
        assert (yield from ledger.issue(call)) is True

    @driven
    def test_a_claim_keeps_the_key_for_as_long_as_the_call_says(self) -> Steps[None]:
        """Not for as long as it had been issued for."""
        ledger, call = self.ledger(), self.token(keep=60.0)
        yield from ledger.issue(call)
        mine = yield from self.claimed(ledger, self.other(call, keep=3600.0))
        yield from ledger.complete(mine, Payload("completed", b"1"))
        record = yield from ledger.lookup(call.digest)
        assert record is not None and 60 < record.keep_left <= 3600

    def gone(self, ledger: IssuingLedger, call: Call) -> Steps[None]:
        """Wait until the ledger does not know the key any more. The ledger's clock decides."""
        for _ in range(10_000):
            if (yield from ledger.lookup(call.digest)) is None:
                return
            yield Pause(0.005)
        pytest.fail("its time never ended")

    def all_at_once(self, request: Any, call: Call) -> Steps[list[Any]]:
        """Send the request for many calls of one key at once; return the answers."""
        drive = run if self.colour == "sync" else arun

        def sending(one: Call) -> Any:
            return drive(request(one))

        calls = [functools.partial(sending, self.other(call)) for _ in range(CALLERS)]
        found: list[Any] = yield from together(self.colour, calls)
        return found
