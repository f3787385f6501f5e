"""What the pages say is true: their examples run, their links resolve, the names and tests they mention exist.

Conventions of the pages:
- The `python` blocks of a page run in order, in one namespace, in an empty working directory.
- A `text` block right after a `python` block is what that block prints.
- `<!-- not run: reason -->` on the line before a `python` block keeps it from running.
- A page that names POSTGRES_URL or REDIS_URL finds a server there, in the environment.
"""

import inspect
import os
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
from sqlalchemy import Engine

import idempo
from idempo import IdempoError, UniqueInsert, errors, events
from tests.servers import Server, fresh_database

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SERVERS = {"POSTGRES_URL": "postgres", "REDIS_URL": "redis_server"}

_BLOCK = re.compile(
    r"^(?P<skip><!-- not run: [^>]+ -->\n)?"
    r"```(?P<language>\w+)\n(?P<code>.*?)^```$"
    r"(?P<output>\n\n```text\n(?P<text>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    line: int
    printed: str | None
    skipped: bool


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def page_named(name: str) -> str:
    return (ROOT / name).read_text()


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("code")) + 1
        printed = found["text"] if found["language"] == "python" else None
        yield Block(found["language"], found["code"], line, printed, found["skip"] is not None)


def runnable(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language == "python" and not block.skipped]


@pytest.fixture
def module(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[types.ModuleType]:
    """The namespace of a page, as of a script: stored classes are found by their module."""
    page: Path = request.param
    for variable, fixture in SERVERS.items():
        if any(variable in block.code for block in runnable(page)):
            server: Server = request.getfixturevalue(fixture)
            monkeypatch.setenv(variable, fresh_database(server))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IDEMPO_URL", raising=False)
    made = types.ModuleType("__main__")
    made.__file__ = str(page)
    monkeypatch.setitem(sys.modules, "__main__", made)
    yield made
    for value in list(vars(made).values()):
        if isinstance(value, Engine):
            value.dispose()
        elif (
            isinstance(value, UniqueInsert)
            and value._database is not None
            and value._database.colour == "sync"
        ):
            value.close()


@pytest.mark.parametrize("module", [page for page in PAGES if runnable(page)], ids=name_of, indirect=True)
def test_the_examples_run(module: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(str(module.__file__))
    for block in runnable(page):
        # The lines above are left empty, so that a traceback points into the page.
        source = "\n" * (block.line - 1) + block.code
        exec(compile(source, str(page), "exec"), vars(module))
        printed = capsys.readouterr().out
        if block.printed is not None:
            assert printed == block.printed, f"{name_of(page)}, line {block.line}"


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any("LedgerContract)" in one.code for one in runnable(page))],
    ids=name_of,
)
def test_the_contracts_of_pages_hold(page: Path, tmp_path: Path) -> None:
    """A test class on a page is collected and run by pytest, as a reader would do it."""
    file = tmp_path / "test_page.py"
    file.write_text("\n\n".join(block.code for block in runnable(page)))
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file.name]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""}
    ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
    assert re.search(r"\d\d passed", ended.stdout), ended.stdout


def test_every_block_is_closed_and_has_a_known_language() -> None:
    for page in PAGES:
        fences = re.findall(r"^```(\w*)$", page.read_text(), re.MULTILINE)
        assert len(fences) % 2 == 0, f"{name_of(page)} has a block that is not closed"
        assert set(fences[::2]) <= {"python", "text", "console", "toml", "sql"}, name_of(page)
        assert set(fences[1::2]) <= {""}, name_of(page)


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in found}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{name_of(page)} links to {target}"
        assert not anchor or anchor in headings(found), f"{name_of(page)} links to {target}"


def test_every_page_is_linked_from_the_index() -> None:
    index = page_named("docs/index.md")
    for page in ROOT.glob("docs/**/*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "index.md" or f"({name})" in index, f"docs/index.md does not link to {name}"


def test_every_public_name_is_in_the_reference() -> None:
    reference = "".join(page.read_text() for page in ROOT.glob("docs/reference/*.md"))
    missing = [name for name in idempo.__all__ if not re.search(rf"`{name}\b", reference)]
    assert not missing


def test_every_parameter_is_in_the_reference() -> None:
    decorator, strategies = (page_named(f"docs/reference/{name}.md") for name in ("decorator", "strategies"))
    for name in inspect.signature(idempo.idempotent).parameters:
        assert f"| `{name}` |" in decorator, name
    every = [idempo.Memory, *(getattr(idempo, name) for name in idempo._STRATEGIES)]
    for strategy in every:
        section = strategies.partition(f"## {strategy.__name__}\n")[2].partition("\n## ")[0]
        for name in inspect.signature(strategy).parameters:
            assert f"| `{name}` |" in section, f"{strategy.__name__}({name}=)"


def test_the_table_of_errors_is_right() -> None:
    rows = dict(
        re.findall(r"^\| `(\w+)` \| `(\w+)` \|", page_named("docs/reference/errors.md"), re.MULTILINE)
    )
    real: dict[str, str] = {}
    for name in errors.__all__:
        error: type[IdempoError] = getattr(errors, name)
        real[name] = str(error.ran)
    assert rows == real


def test_every_event_is_in_the_reference() -> None:
    rows = re.findall(r"^\| `([\w ]+)` \|", page_named("docs/reference/events.md"), re.MULTILINE)
    assert sorted(rows) == sorted(get_args(events.Kind))


def test_the_tests_that_pages_name_exist() -> None:
    sources = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("idempo/testing/*.py")]
    there = {name for source in sources for name in re.findall(r"def (test_\w+)\(", source.read_text())}
    for page in PAGES:
        named = set(re.findall(r"`(test_\w+)`", page.read_text()))
        assert named <= there, f"{name_of(page)} names {sorted(named - there)}"


def test_the_commands_that_pages_name_exist() -> None:
    commands = pytest.importorskip("idempo.commands")
    app: Any = commands.app
    there = {one.name or one.callback.__name__ for one in app.registered_commands}
    for page in PAGES:
        text = page.read_text()
        console = [block.code for block in blocks(page) if block.language == "console"]
        named = re.findall(r"^\$ idempo (\w+)", "".join(console), re.MULTILINE)
        named += re.findall(r"`idempo (\w+)", text)
        assert set(named) <= there, name_of(page)
    assert there <= set(re.findall(r"`idempo (\w+)", page_named("docs/reference/command-line.md")))


def test_every_option_is_in_the_reference() -> None:
    typer = pytest.importorskip("typer")
    app: Any = pytest.importorskip("idempo.commands").app
    reference = page_named("docs/reference/command-line.md")
    for name, command in typer.main.get_command(app).commands.items():
        for option in (one for parameter in command.params for one in parameter.opts if one.startswith("--")):
            assert f"`{option}" in reference, f"idempo {name} {option}"


def test_one_word_has_one_meaning() -> None:
    """The glossary names the words; these are other words for the same things."""
    other = re.compile(
        r"\b(cache hits?|acquire\w*|ttl|dedup\w*|utils|(?<!context )managers?)\b", re.IGNORECASE
    )
    for page in PAGES:
        assert not other.findall(page.read_text()), name_of(page)


def test_no_page_depends_on_where_it_was_written() -> None:
    home = re.compile(r"(?<![\w.])/(home|root|Users|work)/")
    for page in PAGES:
        assert not home.findall(page.read_text()), name_of(page)
        assert os.sep * 2 + "localhost:" not in page.read_text().replace("://localhost:", ""), name_of(page)
