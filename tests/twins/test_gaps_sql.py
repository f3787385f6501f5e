"""Rules of the SQL ledger that no test held until a mutant of it went unnoticed; see docs/explanation/mutation.md."""

import contextvars
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import Column, Engine, Integer, MetaData, String, create_engine, inspect, text
from sqlalchemy import Table as Business
from sqlalchemy.exc import OperationalError
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
from idempo.dialects import Dialect
from idempo.records import (
    Above,
    Answer,
    Call,
    Claimed,
    Completed,
    Done,
    InProgress,
    Issued,
    NotIssued,
    Orphan,
    Payload,
    Record,
)
from idempo.steps import Steps, run
from idempo.testing import ledger_of, new_call
from tests.servers import Server, fresh_database

HOUR = 3600 * 1_000_000
FIRST, SECOND = Payload("completed", b"first"), Payload("completed", b"second")


class Table:
    """A records table, as a ledger and as anybody else sees it."""

    def __init__(self, url: str) -> None:
        self._strategy = UniqueInsert(url)
        self._strategy.create_schema()
        self._outside = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self.ledger: Any = ledger_of(self._strategy, "sync")

    def ask(self, call: Call, over: int | None = None) -> Answer:
        answer: Answer = run(self.ledger.claim(call, over))
        return answer

    def claim(self, call: Call, over: int | None = None) -> Call:
        answer = self.ask(call, over)
        assert isinstance(answer, Claimed), answer
        return replace(call, fence=answer.fence, attempt=answer.attempt)

    def complete(self, call: Call, payload: Payload = FIRST) -> None:
        assert run(self.ledger.complete(call, payload))

    def done(self, steps: Steps[Any]) -> None:
        assert run(steps)

    def look(self, call: Call) -> Record | None:
        record: Record | None = run(self.ledger.lookup(call.digest))
        return record

    def record(self, call: Call) -> Record:
        record = self.look(call)
        assert record is not None
        return record

    def change(self, call: Call, assignments: str) -> None:
        """Change the row from outside, as a clock that jumps or time that passes would have it."""
        with self._outside.connect() as connection:
            sql = f"UPDATE idempo_records SET {assignments} WHERE digest = :digest"
            assert connection.execute(text(sql), {"digest": call.digest}).rowcount == 1

    def result(self, call: Call) -> bytes | None:
        """What the column says, whatever the state."""
        with self._outside.connect() as connection:
            sql = "SELECT result FROM idempo_records WHERE digest = :digest"
            found = connection.scalar(text(sql), {"digest": call.digest})
            return None if found is None else bytes(found)

    def columns(self) -> list[Any]:
        return list(inspect(self._outside).get_columns("idempo_records"))

    def indexes(self) -> list[Any]:
        return list(inspect(self._outside).get_indexes("idempo_records"))

    def close(self) -> None:
        self._strategy.close()
        self._outside.dispose()


@pytest.fixture(scope="module", params=["sqlite", "mariadb", "postgres"])
def table(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('gaps')}/records.db"
    else:
        url = fresh_database(request.getfixturevalue(request.param))
    table = Table(url)
    yield table
    table.close()


@pytest.fixture
def key() -> str:
    return secrets.token_hex(8)


# PostgreSQL claims in one statement: there nothing comes between reading and claiming.
read_first = pytest.mark.parametrize("table", ["sqlite", "mariadb"], indirect=True)


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let something happen between the next times that a row is read and what is then done with it."""
    read = Dialect.read

    def arrange(happens: Callable[[], object], *, times: int = 1) -> None:
        left = times

        def read_and_be_overtaken(self: Dialect, connection: Any, digest: bytes) -> Any:
            nonlocal left
            row = read(self, connection, digest)
            left -= 1
            monkeypatch.setattr(Dialect, "read", read)
            happens()
            if left:
                monkeypatch.setattr(Dialect, "read", read_and_be_overtaken)
            return row

        monkeypatch.setattr(Dialect, "read", read_and_be_overtaken)

    return arrange


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
    assert 0 < lease_left(table.record(mine)) <= 30
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


# ------------------------------------------------------------------------ what a record says


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


# ------------------------------------------------------------------------ a database that refuses


def test_a_database_that_takes_no_writes_is_not_taken_for_one_where_somebody_was_faster(
    tmp_path: Path,
) -> None:
    UniqueInsert(f"sqlite:///{tmp_path}/records.db").create_schema()
    strategy = UniqueInsert(f"sqlite:///file:{tmp_path}/records.db?mode=ro&uri=true")
    with pytest.raises(OperationalError, match="readonly"):
        run(ledger_of(strategy, "sync").claim(new_call(), None))
    strategy.close()


# ------------------------------------------------------------------------ the record in the business transaction


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
