"""What type checkers see of a decorated function. mypy and pyright read this file; running it proves the rest."""

from collections.abc import Coroutine
from decimal import Decimal
from typing import Any, assert_type

from sqlalchemy.orm import Session

from idempo import INJECTED, Memory, Outcome, Record, UniqueInsert, idempotent
from idempo.guarantees import Explanation


@idempotent(key="{order_no}", using=Memory())
def create_order(order_no: str, amount: Decimal = Decimal(1)) -> dict[str, Decimal]:
    return {order_no: amount}


@idempotent(key="{order_no}", using=Memory())
async def create_order_async(order_no: str, amount: Decimal = Decimal(1)) -> int:
    return len(order_no)


class Shop:
    @idempotent(key="{order_no}", using=Memory())
    def sell(self, order_no: str) -> int:
        return len(order_no)

    @idempotent(key="{order_no}", using=Memory())
    async def ship(self, order_no: str) -> str:
        return order_no


@idempotent(key="{order_no}", using=UniqueInsert(join="session"))
def post(order_no: str, session: Session = INJECTED) -> bool:
    return session.is_active


def test_a_parameter_that_is_filled_in_may_be_left_out() -> None:
    def never() -> None:
        assert_type(post("A-1"), bool)
        post("A-1", 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    assert callable(never)


def test_a_function_keeps_its_signature() -> None:
    assert_type(create_order("A-1"), dict[str, Decimal])
    assert_type(create_order(order_no="A-1"), dict[str, Decimal])
    assert_type(create_order.outcome("A-1"), Outcome[dict[str, Decimal]])
    assert_type(create_order.lookup("A-1"), Record | None)
    assert_type(create_order.key_for("A-1"), str)
    assert_type(create_order.forget("A-1"), bool)
    assert_type(create_order.explain(), Explanation)
    assert create_order.__name__ == "create_order"


def test_a_wrong_call_is_an_error_to_type_checkers() -> None:
    def never() -> None:
        create_order(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        create_order()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        create_order.outcome("A-1", amount="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    assert callable(never)


async def coroutine_functions() -> None:
    coroutine = create_order_async("A-1")
    assert_type(await assert_type(coroutine, Coroutine[Any, Any, int]), int)
    assert_type(await create_order_async("A-1"), int)
    assert_type(await create_order_async.outcome("A-1"), Outcome[int])
    assert_type(await create_order_async.lookup("A-1"), Record | None)


async def methods() -> None:
    shop = Shop()
    assert_type(shop.sell("A-1"), int)
    assert_type(shop.sell.outcome("A-1"), Outcome[int])
    assert_type(await shop.ship("A-1"), str)
    assert_type(await shop.ship.outcome("A-1"), Outcome[str])
