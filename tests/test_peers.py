"""What the benchmark of the peers does without them: it says so, and goes on."""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any, NoReturn

import pytest

from benchmarks import peers
from benchmarks.method import Measured, Plan
from benchmarks.peers import run
from benchmarks.peers.adapters import PEERS
from benchmarks.peers.shapes import Peer, Places

ROOT = Path(__file__).parents[1]
NAMES = {
    "aws-lambda-powertools",
    "cashews",
    "dbos",
    "dogpile-cache",
    "exactly-once",
    "idemkit",
    "idempotency-kit",
}
NOWHERE = Places("", "", "")


def pins(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / name).read_text()
    return dict(re.findall(r"^([a-z0-9.-]+)==([^ ;\\]+)", text, re.MULTILINE))


def test_an_environment_that_cannot_be_made_is_told_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(kind: str, python: str) -> NoReturn:
        sys.exit(f"dev.py: that failed with status 1 for {kind}")

    monkeypatch.setattr(peers.dev, "environment", refuse)
    (row,) = peers.measure(NOWHERE, Plan())["peers"]
    assert row.calls == 0
    assert row.note.startswith("not measured: ")
    assert "failed with status 1 for peers" in row.note


def test_a_measurement_that_fails_in_the_environment_is_told_in_a_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(peers.dev, "environment", lambda kind, python: tmp_path / "python")
    monkeypatch.setattr(peers.dev, "run", lambda *command, **how: 3)
    (row,) = peers.measure(NOWHERE, Plan())["peers"]
    assert (row.calls, row.note) == (0, "not measured: measuring them ended with status 3")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_peer_that_cannot_run_is_told_beside_those_that_can(
    monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    def missing(*_: Any) -> NoReturn:
        raise ModuleNotFoundError("No module named 'nobody'")

    monkeypatch.setattr(run, "PEERS", (PEERS[0], Peer("nobody", "memory", missing)))
    rows = run.table("memory", asynchronous, NOWHERE, Plan(rounds=1, block=1))
    assert [(row.name, row.calls) for row in rows] == [
        ("idempo Memory: first run", 1),
        ("idempo Memory: replay", 1),
        ("nobody", 0),
    ]
    assert rows[-1].note == "not measured: ModuleNotFoundError: No module named 'nobody'"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_peer_that_runs_a_repeat_again_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    def forgetful(function: Any, *_: Any) -> Any:
        return lambda key: function.body(key, 1)

    monkeypatch.setattr(run, "PEERS", (PEERS[0], Peer("forgetful", "memory", forgetful)))
    rows = run.table("memory", asynchronous, NOWHERE, Plan(rounds=1, block=1))
    assert rows[-1].note == "not measured: RuntimeError: it gave [1, 2]"


def test_tables_pass_as_json_without_a_loss() -> None:
    tables = {
        "peers, Redis": [
            Measured("one", 40, 1.5, 2.5, "floor", 1.2, 1.1, 1.3, 1.15, "a note", (1.0, 2.0)),
            Measured("two", 0, 0.0, 0.0, note="not measured: why"),
        ]
    }
    assert peers.from_json(peers.to_json(tables)) == tables


def test_no_peer_is_needed_to_use_or_to_develop_idempo() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    parts = [project["project"][name] for name in ("dependencies", "optional-dependencies")]
    asked = str([*parts, project["dependency-groups"]]).lower()
    assert not [name for name in NAMES if name in asked]
    assert not NAMES & (pins("dev.txt").keys() | pins("run.txt").keys())


def test_the_peers_are_measured_with_the_versions_that_idempo_is_developed_with() -> None:
    ours, theirs = pins("dev.txt"), pins("peers.txt")
    assert theirs.keys() >= NAMES
    assert {"sqlalchemy", "redis", "hiredis", "tenacity", "msgspec", "psycopg"} <= theirs.keys()
    assert {name: theirs[name] for name in theirs.keys() & ours} == {
        name: ours[name] for name in theirs.keys() & ours
    }


def test_each_pin_has_a_hash_and_no_registry_is_named() -> None:
    text = (ROOT / "requirements" / "peers.txt").read_text()
    assert all(
        re.search(rf"^{re.escape(name)}==[^\n]*\\\n    --hash=sha256:", text, re.M)
        for name in pins("peers.txt")
    )
    assert "://" not in text
    assert "index" not in text
