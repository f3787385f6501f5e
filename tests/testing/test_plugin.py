"""The pytest plugin: what its fixtures are, and what it costs whoever has idempo installed."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ENTRY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]

USES = """
import os
import pytest
from idempo import idempotent
from idempo.testing import Crashed


def test_the_clock_moves_the_memory(idempo_clock, idempo_memory):
    runs = []

    @idempotent(key="{order}", using=idempo_memory, name="f", keep=60)
    def f(order):
        runs.append(order)

    f("A-1")
    idempo_clock.advance(61)
    f("A-1")
    assert len(runs) == 2


@pytest.mark.parametrize("time", [1, 2])
def test_the_memory_is_empty(idempo_memory, time):
    @idempotent(key="{order}", using=idempo_memory, name="f")
    def f(order):
        return time

    assert f("A-1") == time


def test_a_caller_crashes(idempo_crashing, idempo_memory):
    ledger = idempo_crashing()

    @idempotent(key="{order}", using=ledger, name="f")
    def f(order):
        return order

    with ledger.die(at="complete") as death:
        f("A-1")
    assert death.reached and ledger.end_leases() == 1
    assert f.lookup("A-1").state == "orphan"


def test_it_runs_once(assert_runs_once, idempo_memory):
    @idempotent(key="{order}", using=idempo_memory, name="f")
    def f(order):
        return order

    assert_runs_once(f, "A-1")


@pytest.mark.parametrize("time", [1, 2])
def test_the_embedded_default_is_a_file_of_the_test(idempo_url, tmp_path, time):
    @idempotent(key="{order}", name="f")
    def f(order):
        return time

    assert f("A-1") == f("A-1") == time
    assert os.environ["IDEMPO_URL"] == idempo_url == f"sqlite:///{tmp_path / 'idempo.db'}"
    assert (tmp_path / "idempo.db").exists()


def test_the_working_directory_stays_clean():
    assert "IDEMPO_URL" not in os.environ
    assert not [name for name in os.listdir() if name.endswith(".db")]
"""

LOOKS = """
import sys


def test_what_is_loaded(request):
    assert "idempo.testing.plugin" in sys.modules
    assert not {"sqlalchemy", "redis", "psycopg", "hypothesis"} & set(sys.modules)
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder that makes of the sources an installed distribution, with the entry points of pyproject.toml."""
    found = tmp_path / "site"
    info = found / "idempo-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: idempo\nVersion: 0\n")
    points = "\n".join(f"{name} = {module}" for name, module in ENTRY.items())
    (info / "entry_points.txt").write_text(f"[pytest11]\n{points}\n")
    (info / "RECORD").write_text(
        "".join(
            f"{path.relative_to(ROOT).as_posix()},,\n" for path in sorted((ROOT / "idempo").rglob("*.py"))
        )
    )
    (found / "idempo").symlink_to(ROOT / "idempo")
    return found


@pytest.fixture
def pytest_on(tmp_path: Path) -> Callable[..., str]:
    """Runs the tests of a text with warnings as errors, in a folder of their own; what they print."""

    def runs(text: str, path: Path, *words: str, autoload: bool) -> str:
        folder = tmp_path / "tests"
        folder.mkdir()
        (folder / "test_it.py").write_text(text)
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("IDEMPO_", "PYTEST_"))
        }
        switch = {} if autoload else {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        ended = subprocess.run(
            [
                sys.executable,
                "-W",
                "error",
                "-m",
                "pytest",
                "-q",
                "-W",
                "error",
                "-p",
                "no:cacheprovider",
                *words,
            ],
            cwd=folder,
            env={**inherited, **switch, "PYTHONPATH": str(path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    return runs


def test_the_fixtures_are_what_they_say(pytest_on: Callable[..., str]) -> None:
    told = pytest_on(USES, ROOT, "-p", "idempo.testing.plugin", autoload=False)
    assert "8 passed" in told


def test_loading_it_imports_no_driver_and_warns_of_nothing(pytest_on: Callable[..., str]) -> None:
    assert "1 passed" in pytest_on(LOOKS, ROOT, "-p", "idempo.testing.plugin", autoload=False)


def test_the_entry_point_loads_it_and_the_suites_explain_what_they_assert(
    installed: Path, pytest_on: Callable[..., str]
) -> None:
    """As a plugin of an installed distribution it is imported after pytest has prepared to rewrite its asserts."""
    off = ["-p", "no:hypothesispytest", "-p", "no:xdist", "-p", "no:timeout", "-p", "no:anyio"]
    text = LOOKS.replace(', "hypothesis"', "") + (
        "    import idempo.testing.promises as suites\n    assert '@pytest_ar' in vars(suites)\n"
    )
    assert "1 passed" in pytest_on(text, installed, *off, autoload=True)
