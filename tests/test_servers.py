"""The servers that the other tests stand on: each starts, answers, and keeps its data through a kill."""

import dataclasses
from collections.abc import Iterator

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from tests import servers
from tests.faults.proxy import Proxy
from tests.provide import processes, sentinel
from tests.provide.sentinel import Pair
from tests.servers import Server, fresh_database


@pytest.fixture(params=servers.KINDS)
def private(request: pytest.FixtureRequest) -> Iterator[Server]:
    with servers.start(request.param) as server:
        yield server


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


def test_killed_is_down_and_paused_is_silent() -> None:
    with (
        servers.start("valkey") as server,
        redis.Redis(port=server.port, socket_timeout=0.2, retry=Retry(NoBackoff(), 0)) as client,
    ):
        assert client.ping()
        server.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        server.resume()
        assert client.ping()
        server.kill()
        with pytest.raises(redis.ConnectionError):
            client.ping()


def test_a_kill_reaches_the_backends() -> None:
    with servers.start("postgres") as server, psycopg.connect(server.url.replace("+psycopg", "")) as client:
        backend = client.info.backend_pid
        server.kill()
        assert not processes.runs(backend)
        with pytest.raises(psycopg.OperationalError):
            client.execute("SELECT 1")


@pytest.mark.parametrize("kind", ["mariadb", "redis"])
def test_without_root_from_packages(kind: str) -> None:
    """What a machine does where nothing is installed and nobody may install."""
    with servers.start(kind, places=("debian",)) as server:
        write(server)
        assert read(server) == "yes"


@pytest.mark.parametrize("kind", ["postgres", "mariadb", "redis_server", "valkey"])
def test_fresh_databases_are_apart(kind: str, request: pytest.FixtureRequest) -> None:
    shared: Server = request.getfixturevalue(kind)
    first, second = (dataclasses.replace(shared, url=fresh_database(shared)) for _ in range(2))
    for server in (first, second):
        write(server)
    assert first.url != second.url
    with pytest.raises(RuntimeError, match="shared"):
        shared.kill()


def test_async_urls() -> None:
    assert servers.async_url("mysql+pymysql://root@h/d") == "mysql+asyncmy://root@h/d"
    assert servers.async_url("redis://h") == "redis://h"


def test_a_pair_waits_for_the_one_that_is_the_replica_now(monkeypatch: pytest.MonkeyPatch) -> None:
    with Pair("valkey") as pair, Proxy(pair.second.port) as proxy:
        pair.second.client.replicaof("NO", "ONE")
        pair.first.follow(proxy.port)
        pair.replicated()
        proxy.blackhole()
        pair.second.client.set("new", "yes")
        monkeypatch.setattr(sentinel, "SECONDS", 0)
        with pytest.raises(TimeoutError, match="behind"):
            pair.replicated()
