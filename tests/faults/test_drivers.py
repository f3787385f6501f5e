"""Connections that were killed while they rested in the pool, by driver: the next call finds others."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from idempo import UniqueInsert, idempotent
from idempo.failures import codes, is_disconnect
from tests.faults.drivers import server_by
from tests.servers import Server, fresh_database

BLOCKING = ("psycopg", "psycopg2", "pg8000", "pymysql", "mysqlconnector")
KILL = {
    "postgres": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    "mariadb": "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()",
}
MISSING = {"postgres": ("42P01", 0), "mariadb": ("42S02", 1146)}

drivers = pytest.mark.parametrize("driver", BLOCKING)


@pytest.fixture
def server(driver: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Server:
    return server_by(driver, request, monkeypatch)


@pytest.fixture
def url(server: Server, driver: str) -> str:
    url = fresh_database(server)
    assert make_url(url).get_driver_name() == driver
    return url


@pytest.fixture
def beside(server: Server, url: str) -> Iterator[Engine]:
    """The same database, by the driver that is not on trial."""
    name = make_url(server.url).set(database=make_url(url).database)
    engine = create_engine(name, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    yield engine
    engine.dispose()


def kill_all(server: Server, beside: Engine) -> int:
    with beside.connect() as connection:
        found = connection.execute(text(KILL[server.kind])).scalars().all()
        if server.kind == "mariadb":
            for number in found:
                connection.execute(text(f"KILL {number}"))
    return len(found)


@drivers
@pytest.mark.parametrize("joined", [False, True])
def test_connections_that_were_killed_in_the_pool_are_replaced(
    server: Server, url: str, beside: Engine, joined: bool
) -> None:
    runs: list[str] = []
    ledger = UniqueInsert(url, join="session" if joined else None)
    ledger.create_schema()

    @idempotent(key="{key}", using=ledger, name=f"killed.{joined}")
    def f(key: str, session: object = None) -> str:
        runs.append(key)
        return key

    f("a")
    for key in ("b", "c"):
        assert kill_all(server, beside) > 0
        assert f(key) == key
        assert f("a") == "a"
    assert runs == ["a", "b", "c"]
    ledger.close()


@drivers
def test_a_connection_that_was_killed_is_known_for_lost(server: Server, url: str, beside: Engine) -> None:
    """On an engine of the user's own too."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        assert kill_all(server, beside) == 1
        with pytest.raises((DBAPIError, OSError)) as told:
            connection.execute(text("SELECT 1"))
        assert is_disconnect(told.value)
        connection.invalidate()


@drivers
def test_every_driver_tells_the_databases_own_codes(server: Server, url: str) -> None:
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection, pytest.raises(Exception, match="nothing") as told:
        connection.execute(text("SELECT * FROM nothing"))
    assert codes(told.value) == MISSING[server.kind]
    assert not is_disconnect(told.value)


def test_an_error_of_a_socket_of_the_users_own_is_none_of_a_connection() -> None:
    with pytest.raises(ConnectionError) as told:
        raise ConnectionResetError("a broker of the user's own")
    assert not is_disconnect(told.value)
