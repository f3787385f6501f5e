"""When the inside of a composition does not say that nothing happened, the outside must not act as if it had."""

from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from idempo import (
    INJECTED,
    RERUN,
    Call,
    FingerprintMismatchError,
    LeaseLostError,
    LocalCache,
    Memory,
    MonotonicVersion,
    OneTimeToken,
    OutcomeUnknownError,
    UniqueInsert,
    VersionConflictError,
    current,
    idempotent,
)
from idempo.records import Done, Payload
from idempo.steps import run
from idempo.testing import new_call
from tests.servers import Server, fresh_database
from tests.tokens.support import Clock


class Killed(BaseException):
    """Stands for the end of the process."""


def in_order(ledger: Any, **options: Any) -> MonotonicVersion:
    return MonotonicVersion(ledger, entity="{entity}", version="{version}", **options)


@pytest.mark.parametrize("reuse", ["replay", "refuse"])
def test_after_an_unknown_outcome_a_token_is_good_for_no_other_order(reuse: Any) -> None:
    tokens, placed = OneTimeToken(Memory(), key="{token}", reuse=reuse), list[str]()

    @idempotent(key="{order}", using=[tokens, Memory()], unknown_errors=[TimeoutError], wait=0)
    def place(order: str, token: str) -> str:
        placed.append(order)
        if len(placed) == 1:
            raise TimeoutError
        return order

    token = tokens.issue()
    with pytest.raises(OutcomeUnknownError):
        place("A-1", token)
    assert tokens.peek(token).state == "orphan"
    with pytest.raises(FingerprintMismatchError):
        place("A-2", token)
    assert place("A-1", token) == "A-1"
    assert placed == ["A-1", "A-1"]


def test_after_an_unknown_outcome_inside_no_lower_version_is_applied() -> None:
    applied: list[int] = []

    @idempotent(key="{event}", using=[in_order(Memory()), Memory()], unknown_errors=[TimeoutError], wait=0)
    def apply(event: str, entity: str, version: int) -> None:
        applied.append(version)
        if version == 3:
            raise TimeoutError

    apply("e1", "x", 1)
    with pytest.raises(OutcomeUnknownError):
        apply("e3", "x", 3)
    with pytest.raises(VersionConflictError):
        apply("e2", "x", 2)
    assert applied == [1, 3]


@pytest.mark.parametrize("kind", ["token", "version"])
def test_a_probe_is_told_of_the_call_that_the_function_had(kind: str) -> None:
    clock, seen = Clock(), list[tuple[str, str]]()

    def probe(call: Call) -> object:
        seen.append((call.key, call.downstream_key("stripe")))
        return RERUN

    tokens = OneTimeToken(Memory(clock=clock))
    using = tokens if kind == "token" else in_order(Memory(clock=clock))

    @idempotent(key="{key}", using=using, on_orphan=probe, lease=5, wait=0, name=f"probed.{kind}")
    def pay(key: str, entity: str = "x", version: int = 1) -> str:
        seen.append((current().key, current().downstream_key("stripe")))
        if len(seen) == 1:
            raise Killed
        return "paid"

    key = tokens.issue() if kind == "token" else "e1"
    with pytest.raises(Killed):
        pay(key)
    clock.now += 60
    assert pay(key) == "paid"
    assert len(seen) == 3
    assert len(set(seen)) == 1


def test_after_a_crash_and_a_failure_above_it_what_lies_between_is_applied() -> None:
    """5 fails cleanly, so only 3 may have been applied: 4 is above it, 2 is not, and 3 may come again."""
    clock, applied = Clock(), list[int]()
    ends: dict[int, type[BaseException]] = {3: Killed, 5: ValueError}

    @idempotent(key="{version}", using=in_order(Memory(clock=clock)), lease=5, wait=0)
    def apply(version: int, entity: str = "x") -> str:
        if version in ends:
            raise ends.pop(version)
        applied.append(version)
        return "applied"

    apply(1)
    for version, error in ((3, Killed), (5, ValueError)):
        with pytest.raises(error):
            apply(version)
        clock.now += 10
    with pytest.raises(VersionConflictError):
        apply(2)
    assert apply(3) == "applied"
    assert apply(4) == "applied"
    assert applied == [1, 3, 4]


@pytest.mark.parametrize("inside", [False, True], ids=["the record", "in front of a record"])
def test_a_stalled_owner_of_a_lower_version_is_told(inside: bool) -> None:
    clock, stalled = Clock(), list[int]()
    outer = in_order(Memory(clock=clock))
    using: list[Any] = [outer, Memory(clock=clock)] if inside else [outer]

    @idempotent(key="{version}", using=using, lease=5, wait=0)
    def apply(version: int, entity: str = "x") -> int:
        if version == 2 and not stalled:
            stalled.append(version)
            clock.now += 60
            apply(3)
        return version

    with pytest.raises(LeaseLostError) as lost:
        apply(2)
    assert lost.value.result == 2
    assert lost.value.stored is not None
    assert lost.value.stored != 3


def test_superseded_by_what_is_then_undone_is_nothing_that_a_tier_keeps(tmp_path: Any) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    versions = in_order(UniqueInsert(engine, join="session"), stale="superseded")

    @idempotent(key="{version}", using=[LocalCache(), versions])
    def apply(version: int, entity: str = "x", session: Session = INJECTED) -> str:
        return "applied"

    with Session(engine) as session:
        assert apply(3, session=session) == "applied"
        assert apply(2, session=session) == "superseded"
        session.rollback()
    assert apply(2) == "applied"
    engine.dispose()


@pytest.mark.parametrize("key", ["{token}", "{order}:{token}", ("order", "token")], ids=str)
def test_a_token_that_is_part_of_the_key_is_hidden_too(key: Any) -> None:
    tokens, record, shown = OneTimeToken(Memory(), key="{token}"), Memory(), list[str]()

    def placing(token: str, order: str = "A") -> None: ...

    hooks = [lambda event: shown.append(event.key)]
    place: Any = idempotent(key=key, using=[tokens, record], hooks=hooks)(placing)

    token = tokens.issue()
    place(token)
    shown += [row.call.key for row in record._rows.values()]
    assert len(shown) > 2
    assert not [one for one in shown if token in one]


def test_what_a_token_replays_is_kept_for_no_longer_than_the_record() -> None:
    clock, runs = Clock(), list[int]()
    tokens = OneTimeToken(Memory(clock=clock), key="{token}")

    @idempotent(
        key="{order}", using=[tokens, Memory(clock=clock)], keep=10, lease=5, name="kept", fingerprint="order"
    )
    def place(order: str, token: str) -> int:
        runs.append(len(runs))
        return len(runs)

    first, second = tokens.issue(), tokens.issue()
    assert place("A", first) == 1
    clock.now += 9
    assert place("A", second) == 1
    clock.now += 2
    assert tokens.peek(second) is None


@pytest.mark.parametrize("ledger", [Memory(), UniqueInsert("sqlite:///tier.db")], ids=["memory", "sqlite"])
def test_a_tier_is_not_filled_over_a_newer_result(
    ledger: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that stalled between the answer and the fill comes too late."""
    monkeypatch.chdir(tmp_path)

    @idempotent(key="{key}", using=ledger)
    def unused(key: str) -> None: ...

    store = unused.__idempo__.layers[0].ledger  # type: ignore[attr-defined]
    call = new_call()
    for fence, wanted in ((20, b"2"), (10, b"2"), (30, b"3")):
        data = str(fence // 10).encode()
        done = Done(None, None, Payload("completed", data), False, 1, fence, 60.0, True)
        run(store.fill(call, done))
        record = run(store.lookup(call.digest))
        assert record.payload.data == wanted
    if isinstance(ledger, UniqueInsert):
        ledger.close()


def test_an_uncommitted_result_is_never_replayed_whatever_the_engines_level(mariadb: Server) -> None:
    engine = create_engine(fresh_database(mariadb), isolation_level="READ UNCOMMITTED")
    ledger = UniqueInsert(engine, join="session")
    ledger.create_schema()
    runs: list[str] = []

    @idempotent(key="{key}", using=[LocalCache(), ledger], wait=0)
    def place(key: str, session: Session = INJECTED) -> int:
        runs.append(key)
        return len(runs)

    with Session(engine) as session:
        assert place("A", session) == 1
        with pytest.raises(Exception, match="still running"):
            place("A")
        session.rollback()
    assert place("A") == 2
    engine.dispose()
