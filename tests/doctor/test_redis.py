"""The doctor on real Redis and Valkey servers, whose settings are changed for the worse."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from idempo import ConfigurationError, LedgerUnavailableError, RedisCache, idempotent
from idempo.doctor.redis_settings import persistence, version
from tests.doctor.support import about, bad, examined, level
from tests.provide.clocks import Clock
from tests.provide.processes import Local, free_port, poll, temporary_folder
from tests.provide.recipes import _place_of
from tests.servers import Server, start

KINDS = ("redis", "valkey")


def client_of(server: Server) -> Any:
    return redis.Redis.from_url(server.url)


@pytest.fixture(scope="module", params=KINDS)
def own(request: pytest.FixtureRequest) -> Iterator[Server]:
    with start(request.param) as server:
        yield server


@pytest.fixture
def server(own: Server) -> Iterator[Server]:
    """A durable server with the settings that it was started with, before and after; empty, without scripts."""
    with client_of(own) as client:
        client.flushall()
        client.script_flush()
        names = ["maxmemory-policy", "maxmemory", "appendonly", "appendfsync", "save"]
        names += ["no-appendfsync-on-rewrite", "min-replicas-to-write"]
        before = {name: client.config_get(name)[name] for name in names}
        yield own
        for name, value in before.items():
            client.config_set(name, value)


def user_of(server: Server, *rules: str) -> str:
    """The URL of a new user of the server with these rights."""
    with client_of(server) as client:
        client.execute_command("ACL", "SETUSER", "clerk", "reset", "on", ">hush-hush", *rules)
    return f"redis://clerk:hush-hush@127.0.0.1:{server.port}/0"


def test_a_durable_server_of_its_own_has_nothing_bad(server: Server) -> None:
    found = examined(server.url)
    assert bad(found) == []
    checked = {"version", "eviction", "memory", "persistence", "replication", "rights", "clock", "retention"}
    assert {finding.check for finding in found} == checked


def test_the_oldest_server_is_known_too(redis62: Server) -> None:
    found = examined(redis62.url)
    assert [finding.level for finding in about("version", found) + about("rights", found)] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("check", "settings", "expected"),
    [
        ("eviction", {"maxmemory-policy": "allkeys-lru", "maxmemory": "1gb"}, "danger"),
        ("eviction", {"maxmemory-policy": "volatile-ttl", "maxmemory": "1gb"}, "danger"),
        ("eviction", {"maxmemory-policy": "volatile-lru"}, "warning"),
        ("eviction", {"maxmemory": "1gb"}, "ok"),
        ("memory", {"maxmemory": "1mb"}, "warning"),
        ("memory", {"maxmemory": "1gb"}, "ok"),
        ("persistence", {"appendonly": "no"}, "danger"),
        ("persistence", {"appendonly": "no", "save": "3600 1"}, "danger"),
        ("persistence", {"appendfsync": "no"}, "danger"),
        ("persistence", {"appendfsync": "everysec"}, "warning"),
        ("persistence", {"no-appendfsync-on-rewrite": "yes"}, "warning"),
        ("replication", {"min-replicas-to-write": "1"}, "warning"),
    ],
)
def test_a_setting_is_found(server: Server, check: str, settings: dict[str, str], expected: str) -> None:
    assert level(check, server.url) == "ok"
    with client_of(server) as client:
        for name, value in settings.items():
            client.config_set(name, value)
    assert level(check, server.url) == expected


def test_replicas_that_are_asked_for_and_missing_are_told_from_those_that_may_lag(server: Server) -> None:
    with client_of(server) as client:
        client.config_set("min-replicas-to-write", 1)
    (found,) = about("replication", examined(server.url))
    assert "every call is refused" in found.says
    with pytest.raises(LedgerUnavailableError):
        calling(server.url)


def test_a_danger_says_what_to_do_and_whom_it_concerns(server: Server) -> None:
    with client_of(server) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", "1gb")
    worst = examined(server.url)[0]
    assert (worst.check, worst.level) == ("eviction", "danger")
    assert "allkeys-lru" in worst.says
    assert "Single claim" in worst.says
    assert "RedisCache alone" in worst.says
    assert "maxmemory-policy noeviction" in worst.mend


def test_looking_changes_nothing(server: Server) -> None:
    with client_of(server) as client:
        client.set("mine", "1")
        before = client.info("replication")["master_repl_offset"], client.dbsize()
        examined(server.url)
        assert (client.info("replication")["master_repl_offset"], client.dbsize()) == before
        client.flushdb()


def test_where_config_is_forbidden_info_tells_as_far_as_it_does(server: Server) -> None:
    url = user_of(server, "~idempo:*", "+@all", "-config")
    found = {finding.check: finding.level for finding in examined(url)}
    assert found["eviction"] == "ok"  # INFO tells the policy
    assert found["persistence"] == "unknown"  # but not appendfsync
    with client_of(server) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", "1gb")
        client.config_set("appendonly", "no")
    found = {finding.check: finding.level for finding in examined(url)}
    assert (found["eviction"], found["persistence"]) == ("danger", "danger")


def test_where_info_is_forbidden_too_nothing_is_ok_that_was_not_seen(server: Server) -> None:
    url = user_of(server, "~idempo:*", "+@all", "-config", "-info")
    found = {finding.check: finding.level for finding in examined(url)}
    unseen = {"version", "eviction", "memory", "persistence", "replication"}
    assert {name for name, level in found.items() if level == "unknown"} == unseen
    assert calling(url) == "done"
    with client_of(server) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", "1gb")
    assert level("eviction", user_of(server, "~idempo:*", "+@all", "-info")) == "danger"  # CONFIG tells it


@pytest.mark.parametrize(
    "rules",
    [
        ("~idempo:*", "+@all", "-eval"),
        ("~idempo:*", "+@all", "-evalsha"),
        ("~other:*", "+@all"),
        ("~idempo:*", "+@all", "-hset"),
        ("~idempo:*", "+@all", "-pexpire", "-del"),
    ],
    ids=" ".join,
)
def test_a_user_who_may_not_run_the_scripts_is_found(server: Server, rules: tuple[str, ...]) -> None:
    url = user_of(server, *rules)
    assert level("rights", url) == "danger"
    with pytest.raises(LedgerUnavailableError):
        calling(url)


@pytest.mark.parametrize("command", ["xadd", "xread"])
def test_a_user_whose_duplicates_are_not_woken_is_found(server: Server, command: str) -> None:
    url = user_of(server, "~idempo:*", "+@all", f"-{command}")
    (found,) = about("rights", examined(url))
    assert found.level == "warning"
    assert command.upper() in found.says
    assert calling(url) == "done"


def test_the_rights_that_it_asks_for_are_enough(server: Server) -> None:
    asked = about("rights", examined(user_of(server, "~other:*", "+@all")))[0].mend
    rules = asked.split(" on ")[1].split()
    url = user_of(server, *rules)
    assert level("rights", url) == "ok"
    assert calling(url) == "done"


def calling(url: str) -> str:
    ledger = RedisCache(url)

    @idempotent(key="{number}", using=ledger, name="doctor.calling")
    def call(number: str) -> str:
        return "done"

    try:
        return call("A-1")
    finally:
        ledger.close()


def test_a_replica_is_found_and_so_is_its_primary(own: Server) -> None:
    with start(own.kind) as other, client_of(own) as client, client_of(other) as replica:
        replica.replicaof("127.0.0.1", own.port)
        poll(lambda: connected(client), seconds=60)
        assert level("replication", other.url) == "danger"
        assert level("replication", own.url) == "danger"
        client.config_set("min-replicas-to-write", 1)
        assert level("replication", own.url) == "warning"
        assert level("clocks of nodes", own.url) == "ok"
        client.config_set("min-replicas-to-write", 0)


def test_a_server_in_another_time_is_found_and_a_replica_too() -> None:
    with start("valkey") as primary, Clock() as clock:
        with start("valkey", places=["wheel"], clock=clock) as other:
            with client_of(primary) as client, client_of(other) as replica:
                replica.replicaof("127.0.0.1", primary.port)
                poll(lambda: connected(client), seconds=60)
            assert level("clocks of nodes", primary.url) == "ok"
            assert level("clock", other.url) == "ok"
            clock.move(30)
            (found,) = about("clocks of nodes", examined(primary.url))
            assert found.level == "warning"
            assert "30.0 s apart" in found.says
            (found,) = about("clock", examined(other.url))
            assert found.level == "warning"
            assert "30.0 s ahead of ours" in found.says


def connected(client: Any) -> None:
    assert client.info("replication")["slave0"]["state"] == "online"


def test_a_cluster_is_looked_at_node_by_node(redis_cluster: Server) -> None:
    found = examined(redis_cluster.url.replace("redis:", "redis+cluster:"))
    assert [finding.level for finding in about("rights", found)] == ["ok"]
    assert "3 primaries" in about("cluster", found)[0].says
    assert about("clocks of nodes", found)[0].level == "ok"


def test_a_cluster_by_the_url_of_a_single_server_is_found(redis_cluster: Server) -> None:
    assert level("cluster", redis_cluster.url) == "danger"


def test_a_single_server_by_the_url_of_a_cluster_is_found(own: Server) -> None:
    assert level("cluster", own.url.replace("redis:", "redis+cluster:")) == "danger"


def test_a_sentinel_is_no_server_for_records(own: Server) -> None:
    folder, port = temporary_folder(), free_port()
    conf = folder / "sentinel.conf"
    conf.write_text(f"sentinel monitor shop 127.0.0.1 {own.port} 1\n")
    place = _place_of(own.kind, None)
    words: list[str | Path] = [place.program, conf, "--sentinel", "--port", str(port), "--bind", "127.0.0.1"]
    sentinel = Local(words, folder, env=place.environment)
    url = f"redis://127.0.0.1:{port}/0"
    try:
        sentinel.start()
        poll(lambda: redis.Redis.from_url(url).ping(), seconds=30, give_up=sentinel.check)
        worst = examined(url)[0]
        assert (worst.check, worst.level) == ("server", "danger")
        assert "master_for" in worst.mend
    finally:
        sentinel.stop()


def test_a_server_that_hangs_is_given_up() -> None:
    with start("redis") as server:
        server.pause()
        with pytest.raises(LedgerUnavailableError):
            examined(server.url)
        server.resume()


def test_a_wrong_password_is_no_answer_and_is_not_shown(own: Server) -> None:
    user_of(own, "~*", "+@all")
    with pytest.raises(LedgerUnavailableError) as refused:
        examined(f"redis://clerk:guessed@127.0.0.1:{own.port}/0")
    assert "guessed" not in str(refused.value)
    with pytest.raises(ConfigurationError):
        examined("redis://:se/cret@127.0.0.1/0")


def test_old_versions_are_refused() -> None:
    assert version({"redis_version": "6.0.16"}).level == "danger"
    assert version({"redis_version": "6.2.0"}).level == "ok"
    assert version({"redis_version": "7.2.4", "valkey_version": "8.0.1"}).says == "Valkey 8.0.1"
    assert version({}).level == "unknown"


def test_a_server_that_tells_nothing_is_never_ok() -> None:
    assert persistence({}).level == "unknown"
    assert persistence({"aof_enabled": 1}).level == "unknown"
    assert persistence({"aof_enabled": 0}).level == "danger"
