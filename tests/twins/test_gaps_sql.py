"""Races and leases in SQL, where no test held a rule until a mutant went unnoticed (docs/explanation/mutation.md)."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from idempo import UniqueInsert
from idempo.records import Above, Completed, InProgress, Orphan, Payload, Record
from idempo.steps import run
from idempo.testing import ledger_of, new_call
from tests.twins.conftest import FIRST, Table

HOUR = 3600 * 1_000_000
SECOND = Payload("completed", b"second")

# PostgreSQL claims in one statement: there nothing comes between reading and claiming.
read_first = pytest.mark.parametrize("table", ["sqlite", "mariadb"], indirect=True)


# ------------------------------------------------------------------------ somebody was faster


@read_first
def test_an_orphan_that_is_renewed_while_it_is_taken_over_stays_its_owners(
    table: Table, key: str, meanwhile: Callable[..., None]
) -> None:
    late = table.claim(new_call(key))
    table.done(table.ledger.renew(late, 0))
    meanwhile(lambda: table.done(table.ledger.renew(late, 30)))
    assert isinstance(table.ask(new_call(key), late.fence), InProgress)
    table.complete(late)


@read_first
def test_an_orphan_that_completes_while_it_is_taken_over_has_its_first_result(
    table: Table, key: str, meanwhile: Callable[..., None]
) -> None:
    late = table.claim(new_call(key))
    table.done(table.ledger.renew(late, 0))
    meanwhile(lambda: table.complete(late))
    answer = table.ask(new_call(key), late.fence)
    assert isinstance(answer, Completed)
    assert answer.payload == FIRST


@read_first
def test_a_claim_counts_the_one_that_came_and_went_meanwhile(
    table: Table, key: str, meanwhile: Callable[..., None]
) -> None:
    one, other = new_call(key), new_call(key)
    table.claim(one)
    table.done(table.ledger.release(one))
    fences = []

    def come_and_go() -> None:
        fences.append(table.claim(other).fence)
        table.done(table.ledger.release(other))

    meanwhile(come_and_go)
    mine = table.claim(new_call(key))
    assert mine.attempt == 3
    assert mine.fence > fences[0]


@read_first
def test_who_loses_every_race_is_told_to_ask_again_at_once(
    table: Table, key: str, meanwhile: Callable[..., None]
) -> None:
    def come_and_go() -> None:
        other = table.claim(new_call(key))
        table.done(table.ledger.release(other))

    come_and_go()
    meanwhile(come_and_go, times=1000)
    assert table.ask(new_call(key)) == InProgress(b"", 0.0)


def test_a_result_that_comes_while_its_orphan_is_forgotten_stays(
    table: Table, key: str, meanwhile: Callable[..., None]
) -> None:
    late = table.claim(new_call(key))
    table.done(table.ledger.renew(late, 0))
    meanwhile(lambda: table.complete(late))
    assert run(table.ledger.forget(late.digest)) is False
    assert table.record(late).payload == FIRST


def test_a_newer_result_that_comes_while_an_older_one_is_forgotten_stays(
    table: Table, key: str, meanwhile: Callable[..., None]
) -> None:
    old = table.claim(new_call(key))
    table.complete(old)
    new = new_call(key, demand=Above(old.fence))
    meanwhile(lambda: table.complete(table.claim(new), SECOND))
    assert run(table.ledger.forget(old.digest)) is False
    assert table.record(old).payload == SECOND


# ------------------------------------------------------------------------ leases and the clock


def test_a_claim_that_lives_is_not_taken_over_by_its_own_fence(table: Table, key: str) -> None:
    living = table.claim(new_call(key))
    assert isinstance(table.ask(new_call(key), living.fence), InProgress)
    table.complete(living)


ENDED = {
    "its time is over": (None, f"leased_at = leased_at - {HOUR}, lease_until = lease_until - {HOUR}"),
    "its owner ended it, and the clock went back": (
        0,
        f"leased_at = leased_at + {HOUR}, lease_until = lease_until + {HOUR}",
    ),
}


@pytest.mark.parametrize("how", ENDED)
@pytest.mark.parametrize("then", ["taken over", "forgotten"])
def test_a_lease_that_has_ended_is_over(table: Table, key: str, how: str, then: str) -> None:
    lease, jump = ENDED[how]
    dead = table.claim(new_call(key))
    if lease is not None:
        table.done(table.ledger.renew(dead, lease))
    table.change(dead, jump)
    answer = table.ask(new_call(key))
    assert isinstance(answer, Orphan)
    assert table.record(dead).state == "orphan"
    if then == "forgotten":
        assert run(table.ledger.forget(dead.digest)) is True
        assert table.look(dead) is None
        return
    mine = table.claim(new_call(key), answer.fence)
    assert (mine.attempt, table.record(mine).state) == (2, "running")
    assert 3500 < table.record(mine).keep_left <= 3600


def lease_left(record: Record) -> float:
    """Seconds, by the store's clock."""
    assert record.lease_until is not None
    return record.lease_until - (record.keep_until - record.keep_left)


def test_a_lease_that_seems_to_begin_in_the_future_begins_anew_when_somebody_asks(
    table: Table, key: str
) -> None:
    """The clock went back. Nobody knows how much of the lease is over; it is not honoured for an hour more."""
    mine, other = table.claim(new_call(key)), table.claim(new_call(f"{key} other"))
    for call in (mine, other):
        table.change(call, f"leased_at = leased_at + {HOUR}, lease_until = lease_until + {HOUR}")
    answer = table.ask(new_call(key))
    assert isinstance(answer, InProgress)
    assert 0 < answer.lease_left <= 30
    assert 0 < lease_left(table.record(mine)) <= 30 + 1e-6  # seconds since 1970, as floats
    assert lease_left(table.record(other)) > 3000


def test_asking_does_not_make_a_lease_longer(table: Table, key: str) -> None:
    mine = table.claim(new_call(key))
    before = table.record(mine).lease_until
    assert isinstance(table.ask(new_call(key)), InProgress)
    assert table.record(mine).lease_until == before


def test_fences_grow_although_the_clock_went_back(table: Table, key: str) -> None:
    old = table.claim(new_call(key))
    table.done(table.ledger.release(old))
    table.change(old, f"fence = fence + {HOUR}")
    assert table.claim(new_call(key)).fence > old.fence + HOUR


# ------------------------------------------------------------------------ a database that refuses


def test_a_database_that_takes_no_writes_is_not_taken_for_one_where_somebody_was_faster(
    tmp_path: Path,
) -> None:
    UniqueInsert(f"sqlite:///{tmp_path}/records.db").create_schema()
    strategy = UniqueInsert(f"sqlite:///file:{tmp_path}/records.db?mode=ro&uri=true")
    with pytest.raises(OperationalError, match="readonly"):
        run(ledger_of(strategy, "sync").claim(new_call(), None))
    strategy.close()
