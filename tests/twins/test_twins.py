"""The suite notices when a rule is left out: each twin is the whole library with one rule gone, and its test fails."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.twins.table import TWINS, Twin

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 100
FAILED = 1  # pytest's exit code: tests ran, and some failed. Anything else means that none ran.


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: f"{Path(twin.file).stem}: {twin.rule}")
def test_a_rule_that_is_left_out_is_noticed(twin: Twin, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "idempo", tmp_path / "idempo", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tests", "docs", "pyproject.toml", "README.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    file = tmp_path / "idempo" / twin.file
    text = file.read_text()
    assert text.count(twin.right) == 1, "the twin no longer fits the code"
    file.write_text(text.replace(twin.right, twin.wrong))
    test, _, selected = twin.noticed_by.partition(" ")
    words = [f"tests/{test}", *(["-k", selected] if selected else [])]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ended.returncode == FAILED, ended.stdout[-2000:] + ended.stderr[-2000:]
    assert re.search(r"\d+ failed", ended.stdout), ended.stdout[-2000:]
    assert "error" not in ended.stdout.splitlines()[-1], "the twin breaks more than its rule"
