"""The page of the reference knows all that is public here."""

import inspect
import re
from pathlib import Path

import idempo.testing
from idempo.testing import plugin

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs/reference/testing.md").read_text()


def test_every_public_name_is_there() -> None:
    assert [name for name in idempo.testing.__all__ if not re.search(rf"`{name}\b", PAGE)] == []


def test_every_parameter_of_assert_runs_once_is_there() -> None:
    for name, parameter in inspect.signature(idempo.testing.assert_runs_once).parameters.items():
        shown = str(parameter).partition(":")[0] if "*" in str(parameter) else name
        assert f"`{shown}`" in PAGE


def test_every_fixture_is_there() -> None:
    for name in plugin.__all__:
        assert f"| `{name}` |" in PAGE
