"""The command `idempo doctor`."""

import io
import json
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from tests.doctor.support import execute, initialised
from tests.servers import Server, fresh_database, start


def doctor(*words: str) -> SimpleNamespace:
    from idempo.cli import main

    out, err = io.StringIO(), io.StringIO()
    with pytest.raises(SystemExit) as end, redirect_stdout(out), redirect_stderr(err):
        main(["doctor", *words])
    return SimpleNamespace(code=end.value.code, out=out.getvalue(), err=err.getvalue())


@pytest.fixture(scope="module")
def own() -> Iterator[Server]:
    with start("redis") as server:
        yield server


@pytest.fixture
def server(own: Server) -> Iterator[Server]:
    client: Any
    with redis.Redis.from_url(own.url) as client:
        yield own
        for name, value in {
            "maxmemory-policy": "noeviction",
            "appendfsync": "always",
            "requirepass": "",
        }.items():
            client.config_set(name, value)
        client.config_set("maxmemory", 0)


def configure(server: Server, **settings: str) -> None:
    client: Any
    with redis.Redis.from_url(server.url) as client:
        for name, value in settings.items():
            client.config_set(name.replace("_", "-"), value)


def test_it_succeeds_where_there_is_no_danger(server: Server) -> None:
    found = doctor(server.url, "--retries-over", "stripe")
    assert found.code == 0
    assert "ok       eviction: maxmemory-policy is noeviction" in found.out
    assert found.err == "0 danger, 0 warning, 0 unknown, 8 ok\n"


def test_a_danger_comes_first_and_fails_and_is_mended_on_the_next_line(server: Server) -> None:
    configure(server, maxmemory="1gb", maxmemory_policy="allkeys-lru", appendfsync="everysec")
    found = doctor(server.url)
    first, second, *others = found.out.splitlines()
    assert found.code == 1
    assert first.startswith("danger   eviction: maxmemory-policy is allkeys-lru")
    assert second.startswith("         mend: CONFIG SET maxmemory-policy noeviction")
    levels = [line.split()[0] for line in (first, *others) if not line.startswith(" ")]
    assert levels == sorted(levels, key=["danger", "warning", "unknown", "ok"].index)


def test_a_warning_fails_only_if_strict(server: Server) -> None:
    configure(server, appendfsync="everysec")
    words = (server.url, "--retries-over", "stripe")
    assert (doctor(*words).code, doctor(*words, "--strict").code) == (0, 1)
    configure(server, appendfsync="always")
    assert doctor(*words, "--strict").code == 0


def test_what_is_unknown_fails_only_if_strict(server: Server) -> None:
    client: Any
    with redis.Redis.from_url(server.url) as client:
        client.execute_command(
            "ACL", "SETUSER", "clerk", "reset", "on", ">x", "~idempo:*", "+@all", "-config"
        )
    words = (f"redis://clerk:x@127.0.0.1:{server.port}/0", "--retries-over", "stripe")
    assert (doctor(*words).code, doctor(*words, "--strict").code) == (0, 1)
    assert "unknown  persistence:" in doctor(*words).out


def test_json_is_json_and_nothing_else(server: Server) -> None:
    configure(server, maxmemory="1gb", maxmemory_policy="allkeys-lru")
    found = doctor(server.url, "--json")
    told = json.loads(found.out)
    assert found.code == 1
    assert {frozenset(one) for one in told} == {frozenset({"check", "level", "says", "mend"})}
    assert (told[0]["check"], told[0]["level"]) == ("eviction", "danger")


def test_the_retention_is_compared_with_those_who_repeat(server: Server) -> None:
    assert doctor(server.url, "--keep", "2d", "--retries-over", "stripe").code == 1
    assert doctor(server.url, "--keep", "3d", "--retries-over", "stripe").code == 0
    both = doctor(server.url, "--retries-over", "stripe", "--retries-over", "30d")
    assert "danger   retention" in both.out
    assert doctor(server.url, "--keep", "soon").err.startswith("ConfigurationError: 'soon' is no duration")


def test_the_table_and_the_prefix_are_those_named(own: Server, tmp_path: Path) -> None:
    url = initialised(f"sqlite:///{tmp_path}/idempo.db")
    assert "the table idempo_records is there" in doctor(url).out
    assert "there is no table other_records" in doctor(url, "--table", "other_records").out
    assert "on keys shop:*" in doctor(own.url, "--prefix", "shop:").out


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hush-hush@127.0.0.1:1/0",
        "postgresql+psycopg://me:hush-hush@127.0.0.1:1/x",
        "mysql+pymysql://me:hush-hush@127.0.0.1:1/x",
        "sqlite:////nowhere/idempo.db",
        "redis+cluster://:hush-hush@127.0.0.1:1/0",
        "nonsense://:hush-hush@127.0.0.1:1/0",
    ],
)
@pytest.mark.parametrize("json_too", [(), ("--json",)], ids=["text", "json"])
def test_a_store_that_does_not_answer_is_one_line_without_a_password(
    url: str, json_too: tuple[str, ...]
) -> None:
    found = doctor(url, *json_too)
    assert (found.code, found.out, found.err.count("\n")) == (1, "", 1)
    assert "hush-hush" not in found.err


def test_no_password_is_shown(server: Server, postgres: Server) -> None:
    configure(server, maxmemory="1gb", maxmemory_policy="allkeys-lru")
    configure(server, requirepass="hush-hush")
    client: Any
    url = f"redis://:hush-hush@127.0.0.1:{server.port}/0"
    try:
        found = doctor(url)
        assert found.code == 1
        assert "hush-hush" not in found.out + found.err + doctor(url, "--json").out
    finally:
        with redis.Redis.from_url(url) as client:
            client.config_set("requirepass", "")
    role = f"clerk_{Path(fresh_database(postgres)).name}"
    execute(postgres.url, f"CREATE ROLE {role} LOGIN PASSWORD 'hush-hush'")
    told = doctor(postgres.url.replace("postgres@", f"{role}:hush-hush@"))
    assert "hush-hush" not in told.out + told.err
    execute(postgres.url, f"DROP ROLE {role}")
