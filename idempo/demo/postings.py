"""The decorated function and the ledger that it posts to: what the two kinds of stores have in common."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from typing import Protocol, TypeAlias

from idempo.demo.callbacks import money
from idempo.records import Outcome

__all__ = [
    "KEEP",
    "LEDGER",
    "OPERATION",
    "Entry",
    "Post",
    "Posting",
    "Postings",
    "amount_of",
    "open_postings",
]

OPERATION = "idempo.demo.post_payment"
LEDGER = "idempo_demo_ledger"
KEEP = timedelta(days=3650)
"""The ledger stays, so the records stay: a callback that comes next year must not be posted again."""


@dataclass(frozen=True, slots=True)
class Posting:
    """What handling a callback returns: the entry in the ledger, the same for every repeat."""

    payment_no: str
    event_id: str
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as it stands in the ledger, read without the help of idempo."""

    payment_no: str
    event_id: str
    amount: Decimal
    run: str
    """Which run of the demo has written it."""


Post: TypeAlias = Callable[[str, str, Decimal], Outcome[Posting]]
"""Handle one callback: payment number, event id, amount."""


class Postings(Protocol):
    """A store with idempo's records and a ledger in it."""

    def prepare(self) -> None:
        """Create what is missing, and find out whether the store answers."""
        ...

    def handler(self, run: str) -> Post:
        """Return the function that handles callbacks for this run of the demo."""
        ...

    def entries(self) -> list[Entry]:
        """Read the whole ledger."""
        ...

    def times_run(self, run: str) -> int | None:
        """How often the function has posted in this run, where the ledger can tell: one that is rolled back cannot."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


def open_postings(url: str) -> Postings:
    """Return the ledger in the store of `url`. Raises `ConfigurationError` for one that idempo does not know."""
    postings: Postings = importlib.import_module(module_for(url)).open_postings(url)
    return postings


def module_for(url: str) -> str:
    """The module for the store of `url`; the drivers of the other kind are not loaded."""
    redis = re.match(r"(rediss?(\+cluster)?|unix)://", url)
    return "idempo.demo.redis_postings" if redis else "idempo.demo.sql_postings"


def amount_of(stored: object) -> Decimal:
    """An amount as the ledger has it. What is no number is not equal to any."""
    try:
        return money(stored)
    except InvalidOperation:
        return Decimal("NaN")
