"""`idempo demo`, as people run it: real stores, several processes, some of them killed."""

import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from idempo.cli import main
from idempo.demo import sample
from tests.servers import Server, fresh_database

STORES = ("sqlite", "postgres", "mariadb", "redis_server", "valkey")
COMMAND = (sys.executable, "-m", "idempo", "demo")


def line(payment_no: str, amount: str, event_id: str = "e", status: str = "paid") -> dict[str, str]:
    return {"payment_no": payment_no, "event_id": event_id, "amount": amount, "status": status}


def written(path: Path, *lines: object) -> Path:
    """A file of these lines; bytes as they are, everything else as JSON."""
    raw = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in lines]
    path.write_bytes(b"".join(one + b"\n" for one in raw))
    return path


def busy_feed(path: Path, payments: int = 40) -> Path:
    """Each payment several times in a row, so that all workers have it at once; every tenth one forged too."""
    rng = random.Random(7)
    lines = []
    for number in range(payments):
        lines += [
            line(f"P {number}", f"{number + 1}.5", f"e{number}-{again}") for again in range(rng.randint(2, 6))
        ]
        lines += [line(f"P {number}", "99999", "forged")] * (number % 10 == 9)
    return written(path, *lines)


def demo(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, which is faster: its workers are processes all the same."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.raises(SystemExit) as end, redirect_stdout(out), redirect_stderr(err):
        main(["demo", *map(str, words)])
    assert isinstance(end.value.code, int)
    return subprocess.CompletedProcess(words, end.value.code, out.getvalue(), err.getvalue())


def reported(*words: str | Path, status: int = 0) -> dict[str, Any]:
    """The report of a run: one JSON object, nothing else on stdout, and the numbers add up."""
    found = demo("--json", *words)
    assert found.returncode == status, found.stderr
    assert "Traceback" not in found.stderr
    report: dict[str, Any] = json.loads(found.stdout)
    assert len(found.stdout.splitlines()) == 1
    assert list(report) == [
        "received", "malformed", "payments", "executed", "replayed", "refused", "kills", "ledger_total", "ok",
    ]  # fmt: skip
    parts = ("malformed", "executed", "replayed", "refused")
    assert report["received"] == sum(report[part] for part in parts)
    assert report["ok"] is (status == 0)
    assert not report["ok"] or report["executed"] <= report["payments"]
    return report


class Ledger:
    """The demo's ledger, read and tampered with by other means than the demo's."""

    def __init__(self, url: str) -> None:
        self.url = url

    def entries(self) -> list[tuple[str, Decimal]]:
        if self.url.startswith("redis"):
            with redis.Redis.from_url(self.url) as client:
                stored: Any = client.hvals("idempo_demo_ledger")
                return [(entry["payment_no"], Decimal(entry["amount"])) for entry in map(json.loads, stored)]
        return [
            (number, Decimal(str(amount))) for number, amount in self.sql("SELECT payment_no, amount FROM {}")
        ]

    def post_twice(self, number: str) -> None:
        if self.url.startswith("redis"):
            with redis.Redis.from_url(self.url) as client:
                stored: Any = client.hvals("idempo_demo_ledger")
                again = next(entry for entry in stored if json.loads(entry)["payment_no"] == number)
                client.hset("idempo_demo_ledger", "another key", again)
            return
        columns = "payment_no, event_id, amount, run"
        self.sql(f"INSERT INTO {{}} ({columns}) SELECT {columns} FROM {{}} WHERE payment_no = '{number}'")

    def sql(self, statement: str) -> list[Any]:
        engine = create_engine(self.url, poolclass=NullPool)
        with engine.begin() as connection:
            found = connection.execute(text(statement.replace("{}", "idempo_demo_ledger")))
            return [tuple(row) for row in found] if found.returns_rows else []


@pytest.fixture(params=STORES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/demo.db"
    server: Server = request.getfixturevalue(request.param)
    return fresh_database(server)


# ------------------------------------------------------------------------------------------ on every store


def test_each_payment_is_posted_once_although_workers_are_killed(url: str, tmp_path: Path) -> None:
    source = busy_feed(tmp_path / "feed.jsonl")
    first = reported("--input", source, "--url", url, "--workers", "3", "--kills", "3")
    assert (first["payments"], first["executed"], first["kills"], first["malformed"]) == (40, 40, 3, 0)
    entries = Ledger(url).entries()
    assert Counter(number for number, _ in entries) == {f"P {number}": 1 for number in range(40)}
    assert sum(amount for _, amount in entries) == Decimal(first["ledger_total"])

    again = reported("--input", source, "--url", url, "--workers", "2", "--kills", "0")
    assert (again["executed"], again["payments"], again["kills"]) == (0, 40, 0)
    assert (again["ledger_total"], again["refused"]) == (first["ledger_total"], first["refused"])
    assert sorted(Ledger(url).entries()) == sorted(entries)

    Ledger(url).post_twice("P 7")
    found = demo("--input", source, "--url", url, "--workers", "1", "--kills", "0")
    assert found.returncode == 1
    assert "does NOT reconcile" in found.stdout
    assert "payment P 7 was posted 2 times" in found.stdout
    assert "payment P 8" not in found.stdout


def test_another_input_on_the_same_store_reconciles_too(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/demo.db"
    first = written(tmp_path / "1.jsonl", line("A", "1"), line("B", "2"))
    second = written(tmp_path / "2.jsonl", line("B", "2.00"), line("C", "3"), line("A", "7"))
    reported("--input", first, "--url", url, "--workers", "1", "--kills", "0")
    report = reported("--input", second, "--url", url, "--workers", "1", "--kills", "0")
    assert (report["executed"], report["replayed"], report["refused"]) == (1, 1, 1)
    assert report["ledger_total"] == "6.00"


# ------------------------------------------------------------------------------------------ the sample


def test_the_sample_is_what_its_generator_makes() -> None:
    with sample.bundled() as stream:
        found = stream.read().decode()
    assert found == "".join(f"{line}\n" for line in sample.lines())
    callbacks = [json.loads(line) for line in found.splitlines()]
    amounts = {(one["payment_no"], one["amount"]) for one in callbacks}
    numbers = [one["payment_no"] for one in callbacks]
    assert len(callbacks) >= 2000
    assert len(set(numbers)) == 500
    assert len(amounts) > 520  # some are forged
    assert sum(one == other for one, other in itertools.pairwise(numbers)) > 300
    assert all(one["status"] == "paid" for one in callbacks)


def test_the_sample_on_the_default_store(tmp_path: Path) -> None:
    before = time.monotonic()
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    found = subprocess.run(COMMAND, capture_output=True, text=True, timeout=100, check=False, env=env)
    assert found.returncode == 0, found.stdout + found.stderr
    assert time.monotonic() - before < 60
    sentence = found.stdout.splitlines()[-1]
    assert sentence.startswith(
        "500 payments, 2,301 callbacks, 7 workers killed: each payment was posted exactly once;"
    )
    assert "killed a worker (7)" in found.stderr
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------ any input


def test_bad_lines_are_told_by_number_and_skipped(tmp_path: Path) -> None:
    good = line("A", "1.00")
    bad: list[object] = [
        b"{", b"", b"[]", b"null", b"12", b'"paid"', b"\xff\xfe{}", b"[" * 50_000, b"9" * 5000, {},
        {**good, "amount": 1}, {**good, "amount": None}, {**good, "payment_no": 7}, {**good, "event_id": ["e"]},
        {**good, "amount": "NaN"}, {**good, "amount": "Infinity"}, {**good, "amount": "-1"}, {**good, "amount": "0.00"},
        {**good, "amount": "1e3"}, {**good, "amount": "1,00"}, {**good, "amount": " 1"}, {**good, "amount": "\u0661"},
        {**good, "amount": "1" * 500}, {**good, "amount": ""}, {**good, "payment_no": " "},
        {**good, "payment_no": "x" * 201}, {**good, "payment_no": "a\x00b"}, {**good, "event_id": "\ud800"},
        {**good, "status": "failed"}, {name: good[name] for name in ("payment_no", "amount", "status")},
        b'{"payment_no": "A", "payment_no": "B", "event_id": "e", "amount": "1", "status": "paid"}',
        b'{"payment_no": "' + b"x" * 200_000 + b'"}',
    ]  # fmt: skip
    source = written(tmp_path / "feed.jsonl", *bad, good, {**good, "amount": "1.000", "more": 1})
    found = demo("--json", "--input", source, "--workers", "2", "--kills", "0")
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout)
    told = [int(one.split()[1].rstrip(":")) for one in found.stderr.splitlines() if one.endswith("; skipped")]
    assert told == [number for number in range(1, len(bad) + 1) if number != 2]  # the second one is blank
    assert report["malformed"] == len(bad) - 1
    assert report["received"] == len(bad) + 1
    assert (report["payments"], report["executed"], report["replayed"]) == (1, 1, 1)


@pytest.mark.parametrize("content", [b"", b"\n \n\r\n"])
def test_an_empty_file_is_fine(content: bytes, tmp_path: Path) -> None:
    source = tmp_path / "feed.jsonl"
    source.write_bytes(content)
    report = reported("--input", source)
    assert (report["received"], report["kills"], report["ledger_total"]) == (0, 0, "0.00")


def test_a_byte_order_mark_and_windows_line_ends_on_stdin() -> None:
    lines = [json.dumps(line(f"Zahlung-ä-{number}", "0.01")).encode() for number in range(3)]
    words = [*COMMAND, "--json", "--input", "-", "--workers", "1", "--kills", "0"]
    given = b"\xef\xbb\xbf" + b"\r\n".join(lines)
    found = subprocess.run(words, input=given, capture_output=True, timeout=100, check=True)
    report = json.loads(found.stdout)
    assert (report["malformed"], report["executed"], report["ledger_total"]) == (0, 3, "0.03")


def test_the_first_accepted_amount_holds(tmp_path: Path) -> None:
    lines = [
        line("A", "666"),
        line("A", "1"),
        line("A", "1.00"),
        line("A", "666.0"),
        line("a", "2"),
        line("A ", "3"),
    ]
    source = written(tmp_path / "feed.jsonl", *lines)
    report = reported("--input", source, "--workers", "1", "--kills", "0")
    assert (report["payments"], report["executed"], report["replayed"], report["refused"]) == (3, 3, 1, 2)
    assert report["ledger_total"] == "671.00"


def test_more_kills_than_lines_end_all_the_same(tmp_path: Path) -> None:
    source = written(tmp_path / "feed.jsonl", line("A", "1"), line("A", "1"))
    report = reported("--input", source, "--workers", "2", "--kills", "3")
    assert report["executed"] == 1
    assert report["kills"] <= 3


def test_amounts_are_added_exactly(tmp_path: Path) -> None:
    amounts = ["999999999999999.999999", "0.000001", "0.1", "0.2"]
    lines = [line(f"P{number}", amount) for number, amount in enumerate(amounts)]
    report = reported("--input", written(tmp_path / "feed.jsonl", *lines), "--workers", "1", "--kills", "0")
    assert report["ledger_total"] == "1000000000000000.30"


# ------------------------------------------------------------------------------------------ what cannot work


def test_no_such_file() -> None:
    found = demo("--json", "--input", "/nowhere/feed.jsonl")
    assert (found.returncode, found.stdout) == (2, "")
    assert "there is no file /nowhere/feed.jsonl" in found.stderr


@pytest.mark.parametrize(
    "url",
    [
        "redis://:secret@127.0.0.1:1/0",
        "postgresql+psycopg://me:secret@127.0.0.1:1/shop",
        "mysql+pymysql://me:secret@127.0.0.1:1/shop",
        "sqlite:////nowhere/demo.db",
        "oracle://me:secret@127.0.0.1/shop",
    ],
)
def test_a_store_that_does_not_answer_is_one_line(url: str) -> None:
    found = demo("--json", "--url", url)
    assert (found.returncode, found.stdout) == (1, "")
    assert len(found.stderr.splitlines()) == 1
    assert "Error: " in found.stderr
    assert "secret" not in found.stderr


# ------------------------------------------------------------------------------------------ nothing stays behind


def _descendants(pid: int) -> list[int]:
    children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [one for child in children for one in (child, *_descendants(child))]


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture
def running(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """A demo at work, on so many payments that it does not end by itself."""
    env = {**os.environ, "TMPDIR": str(tmp_path)}  # as short as it can be: sockets are made there
    source = tmp_path_factory.mktemp("in") / "callbacks.jsonl"
    source.write_text(
        "".join(
            f"{line}\n".replace('"PAY-', f'"PAY-{copy:03}') for copy in range(8) for line in sample.lines()
        )
    )
    process = subprocess.Popen(
        [*COMMAND, "--input", str(source)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        process_group=0,
    )
    assert process.stderr is not None
    while "answered" not in process.stderr.readline():
        assert process.poll() is None
    yield process
    process.kill()
    process.communicate()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_stays_behind(
    running: subprocess.Popen[str], number: signal.Signals, tmp_path: Path
) -> None:
    children = _descendants(running.pid)
    assert len(children) >= 4
    os.killpg(running.pid, number) if number == signal.SIGINT else running.send_signal(number)
    out, err = running.communicate(timeout=20)
    patience = time.monotonic() + 20
    while not all(map(_gone, children)) and time.monotonic() < patience:
        time.sleep(0.02)
    assert all(map(_gone, children))
    assert running.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, -number)
    assert "Traceback" not in out + err
    if number != signal.SIGKILL:
        assert not list(tmp_path.iterdir())


def test_the_first_line_of_a_payment_decides_about_its_amount(tmp_path: Path) -> None:
    """However many workers there are: forged callbacks right behind the real ones never win."""
    pairs = [(line(f"P {number}", "10.00"), line(f"P {number}", "99.00")) for number in range(150)]
    report = reported(
        "--input", written(tmp_path / "in", *itertools.chain(*pairs)), "--workers", "5", "--kills", "3"
    )
    assert (report["executed"], report["refused"], report["ledger_total"]) == (150, 150, "1500.00")
