"""`StateGuard`: apply, already, superseded, illegal; what a refusal and a failure leave behind."""

from typing import Any

import pytest
from sqlalchemy import update

from idempo import RowMissingError, StateConflictError
from idempo.steps import Steps
from idempo.testing import Effects
from tests.guards.support import (
    SESSION,
    Declined,
    Order,
    Receipt,
    Shop,
    callers,
    driven,
    everywhere,
    failing,
    pay,
    their_own,
)
from tests.traps.support import caught

# ------------------------------------------------------------------------ apply and replay


@everywhere
@callers
@driven
def test_a_row_in_a_state_that_leads_there_goes_there_and_the_function_runs(
    shop: Shop, caller: str
) -> Steps[None]:
    shop.add(1, 2)
    f = shop.function(pay, returns=Receipt)
    assert (yield from shop.call(caller, f, 1, "P-1")) == Receipt("P-1", 1)
    assert (shop.row(1), shop.payments(1)) == ("paid", 1)
    assert (shop.row(2), shop.payments(2)) == ("pending", 0)


@everywhere
@callers
@driven
def test_a_repeat_gets_the_first_result_and_nothing_runs_again(shop: Shop, caller: str) -> Steps[None]:
    """Neither the function nor the UPDATE, even where the row could make the transition again."""
    shop.add(1)
    f = shop.function(pay, returns=Receipt)
    first = yield from shop.call(caller, f, 1, "P-1")
    shop.put(1, status="pending")
    outcome = yield from shop.outcome(caller, f, 1, "P-1")
    assert outcome.replayed
    assert outcome.value == first
    assert type(outcome.value) is Receipt
    assert (shop.row(1), shop.payments(1)) == ("pending", 1)


@driven
def test_inside_the_function_the_row_is_in_the_new_state_already(shop: Shop) -> Steps[None]:
    def body(order_id: int, payment: str, session: Any) -> Steps[str]:
        order = yield session.get(Order, order_id)
        status: str = order.status
        order.note = "seen"
        return status

    shop.add(1)
    assert (yield shop.function(body)(1, "P-1")) == "paid"
    assert (shop.row(1), shop.row(1, Order.note)) == ("paid", "seen")


@driven
def test_nobody_sees_the_transition_before_the_transaction_commits(shop: Shop) -> Steps[None]:
    seen: list[Any] = []

    def body(order_id: int, payment: str, session: Any) -> Steps[None]:
        seen.append(shop.row(order_id))
        yield from pay(order_id, payment, session)

    shop.add(1)
    yield shop.function(body)(1, "P-1")
    assert (seen, shop.row(1)) == (["pending"], "paid")


@their_own
@driven
def test_a_caller_who_rolls_back_undoes_transition_effect_and_record(shop: Shop, caller: str) -> Steps[None]:
    shop.add(1)
    f = shop.function(pay)

    def work(holder: Any) -> Steps[None]:
        yield f(1, "P-1", session=holder)
        raise Declined

    yield from failing(Declined, shop.within(caller, work))
    assert (shop.row(1), shop.payments(1)) == ("pending", 0)
    assert (yield f.lookup(1, "P-1")) is None
    assert not (yield from shop.outcome(caller, f, 1, "P-1")).replayed


@driven
def test_after_forget_another_run_is_judged_by_the_row(shop: Shop) -> Steps[None]:
    """The guard goes on where the memory of the key ends."""
    shop.add(1)
    f = shop.function(pay)
    yield f(1, "P-1")
    assert (yield f.forget(1, "P-1")) is True
    error = yield from caught(StateConflictError, lambda: f(1, "P-1"))
    assert error.verdict == "already"
    assert shop.payments(1) == 1


# ------------------------------------------------------------------------ refused


REFUSALS = [
    ("already", "paid", "already="),
    ("superseded", "packed", "superseded="),
    ("superseded", "shipped", "superseded="),
    ("illegal", "cancelled", "no way leads there"),
    ("illegal", "refunded", "not in the flow"),
]


@everywhere
@callers
@driven
def test_a_row_in_any_other_state_is_refused_with_all_there_is_to_know(
    shop: Shop, caller: str
) -> Steps[None]:
    """Nothing runs, nothing is recorded, and the caller's earlier writes are committed."""
    effects = Effects()

    def body(order_id: int, payment: str, session: Any) -> Steps[None]:
        effects.add(payment)
        yield from pay(order_id, payment, session)

    f = shop.function(body)
    for order, (verdict, state, hint) in enumerate(REFUSALS):
        shop.add(order, status=state)
        error = yield from shop.refused(caller, StateConflictError, f, order, "P-1")
        assert (error.verdict, error.state, error.target, error.ran) == (verdict, state, "paid", False)
        assert (error.operation, error.key) == (shop.name, "P-1")
        assert all(one in str(error) for one in (hint, state, "paid", "orders.status", shop.name, "P-1"))
        assert (shop.row(order), shop.payments(order), len(effects)) == (state, 0, 0)
        assert (yield f.lookup(order, "P-1")) is None


@callers
@driven
def test_a_refused_key_is_free_and_applies_when_the_row_is_ready(shop: Shop, caller: str) -> Steps[None]:
    f = shop.function(pay)
    for order, (_, state, _) in enumerate(REFUSALS):
        shop.add(order, status=state)
        for _ in range(2):
            yield from shop.refused(caller, StateConflictError, f, order, f"P-{order}")
        shop.put(order, status="pending")
        outcome = yield from shop.outcome(caller, f, order, f"P-{order}")
        assert (outcome.replayed, outcome.attempt) == (False, 1)
        assert (shop.row(order), shop.payments(order)) == ("paid", 1)


@everywhere
@callers
@driven
def test_a_missing_row_is_called_missing(shop: Shop, caller: str) -> Steps[None]:
    shop.add(1)
    f = shop.function(pay)
    error = yield from shop.refused(caller, RowMissingError, f, 2, "P-2")
    assert (error.ran, error.key, error.operation) == (False, "P-2", shop.name)
    assert "id={order_id}" in str(error)
    assert (yield f.lookup(2, "P-2")) is None
    shop.add(2)
    yield from shop.call(caller, f, 2, "P-2")
    assert (shop.row(2), shop.payments(2)) == ("paid", 1)


@their_own
@driven
def test_after_a_refusal_the_callers_transaction_goes_on(shop: Shop, caller: str) -> Steps[None]:
    """Another call in it applies, and is committed with what came before."""
    shop.add(1, status="cancelled")
    shop.add(2)
    f = shop.function(pay)

    def work(holder: Any) -> Steps[None]:
        yield from caught(StateConflictError, lambda: f(1, "P-1", session=holder))
        yield from caught(RowMissingError, lambda: f(3, "P-3", session=holder))
        yield f(2, "P-2", session=holder)

    yield from shop.within(caller, work)
    assert (shop.row(1), shop.row(2), shop.payments(2)) == ("cancelled", "paid", 1)


@their_own
@driven
def test_the_callers_own_uncommitted_change_of_the_row_is_what_is_judged(
    shop: Shop, caller: str
) -> Steps[None]:
    shop.add(1, status="cancelled")
    f = shop.function(pay)

    def work(holder: Any) -> Steps[None]:
        yield holder.execute(update(Order).where(Order.id == 1).values(status="pending"))
        yield f(1, "P-1", session=holder)

    yield from shop.within(caller, work)
    assert (shop.row(1), shop.payments(1)) == ("paid", 1)


@driven
def test_a_change_that_the_callers_session_has_not_flushed_yet_is_judged_too(shop: Shop) -> Steps[None]:
    shop.add(1)
    f = shop.function(pay)

    def work(session: Any) -> Steps[Any]:
        order = yield session.get(Order, 1)
        order.status = "cancelled"
        return (yield from caught(StateConflictError, lambda: f(1, "P-1", session=session)))

    error = yield from shop.within(SESSION, work)
    assert (error.verdict, error.state) == ("illegal", "cancelled")
    assert (shop.row(1), shop.payments(1)) == ("cancelled", 0)


# ------------------------------------------------------------------------ answers


@callers
@pytest.mark.parametrize(("verdict", "state"), [("already", "paid"), ("superseded", "shipped")])
@driven
def test_an_answer_is_the_first_result_of_a_key_that_came_too_late(
    shop: Shop, caller: str, verdict: str, state: str
) -> Steps[None]:
    """A value, or what a callable makes of the state. The function does not run; repeats replay the answer although
    the row moves on."""
    asked: list[Any] = []

    def answer(found: Any) -> Receipt:
        asked.append(found)
        return Receipt(f"was {found}", 7)

    async def slow_answer(found: Any) -> Receipt:
        return answer(found)

    ways = [Receipt(f"was {state}", 7), answer] + [slow_answer] * (shop.colour == "async")
    for order, way in enumerate(ways):
        shop.add(order, status=state)
        options: Any = {verdict: way}
        f = shop.function(pay, shop.guard(**options), returns=Receipt, name=f"{shop.name}.{order}")
        first = yield from shop.outcome(caller, f, order, "P-2")
        assert (first.value, first.replayed) == (Receipt(f"was {state}", 7), False)
        assert (shop.row(order), shop.payments(order)) == (state, 0)
        for later in ("packed", "pending", "cancelled"):
            shop.put(order, status=later)
            again = yield from shop.outcome(caller, f, order, "P-2")
            assert (again.value, again.replayed) == (first.value, True)
        assert shop.payments(order) == 0
    assert asked == [state] * (len(ways) - 1)


@driven
def test_a_falsy_answer_is_an_answer(shop: Shop) -> Steps[None]:
    shop.add(1, status="paid")
    answers: list[Any] = [None, 0, "", [], False]
    for number, answer in enumerate(answers):
        f = shop.function(pay, shop.guard(already=answer), name=f"{shop.name}.{number}")
        for replayed in (False, True):
            outcome = yield f.outcome(1, "P-1")
            assert (outcome.value, outcome.replayed) == (answer, replayed)
            assert type(outcome.value) is type(answer)


@driven
def test_the_one_answer_does_not_stand_for_the_other(shop: Shop) -> Steps[None]:
    shop.add(1, status="paid")
    shop.add(2, status="shipped")
    shop.add(3, status="cancelled")
    known = shop.function(pay, shop.guard(already="known"))
    late = shop.function(pay, shop.guard(superseded="late"), name=f"{shop.name}.late")
    assert (yield known(1, "P-1")) == "known"
    assert (yield late(2, "P-2")) == "late"
    assert (yield from caught(StateConflictError, lambda: known(2, "P-2"))).verdict == "superseded"
    assert (yield from caught(StateConflictError, lambda: late(1, "P-1"))).verdict == "already"
    for f in (known, late):
        assert (yield from caught(StateConflictError, lambda: f(3, "P-3"))).verdict == "illegal"  # noqa: B023


@driven
def test_callers_share_no_answer_that_can_be_changed(shop: Shop) -> Steps[None]:
    shop.add(1, status="paid")
    answer = {"items": [1]}
    f = shop.function(pay, shop.guard(already=answer))
    for key in ("P-1", "P-1", "P-2"):
        given = yield f(1, key)
        assert given == {"items": [1]}
        given["items"].append(2)
    assert answer == {"items": [1]}


@callers
@driven
def test_what_an_answer_raises_is_the_callers_and_leaves_no_record(shop: Shop, caller: str) -> Steps[None]:
    def answer(state: str) -> Any:
        raise Declined(state)

    shop.add(1, status="paid")
    f = shop.function(pay, shop.guard(already=answer))
    error = yield from shop.refused(caller, Declined, f, 1, "P-1")
    assert error.args == ("paid",)
    assert (yield f.lookup(1, "P-1")) is None
