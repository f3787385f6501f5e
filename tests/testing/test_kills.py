"""The crashing ledger is honest: what it leaves at each request is what kill -9 leaves there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import fresh_database
from tests.testing.victims import Program, order_of, points

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/shop.db"
    return fresh_database(request.getfixturevalue(request.param))


def killed_at(url: str, kind: str) -> list[tuple[int, str]]:
    """The points at which a process was killed: all that its call has."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.testing.victims", url, kind, "killed"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return [(int(number), moment) for number, moment in map(str.split, ended.stdout.splitlines())]


@pytest.mark.parametrize("kind", ["leased", "joined"])
def test_at_every_request_it_leaves_what_kill_9_leaves(kind: str, url: str) -> None:
    program = Program(url, joined=kind == "joined")
    program.books.create()
    killed = killed_at(url, kind)
    played = []
    for number, moment in points():
        order = order_of("played", number, moment)
        if not program.dies(order, number, moment).reached:
            break
        played.append((number, moment))
        assert program.left(order) == program.left(order_of("killed", number, moment)), (number, moment)
    assert played == killed
    assert len(played) == {"leased": 4, "joined": 8}[kind]
    states = {program.left(order_of("killed", *point)) for point in killed}
    assert (
        states
        == {
            "leased": {("absent", 0), ("running", 0), ("running", 1), ("completed", 1)},
            "joined": {("absent", 0), ("completed", 1)},
        }[kind]
    )
    program.strategy.close()
