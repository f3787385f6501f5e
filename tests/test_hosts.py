"""URLs that name several hosts, as for a failover, are one database only if the hosts are the same."""

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table

from idempo import CompositionError, StateGuard, UniqueInsert, idempotent
from idempo.connections import Database

HERE = "postgresql+psycopg://u@/shop?host=a:5432&host=b:5432&target_session_attrs=read-write"
THERE = "postgresql+psycopg://u@/shop?host=c:5432&host=d:5432&target_session_attrs=read-write"
SOCKET = "postgresql+psycopg://u@/shop?host=/run/one"
OTHER_SOCKET = "postgresql+psycopg://u@/shop?host=/run/two"

orders = Table("orders", MetaData(), Column("id", Integer, primary_key=True), Column("status", String(20)))


@pytest.mark.parametrize(("one", "other"), [(HERE, THERE), (SOCKET, OTHER_SOCKET)])
def test_databases_on_other_hosts_are_not_the_same(one: str, other: str) -> None:
    assert Database(one).is_same(Database(one))
    assert not Database(one).is_same(Database(other))


def test_a_guard_on_other_hosts_is_refused_beside_a_record() -> None:
    """Its row and the record would not commit together."""
    guard = StateGuard(orders.c.status, {orders.c.id: "{order}"}, {"new": ["paid"]}, "paid", engine=THERE)
    with pytest.raises(CompositionError):

        @idempotent(key="{order}", using=[UniqueInsert(HERE, join="session"), guard])
        def pay(order: int, session: object = None) -> int:
            return order
