"""What is left of a transition whose function fails, in the database and in the caller's session."""

from typing import Any

import pytest

from idempo import OutcomeUnknownError, StateConflictError
from idempo.steps import Steps
from idempo.testing import Effects
from tests.guards.support import SESSION, Declined, Order, Shop, callers, driven, everywhere, pay
from tests.traps.support import caught

# ------------------------------------------------------------------------ the function fails


def declining(order_id: int, payment: str, session: Any) -> Steps[Any]:
    yield from pay(order_id, payment, session)
    raise Declined("by the bank", order_id)


@everywhere
@callers
@driven
def test_if_the_function_raises_the_transition_is_undone_with_it(shop: Shop, caller: str) -> Steps[None]:
    shop.add(1)
    failed = shop.function(declining)
    error = yield from shop.refused(caller, Declined, failed, 1, "P-1")
    assert error.args == ("by the bank", 1)
    assert error.__cause__ is None
    assert (shop.row(1), shop.payments(1)) == ("pending", 0)
    assert (yield failed.lookup(1, "P-1")) is None
    f = shop.function(pay)
    assert not (yield from shop.outcome(caller, f, 1, "P-1")).replayed
    assert (shop.row(1), shop.payments(1)) == ("paid", 1)


@everywhere
@callers
@driven
def test_an_error_that_is_a_result_is_replayed_and_its_transition_undone(
    shop: Shop, caller: str
) -> Steps[None]:
    shop.add(1)
    effects = Effects()

    def body(order_id: int, payment: str, session: Any) -> Steps[Any]:
        effects.add(payment)
        yield from declining(order_id, payment, session)

    f = shop.function(body, replay_errors=[Declined])
    for _ in range(3):
        error = yield from shop.refused(caller, Declined, f, 1, "P-1")
        assert error.args == ("by the bank", 1)
    assert (shop.row(1), shop.payments(1), len(effects)) == ("pending", 0, 1)
    assert (yield f.lookup(1, "P-1")).state == "failed"
    other = shop.function(pay)
    yield from shop.call(caller, other, 1, "P-2")
    assert shop.row(1) == "paid"


@callers
@driven
def test_after_an_unknown_outcome_the_transition_is_undone_and_the_orphan_runs_again(
    shop: Shop, caller: str
) -> Steps[None]:
    shop.add(1)
    effects = Effects()

    def body(order_id: int, payment: str, session: Any) -> Steps[Any]:
        yield from pay(order_id, payment, session)
        if effects.add(payment) == 1:
            raise TimeoutError("no answer from the bank")

    f = shop.function(body, unknown_errors=[TimeoutError])
    yield from shop.refused(caller, OutcomeUnknownError, f, 1, "P-1")
    assert (shop.row(1), shop.payments(1)) == ("pending", 0)
    assert (yield f.lookup(1, "P-1")).state == "orphan"
    outcome = yield from shop.outcome(caller, f, 1, "P-1")
    assert outcome.attempt == 2
    assert (shop.row(1), shop.payments(1), len(effects)) == ("paid", 1, 2)


# ------------------------------------------------------------------------ objects of the session


@driven
def test_an_object_loaded_before_shows_the_new_state_and_is_not_dirty(shop: Shop) -> Steps[None]:
    shop.add(1)
    f = shop.function(pay)

    def work(session: Any) -> Steps[None]:
        order = yield session.get(Order, 1)
        assert order.status == "pending"
        yield f(1, "P-1", session=session)
        assert order.status == "paid"
        assert not session.dirty

    yield from shop.within(SESSION, work)


@pytest.mark.parametrize("how", ["raises", "is a result", "is unknown"])
@driven
def test_an_object_loaded_before_shows_the_old_state_after_a_failure(shop: Shop, how: str) -> Steps[None]:
    """The caller's earlier change of another column is kept."""
    shop.add(1)
    shown: list[Any] = []

    def body(order_id: int, payment: str, session: Any) -> Steps[Any]:
        order = yield session.get(Order, order_id)
        shown.append(order.status)
        yield from declining(order_id, payment, session)

    terms: dict[str, Any] = {
        "raises": {},
        "is a result": {"replay_errors": [Declined]},
        "is unknown": {"unknown_errors": [Declined]},
    }[how]
    f = shop.function(body, **terms)
    kind = OutcomeUnknownError if how == "is unknown" else Declined

    def work(session: Any) -> Steps[None]:
        order = yield session.get(Order, 1)
        order.note = "from before"
        yield from caught(kind, lambda: f(1, "P-1", session=session))
        yield session.refresh(order, ["id"])
        assert (order.status, order.note) == ("pending", "from before")

    yield from shop.within(SESSION, work)
    assert shown == ["paid"]
    assert (shop.row(1), shop.row(1, Order.note)) == ("pending", "from before")


@driven
def test_after_a_refusal_objects_show_what_the_caller_has_loaded(shop: Shop) -> Steps[None]:
    shop.add(1, status="cancelled")
    f = shop.function(pay)

    def work(session: Any) -> Steps[None]:
        order = yield session.get(Order, 1)
        order.note = "from before"
        yield from caught(StateConflictError, lambda: f(1, "P-1", session=session))
        assert (order.status, order.note) == ("cancelled", "from before")

    yield from shop.within(SESSION, work)
    assert (shop.row(1), shop.row(1, Order.note)) == ("cancelled", "from before")
