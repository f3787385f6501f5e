"""Records in SQL, where no test held a rule until a mutant went unnoticed (docs/explanation/mutation.md)."""

import time

import pytest
from msgspec.structs import replace

from idempo.records import Above, Done, Issued, NotIssued, Payload
from idempo.steps import run
from idempo.testing import new_call
from tests.twins.conftest import FIRST, Table


def test_attempts_are_counted_anew_when_the_retention_is_over(table: Table, key: str) -> None:
    old = table.claim(new_call(key))
    table.done(table.ledger.release(old))
    table.change(old, "keep_until = 1")
    assert table.claim(new_call(key)).attempt == 1


def test_attempts_are_counted_anew_for_what_replaces_a_first_result(table: Table, key: str) -> None:
    old = table.claim(new_call(key))
    table.complete(old)
    assert table.claim(new_call(key, demand=Above(old.fence))).attempt == 1


def test_a_released_key_is_not_forgotten_for_it_is_free_already(table: Table, key: str) -> None:
    mine = table.claim(new_call(key))
    table.done(table.ledger.release(mine))
    assert run(table.ledger.forget(mine.digest)) is False
    assert table.claim(new_call(key)).attempt == 2


def test_a_record_tells_when_it_was_claimed_and_completed(table: Table, key: str) -> None:
    mine = table.claim(new_call(key))
    assert table.record(mine).completed_at is None
    table.complete(mine)
    record = table.record(mine)
    assert record.completed_at is not None
    assert record.created_at <= record.completed_at <= record.keep_until - record.keep_left


def test_nothing_of_an_old_result_stays_where_its_key_is_issued_or_claimed_anew(
    table: Table, key: str
) -> None:
    old = table.claim(new_call(key))
    table.complete(old)
    table.change(old, "keep_until = 1")
    table.done(table.ledger.issue(new_call(key, keep=60.0)))
    assert table.result(old) is None
    assert 0 < table.record(old).keep_left <= 60
    table.complete(table.claim(new_call(key)))
    table.change(old, "keep_until = 1")
    table.claim(new_call(key))
    assert table.result(old) is None


def test_a_token_is_good_for_as_long_as_it_was_issued_for_whatever_the_lease(table: Table, key: str) -> None:
    token = new_call(key, keep=5.0, lease=1000.0)
    table.done(table.ledger.issue(token))
    assert table.record(token).keep_left <= 5


def test_a_token_that_is_issued_anew_revives_no_other(table: Table, key: str) -> None:
    token, other = new_call(key), new_call(f"{key} other")
    for one in (token, other):
        table.done(table.ledger.issue(one))
        table.change(one, "keep_until = 1")
    table.done(table.ledger.issue(token))
    assert table.record(token).state == "issued"
    assert table.look(other) is None
    assert table.ask(replace(other, demand=Issued("replay"))) == NotIssued()


def _done(fence: int, data: bytes, keep_left: float = 60.0) -> Done:
    return Done(None, None, Payload("completed", data), False, 1, fence, keep_left=keep_left, durable=True)


def test_a_fill_replaces_an_older_result_and_no_newer_one(table: Table, key: str) -> None:
    for fence, data, wanted in [(7, b"7", b"7"), (9, b"9", b"9"), (8, b"8", b"9")]:
        run(table.ledger.fill(new_call(key), _done(fence, data)))
        assert table.record(new_call(key)).payload == Payload("completed", wanted)


def test_a_fill_replaces_whatever_is_over(table: Table, key: str) -> None:
    run(table.ledger.fill(new_call(key), _done(9, b"9")))
    table.change(new_call(key), "keep_until = 1")
    run(table.ledger.fill(new_call(key), _done(8, b"8")))
    assert table.record(new_call(key)).payload == Payload("completed", b"8")


def test_a_fill_changes_no_other_record(table: Table, key: str) -> None:
    other = table.claim(new_call(f"{key} other"))
    table.complete(other)
    run(table.ledger.fill(new_call(key), _done(1 << 62, b"filled")))
    run(table.ledger.fill(new_call(key), _done(1 << 62, b"again")))
    assert table.record(other).payload == FIRST


def test_the_times_of_a_record_are_seconds_since_1970(table: Table, key: str) -> None:
    mine = table.claim(new_call(key))
    table.complete(mine)
    record = table.record(mine)
    for seconds in (record.created_at, record.completed_at, record.lease_until, record.keep_until - 3600):
        assert seconds is not None
        assert abs(seconds - time.time()) < 600
    assert 3500 < record.keep_left <= 3600


def test_a_claim_is_kept_for_no_less_than_its_lease(table: Table, key: str) -> None:
    assert table.record(table.claim(new_call(key, lease=1000.0, keep=1.0))).keep_left > 900


@pytest.mark.parametrize(
    ("given", "shown"),
    [("x" * 255, "x" * 255), ("x" * 256, "x" * 254 + "…"), ("a\x00b\ud800", "a\\0b\\ud800")],
)
def test_what_people_read_is_shortened_to_what_every_database_takes(
    table: Table, key: str, given: str, shown: str
) -> None:
    mine = table.claim(new_call(key, operation=given, scope=given))
    assert (table.record(mine).operation, table.record(mine).scope) == (shown, shown)


def test_only_the_time_and_the_content_of_a_result_may_be_missing(table: Table) -> None:
    assert {column["name"] for column in table.columns() if column["nullable"]} == {"completed_at", "result"}


def test_what_is_over_is_found_by_an_index(table: Table) -> None:
    assert ["keep_until"] in [index["column_names"] for index in table.indexes()]


def test_records_with_one_fence_are_forgotten_one_by_one(table: Table, key: str) -> None:
    """Fences tell the claims of one key apart, not those of two."""
    one, other = new_call(key), new_call(f"{key} other")
    for call in (one, other):
        run(table.ledger.fill(call, _done(7, b"7")))
    assert run(table.ledger.forget(one.digest)) is True
    assert table.look(one) is None
    assert table.record(other).payload == Payload("completed", b"7")


def test_two_keys_that_one_call_holds_are_renewed_completed_and_released_each_on_its_own(
    table: Table, key: str
) -> None:
    """As a token and its order in one table."""
    one = table.claim(new_call(key))
    other, third = (table.claim(new_call(f"{key} {n}", owner=one.owner)) for n in (2, 3))
    table.done(table.ledger.renew(one, 0))
    assert table.record(other).state == "running"
    table.done(table.ledger.release(third))
    assert table.record(other).state == "running"
    table.complete(one)
    assert table.record(other).state == "running"
