"""How long MySQL and MariaDB are told to wait: nothing held it until a mutant went unnoticed."""

import time
from typing import Any

import pytest
from sqlalchemy import Column, Connection, Engine, Integer, MetaData, String, Table, create_engine, event
from sqlalchemy.pool import NullPool

from idempo import SelectForUpdate, UniqueInsert, idempotent
from tests.servers import Server, fresh_database

WAITS = [(0, 1), (0.2, 1), (7, 7), (86_400, 30)]
"""Seconds that a call waits, and that the database is told: at least one, and half a minute at a time."""


@pytest.fixture(scope="module", params=["mariadb", "mysql"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture(autouse=True)
def _no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a call has as long to wait as it said, on a machine that is slow, too."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)


def _noting(server: Server) -> tuple[Engine, list[str]]:
    engine, sent = create_engine(fresh_database(server), poolclass=NullPool), list[str]()

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        sent.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    return engine, sent


@pytest.mark.parametrize(("wait", "told"), WAITS)
def test_a_claim_waits_for_the_row_in_whole_seconds_and_not_at_all_for_a_call_that_waits_for_nothing(
    server: Server, wait: float, told: int
) -> None:
    engine, sent = _noting(server)
    strategy = UniqueInsert(engine, join="session")
    strategy.create_schema()

    @idempotent(key="{order}", using=strategy, wait=wait)
    def place(order: str, session: Any = None) -> str:
        return "placed"

    assert place("A-1") == "placed"
    (locking,) = [one for one in sent if "FOR UPDATE" in one]
    clause = locking.partition("FOR UPDATE")[2].strip()
    if server.kind == "mariadb":
        assert clause == (f"WAIT {told}" if wait else "NOWAIT")
    else:
        assert clause == ("" if wait else "NOWAIT")
        assert f"SET SESSION innodb_lock_wait_timeout = {told}" in sent


@pytest.mark.parametrize(("wait", "told"), WAITS)
def test_a_guard_waits_for_its_row_in_whole_seconds(server: Server, wait: float, told: int) -> None:
    engine, sent = _noting(server)
    orders = Table("orders", MetaData(), Column("id", Integer, primary_key=True), Column("status", String(9)))
    orders.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(orders.insert().values(id=1, status="new"))
    strategy = UniqueInsert(engine, join="session")
    strategy.create_schema()
    guard = SelectForUpdate(orders, where={orders.c.id: "{order}"}, engine=engine)

    @idempotent(key="{order}", using=[strategy, guard], wait=wait)
    def place(order: int, row: Any = None, session: Any = None) -> str:
        return "placed"

    assert place(1) == "placed"
    if server.kind == "mariadb":
        told = told if wait else 0
        assert any(f"SET STATEMENT innodb_lock_wait_timeout = {told} FOR SELECT 1 " in one for one in sent)
    else:
        assert (
            sent.count(f"SET SESSION innodb_lock_wait_timeout = {told}") == 2
        )  # of the record, and of the order


def test_the_callers_own_bound_holds_again_afterwards(server: Server) -> None:
    engine, _ = _noting(server)
    strategy = UniqueInsert(engine, join="session")
    strategy.create_schema()

    @idempotent(key="{order}", using=strategy, wait=7)
    def place(order: str, session: Connection) -> str:
        return "placed"

    with engine.connect() as connection:
        connection.exec_driver_sql("SET SESSION innodb_lock_wait_timeout = 33")
        assert place("A-1", connection) == "placed"
        assert connection.exec_driver_sql("SELECT @@innodb_lock_wait_timeout").scalar_one() == 33
