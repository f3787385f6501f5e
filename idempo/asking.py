"""Asking a ledger: what its silence means before the function has started, and what it means beside the answer."""

from __future__ import annotations

from typing import TypeVar

from idempo.contracts import Terms
from idempo.errors import IdempoError
from idempo.events import tell
from idempo.records import Call
from idempo.steps import Steps
from idempo.verdicts import unavailable

T = TypeVar("T")

__all__ = ["RunAgain", "ask", "attempt"]


class RunAgain(Exception):
    """The database undid our own transaction for the sake of another one: the call starts over."""

    def __init__(self, otherwise: Exception) -> None:
        super().__init__(otherwise)
        self.otherwise = otherwise
        """What is raised if it happens again and again."""


def ask(steps: Steps[T], call: Call, terms: Terms) -> Steps[T]:
    """Take steps of a ledger before the function has started: if it cannot answer, nothing runs."""
    try:
        return (yield from steps)
    except (IdempoError, RunAgain):
        raise
    except Exception as error:
        raise unavailable(call, terms, error) from error


def attempt(steps: Steps[T], call: Call, terms: Terms) -> Steps[T | None]:
    """Take steps of a ledger whose failure changes nothing about the answer."""
    try:
        return (yield from steps)
    except Exception as error:
        tell(terms.hooks, "unavailable", call, type(error).__name__)
        return None
