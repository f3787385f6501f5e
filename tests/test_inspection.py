"""A list reads what it shows, and not all that is over."""

from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.pool import NullPool

from idempo.inspection import Wanted, inspect
from tests.servers import Server
from tests.test_purge import filled
from tests.traps.support import shop_database


def test_a_list_does_not_read_what_is_over(postgres: Server) -> None:
    url = shop_database(postgres)
    filled(url, over=300)
    asked: list[tuple[str, Any]] = []

    def listener(connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
        if "FROM idempo_records" in statement:
            asked.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", listener)
    store = inspect(url)
    try:
        assert store.records(Wanted(limit=50)) == []
    finally:
        event.remove(Engine, "before_cursor_execute", listener)
        store.close()
    statement, parameters = asked[0]
    with create_engine(url, poolclass=NullPool).connect() as connection:
        connection.exec_driver_sql("SET enable_seqscan = off")  # as if there were more of them
        plan = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, COSTS OFF) {statement}", parameters)
        assert "Rows Removed by Filter: 300" not in "\n".join(row[0] for row in plan)
