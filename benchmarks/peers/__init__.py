"""Libraries with a like purpose, measured in the same run, in an environment of their own.

The environment is made in .cache/ out of requirements/peers.txt, as `dev.py` makes its own. idempo never depends on any
of them, nor does its development.
"""

import contextlib
import dataclasses
import json
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from benchmarks.method import Measured, Plan

__all__ = ["Unavailable", "dev", "from_json", "interpreter", "measure", "to_json", "unmeasured"]

TITLE = "peers"
dev: Any = import_module("dev")  # which the checkers of types are not asked to read


class Stores(Protocol):
    """What is used of `benchmarks.stores.Stores`."""

    @property
    def redis(self) -> str: ...
    @property
    def postgres(self) -> str: ...
    @property
    def libpq(self) -> str: ...


class Unavailable(Exception):
    """The environment of the peers could not be made, or a program in it failed."""


def measure(stores: Stores, plan: Plan) -> dict[str, list[Measured]]:
    """Return the tables of the peers, by title; without their environment, one row that says why."""
    try:
        python = interpreter()
        with tempfile.TemporaryDirectory(prefix="idempo-peers-") as name:
            request, result = Path(name) / "request.json", Path(name) / "result.json"
            request.write_text(json.dumps({"places": places(stores), "plan": dataclasses.asdict(plan)}))
            status = dev.run(python, "-m", "benchmarks.peers.run", request, result, cwd=dev.ROOT, quiet=True)
            if status:
                raise Unavailable(f"measuring them ended with status {status}")
            return from_json(result.read_text())
    except Unavailable as error:
        return {TITLE: [unmeasured(TITLE, str(error))]}


def unmeasured(name: str, reason: str) -> Measured:
    """Return a row without calls, that says why there are no numbers."""
    return Measured(name, 0, 0.0, 0.0, note=f"not measured: {' '.join(reason.split())}")


def places(stores: Stores) -> dict[str, str]:
    return {"redis": stores.redis, "postgres": stores.postgres, "libpq": stores.libpq}


def interpreter() -> Path:
    """Return the Python of the peers' environment, which is made if it is not there.

    Raises:
        Unavailable: if it cannot be made here; what pip said is on the screen.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            python: Path = dev.environment("peers", sys.executable)
            return python
    except (SystemExit, OSError) as error:
        raise Unavailable(f"their environment cannot be made: {error}") from error


def to_json(tables: dict[str, list[Measured]]) -> str:
    return json.dumps({title: [dataclasses.asdict(row) for row in rows] for title, rows in tables.items()})


def from_json(text: str) -> dict[str, list[Measured]]:
    """Return the tables that `to_json` wrote."""
    found: dict[str, list[dict[str, Any]]] = json.loads(text)
    return {
        title: [Measured(**{**row, "rounds": tuple(row["rounds"])}) for row in rows]
        for title, rows in found.items()
    }
