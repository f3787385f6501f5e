"""Mistakes that users make, and that `assert_runs_once` names."""

import itertools
import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from idempo import INJECTED, RERUN, Found, Memory, ReadOnly, UniqueInsert, idempotent
from idempo.testing import Clock, assert_runs_once
from tests.servers import fresh_database
from tests.testing.places import Books


@pytest.fixture(params=["sqlite", "postgres"])
def books(request: pytest.FixtureRequest, tmp_path: Path) -> Books:
    url = f"sqlite:///{tmp_path}/shop.db"
    if request.param == "postgres":
        url = fresh_database(request.getfixturevalue("postgres"))
    books = Books(url)
    books.create()
    return books


@pytest.fixture
def joined(books: Books) -> Iterator[UniqueInsert]:
    strategy = UniqueInsert(books.engine, join="session")
    yield strategy
    books.engine.dispose()


@pytest.mark.parametrize("counted", [True, False])
def test_a_function_that_commits_by_itself(books: Books, joined: UniqueInsert, counted: bool) -> None:
    @idempotent(key="{order}", using=joined, name="commits")
    def f(order: str, session: Session = INJECTED) -> str:
        session.execute(books.entry(order))
        session.commit()
        return order

    with pytest.raises(AssertionError, match=r"before the request 'complete'.*commits by itself"):
        assert_runs_once(f, "A-1", effects=books.count if counted else None)


def test_effects_outside_the_transaction(joined: UniqueInsert) -> None:
    sent: list[str] = []

    @idempotent(key="{order}", using=joined, name="outside")
    def f(order: str, session: Session = INJECTED) -> str:
        sent.append(order)
        return order

    with pytest.raises(
        AssertionError, match="counts 1: the function writes outside of the transaction that session"
    ):
        assert_runs_once(f, "A-1", effects=sent.count)


def test_a_key_that_changes_between_repeats() -> None:
    @idempotent(key=lambda order: f"{order}-{uuid.uuid4()}", using=Memory(), name="random")
    def f(order: str) -> str:
        return order

    with pytest.raises(AssertionError, match=r"key of a repeat is another one: 'A-1-.*never of a clock"):
        assert_runs_once(f, "A-1")


def test_a_key_that_each_request_makes_anew() -> None:
    @idempotent(key="{request_id}", using=Memory(), name="request ids")
    def f(request_id: str) -> str:
        return request_id

    with pytest.raises(AssertionError, match="key of a repeat is another one"):
        assert_runs_once(f, arguments=lambda number: str(uuid.uuid4()))


def test_a_fingerprint_that_changes_between_repeats() -> None:
    @idempotent(key="{order}", using=Memory(), name="time stamps")
    def f(order: str, sent_at: int) -> str:
        return order

    with pytest.raises(AssertionError, match="fingerprint of a repeat is another one: sent_at changed"):
        assert_runs_once(f, arguments=lambda number: (f"A-{number}", time.monotonic_ns()))


class Json:
    """A codec that makes lists of tuples."""

    def encode(self, value: Any) -> bytes:
        return json.dumps(value).encode()

    def decode(self, data: bytes) -> Any:
        return json.loads(data)


@pytest.mark.parametrize("value", [(1, 2), [(1, 2)], {1: "one"}, {"a": (1,)}])
def test_a_value_that_does_not_survive_being_stored(value: Any) -> None:
    def body(order: str) -> Any:
        return value

    f: Any = idempotent(key="{order}", using=Memory(), name="json", codec=Json())(body)
    with pytest.raises(
        AssertionError, match=r"the first call got .*, a repeat .*does not survive being stored"
    ):
        assert_runs_once(f, "A-1")


class Money:
    """What no codec knows."""


def test_a_value_that_cannot_be_stored() -> None:
    def body(order: str) -> Any:
        return Money()

    f: Any = idempotent(key="{order}", using=Memory(), name="money")(body)
    with pytest.raises(AssertionError, match="cannot be stored"):
        assert_runs_once(f, "A-1")


def test_a_wait_that_is_too_short() -> None:
    @idempotent(key="{order}", using=Memory(), name="slow", wait=0.05)
    def f(order: str) -> str:
        time.sleep(0.5)  # the work of the function, as long as it is
        return order

    with pytest.raises(AssertionError, match=r"7 of 8 calls at once were refused .*give a longer wait="):
        assert_runs_once(f, "A-1")


def test_no_wait_at_all_is_meant() -> None:
    @idempotent(key="{order}", using=Memory(), name="at once", wait=0)
    def f(order: str) -> str:
        return order

    assert_runs_once(f, "A-1")


def test_a_record_that_is_kept_too_short() -> None:
    clock = Clock()

    @idempotent(key="{order}", using=Memory(clock=clock), name="short", keep=30, lease=30)
    def f(order: str) -> str:
        return order

    def arguments(number: int) -> str:
        clock.advance(31)  # a client that comes back after so long
        return f"A-{number}"

    with pytest.raises(AssertionError, match=r"a repeat ran the function again.*keep="):
        assert_runs_once(f, arguments=arguments)


@pytest.mark.parametrize("answer", [RERUN, Found("A-1")])
def test_a_probe_that_is_wrong(answer: Any) -> None:
    """One that never finds the effect, and one that always does."""

    @idempotent(key="{order}", using=Memory(), name="probe", on_orphan=lambda call: answer)
    def f(order: str) -> str:
        return order

    with pytest.raises(AssertionError, match="the on_orphan probe is wrong"):
        assert_runs_once(f, "A-1")


def test_effects_that_are_not_seen() -> None:
    @idempotent(key="{order}", using=Memory(), name="unseen")
    def f(order: str) -> str:
        return order

    with pytest.raises(AssertionError, match="effects= counts nothing"):
        assert_runs_once(f, "A-1", effects=lambda order: 0)


def test_nothing_that_remembers(books: Books) -> None:
    @idempotent(key="{order}", using=ReadOnly(books.engine), name="reads")
    def f(order: str, session: Session = INJECTED) -> str:
        return order

    with pytest.raises(AssertionError, match="nothing is recorded"):
        assert_runs_once(f, "A-1")
    books.engine.dispose()


@dataclass
class Amount:
    cents: float


def test_a_number_of_another_type_is_another_value() -> None:
    numbers = itertools.count(1)

    class Whole:
        def encode(self, value: Any) -> bytes:
            return b"1"

        def decode(self, data: bytes) -> Any:
            return Amount(1)

    @idempotent(key="{order}", using=Memory(), name="types", codec=Whole())
    def f(order: str) -> Amount:
        return Amount(float(next(numbers)))

    with pytest.raises(AssertionError, match="does not survive"):
        assert_runs_once(f, "A-1")
