"""The servers that the other tests stand on: each starts, answers, and keeps its data through a kill."""

from collections.abc import Iterator

import pytest
import redis
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from tests import servers
from tests.servers import Server


@pytest.fixture(params=servers.KINDS)
def private(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = servers.start(request.param)
    yield server
    server.stop()


def write(server: Server) -> None:
    if server.url.startswith("redis"):
        client = redis.RedisCluster if server.kind == "valkey-cluster" else redis.Redis
        with client.from_url(server.url) as connected:
            connected.set("kept", "yes")
        return
    with create_engine(server.url, poolclass=NullPool).begin() as connection:
        connection.execute(text("CREATE TABLE kept (word VARCHAR(10))"))
        connection.execute(text("INSERT INTO kept VALUES ('yes')"))


def read(server: Server) -> str:
    if server.url.startswith("redis"):
        client = redis.RedisCluster if server.kind == "valkey-cluster" else redis.Redis
        with client.from_url(server.url, decode_responses=True) as connected:
            return str(connected.get("kept"))
    with create_engine(server.url, poolclass=NullPool).connect() as connection:
        return str(connection.execute(text("SELECT word FROM kept")).scalar_one())


def test_a_private_server_keeps_its_data_through_a_kill(private: Server) -> None:
    write(private)
    private.kill()
    private.start()
    assert read(private) == "yes"
