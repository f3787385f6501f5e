"""What everybody who decorates a function may rely on, whatever the strategy."""

from __future__ import annotations

import functools
import inspect
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import pytest

from idempo.contracts import Colour, Strategy
from idempo.decorator import idempotent
from idempo.errors import (
    FingerprintMismatchError,
    IdempoError,
    KeyRefusedError,
    OutcomeUnknownError,
    ReentrantCallError,
    ResultUnavailableError,
)
from idempo.records import RERUN, Call, Found
from idempo.running import current
from idempo.steps import Steps
from idempo.testing.tools import CALLERS, Effects, driven, together

__all__ = ["PromiseContract"]


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

    beside: Mapping[str, Any] = {}
    """Options that put another function on the store of the one that was decorated last."""

    def make(self) -> Strategy:
        """Return the strategy under test, on a store that may be shared with other tests."""
        raise NotImplementedError

    def closing(self) -> Steps[None]:
        """Let go of what `make` opened; runs at the end of each test, in its event loop."""
        yield from ()

    def decorate(self, body: Callable[[str, int], Any], **options: Any) -> Any:
        """Decorate `body(order, amount)`, which may return an awaitable under async."""
        terms: Any = {"key": "{order}", "using": self.make(), "name": f"contract.{uuid.uuid4()}"} | options
        self.beside = {"using": terms["using"]}
        return idempotent(**terms)(_function(body, self.colour, self.joined))

    def together(self, calls: Iterable[Callable[[], Any]]) -> Steps[list[Any]]:
        """Call all at once, in threads or tasks; return values and exceptions in order."""
        return (yield from together(self.colour, calls))

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
        found = yield from self.together([lambda: f("A-1")] * CALLERS)
        assert found == [1] * CALLERS

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

    @driven
    def test_forget_takes_no_other_record(self) -> Steps[None]:
        f = self.decorate(lambda order, amount: order)
        yield f("Order-A")
        yield f("order-a")
        assert (yield f.forget("Order-A")) is True
        assert (yield f.outcome("order-a")).replayed

    # -------------------------------------------------------------------------------- no cross-talk

    @driven
    def test_another_function_has_other_keys(self) -> Steps[None]:
        f = self.decorate(lambda order, amount: "f")
        g = self.decorate(lambda order, amount: "g", **self.beside)
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
        found = yield from self.together([lambda: f("A-1")] * CALLERS)
        assert len(effects) == 2
        assert sorted(map(str, found)) == ["2"] * (CALLERS - 1) + ["the first one fails"]

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

    # -------------------------------------------------------------------------------- nobody knows

    def vanishing(self, effects: Effects, **options: Any) -> Any:
        """A function whose first run ends without anybody knowing whether its effect happened."""

        def body(order: str, amount: int) -> int:
            if effects.add(order) == 1:
                raise TimeoutError("no answer from the bank")
            return len(effects)

        return self.decorate(body, unknown_errors=[TimeoutError], **options)

    @driven
    def test_an_unknown_outcome_is_called_unknown_and_rerun_runs_it_again(self) -> Steps[None]:
        effects = Effects()
        f = self.vanishing(effects)
        error = yield from self.caught(OutcomeUnknownError, lambda: f("A-1"))
        assert error.ran is None
        assert isinstance(error.__cause__, TimeoutError)
        assert (yield f.lookup("A-1")).state == "orphan"
        outcome = yield f.outcome("A-1")
        assert (outcome.value, outcome.attempt) == (2, 2)

    @driven
    def test_under_refuse_an_orphan_is_never_run_again_until_it_is_forgotten(self) -> Steps[None]:
        effects = Effects()
        f = self.vanishing(effects, on_orphan="refuse")
        for _ in range(3):
            yield from self.caught(OutcomeUnknownError, lambda: f("A-1"))
        assert len(effects) == 1
        assert (yield f.forget("A-1")) is True
        assert (yield f("A-1")) == 2

    @driven
    def test_a_probe_that_finds_the_effect_makes_it_the_first_result(self) -> Steps[None]:
        effects = Effects()

        def probe(call: Call) -> Any:
            assert (call.key, call.arguments["amount"]) == ("A-1", 7)
            return Found("found")

        f = self.vanishing(effects, on_orphan=probe)
        yield from self.caught(OutcomeUnknownError, lambda: f("A-1", 7))
        for _ in range(2):
            assert (yield f("A-1", 7)) == "found"
        assert len(effects) == 1

    @driven
    def test_a_probe_that_finds_nothing_lets_it_run(self) -> Steps[None]:
        effects = Effects()
        f = self.vanishing(effects, on_orphan=lambda call: RERUN)
        yield from self.caught(OutcomeUnknownError, lambda: f("A-1"))
        assert (yield f("A-1")) == 2

    @driven
    def test_a_probe_that_fails_leaves_the_orphan_to_the_next_call(self) -> Steps[None]:
        effects, answers = Effects(), [ConnectionError("the bank is closed"), Found(9)]

        def probe(call: Call) -> Any:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        f = self.vanishing(effects, on_orphan=probe)
        yield from self.caught(OutcomeUnknownError, lambda: f("A-1"))
        yield from self.caught(ConnectionError, lambda: f("A-1"))
        assert (yield f.lookup("A-1")).state == "orphan"
        assert (yield f("A-1")) == 9

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
