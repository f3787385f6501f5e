"""The mutation runner: it finds a change that no test notices, and none where a test does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.twins.mutants import mutants
from tests.twins.mutation import ROOT
from tests.twins.mutation_table import TESTS

TESTED = """
from till import open_at

def test_it_is_open_at_noon():
    assert open_at(12)

def test_it_is_shut_at_night():
    assert not open_at(3)
"""

# In an interpreter of its own: it forks, and this one may have threads.
PROGRAM = """
from pathlib import Path
from tests.twins.mutants import mutants
from tests.twins.mutation import Bench, try_all

bench = Bench(Path.cwd(), library=("till", "test_till"))
bench.slack = 2
counts = try_all(bench, "till.py", mutants(Path("till.py").read_text()), ["test_till.py"])
print(sorted(counts.items()))
"""


def tried(folder: Path, till: str, tests: str = TESTED) -> subprocess.CompletedProcess[str]:
    (folder / "till.py").write_text(till)
    (folder / "test_till.py").write_text(tests)
    (folder / "pytest.ini").write_text("[pytest]\n")
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_what_a_test_notices_is_killed_and_the_rest_is_named(tmp_path: Path) -> None:
    till = "def open_at(hour: int) -> bool:\n    return hour >= 9\n"

    assert tried(tmp_path, till).stdout.splitlines() == [
        "survived  till.py:2  >=  ->  >",
        "survived  till.py:2  9  ->  10",
        "[('killed', 2), ('survived', 2)]",  # hour < 9, None
    ]
    assert (tmp_path / "till.py").read_text() == till


def test_what_makes_the_tests_hang_is_told_apart(tmp_path: Path) -> None:
    till = "def open_at(hour: int) -> bool:\n    while hour is None:\n        pass\n    return 9 in (hour - 3, hour)\n"

    assert "timed out  till.py:2  is  ->  is not  [test_till.py]" in tried(tmp_path, till).stdout


def test_tests_that_fail_by_themselves_are_refused(tmp_path: Path) -> None:
    ended = tried(tmp_path, "def open_at(hour):\n    return True\n")

    assert ended.returncode == 1
    assert "test_till.py: the tests do not pass on the library itself" in ended.stderr


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("x = a and b", "a and b  ->  ((b))"),
        ("x = max(a, b)", "max(a, b)  ->  (a)"),
        ("try: f()\nexcept Exception: pass", "Exception  ->  BaseException"),
        ("def f():\n    yield from g()", "yield from g()  ->  pass"),
        ('x = "UPDATE t SET a = :a, b = :b WHERE k = :k AND owner = :owner"', "owner = :owner  ->  1 = 1"),
        ('x = "UPDATE t SET a = :a, b = :b WHERE k = :k AND owner = :owner"', ", b = :b  ->  (nothing)"),
        ('x = "SELECT greatest(r.fence + 1, :now)"', "greatest(r.fence + 1, :now)  ->  :now"),
        (
            'x = """\nif a then return 0 end\nredis.call(1)\n"""',
            "if a then return 0 end  ->  (nothing)",
        ),
    ],
)
def test_rules_can_be_left_out_in_python_sql_and_lua(text: str, wanted: str) -> None:
    assert wanted in [mutant.change for mutant in mutants(text)]


def test_prose_and_annotations_are_not_changed() -> None:
    assert mutants('"""Each AND every WHERE a = b."""\nx: "1 < 2" = y\n') == []


@pytest.mark.parametrize("file", TESTS)
def test_the_files_of_the_table_and_their_tests_are_there(file: str) -> None:
    assert (ROOT / file).is_file()
    for selection in TESTS[file]:
        for word in selection.partition(" -k")[0].split():
            assert (ROOT / word).exists(), word
