"""The command line, on real stores."""

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import create_engine, inspect
from sqlalchemy.pool import NullPool

from idempo import RedisCache, UniqueInsert, idempotent
from idempo.cli import main
from idempo.presentation import without_password
from tests.servers import Server, fresh_database

SQL = ("sqlite", "postgres", "mariadb")
REDIS = ("redis_server", "valkey")
OPERATION = "shop.create_order"


def idempo(*words: str) -> subprocess.CompletedProcess[str]:
    out, err = io.StringIO(), io.StringIO()
    with pytest.raises(SystemExit) as end, redirect_stdout(out), redirect_stderr(err):
        main(words)
    assert isinstance(end.value.code, int)
    return subprocess.CompletedProcess(words, end.value.code, out.getvalue(), err.getvalue())


def told(*words: str) -> str:
    found = idempo(*words)
    assert found.returncode == 0, found.stderr
    return str(found.stdout)


def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/idempo.db"
    server: Server = request.getfixturevalue(request.param)
    return fresh_database(server)


@pytest.fixture(params=SQL)
def sql(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A SQL database without the records table."""
    return store(request, tmp_path)


@pytest.fixture(params=[*SQL, *REDIS])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Any store, ready to use."""
    url = store(request, tmp_path)
    told("init", url)
    return url


_opened: list[Any] = []


@pytest.fixture(autouse=True)
def closing() -> Iterator[None]:
    yield
    while _opened:
        _opened.pop().close()


@dataclass(frozen=True)
class Receipt:
    number: str
    amount: Decimal


def orders(url: str, name: str = OPERATION, **options: Any) -> Callable[[str], Receipt]:
    strategy: Any = RedisCache(url) if url.startswith("redis") else UniqueInsert(url)
    _opened.append(strategy)

    @idempotent(key="{number}", using=strategy, name=name, **options)
    def create_order(number: str) -> Receipt:
        if number == "stop":
            raise KeyboardInterrupt
        if number == "poor":
            raise LookupError("no money")
        return Receipt(number, Decimal("19.90"))

    return create_order


# ------------------------------------------------------------------------------------------ init


def test_init_creates_the_table_and_prints_it(sql: str) -> None:
    assert "CREATE TABLE idempo_records" in told("init", sql)
    assert "CREATE TABLE idempo_records" in told("init", sql)  # it is there, and that is fine
    engine = create_engine(sql, poolclass=NullPool)
    assert inspect(engine).has_table("idempo_records")
    orders(sql)("A-1")


@pytest.mark.parametrize("option", ["--ddl", "--dry-run"])
def test_a_dry_run_changes_nothing(sql: str, option: str) -> None:
    assert "CREATE TABLE other_records" in told("init", sql, option, "--table", "other_records")
    assert not inspect(create_engine(sql, poolclass=NullPool)).get_table_names()


def test_what_a_dry_run_prints_can_be_run(sql: str) -> None:
    with create_engine(sql, poolclass=NullPool).begin() as connection:
        for statement in filter(str.strip, told("init", sql, "--ddl").split(";\n")):
            connection.exec_driver_sql(statement)
    orders(sql)("A-1")
    assert "A-1" in told("list", sql)


def test_a_dry_run_needs_no_server() -> None:
    assert "MEDIUMBLOB" in told("init", "mysql+pymysql://nobody@127.0.0.1:1/x", "--ddl")
    assert "BYTEA" in told("init", "postgresql+psycopg://nobody@127.0.0.1:1/x", "--ddl")


def test_redis_needs_neither_init_nor_purge(redis_server: Server) -> None:
    for command in ("init", "purge"):
        found = idempo(command, redis_server.url)
        assert (found.returncode, found.stdout) == (0, "")
        assert f"nothing to {'create' if command == 'init' else 'purge'}" in found.stderr


# ------------------------------------------------------------------------------------------ list and show


def test_list(url: str) -> None:
    create = orders(url, replay_errors=[LookupError])
    for number in ("A-1", "A-2", "poor"):
        with suppress(LookupError):
            create(number)
    orders(url, "shop.other")("A-1")
    with pytest.raises(KeyboardInterrupt):
        orders(url, lease=0.01)("stop")
    time.sleep(0.05)
    found = json.loads(told("list", url, "--json"))
    assert sorted((one["operation"], one["key"], one["state"]) for one in found) == [
        (OPERATION, "A-1", "completed"),
        (OPERATION, "A-2", "completed"),
        (OPERATION, "poor", "failed"),
        (OPERATION, "stop", "orphan"),
        ("shop.other", "A-1", "completed"),
    ]
    assert "result" not in found[0]
    assert [
        one["operation"] for one in json.loads(told("list", url, "--json", "--operation", "shop.other"))
    ] == ["shop.other"]
    for state, count in {"completed": 3, "failed": 1, "orphan": 1, "running": 0}.items():
        assert len(json.loads(told("list", url, "--json", "--state", state))) == count
    assert len(json.loads(told("list", url, "--json", "--limit", "2"))) == 2
    table = idempo("list", url)
    assert len(table.stdout.splitlines()) == 6
    assert table.stderr == "5 records\n"
    assert "A-1" in table.stdout
    assert "Decimal" not in table.stdout


def test_list_of_nothing(url: str) -> None:
    assert json.loads(told("list", url, "--json")) == []
    found = idempo("list", url)
    assert (found.stdout, found.stderr) == ("", "0 records\n")


def test_show(url: str) -> None:
    orders(url, keep=timedelta(days=2))("A-1")
    orders(url, "shop.other")("A-1")
    orders(url)("a-1")
    found = json.loads(told("show", url, "A-1", "--json", "--operation", OPERATION))
    assert len(found) == 1
    record = found[0]
    assert (record["operation"], record["key"], record["state"]) == (OPERATION, "A-1", "completed")
    assert (record["scope"], record["attempt"], record["lease_left"]) == ("", 1, None)
    assert record["fence"] > 0
    assert len(bytes.fromhex(record["digest"])) == 32
    assert 2 * 86_400 - 600 < record["keep_left"] <= 2 * 86_400
    times = [datetime.fromisoformat(record[name]) for name in ("created", "completed", "keep_until")]
    assert times == sorted(times)
    assert all(time.utcoffset() == timedelta(0) for time in times)
    assert "result" not in record
    assert len(json.loads(told("show", url, "A-1", "--json"))) == 2
    text = told("show", url, "A-1", "--operation", "shop.other")
    assert "completed" in text
    assert record["digest"] not in text


def test_a_running_record_has_a_lease(url: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        orders(url)("stop")
    record = json.loads(told("show", url, "stop", "--json"))[0]
    assert (record["state"], record["completed"]) == ("running", None)
    assert 0 < record["lease_left"] <= 30


def test_results_are_shown_on_demand(url: str) -> None:
    create = orders(url, replay_errors=[LookupError])
    create("A-1")
    with pytest.raises(LookupError):
        create("poor")
    assert "Decimal" not in told("show", url, "A-1")
    text = told("show", url, "A-1", "--result")
    assert "Receipt(number='A-1', amount=Decimal('19.90'))" in text
    assert "no money" not in told("show", url, "poor")
    assert "raised builtins.LookupError('no money',)" in told("show", url, "poor", "--result")
    assert len(json.loads(told("list", url, "--json", "--result"))) == 2


def test_a_result_of_a_class_that_is_not_here_is_no_error(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/idempo.db"
    program = (
        "import dataclasses, sys\nfrom idempo import *\n"
        "@dataclasses.dataclass\nclass Mine:\n    a: int\n"
        "@idempotent(key='{k}', using=UniqueInsert(sys.argv[1]), name='mine')\n"
        "def f(k: str) -> Mine:\n    return Mine(1)\n"
        "f('A')"
    )
    subprocess.run([sys.executable, "-c", program, url], check=True)
    assert "cannot be read here" in told("show", url, "A", "--result")


def test_show_of_an_unknown_key(url: str) -> None:
    found = idempo("show", url, "nobody")
    assert found.returncode == 1
    assert found.stderr == "there is no record of the key 'nobody'\n"


def test_keys_are_printed_on_one_line_and_command_no_terminal(url: str) -> None:
    key = "[red]A\n\x1b[2J"
    orders(url)(key)
    lines = told("list", url).splitlines()
    assert len(lines) == 2
    shown = r"[red]A\n\x1b[2J"
    assert shown in lines[1]
    assert json.loads(told("show", url, shown, "--json"))[0]["key"] == shown  # as people read it


def test_show_is_exact(url: str) -> None:
    for key in ("A-1", "a-1", "A-1 ", "Á-1", "A-1%"):
        orders(url)(key)
    for key in ("A-1", "a-1", "A-1 ", "Á-1", "A-1%"):
        assert [one["key"] for one in json.loads(told("show", url, key, "--json"))] == [key]


def test_other_keys_in_a_redis_are_left_out(redis_server: Server) -> None:
    url = fresh_database(redis_server)
    orders(url)("A-1")
    with redis.Redis.from_url(url) as client:
        client.set("idempo:" + "a" * 64, "a string")
        client.hset("idempo:" + "b" * 64, "field", "no record")
        client.set("idempo:stock", 7)
        client.hset("other", "operation", OPERATION)
    assert [one["key"] for one in json.loads(told("list", url, "--json"))] == ["A-1"]
    assert json.loads(told("list", url, "--json", "--prefix", "idempo*")) == []


def test_a_redis_too_large_to_look_through_is_said_so(
    redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = fresh_database(redis_server)
    for number in range(5):
        orders(url)(str(number))
    monkeypatch.setattr("idempo.inspection._SCANNED", 3)
    found = idempo("list", url, "--json")
    assert len(json.loads(found.stdout)) == 3
    assert "there may be more" in found.stderr


# ------------------------------------------------------------------------------------------ purge


def test_purge_takes_what_is_over_and_nothing_else(sql: str) -> None:
    told("init", sql)
    short = orders(sql, "short", keep=0.001, lease=0.001)
    for number in range(25):
        short(str(number))
    orders(sql)("A-1")
    assert told("purge", sql, "--batch", "10") == "purged 25 records\n"
    assert told("purge", sql) == "purged 0 records\n"
    assert [one["key"] for one in json.loads(told("list", sql, "--json"))] == ["A-1"]


# ------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize("command", ["list", "show", "purge"])
def test_a_missing_table_is_one_line_that_says_what_to_do(
    command: str, postgres: Server, mariadb: Server, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.db"
    empty.touch()
    for url in (fresh_database(postgres), fresh_database(mariadb), f"sqlite:///{empty}"):
        found = idempo(command, url, *(["A-1"] if command == "show" else []))
        assert (found.returncode, found.stdout) == (1, "")
        assert len(found.stderr.splitlines()) == 1
        assert "idempo init URL" in found.stderr


@pytest.mark.parametrize("command", ["init", "list", "purge"])
@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me:secret@127.0.0.1:1/shop",
        "mysql+pymysql://me:secret@127.0.0.1:1/shop",
        "redis://me:secret@127.0.0.1:1/0",
        "sqlite:////nowhere/idempo.db",
        "sqlite:///:memory:",
        "oracle://me:secret@127.0.0.1/shop",
        "redis://me:secret@127.0.0.1:port/0",
        "secret",
        "",
    ],
)
def test_an_error_is_one_typed_line(command: str, url: str) -> None:
    if url.startswith("redis://") and command != "list":
        pytest.skip("nothing is asked of a Redis")
    found = idempo(command, url)
    assert (found.returncode, found.stdout) == (1, "")
    assert len(found.stderr.splitlines()) == 1, found.stderr
    assert "Error: " in found.stderr
    assert "secret" not in found.stderr


def test_list_does_not_create_a_file(tmp_path: Path) -> None:
    assert idempo("list", f"sqlite:///{tmp_path}/idempo.db").returncode == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["fly"],
        ["list"],
        ["list", "sqlite:///x.db", "--limit", "0"],
        ["list", "sqlite:///x.db", "--state", "gone"],
    ],
)
def test_usage_errors_exit_2(words: list[str]) -> None:
    found = idempo(*words)
    assert (found.returncode, found.stdout) == (2, "")
    assert "Usage: idempo" in found.stderr


def test_help() -> None:
    assert all(command in told("--help") for command in ("demo", "init", "list", "show", "purge"))
    assert "received = malformed + executed + replayed + refused" in told("demo", "--help")


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_it_says_what_to_install(missing: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; from idempo.cli import main; main(['--help'])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == "the command idempo needs an extra: pip install 'idempo[cli]'\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:pass@host/0", "redis://:***@host/0"),
        ("postgresql+psycopg://me:p@ss/w:rd@host:1/db", "postgresql+psycopg://me:***@host:1/db"),
        ("redis://host/0?password=pass&db=1", "redis://host/0?password=***&db=1"),
        ("sqlite:///a:b.db", "sqlite:///a:b.db"),
        ("redis://me@host:6379/0", "redis://me@host:6379/0"),
    ],
)
def test_passwords_are_not_shown(text: str, shown: str) -> None:
    assert without_password(text) == shown
