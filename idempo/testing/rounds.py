"""What `assert_runs_once` does to a function: repeats, duplicates at once, a crash at each request."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from idempo.errors import (
    FingerprintMismatchError,
    IdempoError,
    InProgressError,
    OutcomeUnknownError,
    ResultUnavailableError,
    TokenSpentError,
)
from idempo.fingerprints import differing
from idempo.guarantees import Effects
from idempo.records import Record
from idempo.steps import Steps, arun, run
from idempo.testing.answers import ANEW, Answer, differ
from idempo.testing.tapping import Crashed, Fault
from idempo.testing.tools import together
from idempo.testing.watching import Crowd, Watched

__all__ = ["Arguments", "Rounds"]

Arguments = Callable[[int], Any]
Call = tuple[tuple[Any, ...], Mapping[str, Any]]


@dataclass
class Rounds:
    """The rounds of one `assert_runs_once`."""

    watched: Watched
    given: Call
    arguments: Arguments | None
    effects: Callable[..., Any] | None
    callers: int
    crashes: bool
    number: int = -1
    each: int = 1
    """How many effects one run has."""

    def all(self) -> Steps[None]:
        if self.watched.operation.explain().joined_effects == "none: it reads":
            self.fail("nothing is recorded, so that every repeat reads anew: see explain()")
        yield from self.repeats()
        yield from self.at_once()
        if self.crashes:
            yield from self.every_crash()
        if self.arguments is None:
            yield from self._forget(self.given)

    # ------------------------------------------------------------------------------------------ the rounds

    def repeats(self) -> Steps[None]:
        """The first call, then the same again."""
        call, before = yield from self.begin()
        yield from self._same_identity(call)
        first = yield from self._first(call)
        self.each = (yield from self._counted(call)) - before
        if self.each < 1:
            self.fail("effects= counts nothing after the first call; does it look at the same arguments, and at what "
                      "is committed?")  # fmt: skip
        for _ in range(2):
            again = yield from self._repeat((yield from self._call()), "a repeat")
            self._check_once("a repeat ran the function again: its record was gone, is keep= too short?")
            self._check_same(first, again)
        yield from self._check_effects(call, before, "exactly once", "after two repeats")

    def at_once(self) -> Steps[None]:
        """Duplicates while the first one runs: it goes on when all the others have asked."""
        call, before = yield from self.begin()
        calls = [call]
        for _ in range(self.callers - 1):
            calls.append((yield from self._call()))
        crowd = self.watched.gather(len(calls))
        found = yield from together(self.watched.colour, [self._caller(one, crowd) for one in calls])
        self.watched.disperse()
        refused = [one for one in found if isinstance(one, InProgressError)]
        others = [one for one in found if isinstance(one, BaseException) and one not in refused]
        if others:
            hint = "" if self.arguments else ANEW
            self.fail(
                f"{len(others)} of {self.callers} calls at once failed: {others[0]!r}. {hint}", others[0]
            )
        wait = self.watched.operation.terms.wait
        if refused and wait.limit > 0:
            self.fail(
                f"{len(refused)} of {self.callers} calls at once were refused with InProgressError: the first run took "
                f"{self.watched.longest:.2f} seconds, and wait= ended before; give a longer wait=", refused[0]
            )  # fmt: skip
        if (
            not self.watched.joined
        ):  # a transaction that the database undid is run again, and that is no second run
            self._check_once(f"of {self.callers} calls at once")
        answers = [one for one in found if isinstance(one, Answer) and not one.spent]
        if len([one for one in answers if not one.replayed and one.error is None]) > 1:
            self.fail(f"of {self.callers} calls at once, more than one made the first result")
        for one in answers[1:]:
            self._check_same(answers[0], one)
        yield from self._check_effects(call, before, "exactly once", f"after {self.callers} calls at once")

    def every_crash(self) -> Steps[None]:
        """The caller dies before and after each of its requests; then the repeat, and one more."""
        hows: tuple[Literal["die before", "die after"], ...] = ("die before", "die after")
        for at in itertools.count(1):
            for how in hows:
                if not (yield from self._crash(Fault(how, at))):
                    return

    def _crash(self, fault: Fault) -> Steps[bool]:
        call, before = yield from self.begin()
        earlier = yield from self._record(call)
        self.watched.tap.fault = fault
        try:
            yield from self._first(call)
        except Crashed:
            pass
        finally:
            self.watched.tap.fault = None
        if not fault.reached:
            return False
        where = f"after a crash {fault.how.removeprefix('die ')} the request {fault.request!r}"
        left = yield from self._record(call)
        # The record of an entity may be that of a lower version, of another round.
        state = "absent" if left is None or (earlier and earlier.fence == left.fence) else str(left.state)
        if self.watched.joined:
            yield from self._check_undone(call, before, state, where)
        yield from self.watched.tap.end_leases()
        yield from self._after_the_crash(call, before, state, where)
        return True

    def _check_undone(self, call: Call, before: int, state: str, where: str) -> Steps[None]:
        """A transaction that ended with its caller has left all or nothing."""
        if state in ("running", "orphan"):
            self.fail(
                f"{where} the transaction should be undone, and its claim is there: the function commits by itself; "
                "leave that to idempo, or to the caller"
            )
        left = (yield from self._counted(call)) - before
        if state == "absent" and left and self.effects is not None:
            self.fail(
                f"{where} the transaction was undone, and yet effects= counts {left}: the function writes outside of "
                f"the transaction that {', '.join(self.watched.operation.injects)} carries"
            )

    def _after_the_crash(self, call: Call, before: int, state: str, where: str) -> Steps[None]:
        ran, orphan = self.watched.runs, state == "running"
        on_orphan = self.watched.operation.terms.on_orphan
        try:
            again = yield from self._repeat((yield from self._call()), f"{where} the repeat")
        except OutcomeUnknownError as error:
            if not (orphan and on_orphan == "refuse"):
                self.fail(f"{where} the repeat got {error!r}", error)
            yield from self._check_effects(call, before, "at most once", where)
            return
        more = self.watched.runs - ran
        if state in ("completed", "failed") and more:
            self.fail(f"{where} the first result was recorded, and yet the repeat ran the function again")
        if orphan and callable(on_orphan) and ran + more != 1:
            self.fail(
                f"{where} the on_orphan probe is wrong: the function had run {ran} times before, and {more} times after"
            )
        promised = self.watched.operation.explain().joined_effects
        yield from self._check_effects(call, before, promised, f"{where} and the repeat")
        third = yield from self._repeat((yield from self._call()), f"{where} the second repeat")
        if self.watched.runs != ran + more:
            self.fail(f"{where} the second repeat ran the function again")
        self._check_same(again, third)

    # ------------------------------------------------------------------------------------------ one call

    def begin(self) -> Steps[tuple[Call, int]]:
        """A new round: arguments that are new to the ledger, and how many effects there are before."""
        self.number += 1
        self.watched.begin()
        call = yield from self._call()
        if self.arguments is None:
            yield from self._forget(call)
        return call, (yield from self._counted(call))

    def _call(self) -> Steps[Call]:
        """The arguments of this round, made anew as by a client that makes its request once more."""
        if self.arguments is None:
            return self.given
        made = yield self.arguments(self.number)
        match made:
            case tuple():
                return made, {}
            case Mapping():
                return (), made
            case _:
                return (made,), {}

    def _forget(self, call: Call) -> Steps[None]:
        yield self.watched.f.forget(*call[0], **call[1])

    def _record(self, call: Call) -> Steps[Record | None]:
        record: Record | None = yield self.watched.f.lookup(*call[0], **call[1])
        return record

    def _ask(self, call: Call) -> Steps[Answer]:
        results: tuple[type[Exception], ...] = (TokenSpentError, *self.watched.operation.terms.replay_errors)
        try:
            outcome = yield self.watched.f.outcome(*call[0], **call[1])
        except results as error:
            return Answer(error=error)
        return Answer(outcome.value, None, outcome.replayed)

    def _caller(self, call: Call, crowd: Crowd) -> Callable[[], Any]:
        def steps() -> Steps[Answer]:
            try:
                return (yield from self._ask(call))
            finally:
                crowd.gone()

        return lambda: arun(steps()) if self.watched.colour == "async" else run(steps())

    def _first(self, call: Call) -> Steps[Answer]:
        """The first call of a round. What the function itself raises there passes, if it is the very first."""
        try:
            answer = yield from self._ask(call)
        except Exception as error:
            if self.number and self.arguments is None:
                self.fail(f"the first call of another round failed with {error!r}. {ANEW}", error)
            raise
        if answer.replayed or not self.watched.runs:
            self.fail(f"the first call did not run the function: it got {answer}. {ANEW}")
        return answer

    def _repeat(self, call: Call, what: str) -> Steps[Answer]:
        try:
            return (yield from self._ask(call))
        except ResultUnavailableError as error:
            self.fail(f"{what} got no result: what the function returns cannot be stored: {error}", error)
        except FingerprintMismatchError as error:
            self.fail(f"{what} was refused for other arguments: {', '.join(error.differing)}", error)
        except OutcomeUnknownError:
            raise
        except IdempoError as error:
            self.fail(f"{what} failed with {error!r}", error)

    def _counted(self, call: Call) -> Steps[int]:
        """How many effects there are now: runs of the function, where the user does not say."""
        if self.effects is None:
            return self.watched.runs
        count: int = yield self.effects(*call[0], **call[1])
        return count

    # ------------------------------------------------------------------------------------------ the verdicts

    def fail(self, what: str, cause: BaseException | None = None) -> NoReturn:
        raise AssertionError(f"{self.watched.operation.name}: {what}") from cause

    def _same_identity(self, call: Call) -> Steps[None]:
        """Key and fingerprint of a repeat are those of the first call."""
        again = yield from self._call()
        one, two = self.watched.identity(*call), self.watched.identity(*again)
        if one.digest != two.digest:
            self.fail(
                f"the key of a repeat is another one: {one.key!r}, then {two.key!r}. Make it of what the caller sends "
                "again, never of a clock or a random number"
            )
        if one.fingerprint != two.fingerprint:
            names = ", ".join(differing(one.fingerprint, two.fingerprint)) or "its arguments"
            self.fail(
                f"the fingerprint of a repeat is another one: {names} changed. Say with fingerprint= which arguments "
                "are the same in a repeat"
            )

    def _check_once(self, what: str) -> None:
        if self.watched.runs != 1:
            self.fail(
                f"{what}: the function ran {self.watched.runs} times. {ANEW if not self.watched.runs else ''}"
            )

    def _check_same(self, first: Answer, again: Answer) -> None:
        if (what := differ(first, again)) is not None:
            self.fail(what)

    def _check_effects(self, call: Call, before: int, promised: Effects, when: str) -> Steps[None]:
        there = (yield from self._counted(call)) - before
        match promised:
            case "at least once":
                right = there >= self.each
            case "at most once":
                right = there <= self.each
            case _:
                # Without effects= runs are counted, and those of a transaction that was undone count for nothing.
                right = there == self.each or (
                    self.effects is None and self.watched.joined and there > self.each
                )
        if not right:
            self.fail(
                f"{when} there are {there} effects, one run has {self.each}, and {promised} was promised"
            )
