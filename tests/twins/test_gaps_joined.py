"""Records in a transaction, where no test held a rule until a mutant went unnoticed (docs/explanation/mutation.md)."""

import contextvars
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, String, create_engine, text
from sqlalchemy import Table as Business
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from idempo import (
    Event,
    FingerprintMismatchError,
    InProgressError,
    LeaseLostError,
    LedgerUnavailableError,
    OutcomeUnknownError,
    StateConflictError,
    StateGuard,
    UniqueInsert,
    idempotent,
)
from tests.servers import Server, fresh_database


def test_a_record_in_a_transaction_tells_hooks_what_becomes_of_it(tmp_path: Path) -> None:
    told: list[str] = []
    ends: list[Exception | None] = [ValueError(), TimeoutError(), LookupError(), None]

    def hook(event: Event) -> None:
        told.append(event.kind)

    strategy = UniqueInsert(f"sqlite:///{tmp_path}/shop.db", join="session")

    @idempotent(
        key="{order}",
        using=strategy,
        replay_errors=[LookupError],
        unknown_errors=[TimeoutError],
        hooks=[hook],
    )
    def place(order: str, session: Session | None = None) -> None:
        if (error := ends.pop(0)) is not None:
            raise error

    for order, error in [("A", ValueError), ("A", TimeoutError), ("A", LookupError), ("A", LookupError)]:
        with pytest.raises((error, OutcomeUnknownError)):
            place(order)
    place("B")
    place("B")
    assert told == [
        *("claimed", "released"),
        *("claimed", "unknown"),
        *("took over", "failed"),
        "replayed",
        *("claimed", "completed"),
        "replayed",
    ]
    strategy.close()


def test_a_transaction_that_the_database_undoes_tells_hooks_that_its_key_is_free(postgres: Server) -> None:
    told: list[str] = []

    def hook(event: Event) -> None:
        told.append(event.kind)

    strategy = UniqueInsert(fresh_database(postgres), join="session")
    strategy.create_schema()

    @idempotent(key="{order}", using=strategy, hooks=[hook])
    def place(order: str, session: Any = None) -> None:
        if len(told) == 1:
            session.execute(text("DO $$ BEGIN RAISE serialization_failure; END $$"))

    place("A-1")
    assert told == ["claimed", "released", "claimed", "completed"]
    strategy.close()


def test_an_error_of_the_functions_own_passes_untouched_in_the_run_after_one_that_was_undone(
    postgres: Server,
) -> None:
    runs: list[str] = []
    declined = ValueError("declined")
    strategy = UniqueInsert(fresh_database(postgres), join="session")
    strategy.create_schema()

    @idempotent(key="{order}", using=strategy)
    def place(order: str, session: Any = None) -> None:
        runs.append(order)
        if len(runs) == 2:
            raise declined
        session.execute(text("DO $$ BEGIN RAISE serialization_failure; END $$"))

    with pytest.raises(ValueError, match="declined") as raised:
        place("A-1")
    assert raised.value is declined
    strategy.close()


def test_other_arguments_are_refused_where_a_transaction_left_an_orphan(tmp_path: Path) -> None:
    amounts: list[int] = []
    strategy = UniqueInsert(f"sqlite:///{tmp_path}/shop.db", join="session")

    @idempotent(key="{order}", using=strategy, unknown_errors=[TimeoutError])
    def place(order: str, amount: int, session: Any = None) -> None:
        amounts.append(amount)
        if len(amounts) == 1:
            raise TimeoutError

    with pytest.raises(OutcomeUnknownError):
        place("A-1", 1)
    with pytest.raises(FingerprintMismatchError):
        place("A-1", 2)
    place("A-1", 1)
    assert amounts == [1, 1]
    strategy.close()


def test_other_arguments_are_refused_at_once_while_a_leased_run_of_the_same_name_goes_on(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/shop.db"
    leased, joined = UniqueInsert(url), UniqueInsert(url, join="session")

    @idempotent(key="{order}", using=joined, name="place")
    def in_a_transaction(order: str, amount: int, session: Any = None) -> None: ...

    @idempotent(key="{order}", using=leased, name="place")
    def place(order: str, amount: int) -> None:
        with pytest.raises(FingerprintMismatchError):
            contextvars.Context().run(in_a_transaction, order, amount + 1)  # as another request would

    place("A-1", 1)
    leased.close()
    joined.close()


@pytest.fixture
def notes(tmp_path: Path) -> Iterator[Engine]:
    """A file with a business table."""
    engine = create_engine(f"sqlite:///{tmp_path}/shop.db", poolclass=NullPool)
    UniqueInsert(engine).create_schema()
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE notes (note TEXT)"))
    yield engine
    engine.dispose()


def _noted(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(text("SELECT note FROM notes")))


def test_a_function_that_commits_by_itself_is_recorded_in_the_transaction_that_follows(notes: Engine) -> None:
    @idempotent(key="{order}", using=UniqueInsert(join="session"))
    def place(order: str, session: Session) -> str:
        session.execute(text("INSERT INTO notes VALUES (:note)"), {"note": order})
        session.commit()
        return "placed"

    with Session(notes) as session:
        assert place("A-1", session) == "placed"
        session.commit()
    with Session(notes) as session:
        assert place("A-1", session) == "placed"
    assert _noted(notes) == ["A-1"]


def test_nothing_is_left_in_the_callers_transaction_of_a_function_whose_claim_is_gone(notes: Engine) -> None:
    @idempotent(key="{order}", using=UniqueInsert(join="session"))
    def place(order: str, session: Session) -> None:
        session.execute(text("INSERT INTO notes VALUES (:note)"), {"note": order})
        session.execute(text("DELETE FROM idempo_records"))

    with Session(notes) as session:
        session.execute(text("INSERT INTO notes VALUES ('earlier')"))
        with pytest.raises(LeaseLostError):
            place("A-1", session)
        session.commit()
    assert _noted(notes) == ["earlier"]


def test_a_failed_call_leaves_no_row_behind_where_none_is_needed_to_wait_for(notes: Engine) -> None:
    @idempotent(key="{order}", using=UniqueInsert(notes, join="session"))
    def place(order: str, session: Any = None) -> None:
        raise ValueError("declined")

    with pytest.raises(ValueError, match="declined"):
        place("A-1")
    with notes.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM idempo_records")) == 0


def test_an_error_that_would_be_a_result_is_none_where_the_function_has_rolled_back(notes: Engine) -> None:
    """There is no claim left to record it with."""
    runs: list[str] = []

    @idempotent(key="{order}", using=UniqueInsert(notes, join="session"), replay_errors=[ValueError])
    def place(order: str, session: Any = None) -> None:
        runs.append(order)
        session.rollback()
        raise ValueError("declined")

    for _ in range(2):
        with pytest.raises(ValueError, match="declined"):
            place("A-1")
    assert len(runs) == 2


def test_a_call_that_a_guard_refuses_tells_hooks_that_its_key_is_free(notes: Engine) -> None:
    told: list[str] = []
    orders = Business(
        "orders", MetaData(), Column("id", Integer, primary_key=True), Column("status", String(9))
    )
    orders.metadata.create_all(notes)
    with notes.begin() as connection:
        connection.execute(orders.insert().values(id=1, status="cancelled"))
    flow = {"pending": ["paid", "cancelled"]}
    guard = StateGuard(orders.c.status, where={orders.c.id: "{order}"}, flow=flow, to="paid")

    def hook(event: Event) -> None:
        told.append(event.kind)

    @idempotent(key="{order}", using=[UniqueInsert(notes, join="session"), guard], hooks=[hook])
    def pay(order: int, session: Any = None) -> None: ...

    with pytest.raises(StateConflictError):
        pay(1)
    assert told == ["claimed", "refused", "released"]


def test_a_file_that_another_writes_to_is_waited_for_as_long_as_the_call_says(notes: Engine) -> None:
    """Not as long as the driver would, which is an hour here."""
    engine = create_engine(notes.url, poolclass=NullPool, connect_args={"timeout": 3600})

    @idempotent(key="{order}", using=UniqueInsert(engine, join="session"), wait=0)
    def place(order: str, session: Any = None) -> str:
        return "placed"

    with notes.connect() as writer:
        writer.exec_driver_sql("BEGIN IMMEDIATE")
        with pytest.raises(InProgressError) as refused:
            place("A-1")
    assert refused.value.ran is False
    assert place("A-1") == "placed"


def test_a_file_that_takes_no_writes_is_not_taken_for_one_that_another_writes_to(
    notes: Engine, tmp_path: Path
) -> None:
    engine = create_engine(f"sqlite:///file:{tmp_path}/shop.db?mode=ro&uri=true", poolclass=NullPool)

    @idempotent(key="{order}", using=UniqueInsert(engine, join="session"), wait=0)
    def place(order: str, session: Any = None) -> None: ...

    with pytest.raises(LedgerUnavailableError) as refused:
        place("A-1")
    assert refused.value.ran is False
