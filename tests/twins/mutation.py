"""Mutation testing: change the library in small ways, one at a time, and see which changes no test notices.

    python -m tests.twins.mutation idempo/protocol.py                    # every mutant of a file
    python -m tests.twins.mutation --sample 50 --seed 1 idempo/keys.py   # some of them
    python -m tests.twins.mutation --line 84 idempo/protocol.py          # those of one line
    python -m tests.twins.mutation --tests "tests/traps/test_redis.py -k sync" idempo/scripts.py

Each mutant is tried on the tests that `mutation_table` names for its file, fastest first, until one fails. Each try is
a fork of this process, which has pytest and the drivers loaded already; it works on a copy of the tree.
"""

import argparse
import importlib
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from tests.twins.mutants import Mutant, mutants

__all__ = ["Bench", "Verdict", "main", "try_all"]

ROOT = Path(__file__).resolve().parents[2]
LOADED_ONCE = ("sqlalchemy.orm", "sqlalchemy.ext.asyncio", "redis.asyncio", "tenacity", "msgspec")
LIBRARY = ("idempo", "tests")
ASKED_FOR = ("postgres", "mariadb", "mysql")  # the servers that run only where a selection names them

Verdict = Literal["killed", "survived", "timed out"]


@dataclass
class Bench:
    """A copy of the tree where one file at a time is changed. A tree is a folder of packages and tests."""

    tree: Path
    library: Sequence[str] = LIBRARY
    """The packages that every try imports anew."""
    usual: dict[str, float] = field(default_factory=dict)
    """The seconds that a selection of tests takes where nothing is changed."""
    slack: float = 5
    """Seconds that it may take more than twice that."""

    def measure(self, selection: str) -> None:
        """Run the tests on the library as it is: they must pass, and their time is the measure for hanging ones."""
        if selection in self.usual:
            return
        began = time.monotonic()
        code = self._try(selection, seconds=600, clean=True)
        if code != pytest.ExitCode.OK:
            raise SystemExit(
                f"{selection}: the tests do not pass on the library itself\n{self.output[-3000:]}"
            )
        self.usual[selection] = time.monotonic() - began

    def judge(self, file: str, mutant: Mutant, selections: Sequence[str]) -> tuple[Verdict, str]:
        """Return the verdict, and the tests that gave it."""
        path = self.tree / file
        right = path.read_text()
        try:
            path.write_text(mutant.applied(right))
            for selection in selections:
                code = self._try(selection, seconds=self.slack + 2 * self.usual[selection], clean=False)
                if code is None:
                    return "timed out", selection
                if code == pytest.ExitCode.NO_TESTS_COLLECTED:
                    raise SystemExit(f"{selection}: no tests")
                if code != pytest.ExitCode.OK:
                    return "killed", selection
            return "survived", ""
        finally:
            path.write_text(right)

    @property
    def output(self) -> str:
        """What pytest said last."""
        return (self.tree / "output").read_text()

    def _try(self, selection: str, *, seconds: float, clean: bool) -> int | None:
        """Run tests in a fork of this process, in a session of its own. Returns pytest's exit code, None if it hung."""
        child = os.fork()
        if child == 0:
            self._be_the_child(selection, clean=clean)
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None

    def _be_the_child(self, selection: str, *, clean: bool) -> None:
        code = 70
        try:
            os.setsid()
            output = os.open(self.tree / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number in (1, 2):
                os.dup2(output, number)
            for name in [name for name in sys.modules if name.partition(".")[0] in self.library]:
                del sys.modules[name]
            sys.dont_write_bytecode = not clean  # nothing of a mutant may stay behind
            os.chdir(self.tree)
            sys.path.insert(0, str(self.tree))
            arguments = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist"]
            code = int(pytest.main([*shlex.split(selection), *arguments]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


@contextmanager
def bench(selections: Iterable[str] = ()) -> Iterator[Bench]:
    """A copy of this repository, and for all tries one Redis and one of each database that the selections name."""
    servers = importlib.import_module("tests.servers")
    recipes = importlib.import_module("tests.provide.recipes").RECIPES
    for name in LOADED_ONCE:
        importlib.import_module(name)
    words = " ".join(selections).lower()
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder, ExitStack() as running:
        tree = Path(folder)
        for name in ("idempo", "tests", "docs"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, tree)
        for kind in ("redis", *(kind for kind in ASKED_FOR if kind in words)):
            server = running.enter_context(servers.start_shared(kind))
            os.environ[recipes[kind].variable] = server.url
        yield Bench(tree)


def try_all(bench: Bench, file: str, chosen: Sequence[Mutant], selections: Sequence[str]) -> Counter[Verdict]:
    """Judge each mutant; print those that no test notices, and count."""
    for selection in selections:
        bench.measure(selection)
    counts: Counter[Verdict] = Counter()
    for mutant in chosen:
        verdict, by = bench.judge(file, mutant, selections)
        counts[verdict] += 1
        if verdict != "killed":
            print(f"{verdict}  {file}:{mutant.line}  {mutant.change}{f'  [{by}]' if by else ''}", flush=True)
    return counts


def main(words: Sequence[str] | None = None) -> None:
    """Print the survivors of each file and its score."""
    parser = argparse.ArgumentParser(prog="python -m tests.twins.mutation", description="Mutation testing.")
    parser.add_argument("files", nargs="+", help="files of the library, such as idempo/protocol.py")
    parser.add_argument("--sample", type=int, help="how many mutants of each file, drawn by chance")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--line", type=int, action="append", help="only mutants of this line")
    parser.add_argument(
        "--tests", action="append", help="instead of those of the table: what pytest is asked for"
    )
    given = parser.parse_args(words)
    from tests.twins.mutation_table import TESTS

    judges = {file: given.tests or TESTS[file] for file in given.files}
    with bench(selection for selections in judges.values() for selection in selections) as ours:
        for file, selections in judges.items():
            everything = mutants((ours.tree / file).read_text())
            chosen = [mutant for mutant in everything if not given.line or mutant.line in given.line]
            if given.sample and given.sample < len(chosen):
                chosen = sorted(random.Random(given.seed).sample(chosen, given.sample))
            began = time.monotonic()
            counts = try_all(ours, file, chosen, selections)
            print(
                f"{file}: {counts['killed']} killed, {counts['timed out']} timed out, {counts['survived']} survived;"
                f" {len(chosen)} of {len(everything)} tried in {time.monotonic() - began:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
