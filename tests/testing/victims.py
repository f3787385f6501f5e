"""A program whose children are killed where a `CrashingLedger` would let them die: `python -m tests.testing.victims`.

It walks the requests of one call, as `walk` does in the process of the test, with a key of its own for each point.
"""

import itertools
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, Literal, NoReturn

from sqlalchemy.orm import Session

from idempo import INJECTED, UniqueInsert, idempotent
from idempo.testing import CrashingLedger
from idempo.testing.tapping import Fault
from tests.testing.places import Books

__all__ = ["Program", "order_of", "points"]

Moment = Literal["before", "after"]


def points() -> Iterator[tuple[int, Moment]]:
    """All points there can be, in order, without end."""
    for number in itertools.count(1):
        yield number, "before"
        yield number, "after"


def order_of(prefix: str, number: int, moment: str) -> str:
    return f"{prefix}-{number}-{moment}"


class Program:
    """What is killed in earnest, or dies as the ledger plays it."""

    def __init__(self, url: str, *, joined: bool) -> None:
        self.books = books = Books(url)
        self.strategy = UniqueInsert(url, join="session" if joined else None)
        self.ledger = CrashingLedger(self.strategy)

        def plain(order: str) -> str:
            books.write(order)
            return order

        def with_session(order: str, session: Session = INJECTED) -> str:
            session.execute(books.entry(order))
            return order

        body: Any = with_session if joined else plain
        self.f: Any = idempotent(key="{order}", using=self.ledger, name=f"victims.{joined}")(body)

    def dies(self, order: str, number: int, moment: Moment) -> Fault:
        with self.ledger.die(at=number, moment=moment) as death:
            self.f(order)
        return death

    def left(self, order: str) -> tuple[str, int]:
        """The state of the record, and how many rows the function has written, as others see them."""
        record = self.f.lookup(order)
        return "absent" if record is None else record.state, self.books.count(order)


def killed(*_: object) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("it lives")


def main(url: str, kind: str, prefix: str) -> None:
    from idempo.testing import tapping

    tapping.Crashed = killed  # type: ignore[assignment, misc]  # in earnest
    for number, moment in points():
        child = os.fork()
        if child == 0:
            Program(url, joined=kind == "joined").dies(order_of(prefix, number, moment), number, moment)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            return
        assert os.WTERMSIG(status) == signal.SIGKILL
        print(number, moment)


if __name__ == "__main__":
    main(*sys.argv[1:])
