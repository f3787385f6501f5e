"""The proxy breaks connections as it says, in front of real servers."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import make_url

from tests.faults.proxy import Proxy
from tests.servers import Server, fresh_database


@pytest.fixture
def proxy(valkey: Server) -> Iterator[Proxy]:
    with Proxy(valkey.port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[Any]:
    # One connection, no retries, no greeting of its own: each command is one round trip.
    with redis.Redis(
        port=proxy.port,
        protocol=2,
        socket_timeout=0.3,
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        single_connection_client=True,
        driver_info=None,
        decode_responses=True,
    ) as client:
        proxy.reset_count()
        yield client


@pytest.fixture
def direct(valkey: Server) -> Iterator[Any]:
    with redis.Redis(port=valkey.port, decode_responses=True) as direct:
        yield direct
        direct.flushdb()


def test_counts_round_trips_and_not_commands(proxy: Proxy, client: Any) -> None:
    client.ping()
    client.set("a", 1)
    assert proxy.requests == 2
    with client.pipeline(transaction=True) as pipeline:
        pipeline.set("a", 2).get("a").delete("a")
        assert pipeline.execute() == [True, "2", 1]
    assert proxy.requests == 3
    assert b"MULTI" in proxy.log[2]
    assert b"EXEC" in proxy.log[2]
    proxy.reset_count()
    assert (proxy.requests, proxy.log) == (0, [])


def test_a_large_reply_is_one_round_trip(proxy: Proxy, client: Any) -> None:
    client.set("large", "x" * 3_000_000)
    assert len(client.get("large")) == 3_000_000
    assert proxy.requests == 2


def test_a_dropped_request_never_reaches_the_server(proxy: Proxy, client: Any, direct: Any) -> None:
    proxy.drop_request(b"lost")
    client.set("kept", 1)
    with pytest.raises(redis.ConnectionError):
        client.set("lost", 1)
    assert proxy.fired.is_set()
    assert direct.mget("kept", "lost") == ["1", None]
    client.set("lost", 2)  # it was armed once
    assert direct.get("lost") == "2"


def test_a_dropped_reply_leaves_the_effect(proxy: Proxy, client: Any, direct: Any) -> None:
    proxy.drop_reply(b"done")
    with pytest.raises(redis.ConnectionError):
        client.set("done", 1)
    assert proxy.fired.is_set()
    assert direct.get("done") == "1"


def test_refuse_and_restore(proxy: Proxy, client: Any) -> None:
    client.ping()
    proxy.refuse()
    for _ in range(2):
        with pytest.raises(redis.ConnectionError):
            client.ping()
    proxy.restore()
    assert client.ping()


def test_a_blackhole_is_a_timeout(proxy: Proxy, client: Any, direct: Any) -> None:
    client.ping()
    proxy.blackhole()
    with pytest.raises(redis.TimeoutError):
        client.set("held", 1)
    assert direct.get("held") is None
    proxy.restore()
    assert client.ping()


def test_a_blackhole_holds_back_and_loses_nothing(proxy: Proxy) -> None:
    with redis.Redis(port=proxy.port, socket_timeout=20, retry=Retry(NoBackoff(), 0)) as patient:
        patient.ping()
        proxy.blackhole()
        timer = threading.Timer(0.1, proxy.restore)
        timer.start()
        assert patient.ping()
        timer.join()


def test_delay(proxy: Proxy, client: Any) -> None:
    client.ping()
    proxy.delay(0.1)
    begin = time.monotonic()
    client.ping()
    assert time.monotonic() - begin >= 0.1


def test_cut_resets_what_is_open(proxy: Proxy, client: Any) -> None:
    client.ping()
    proxy.cut()
    with pytest.raises(redis.ConnectionError):
        client.ping()
    assert client.ping()


def test_a_server_that_is_down_looks_down(proxy: Proxy) -> None:
    with Proxy(1) as nothing, redis.Redis(port=nothing.port, retry=Retry(NoBackoff(), 0)) as client:
        with pytest.raises(redis.ConnectionError):
            client.ping()


@pytest.mark.parametrize("drop", ["drop_request", "drop_reply"])
def test_an_ambiguous_commit(postgres: Server, drop: str) -> None:
    url = fresh_database(postgres).replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as direct:
        direct.execute("CREATE TABLE effects (n int)")
        with Proxy(postgres.port) as proxy:
            through = psycopg.connect(url, port=proxy.port, sslmode="disable")
            through.execute("INSERT INTO effects VALUES (1)")
            getattr(proxy, drop)(b"COMMIT")
            with pytest.raises(psycopg.OperationalError):
                through.commit()
            through.close()
        rows = direct.execute("SELECT count(*) FROM effects").fetchone()
    assert rows == (1 if drop == "drop_reply" else 0,)


def test_what_postgres_is_sent_before_it_is_ready_is_one_round_trip(postgres: Server) -> None:
    """In pipeline mode; whenever its parts pass, and whatever was answered meanwhile."""
    with (
        Proxy(postgres.port) as proxy,
        psycopg.connect(
            make_url(postgres.url).set(drivername="postgresql", port=proxy.port).render_as_string(False),
            sslmode="disable",
            autocommit=True,
        ) as connection,
    ):
        for _ in range(20):
            proxy.reset_count()
            with connection.pipeline():
                asked = [
                    connection.execute("SELECT repeat('x', 100000), %s", [number]) for number in range(5)
                ]
            assert [one.fetchone()[1] for one in asked] == list(range(5))  # type: ignore[index]
            assert proxy.requests == 1
            connection.execute("SELECT 1", prepare=False)
            assert proxy.requests == 2
