"""What a call came to, and whether that of a repeat is the same, in value and in type."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from idempo.errors import TokenSpentError
from idempo.records import MISSING

__all__ = ["ANEW", "Answer", "differ"]

ANEW = (
    "If forget() cannot undo what an earlier round did (a row that a guard judges, a token, a constraint), give "
    "arguments=: called with the number of a round, it returns arguments that were never used"
)


@dataclass(frozen=True)
class Answer:
    """What a call came to: a value, an exception that is a result, or that the token was used."""

    value: Any = MISSING
    error: Exception | None = None
    replayed: bool | None = None

    @property
    def spent(self) -> bool:
        return isinstance(self.error, TokenSpentError)

    def __str__(self) -> str:
        shown = self.value if self.error is None else self.error
        return f"{shown!r:.200} ({type(shown).__name__})"


def differ(first: Answer, again: Answer) -> str | None:
    """Say how the answer of a repeat differs from the first one; None if it does not."""
    if again.spent or first.spent:
        return None
    if (first.error is None) != (again.error is None):
        return f"the first call got {first}, a repeat {again}"
    if first.error is not None and again.error is not None:
        same = type(first.error) is type(again.error) and _same(first.error.args, again.error.args)
    else:
        same = _same(first.value, again.value)
    if same:
        return None
    return (
        f"the first call got {first}, a repeat {again}: the result does not survive being stored; annotate what the "
        "function returns, or give a codec= that keeps it"
    )


def _same(one: Any, two: Any) -> bool:
    """True if equal in value and in type, all the way in."""
    if type(one) is not type(two):
        return False
    match one:
        case list() | tuple():
            return len(one) == len(two) and all(map(_same, one, two))
        case dict():
            return one.keys() == two.keys() and all(_same(one[key], two[key]) for key in one)
        case _ if is_dataclass(one) and not isinstance(one, type):
            return all(_same(getattr(one, each.name), getattr(two, each.name)) for each in fields(one))
        case float() if one != one:
            return bool(two != two)
        case _:
            return bool(one == two)
