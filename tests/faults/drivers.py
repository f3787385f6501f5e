"""The drivers that tests go through, and the server of each."""

import pytest

from tests.servers import Server

__all__ = ["SERVERS", "server_by"]

SERVERS = {
    "psycopg": "postgres",
    "psycopg2": "postgres",
    "pg8000": "postgres",
    "asyncpg": "postgres",
    "pymysql": "mariadb",
    "mysqlconnector": "mariadb",
    "asyncmy": "mariadb",
}


def server_by(driver: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server of this driver, whose URLs name it from now on."""
    monkeypatch.setenv("IDEMPO_TEST_DRIVERS", driver)
    server: Server = request.getfixturevalue(SERVERS[driver])
    return server
