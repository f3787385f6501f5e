"""The house: floors with arrows only downwards, who may import what, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import idempo

ROOT = Path(idempo.__file__).parent

# From the ground up. A module may import from its own floor and from those below.
FLOORS = [
    "errors steps records keys canonical specs fingerprints codec annotations leaves shapes tagged events running "
    "clocks",
    "waiting rooms leases guarantees contracts verdicts asking protocol joining layers composing flows versions "
    "versioned",
    "failures sql sending dialects joined_dialects postgresql mysql sqlite schema roundtrip urls connections "
    "refusals savepoints units transactions carriers scripts streams evaluating columns rows loaded guarding clients "
    "autocommit",
    "terms binding batches operation functions assembly decorator embedded "
    "strategies strategies.memory strategies.unique_insert strategies.redis_cache strategies.local_cache "
    "strategies.state_guard strategies.version_check strategies.select_for_update strategies.read_only "
    "strategies.one_time_token strategies.monotonic_version",
    "testing testing.tools testing.promises testing.ledgers testing.issuing testing.batching testing.clocks "
    "testing.stepping testing.schedules testing.crashes testing.tapping testing.layers testing.watching "
    "testing.answers testing.rounds testing.assertions testing.plugin inspection "
    "doctor doctor.findings doctor.looking doctor.retries doctor.clocks doctor.redis_checks doctor.redis_settings "
    "doctor.redis_rights doctor.redis_replicas doctor.sql_checks doctor.table_checks doctor.postgresql_checks "
    "doctor.poolers doctor.mysql_checks doctor.mysql_settings doctor.sqlite_checks",
    "__init__ __main__ cli commands presentation purging "
    + " ".join(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "demo").glob("*.py"))
    ),
]
FLOOR_OF = {module: number for number, floor in enumerate(FLOORS) for module in floor.split()}
STRATEGIES = {module for module in FLOOR_OF if module.startswith("strategies.")}
FLOOR_OF |= {"demo": len(FLOORS) - 1}

ONLY_IN = {
    "sqlalchemy": {
        *FLOORS[2].split(),
        *("strategies.unique_insert", "strategies.state_guard", "strategies.version_check"),
        *("strategies.select_for_update", "strategies.read_only"),
        "inspection",
        *("doctor.looking", "doctor.sql_checks", "doctor.table_checks"),
        *("doctor.postgresql_checks", "doctor.mysql_checks", "doctor.sqlite_checks"),
        "cli",
        "commands",
    },
    "redis": {
        *("strategies.redis_cache", "evaluating", "clients", "inspection", "cli", "commands"),
        *("doctor.redis_checks", "doctor.redis_settings", "doctor.redis_rights", "doctor.redis_replicas"),
    },
    "tenacity": {"waiting"},
    "pytest": {
        *("testing", "testing.promises", "testing.ledgers", "testing.issuing", "testing.batching"),
        "testing.plugin",
    },
    "msgspec": {
        *(
            "records",
            "keys",
            "canonical",
            "fingerprints",
            "codec",
            "leaves",
            "shapes",
            "tagged",
            "annotations",
        ),
        *("sql", "sending", "strategies.memory", "strategies.local_cache"),  # their rows
    },
    "typer": {"cli", "commands"},
}


def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts)
        if parts[-1] == "__init__" and len(parts) > 1:
            name = ".".join(parts[:-1])
        found[name] = path
    return found


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("module", sorted(modules()))
def test_arrows_point_downwards(module: str) -> None:
    lazily = {"__init__": STRATEGIES, "composing": {"embedded"}}
    floor = FLOOR_OF[module]
    for name in imports(modules()[module]):
        below = name.removeprefix("idempo.")
        if name.startswith("idempo.") and below in FLOOR_OF and below not in lazily.get(module, ()):
            assert FLOOR_OF[below] <= floor, f"{module} imports {below} from a floor above"


@pytest.mark.parametrize("package", sorted(ONLY_IN))
def test_a_dependency_is_imported_only_where_it_belongs(package: str) -> None:
    users = {
        module
        for module, path in modules().items()
        if any(name.split(".")[0] == package for name in imports(path)) and not module.startswith("demo")
    }
    assert users <= ONLY_IN[package]


def loaded_by(code: str) -> set[str]:
    """The packages that a fresh interpreter has loaded after `code`."""
    script = f"import sys\n{code}\nprint(*sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    return {name.split(".")[0] for name in answer.stdout.split()}


def test_importing_idempo_imports_no_database_driver() -> None:
    assert not loaded_by("import idempo") & {
        "sqlalchemy",
        "redis",
        "psycopg",
        "pydantic",
        "attrs",
        "typer",
        "pytest",
    }


def test_a_strategy_imports_only_its_own_driver() -> None:
    assert "sqlalchemy" not in loaded_by("import idempo.strategies.redis_cache")
    for name in ("unique_insert", "state_guard", "version_check", "select_for_update", "read_only"):
        assert "redis" not in loaded_by(f"import idempo.strategies.{name}")
    for name in ("memory", "local_cache", "one_time_token", "monotonic_version"):
        assert not loaded_by(f"import idempo.strategies.{name}") & {"sqlalchemy", "redis"}


def test_the_sync_side_needs_no_greenlet() -> None:
    block = "sys.modules['greenlet'] = None"
    loaded_by(f"{block}\nfrom idempo import UniqueInsert\nUniqueInsert('sqlite:///x.db')")


def test_every_public_name_is_there() -> None:
    for name in idempo.__all__:
        assert hasattr(idempo, name)


def test_files_stay_readable() -> None:
    """A file that grows lacks a word. The suites of tests are long lists of one thing."""
    lists = {"testing.promises", "testing.ledgers"}
    lines = {module: len(path.read_text().splitlines()) for module, path in modules().items()}
    assert {module: count for module, count in lines.items() if count > 300 and module not in lists} == {}
