"""Doing checks one after the other, so that one that is refused does not end the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from sqlalchemy.exc import DBAPIError

from idempo.doctor.findings import Finding, unknown
from idempo.failures import is_disconnect

__all__ = ["Looking", "looked", "said"]

Looking: TypeAlias = tuple[str, Callable[[], Iterable[Finding]]]
"""The name of a check, and the check."""


def looked(checks: Iterable[Looking]) -> Iterator[Finding]:
    """Do the checks. What the server refuses to tell is unknown; a server that is gone is an error."""
    for name, check in checks:
        try:
            yield from check()
        except DBAPIError as error:
            if is_disconnect(error):
                raise
            yield unknown(
                name,
                f"the server does not tell: {said(error)}",
                "run this as a user who may ask, or ask the administrator",
            )


def said(error: BaseException) -> str:
    """What the driver says, on one line, without statement and values."""
    return " ".join(str(getattr(error, "orig", None) or error).split())
