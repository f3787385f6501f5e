"""Rules that no test held until a mutant of the library went unnoticed; see docs/explanation/mutation.md."""

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from idempo import (
    INJECTED,
    MISSING,
    KeyTemplateError,
    LeaseLostError,
    Memory,
    OneTimeToken,
    OutcomeUnknownError,
    UniqueInsert,
    current,
    idempotent,
)
from idempo.keys import MAX_KEY, MAX_TEXT, key_given, key_source
from idempo.leases import KeepAlive, _tickers
from idempo.records import InProgress, Orphan
from idempo.steps import Steps, run
from idempo.testing import new_call
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
    def place(order: str) -> object:
        attempt = current().attempt
        began[attempt - 1].set()
        if attempt == 2:
            return winner()
        clock.now += 60

        def repeat() -> None:
            with contextlib.suppress(ValueError):
                place(order)

        thread = threading.Thread(target=repeat)
        thread.start()
        if joined:
            thread.join(SECONDS)
        assert began[1].wait(SECONDS)
        return "late"

    with pytest.raises(LeaseLostError) as lost:
        place("A-1")
    assert lost.value.result == "late"
    return lost.value.stored


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


def test_a_renewal_is_told() -> None:
    renewed = threading.Event()

    def hook(event: Any) -> None:
        if event.kind == "renewed":
            renewed.set()

    @idempotent(key="{order}", using=Memory(), lease=0.3, hooks=[hook])
    def place(order: str) -> bool:
        return renewed.wait(SECONDS)

    assert place("A-1")


def _no_more() -> Steps[bool]:
    yield from ()
    return False


def test_leases_that_have_ended_do_not_pile_up_behind_one_that_lives() -> None:
    ledger = Memory()
    living = KeepAlive(ledger, 1000.0, _no_more).blocking()
    for _ in range(2000):
        KeepAlive(ledger, 3600.0, _no_more).blocking().stop()
    assert len(_tickers.of(ledger)._due) < 1000
    living.stop()


def test_one_thread_renews_all_leases_of_a_ledger() -> None:
    ledger, before = Memory(), set(threading.enumerate())
    beats = [KeepAlive(ledger, 1000.0, _no_more).blocking() for _ in range(5)]
    assert len(set(threading.enumerate()) - before) == 1
    for beat in beats:
        beat.stop()


def test_memory_honours_a_lease_to_its_end() -> None:
    clock = Clock()
    ledger, call = Memory(clock=clock), new_call(lease=5.0)
    run(ledger.claim(call, None))
    clock.now += 4.5
    assert isinstance(run(ledger.claim(new_call(), None)), InProgress)
    clock.now += 0.5
    assert isinstance(run(ledger.claim(new_call(), None)), Orphan)


def test_memory_lets_go_of_what_is_over() -> None:
    clock = Clock()
    ledger = Memory(clock=clock)
    for number in range(5000):
        run(ledger.claim(new_call(str(number), lease=1.0, keep=1.0), None))
        clock.now += 2
    assert len(ledger._rows) < 2500


@pytest.mark.parametrize("spec", ["{order}-{line}", "order {order}", ("order", "{line}/{part}")], ids=str)
def test_no_key_is_given_for_a_template_of_several_parts(spec: Any) -> None:
    with pytest.raises(KeyTemplateError, match="one text of several parts"):
        key_given(spec, ("A-1", "7") if isinstance(spec, tuple) else "A-1")


@pytest.mark.parametrize(
    ("spec", "given"), [("{order}", "A-1"), (("order", "{line}"), ("A-1", 7)), (("line",), (7,))], ids=str
)
def test_a_given_key_is_the_one_that_is_read_from_a_call(spec: Any, given: object) -> None:
    read = key_source(spec, ("order", "line"))({"order": "A-1", "line": 7})
    assert key_given(spec, given) == read


def test_a_key_may_have_as_many_bytes_as_the_pages_say() -> None:
    assert MAX_KEY == 4096


def test_a_text_of_just_the_readable_length_is_shown_whole() -> None:
    assert key_given("{order}", "x" * MAX_TEXT).text == "x" * MAX_TEXT
    assert key_given("{order}", "x" * MAX_TEXT + "y").text == "x" * (MAX_TEXT - 1) + "…"
