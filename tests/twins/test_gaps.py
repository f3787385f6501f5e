"""Rules that no test held until a mutant of the library went unnoticed; see docs/explanation/mutation.md."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from idempo import (
    INJECTED,
    MISSING,
    LeaseLostError,
    Memory,
    OneTimeToken,
    OutcomeUnknownError,
    UniqueInsert,
    current,
    idempotent,
)
from tests.tokens.support import Clock

SECONDS = 30


def test_the_deadline_of_a_call_is_a_lease_after_its_claim() -> None:
    @idempotent(key="{order}", using=Memory(), lease=5)
    def place(order: str) -> tuple[float, float]:
        deadline = current().deadline
        assert deadline is not None
        return deadline, time.monotonic()

    before = time.monotonic()
    deadline, started = place("A-1")
    assert before + 5 <= deadline <= started + 5


def test_an_unknown_outcome_of_another_operation_is_a_failure_of_this_one() -> None:
    """The function says what its error means, in unknown_errors; that the error is one of ours says nothing."""
    runs: list[str] = []

    @idempotent(key="{order}", using=Memory(), on_orphan="refuse", wait=0)
    def place(order: str) -> int:
        runs.append(order)
        if len(runs) == 1:
            raise OutcomeUnknownError("of another operation")
        return len(runs)

    with pytest.raises(OutcomeUnknownError):
        place("A-1")
    assert place("A-1") == 2


def test_an_outer_claim_that_was_lost_does_not_take_the_result_of_the_record_inside_away() -> None:
    outer = Memory(key="{token}")

    @idempotent(key="{order}", using=[outer, Memory()])
    def place(order: str, token: str) -> str:
        [(digest, row)] = outer._rows.items()
        outer._rows[digest] = replace(row, owner=b"another")  # as if it had stalled here, and been taken over
        return "placed"

    assert place("A-1", "t-1") == "placed"


def test_a_token_is_free_for_its_order_while_the_record_inside_is_not_committed(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    tokens, record = OneTimeToken(Memory(), key="{token}"), UniqueInsert(engine, join="session")
    record.create_schema()
    runs: list[str] = []

    @idempotent(key="{order}", using=[tokens, record], wait=0)
    def place(order: str, token: str, session: Session = INJECTED) -> int:
        runs.append(order)
        return len(runs)

    token = tokens.issue()
    with Session(engine) as session:
        assert place("A-1", token, session=session) == 1
        assert tokens.peek(token).state == "orphan"
        session.rollback()
    assert place("A-1", token) == 2
    assert tokens.peek(token).state == "completed"
    engine.dispose()


def _overtaken(winner: Callable[[], Any], *, joined: bool = True) -> Any:
    """What the error of an owner that lost its lease says of the winner, which is awaited if `joined`."""
    clock, began = Clock(), [threading.Event(), threading.Event()]

    @idempotent(key="{order}", using=Memory(clock=clock), lease=5, wait=0, replay_errors=[ValueError])
    def place(order: str) -> Any:
        attempt = current().attempt
        began[attempt - 1].set()
        if attempt == 2:
            return winner()
        clock.now += 60
        thread = threading.Thread(target=_silent, args=(lambda: place(order),))
        thread.start()
        if joined:
            thread.join(SECONDS)
        assert began[1].wait(SECONDS)
        return "late"

    with pytest.raises(LeaseLostError) as lost:
        place("A-1")
    assert lost.value.result == "late"
    return lost.value.stored


def _silent(call: Callable[[], object]) -> None:
    try:
        call()
    except ValueError:
        return


def test_an_owner_that_lost_its_lease_is_told_what_the_winner_returned() -> None:
    assert _overtaken(lambda: "first") == "first"


def test_an_owner_that_lost_its_lease_is_told_what_the_winner_raised() -> None:
    def declined() -> None:
        raise ValueError("declined")

    stored = _overtaken(declined)
    assert isinstance(stored, ValueError)
    assert stored.args == ("declined",)


def test_an_owner_that_lost_its_lease_to_one_that_still_runs_is_told_of_no_result() -> None:
    over = threading.Event()
    try:
        assert _overtaken(lambda: over.wait(SECONDS), joined=False) is MISSING
    finally:
        over.set()


def test_an_owner_that_lost_its_lease_to_a_result_that_cannot_be_stored_is_told_of_none() -> None:
    assert _overtaken(object) is MISSING
