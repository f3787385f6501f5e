"""Row guards where it is easy to be wrong."""

from typing import Any

import pytest
from sqlalchemy import inspect, text
from sqlalchemy.exc import DBAPIError

from idempo import ConfigurationError, ReadOnly, SelectForUpdate, VersionCheck, idempotent
from idempo.steps import Steps
from tests.guards.support import Order, Shop, driven, on
from tests.guards.support_rows import HERE
from tests.traps.support import caught


@pytest.mark.parametrize("target", [7, Order.id, "orders"])
def test_a_target_that_is_none_is_a_typed_error(target: Any) -> None:
    with pytest.raises(ConfigurationError, match="mapped class or a table"):
        SelectForUpdate(target, HERE)


def test_an_async_done_of_a_plain_function_is_refused() -> None:
    """Its coroutine would never be awaited, and always be true."""

    async def done(row: Any) -> bool:
        return False

    def plain(order_id: int, session: Any = None) -> int:
        return 1

    with pytest.raises(ConfigurationError, match="async done="):
        idempotent(key="{order_id}", using=SelectForUpdate(Order, HERE, done=done))(plain)


@on("mariadb", "mysql")
@driven
def test_ddl_as_the_first_statement_of_a_read_only_function_fails(shop: Shop) -> Steps[None]:
    """DDL ends the transaction that it finds, and is part of none."""

    def body(order_id: int, payment: str, session: Any) -> Steps[None]:
        yield session.execute(text("CREATE TABLE written (id INTEGER)"))

    f = shop.function(body, ReadOnly(shop.engine))
    try:
        yield from caught(DBAPIError, lambda: f(1, "P-1"))
        assert not inspect(shop.outside).has_table("written")
    finally:
        with shop.outside.connect() as connection:
            connection.execute(text("DROP TABLE IF EXISTS written"))


def test_retries_that_are_a_bool_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="retries=False"):
        VersionCheck(Order.version, HERE, retries=False)
