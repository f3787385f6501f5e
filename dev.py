"""The one command runner: `python3 dev.py demo | test | lint | bench | docs | wheel`.

Needs Python 3.11 or newer and nothing else. It makes its own virtual environments in .cache/ out of the
pinned files in requirements/, which are compiled with

    uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \\
        --no-annotate pyproject.toml --all-extras --group dev -o requirements/dev.txt
    uv pip compile (the same options) pyproject.toml --extra cli --group build -c requirements/dev.txt \\
        -o requirements/run.txt
    uv pip compile (the same options) pyproject.toml --all-extras --group bench -c requirements/dev.txt \\
        -o requirements/bench.txt
"""

import argparse
import contextlib
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent
CACHE = ROOT / ".cache"
SMOKE = """
import idempo
runs = []

@idempo.idempotent(key="order-{number}")
def pay(number: int) -> int:
    runs.append(number)
    return number * 2

assert [pay(7), pay(7)] == [14, 14] and runs == [7], runs
print("smoke: ran once, replayed once, on", idempo.__file__)
"""


def run(
    *command: str | Path, cwd: Path | None = None, quiet: bool = False, extra: dict[str, str] | None = None
) -> int:
    """Run a program to its end, without what would make its Python look elsewhere."""
    words = [str(word) for word in command]
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    if not quiet:
        print(f"$ {shlex.join(words)}", file=sys.stderr, flush=True)
    return subprocess.run(words, cwd=cwd, check=False, env={**env, **(extra or {})}).returncode


def must(*command: str | Path, cwd: Path | None = None) -> None:
    if status := run(*command, cwd=cwd):
        sys.exit(f"dev.py: that failed with status {status}")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Two of us at the same time wait for each other, where the system can do that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            import fcntl
        except ImportError:
            pass
        else:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def digest(*parts: bytes | str) -> str:
    joined = b"\0".join(part if isinstance(part, bytes) else part.encode() for part in parts)
    return hashlib.sha256(joined).hexdigest()[:12]


def version_of(python: str) -> str:
    """The full version of an interpreter, from itself."""
    script = "import sys, platform; print(sys.version_info >= (3, 11), sys.version, platform.machine())"
    try:
        answer = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"dev.py: {python} does not run: {error}")
    if not answer.startswith("True"):
        sys.exit(f"dev.py: {python} is too old, idempo needs Python 3.11 or newer: {answer}")
    return answer


def runs(*command: str | Path) -> bool:
    """Whether a program ends well, without a word of it on the screen."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def create(folder: Path, python: str) -> None:
    """Make an empty virtual environment."""
    if runs(python, "-c", "import ensurepip, venv"):
        must(python, "-m", "venv", folder)
    elif runs(python, "-c", "import venv") and runs(python, "-m", "pip", "--version"):
        # Debian keeps ensurepip in a package of its own. The pip outside can fill the environment as well.
        must(python, "-m", "venv", "--without-pip", folder)
    else:
        sys.exit(
            f"dev.py: {python} can make no virtual environment: it has neither ensurepip nor pip.\n"
            "On Debian and Ubuntu: apt-get install python3-venv. Elsewhere install a complete Python 3.11\n"
            "or newer, or name one: python3 dev.py test --python /path/to/python3"
        )


def inside(folder: Path) -> Path:
    """The Python of a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def install(folder: Path, python: str, *what: str | Path) -> None:
    own = runs(inside(folder), "-m", "pip", "--version")
    pip = [inside(folder), "-m", "pip"] if own else [python, "-m", "pip", "--python", inside(folder)]
    must(*pip, "install", "--quiet", "--disable-pip-version-check", "--no-input", *what)


def environment(kind: str, python: str) -> Path:
    """The Python of the virtual environment for `kind`, which is made if it is missing or incomplete."""
    requirements = ROOT / "requirements" / f"{kind}.txt"
    folder = CACHE / f"venv-{kind}-{digest(requirements.read_bytes(), version_of(python))}"
    complete, installed = folder / "complete", folder / "installed"
    # The project is installed in place: its sources are live, but its metadata is a copy, and folders move.
    project = digest((ROOT / "pyproject.toml").read_bytes(), str(ROOT))
    with locked(CACHE / f"{folder.name}.lock"):
        if not complete.exists():
            print(f"dev.py: making {folder.relative_to(ROOT)}", file=sys.stderr, flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            create(folder, python)
            install(folder, python, "--require-hashes", "--prefer-binary", "-r", requirements)
            complete.touch()
        if not installed.exists() or installed.read_text() != project:
            install(folder, python, "--no-index", "--no-deps", "--no-build-isolation", "-e", ROOT)
            installed.write_text(project)
    return inside(folder)


def demo(python: str, rest: list[str]) -> int:
    return run(environment("run", python), "-m", "idempo", "demo", *rest, quiet=True)


def lint(python: str, rest: list[str]) -> int:
    return report(check(environment("dev", python), rest))


def check(python: Path, rest: list[str]) -> list[str]:
    """Run every check, whatever the others say. Returns the names of those that failed."""
    checks: dict[str, list[str | Path]] = {
        "ruff check": ["ruff", "check"],
        "ruff format": ["ruff", "format", "--check"],
        "mypy": ["mypy"],
        "pyright": ["pyright", "--pythonpath", python],
    }
    # Node comes from a wheel, whatever else is installed here: the same one everywhere, and no download.
    node = {"PYRIGHT_PYTHON_GLOBAL_NODE": "0", "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    return [name for name, words in checks.items() if run(python, "-m", *words, *rest, cwd=ROOT, extra=node)]


def report(failed: list[str]) -> int:
    if failed:
        print(f"dev.py: FAILED: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


def test(python: str, rest: list[str]) -> int:
    dev = environment("dev", python)
    failed = []
    if "--no-lint" in rest:
        rest.remove("--no-lint")
    else:
        failed = check(dev, [])
    # The list of skipped tests and pytest's closing line are what a reader sees last. No test is a failure.
    if status := run(dev, "-m", "pytest", "-n", "2", *rest, cwd=ROOT):
        failed.append(f"pytest (status {status})")
    return report(failed)


def bench(python: str, rest: list[str]) -> int:
    return run(environment("bench", python), "-m", "benchmarks", *rest, cwd=ROOT)


def docs(python: str, rest: list[str]) -> int:
    return run(environment("dev", python), "-m", "pytest", "tests/test_docs.py", *rest, cwd=ROOT)


def wheel(python: str, rest: list[str]) -> int:
    """Build the wheel, by way of the source archive, and try it where the sources are not in reach."""
    builder = environment("dev", python)
    with tempfile.TemporaryDirectory(prefix="idempo-wheel-") as name:
        folder, work, fresh = Path(name), Path(name) / "work", Path(name) / "venv"
        work.mkdir()
        must(builder, "-m", "build", "--no-isolation", "--outdir", folder / "dist", *rest, ROOT)
        create(fresh, python)
        install(fresh, python, "--require-hashes", "--prefer-binary", "-r", ROOT / "requirements" / "run.txt")
        install(fresh, python, "--no-index", "--no-deps", *(folder / "dist").glob("*.whl"))
        must(inside(fresh), "-I", "-c", SMOKE, cwd=work)
        must(inside(fresh).with_name("idempo"), "demo", "--json", cwd=work)
    return 0


COMMANDS = {command.__name__: command for command in (demo, test, lint, bench, docs, wheel)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description="The one command runner of idempo.",
        epilog="Other arguments go to the program behind the command: `test -k claim`, `test --no-lint`.",
        allow_abbrev=False,
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--python", default=sys.executable, help="another interpreter, python3.13 say")
    if sys.version_info < (3, 11):  # noqa: UP036 - said in words, where an old Python runs this file
        parser.error("idempo needs Python 3.11 or newer")
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS and {"-h", "--help"} & set(sys.argv[2:]):
        chosen, rest = argparse.Namespace(command=sys.argv[1], python=sys.executable), sys.argv[2:]
    else:
        chosen, rest = parser.parse_known_args()
    return COMMANDS[chosen.command](chosen.python, rest)


if __name__ == "__main__":
    sys.exit(main())
