"""Versions: whole numbers that grow. What a clock says is none: two changes fit into one tick."""

from __future__ import annotations

import datetime as dt
import decimal
from collections.abc import Callable
from typing import Any

from idempo.contracts import KeySpec, Site
from idempo.errors import ConfigurationError, KeyRefusedError
from idempo.records import Call
from idempo.specs import Field, parse, value_reader

__all__ = ["version_reader"]

_NONE_OF_THEM = (dt.date, dt.time, dt.timedelta, float, decimal.Decimal, str, bytes, bool)


def version_reader(spec: KeySpec, site: Site, what: str) -> Callable[[Call], int]:
    """Return what reads the version of a call.

    Raises `ConfigurationError` while decorating for a parameter that is annotated as something else than an int; what
    it returns raises `KeyRefusedError` for a value that is none.
    """
    read = value_reader(spec, site.parameters, what=what, operation=site.operation)
    hint = _hint(spec, site)
    if isinstance(hint, type) and issubclass(hint, _NONE_OF_THEM):
        raise ConfigurationError(
            f"{site.operation}: {what}={spec!r} is a {hint.__name__}; a version is a whole number that grows with each "
            "change. Two changes can have one time stamp: count them instead"
        )

    def version(call: Call) -> int:
        value = read(call.arguments)
        if isinstance(value, bool) or not isinstance(value, int):
            raise KeyRefusedError(
                f"{what} must be a whole number, and this call has a {type(value).__name__}; nothing ran",
                operation=call.operation,
                key=call.key,
            )
        return value

    return version


def _hint(spec: KeySpec, site: Site) -> Any:
    """The annotation of the parameter that is the version, where it is one."""
    if not isinstance(spec, str):
        return None
    parts = parse(spec, site.parameters, what="version", operation=site.operation).parts
    if len(parts) != 1 or not isinstance(parts[0], Field):
        return str  # several parts make a text
    return None if parts[0].steps else site.hints.get(parts[0].parameter)
