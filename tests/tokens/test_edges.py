"""Tokens and versions where it is easy to be wrong: inside out, after a crash, in somebody else's transaction."""

import logging
from functools import partial
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from idempo import (
    Event,
    IdempoError,
    InProgressError,
    KeyRefusedError,
    KeyTemplateError,
    LedgerUnavailableError,
    Memory,
    OneTimeToken,
    ReentrantCallError,
    TokenSpentError,
    TokenUnknownError,
    UniqueInsert,
    VersionConflictError,
    current,
    idempotent,
)
from idempo.steps import Steps
from idempo.testing import Gate
from tests.tokens import support
from tests.tokens.support import InDatabase, Store, driven, on
from tests.traps.support import Declined, Running, calling, caught
from tests.versions.support import Sink, versioned

store = support.store


def test_a_token_used_from_inside_is_refused_at_once() -> None:
    tokens = OneTimeToken(Memory())
    f: Any = idempotent(key="{token}", using=tokens, name="reentrant", wait=0.2)(lambda token: [f(token)])
    token = tokens.issue()
    with pytest.raises(ReentrantCallError):
        f(token)


@on("postgres joined", "mariadb joined", "mysql joined", "sqlite joined")
@driven
def test_a_joined_version_in_progress_is_no_ledger_failure(store: Store) -> Steps[None]:
    """A transaction that has not committed shows nobody its version."""
    inside, gate = Gate(store.colour), Gate(store.colour)

    def body(entity: str, version: int) -> Steps[int]:
        inside.open()
        yield gate.wait()
        return version

    f = versioned(store, body, wait=0)
    running = Running(store.colour, [calling(lambda: f("row", 5))])
    yield inside.wait()
    try:
        for version in (4, 5, 6):
            yield from caught(InProgressError, partial(f, "row", version))
    finally:
        gate.open()
        yield from running.results()


@on("memory", "redis", "postgres", colours=("sync",))
@driven
def test_a_crash_and_then_a_failure_of_one_version_do_not_forget_the_one_before(
    store: Store,
) -> Steps[None]:
    """5 is applied; 6 dies; 6 comes again and raises; then 4 must not run."""
    sink, ends = Sink(), [KeyboardInterrupt(), Declined("6")]

    def body(entity: str, version: int, content: str) -> Steps[str]:
        if version == 6:
            raise ends.pop(0)
        return (yield from sink.apply(entity, version, content))

    f = versioned(store, body, wait=0)
    yield f("row", 5)
    yield from caught(KeyboardInterrupt, partial(f, "row", 6))
    store.end_leases()
    yield from caught(Declined, partial(f, "row", 6))
    yield from caught(VersionConflictError, partial(f, "row", 4))
    assert sink.of("row") == [5]


def test_no_error_and_no_event_names_a_token_that_is_the_key() -> None:
    seen: list[str] = []
    events: list[Event] = []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    listening = Listening()
    logging.getLogger("idempo").addHandler(listening)
    try:
        tokens = OneTimeToken(Memory())
        f: Any = idempotent(key="{token}", using=tokens, name="unstorable", hooks=[events.append])(
            lambda token: object()
        )
        token = tokens.issue()
        f(token)
        assert [event.kind for event in events if event.key == token] == []
        assert not [line for line in seen if token in line]
    finally:
        logging.getLogger("idempo").removeHandler(listening)


def test_no_error_of_a_lookup_names_a_token_that_is_the_key(tmp_path: Any) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/no-such-folder/x.db")
    tokens = OneTimeToken(UniqueInsert(engine))
    f: Any = idempotent(key="{token}", using=tokens, name="lookup")(lambda token: 1)
    token = "t" * 43
    for call in (f, f.lookup, f.forget):
        with pytest.raises(LedgerUnavailableError) as caught:
            call(token)
        assert token not in str(caught.value), call
    engine.dispose()


def test_no_error_of_a_forget_names_a_token_that_is_the_key() -> None:
    errors: list[IdempoError] = []
    tokens = OneTimeToken(Memory())

    @idempotent(key="{token}", using=tokens, name="forgetting")
    def f(token: str) -> None:
        with pytest.raises(InProgressError) as caught:
            f.forget(token)
        errors.append(caught.value)

    token = tokens.issue()
    f(token)
    assert token not in str(errors[0])


@on("mariadb joined", "mysql joined", colours=("sync",))
@driven
def test_an_unknown_token_in_the_callers_transaction_does_not_block_the_next_issue(
    store: Store,
) -> Steps[None]:
    """FOR UPDATE on the missing row takes the gap until the caller ends: here, a deadlock with oneself."""
    assert isinstance(store, InDatabase)
    engine = create_engine(
        store.url, connect_args={"init_command": "SET SESSION innodb_lock_wait_timeout = 1"}
    )
    tokens = OneTimeToken(UniqueInsert(engine, join="session"))
    f = store.decorate(lambda order: (yield order), tokens)
    with engine.connect() as connection:
        yield from caught(TokenUnknownError, partial(f, "guessed", session=connection))
        try:
            tokens.issue()  # a new form for whoever sent the unknown token
        finally:
            connection.rollback()
            engine.dispose()


def test_a_scope_that_makes_one_text_of_several_parts_is_refused_while_decorating() -> None:
    """A token could be issued for it, and never found."""
    for scope in ("{tenant}:{user}", ("{tenant}:{user}", "user")):
        tokens = OneTimeToken(Memory())
        with pytest.raises(KeyTemplateError, match="several parts"):
            idempotent(key="{token}", using=tokens, name="s", scope=scope)(lambda token, tenant, user: 1)


@on("memory", "redis", "postgres", colours=("sync",))
@driven
def test_the_first_run_of_a_higher_version_is_its_first_attempt(store: Store) -> Steps[None]:
    attempts: list[int] = []

    def body(entity: str, version: int) -> Steps[int]:
        yield from ()
        attempts.append(current().attempt)
        return version

    f = versioned(store, body)
    for version in (1, 2, 3):
        yield f("row", version)
    assert attempts == [1, 1, 1]


@on("memory", "redis", "postgres", "sqlite", colours=("sync",))
@driven
def test_a_token_whose_time_is_over_can_be_issued_again(store: Store) -> Steps[None]:
    tokens = OneTimeToken(store.ledger(), make=lambda: "draft-17")
    store.decorate(lambda order: (yield order), tokens)
    tokens.issue()
    store.end_retention()
    yield from ()
    assert tokens.issue() == "draft-17"


def test_a_made_token_that_is_too_long_to_be_used_is_refused_when_it_is_issued() -> None:
    tokens = OneTimeToken(Memory(), make=lambda: "x" * 5000)
    idempotent(key="{token}", using=tokens, name="long")(lambda token: 1)
    with pytest.raises(KeyRefusedError, match="1024"):
        tokens.issue()


@on("postgres joined", "mariadb joined", colours=("sync",))
@driven
def test_a_double_click_behind_the_callers_session_is_answered(store: Store) -> Steps[None]:
    """The token in front learns of the caller's commit by asking the record again, not by the end of its lease."""
    assert isinstance(store, InDatabase)
    engine = create_engine(store.url)
    tokens = OneTimeToken(Memory(), key="{token}")
    f = store.decorate(
        lambda order: (yield order), [tokens, UniqueInsert(join="session")], key="{order}", wait=0
    )
    token = tokens.issue()
    answers = []
    try:
        for _ in range(2):
            with engine.connect() as connection:
                answers.append(f(token, session=connection))
                connection.execute(text("SELECT 1"))
                connection.commit()
    finally:
        engine.dispose()
    yield from ()
    assert answers == ["A-1", "A-1"]


@on("postgres joined", "mariadb joined", colours=("sync",))
@driven
def test_a_token_that_must_not_be_used_twice_is_spent_whatever_the_caller_does(store: Store) -> Steps[None]:
    assert isinstance(store, InDatabase)
    engine = create_engine(store.url)
    tokens = OneTimeToken(Memory(), key="{token}", reuse="refuse")
    f = store.decorate(
        lambda order: (yield order), [tokens, UniqueInsert(join="session")], key="{order}", wait=0
    )
    try:
        for end in ("commit", "rollback"):
            token = tokens.issue()
            with engine.connect() as connection:
                f(token, session=connection)
                getattr(connection, end)()
                yield from caught(TokenSpentError, partial(f, token, session=connection))
    finally:
        engine.dispose()
