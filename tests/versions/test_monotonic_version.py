"""`MonotonicVersion`: higher runs, equal replays, lower is superseded."""

import datetime as dt
import enum
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

import pytest

from idempo import (
    CompositionError,
    ConfigurationError,
    Event,
    FingerprintMismatchError,
    InProgressError,
    KeyRefusedError,
    KeyTemplateError,
    LocalCache,
    Memory,
    MonotonicVersion,
    OutcomeUnknownError,
    RedisCache,
    ResultUnavailableError,
    UniqueInsert,
    VersionConflictError,
    idempotent,
)
from idempo.contracts import Strategy
from idempo.steps import Steps
from idempo.testing import Effects, Gate, drive
from tests.tokens import support
from tests.tokens.support import EVERY, LEASED, MYSQL, InDatabase, Store, driven, on
from tests.traps.support import Declined, Running, calling, caught
from tests.versions.support import TOO_LATE, Sink, applying, versioned

store = support.store
everywhere = on(*EVERY, *MYSQL)
some = on("memory", "redis", "postgres", "postgres joined", "mariadb joined")
MOST = 2**63 - 1


@dataclass
class Indexed:
    entity: str
    version: int
    price: Decimal


# ------------------------------------------------------------------------ the three answers


@everywhere
@driven
def test_a_higher_version_runs_and_an_equal_one_gets_the_first_result(store: Store) -> Steps[None]:
    effects = Effects()

    def body(entity: str, version: int) -> Steps[Indexed]:
        yield from ()
        effects.add(f"{version}")
        return Indexed(entity, version, Decimal("1.50"))

    function = applying(body, store.colour)
    function.__annotations__["return"] = Indexed
    strategy = MonotonicVersion(store.ledger(), entity="{entity}", version="{version}")
    f = idempotent(key=("entity", "version"), using=strategy, name=store.name)(function)
    for version in (1, 2, 7):
        outcome = yield f.outcome("row", version)
        assert (outcome.value, outcome.replayed) == (Indexed("row", version, Decimal("1.50")), False)
        outcome = yield f.outcome("row", version)
        assert (outcome.value, outcome.replayed) == (Indexed("row", version, Decimal("1.50")), True)
        assert type(outcome.value.price) is Decimal
    assert len(effects) == 3


@everywhere
@driven
def test_a_lower_version_is_superseded_and_changes_nothing(store: Store) -> Steps[None]:
    sink = Sink()
    f = versioned(store, sink.apply)
    yield f("row", 5, "five")
    before = store.records()
    for version in (4, 1, 0, -3):
        error = yield from caught(VersionConflictError, partial(f, "row", version, "late"))
        assert (error.expected, error.found, error.ran) == (version, 5, False)
        assert error.operation == store.name
    assert store.records() == before
    assert sink.state == {"row": (5, "five")}
    assert (yield f("row", 5, "five")) == "applied 5"


@some
@driven
def test_stale_is_the_answer_for_a_superseded_change(store: Store) -> Steps[None]:
    async def later(found: int | None) -> str:
        return f"{found} was applied before"

    answers: list[tuple[Any, str]] = [
        (TOO_LATE, TOO_LATE),
        (lambda found: f"{found} was applied before", "5 was applied before"),
    ]
    if store.colour == "async":
        answers.append((later, "5 was applied before"))
    sink = Sink()
    for number, (stale, answer) in enumerate(answers):
        f = versioned(store, sink.apply, stale=stale)
        yield f(number, 5)
        outcome = yield f.outcome(number, 4)
        assert (outcome.value, outcome.replayed) == (answer, False)
        assert sink.of(number) == [5]


def test_a_stale_value_is_copied_for_each_call() -> None:
    f: Any = idempotent(
        key="{v}",
        using=MonotonicVersion(Memory(), entity="{e}", version="{v}", stale=["late"]),
        name="copied",
    )(lambda e, v: [])
    f("row", 2)
    f("row", 1).append("changed")
    assert f("row", 1) == ["late"]


@everywhere
@driven
def test_the_same_version_with_other_content_is_refused_by_name(store: Store) -> Steps[None]:
    sink = Sink()
    f = versioned(store, sink.apply, stale=TOO_LATE)
    yield f("row", 5, "five")
    error = yield from caught(FingerprintMismatchError, partial(f, "row", 5, "another five"))
    assert error.differing == ("content",)
    assert sink.state == {"row": (5, "five")}
    assert (yield f("row", 6, "six")) == "applied 6"


# ------------------------------------------------------------------------ failure, crash


@everywhere
@driven
def test_a_failure_leaves_the_version_before_the_highest(store: Store) -> Steps[None]:
    """It still replays, lower ones are superseded, one in between is applied, and the failed one runs again."""
    sink, failing = Sink(), [True]

    def body(entity: str, version: int, content: str) -> Steps[str]:
        if version == 9 and failing.pop():
            raise Declined(entity)
        return (yield from sink.apply(entity, version, content))

    f = versioned(store, body)
    yield f("row", 5, "five")
    yield from caught(Declined, partial(f, "row", 9, "nine"))
    outcome = yield f.outcome("row", 5, "five")
    assert (outcome.value, outcome.replayed) == ("applied 5", True)
    error = yield from caught(VersionConflictError, partial(f, "row", 4, "four"))
    assert error.found == 5
    assert (yield f("row", 7, "seven")) == "applied 7"
    failing.append(False)
    assert (yield f("row", 9, "nine")) == "applied 9"
    assert sink.of("row") == [5, 7, 9]


@everywhere
@driven
def test_a_first_version_that_fails_leaves_nothing_behind(store: Store) -> Steps[None]:
    sink, failing = Sink(), [True]

    def body(entity: str, version: int, content: str) -> Steps[str]:
        if failing and failing.pop():
            raise Declined(entity)
        return (yield from sink.apply(entity, version, content))

    f = versioned(store, body)
    yield from caught(Declined, partial(f, "row", 9, "nine"))
    assert (yield f.lookup("row", 9)) is None
    assert (yield f("row", 3, "three")) == "applied 3"


@everywhere
@driven
def test_after_a_crash_the_version_reruns_a_higher_runs_and_a_lower_is_superseded(
    store: Store,
) -> Steps[None]:
    """Nobody knows whether it was applied, so nothing goes back behind it. A joined one was not."""
    sink, crashing = Sink(), ["row 6", "row 7"]

    def body(entity: str, version: int, content: str) -> Steps[str]:
        result = yield from sink.apply(entity, version, content)
        if version == 6 and entity in crashing:
            crashing.remove(entity)
            raise KeyboardInterrupt
        return result

    f = versioned(store, body, wait=0)
    for redelivered in (6, 7):
        change = partial(f, f"row {redelivered}")
        yield change(5)
        yield from caught(KeyboardInterrupt, partial(change, 6))
        if store.joined:
            assert (yield change(5)) == "applied 5"
        else:
            yield from caught(InProgressError, partial(change, 7))
            store.end_leases()
            for version in (4, 5):
                error = yield from caught(VersionConflictError, partial(change, version))
                assert error.found == 6
        assert (yield change(redelivered)) == f"applied {redelivered}"
        assert (yield from caught(VersionConflictError, partial(change, 5))).found == redelivered
        assert sink.of(f"row {redelivered}") == [5, 6, redelivered]


@some
@driven
def test_an_unknown_outcome_under_refuse_blocks_the_entity_until_it_is_forgotten(store: Store) -> Steps[None]:
    sink = Sink()

    def body(entity: str, version: int, content: str) -> Steps[str]:
        if version == 6:
            raise TimeoutError("no answer from the index")
        return (yield from sink.apply(entity, version, content))

    f = versioned(store, body, unknown_errors=[TimeoutError], on_orphan="refuse")
    yield f("row", 5)
    for version in (6, 6, 7):
        yield from caught(OutcomeUnknownError, partial(f, "row", version))
    assert (yield from caught(VersionConflictError, partial(f, "row", 5))).found == 6
    assert (yield f.lookup("row", 6)).state == "orphan"
    assert (yield f.forget("row", 6)) is True
    assert (yield f("row", 7)) == "applied 7"


def _turns(store: Store, hasty: bool) -> Steps[None]:
    inside, gate, sink = Gate(store.colour), Gate(store.colour), Sink()

    def body(entity: str, version: int, content: str) -> Steps[str]:
        if version == 5:
            inside.open()
            yield gate.wait()
        return (yield from sink.apply(entity, version, content))

    f = versioned(store, body)
    running = Running(store.colour, [calling(lambda: f("row", 5))])
    yield inside.wait()
    if hasty:
        at_once = versioned(store, body, wait=0)
        for version in (4, 5, 6):
            error = yield from caught(InProgressError, partial(at_once, "row", version))
            assert error.ran is False
        assert (yield at_once("other row", 1)) == "applied 1"
    waiting = Running(store.colour, [calling(partial(f, "row", version)) for version in (4, 6)])
    gate.open()
    assert (yield from running.results()) == ["applied 5"]
    lower, higher = yield from waiting.results()
    assert isinstance(lower, VersionConflictError)
    assert higher == "applied 6"
    assert sink.of("row") == [5, 6]


@on(*LEASED, "mysql")
@driven
def test_while_a_change_runs_others_of_its_entity_wait_or_are_refused(store: Store) -> Steps[None]:
    """Whatever their version; those of other entities do not wait."""
    yield from _turns(store, hasty=True)


@on("postgres joined", "mariadb joined", "mysql joined", "sqlite joined")
@driven
def test_changes_of_one_entity_take_turns_in_transactions(store: Store) -> Steps[None]:
    yield from _turns(store, hasty=False)


# ------------------------------------------------------------------------ results


@everywhere
@driven
def test_an_exception_that_is_a_result_counts_as_applied(store: Store) -> Steps[None]:
    effects = Effects()

    def body(entity: str, version: int) -> Steps[str]:
        yield from ()
        effects.add(f"{version}")
        if version == 5:
            raise LookupError("no such row", entity)
        return "applied"

    f = versioned(store, body, replay_errors=[LookupError])
    yield f("row", 4)
    for _ in range(2):
        error = yield from caught(LookupError, partial(f, "row", 5))
        assert error.args == ("no such row", "row")
    assert (yield f.lookup("row", 5)).state == "failed"
    assert (yield from caught(VersionConflictError, partial(f, "row", 4))).found == 5
    assert (yield f("row", 6)) == "applied"
    assert len(effects) == 3


@some
@driven
def test_a_failure_puts_an_exception_that_is_a_result_back(store: Store) -> Steps[None]:
    def body(entity: str, version: int) -> Steps[str]:
        yield from ()
        raise (LookupError if version == 5 else Declined)(entity)

    f = versioned(store, body, replay_errors=[LookupError])
    yield from caught(LookupError, partial(f, "row", 5))
    yield from caught(Declined, partial(f, "row", 6))
    yield from caught(LookupError, partial(f, "row", 5))
    assert (yield f.lookup("row", 5)).state == "failed"


@some
@driven
def test_a_result_that_cannot_be_stored_counts_as_applied(store: Store) -> Steps[None]:
    effects = Effects()

    def body(entity: str, version: int) -> Steps[object]:
        yield from ()
        effects.add(f"{version}")
        return object() if version == 5 else None

    f = versioned(store, body)
    yield f("row", 5)
    yield from caught(ResultUnavailableError, partial(f, "row", 5))
    yield from caught(VersionConflictError, partial(f, "row", 4))
    assert (yield f("row", 6)) is None
    assert (yield f.outcome("row", 6)).replayed
    assert len(effects) == 2


@some
@driven
def test_lookup_gives_the_result_of_the_highest_version_and_forget_all_versions(store: Store) -> Steps[None]:
    sink = Sink()
    f = versioned(store, sink.apply)
    assert (yield f.lookup("row", 1)) is None
    yield f("row", 1)
    yield f("row", 2)
    record = yield f.lookup("row", 2)
    assert (record.state, record.value, record.key) == ("completed", "applied 2", "row")
    assert (yield f.forget("row", 2)) is True
    assert (yield f.forget("row", 2)) is False
    assert (yield f("row", 1)) == "applied 1"


@some
@driven
def test_a_version_is_forgotten_when_its_time_is_over(store: Store) -> Steps[None]:
    """That is what `keep` is for, and `changed` is there to notice."""
    sink = Sink()
    f = versioned(store, sink.apply)
    yield f("row", 5)
    store.end_retention()
    assert (yield f("row", 4)) == "applied 4"


# ------------------------------------------------------------------------ entities and versions

ENTITIES: list[tuple[Any, Any, Any]] = [
    (("entity", "other"), ("1", "23"), ("12", "3")),
    ("{entity}:{other}", ("1:2", "3"), ("1", "2:3")),
    ("{entity}", ("1", "x"), (1, "x")),
    ("{entity[id]}", ({"id": 1}, "x"), ({"id": 2}, "x")),
    (lambda entity, other: (entity, other), ("1", "23"), ("12", "3")),
]


@pytest.mark.parametrize("number", range(len(ENTITIES)))
@on("memory", "redis", "postgres")
@driven
def test_two_entities_are_never_taken_for_one(store: Store, number: int) -> Steps[None]:
    entity, one, other = ENTITIES[number]
    f = versioned(store, lambda entity, version: (yield version), entity=entity)
    for parts in (one, other):
        assert (yield f(parts[0], 5, other=parts[1])) == 5
        yield from caught(VersionConflictError, partial(f, parts[0], 4, other=parts[1]))


@some
@driven
def test_versions_may_be_as_large_as_63_bits_and_negative(store: Store) -> Steps[None]:
    sink = Sink()
    f = versioned(store, sink.apply)
    for version in (-MOST, -1, 0, 1, MOST - 1, MOST):
        assert (yield f("row", version)) == f"applied {version}"
        assert (yield f.outcome("row", version)).replayed
    for version in (MOST + 1, -MOST - 1, 10**30):
        error = yield from caught(KeyRefusedError, partial(f, "row", version))
        assert error.ran is False
        assert "64 bits" in str(error)
    assert (yield f.lookup("row", MOST)).value == f"applied {MOST}"
    assert (yield from caught(VersionConflictError, partial(f, "row", MOST - 1))).found == MOST


class Level(enum.IntEnum):
    LOW = 1


NO_VERSIONS: list[Any] = [
    True,
    "5",
    5.0,
    Decimal(5),
    dt.datetime.now(dt.UTC),
    dt.date(2026, 1, 1),
    None,
    b"5",
]


@pytest.mark.parametrize("version", NO_VERSIONS, ids=[type(one).__name__ for one in NO_VERSIONS])
@pytest.mark.parametrize("colour", support.COLOURS)
def test_a_version_that_is_no_whole_number_is_refused_at_the_call(version: Any, colour: Any) -> None:
    store = support.InMemory("memory", colour, "")
    sink = Sink()
    f = versioned(store, sink.apply, key="{entity}")

    def test() -> Steps[None]:
        error = yield from caught(KeyRefusedError, partial(f, "row", version))
        assert error.ran is False
        assert "whole number" in str(error)
        assert store.records() == []
        assert (yield f("row", Level.LOW)) == "applied 1"

    drive(colour, test())


@pytest.mark.parametrize(
    "kind", [dt.datetime, dt.date, dt.time, dt.timedelta, float, Decimal, str, bytes, bool]
)
def test_a_version_annotated_as_something_else_is_refused_while_decorating(kind: Any) -> None:
    def f(row: str, version: Any) -> None: ...

    f.__annotations__["version"] = kind
    with pytest.raises(ConfigurationError, match=f"is a {kind.__name__}"):
        idempotent(key="{row}", using=MonotonicVersion(Memory(), entity="{row}", version="{version}"))(f)


def test_a_version_of_several_parts_is_refused_while_decorating() -> None:
    def f(row: str, major: int, minor: int) -> None: ...

    with pytest.raises(ConfigurationError, match="is a str"):
        idempotent(key="{row}", using=MonotonicVersion(Memory(), entity="{row}", version="{major}.{minor}"))(
            f
        )
    with pytest.raises(KeyTemplateError):
        idempotent(key="{row}", using=MonotonicVersion(Memory(), entity="{row}", version=("major",)))(f)
    g: Any = idempotent(
        key="{row}",
        using=MonotonicVersion(Memory(), entity="{row}", version=lambda major, minor: major * 1000 + minor),
        fingerprint=None,
        name="versions.parts",
    )(lambda row, major, minor: (major, minor))
    assert g("row", 1, 9) == (1, 9)
    assert g("row", 2, 0) == (2, 0)


REFUSED: dict[str, tuple[Callable[[], Any], str, Any]] = {
    "an unknown entity": (
        lambda: MonotonicVersion(Memory(), entity="{id}", version="{v}"),
        "id",
        KeyTemplateError,
    ),
    "an unknown version": (
        lambda: MonotonicVersion(Memory(), entity="{e}", version="{x}"),
        "x",
        KeyTemplateError,
    ),
    "an async stale": (
        lambda: MonotonicVersion(Memory(), entity="{e}", version="{v}", stale=_later),
        "async",
        None,
    ),
    "a stale of another type": (
        lambda: MonotonicVersion(Memory(), entity="{e}", version="{v}", stale=object()),
        "stale=",
        None,
    ),
    "a ledger with a key": (
        lambda: MonotonicVersion(Memory(key="{e}"), entity="{e}", version="{v}"),
        "give key= to MonotonicVersion",
        CompositionError,
    ),
    "a cache": (
        lambda: MonotonicVersion(LocalCache(), entity="{e}", version="{v}"),
        "LocalCache",
        CompositionError,
    ),
    "around itself": (
        lambda: MonotonicVersion(
            MonotonicVersion(Memory(), entity="{e}", version="{v}"), entity="{e}", version="{v}"
        ),
        "takes a ledger",
        CompositionError,
    ),
    "joined in front": (
        lambda: [
            MonotonicVersion(UniqueInsert("sqlite:///x.db", join="session"), entity="{e}", version="{v}"),
            Memory(),
        ],
        "is the record itself",
        CompositionError,
    ),
}


async def _later(found: int | None) -> int:
    return 0


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_while_decorating(name: str) -> None:
    using, why, kind = REFUSED[name]

    def f(e: str, v: int, session: Any = None) -> int:
        return v

    with pytest.raises(kind or ConfigurationError, match=why):
        idempotent(key="{e}", using=using(), name="refused")(f)


@some
@driven
def test_two_operations_or_scopes_never_share_an_entity(store: Store) -> Steps[None]:
    sink = Sink()
    f = versioned(store, sink.apply)
    g = versioned(store, sink.apply, name=f"{store.name}.other")
    h = versioned(store, sink.apply, name=f"{store.name}.scoped", scope="{other}")
    yield f("row", 9)
    assert (yield g("row", 1)) == "applied 1"
    yield h("row", 9, other="acme")
    assert (yield h("row", 1, other="umbrella")) == "applied 1"
    for call in (f, g):
        assert (yield call("row", 9)) == "applied 9"


@some
@driven
def test_a_key_that_equals_the_entity_is_another_record(store: Store) -> Steps[None]:
    """In one table, and under one name."""
    f = versioned(store, lambda entity, version: (yield version), key="{entity}", fingerprint=None)
    g = idempotent(key="{entity}", using=store.ledger(), name=store.name, fingerprint=None)(
        applying(lambda entity, version: (yield f"g {version}"), store.colour)
    )
    yield g("row", 1)
    assert (yield f("row", 5)) == 5
    assert (yield g("row", 9)) == "g 1"
    assert (yield f("row", 6)) == 6
    yield from caught(VersionConflictError, partial(f, "row", 5))


# ------------------------------------------------------------------------ changed=


@some
@driven
def test_a_change_older_than_keep_without_a_record_is_superseded(store: Store) -> Steps[None]:
    sink, now = Sink(), dt.datetime.now(dt.UTC)
    f = versioned(store, sink.apply, changed="{when}", keep=3600)
    old, new = now - dt.timedelta(hours=2), now - dt.timedelta(minutes=30)
    for _ in range(2):
        error = yield from caught(VersionConflictError, partial(f, "row", 5, "five", old))
        assert (error.expected, error.found, error.ran) == (5, None, False)
        assert "its tombstone may have been purged" in str(error)
    assert (yield f.lookup("row", 5)) is None
    assert sink.applied == []
    assert (yield f("row", 6, "six", new)) == "applied 6"
    # With a record, age is no matter.
    assert (yield f("row", 7, "seven", old)) == "applied 7"
    assert (yield f.outcome("row", 7, "seven", old)).replayed
    assert (yield from caught(VersionConflictError, partial(f, "row", 6, "six", old))).found == 7


@some
@driven
def test_a_late_upsert_after_a_purged_tombstone_is_noticed(store: Store) -> Steps[None]:
    sink, hour = Sink(), dt.timedelta(hours=1)
    now = dt.datetime.now(dt.timezone(hour))
    f = versioned(store, sink.apply, changed=lambda when: when, keep=hour, stale=lambda found: [found])
    yield f("row", 1, "one", now)
    yield f("row", 2, None, now)
    store.end_retention()
    assert (yield f("row", 1, "one", now - 2 * hour)) == [None]
    assert sink.state == {}


@some
@driven
def test_a_changed_without_a_time_zone_is_refused_before_anything_is_claimed(store: Store) -> Steps[None]:
    sink = Sink()
    f = versioned(store, sink.apply, changed="{when}")
    for when in (dt.datetime(2026, 1, 1), dt.date(2026, 1, 1), "2026-01-01T00:00:00Z", 0, None):
        error = yield from caught(KeyRefusedError, partial(f, "row", 5, "five", when))
        assert error.ran is False
        assert "time zone" in str(error)
    assert store.records() == []
    assert sink.applied == []


# ------------------------------------------------------------------------ composition, explain()


@on("postgres joined", "mariadb joined", "sqlite joined")
@driven
def test_one_in_front_replays_an_event_and_the_versions_go_on_behind_it(store: Store) -> Steps[None]:
    assert isinstance(store, InDatabase)
    sink = Sink()
    cache = support.InMemory("memory", store.colour, "")
    inside = MonotonicVersion(store.insert(), entity="{entity}", version="{version}", stale=TOO_LATE)
    f = versioned(store, sink.apply, using=[cache.ledger(), inside])
    assert (yield f("row", 1)) == "applied 1"
    assert (yield f("row", 3)) == "applied 3"
    outcome = yield f.outcome("row", 1)
    assert (outcome.value, outcome.replayed) == ("applied 1", True)
    assert (yield f("row", 2)) == TOO_LATE
    cache.end_retention()
    assert (yield f("row", 1)) == TOO_LATE
    assert (yield f("row", 3)) == "applied 3"
    assert sink.of("row") == [1, 3]


@on("redis")
@driven
def test_a_cache_that_is_down_in_front_is_passed_by(store: Store) -> Steps[None]:
    sink = Sink()
    inside = MonotonicVersion(store.ledger(), entity="{entity}", version="{version}", stale=TOO_LATE)
    down = store.opened(RedisCache("redis://127.0.0.1:1", required=False))
    f = versioned(store, sink.apply, using=[down, inside])
    assert (yield f("row", 2)) == "applied 2"
    assert (yield f("row", 1)) == TOO_LATE
    assert (yield f.outcome("row", 2)).replayed


@on("postgres", "mariadb", "sqlite")
@driven
def test_an_event_is_claimed_under_a_key_of_its_own_before_its_entity(store: Store) -> Steps[None]:
    """`[UniqueInsert(engine, key="{event_id}"), MonotonicVersion(...)]`, both in one table."""
    assert isinstance(store, InDatabase)
    sink, events = Sink(), list[Event]()
    inside = MonotonicVersion(store.ledger(), entity="{entity}", version="{version}", stale=TOO_LATE)
    using = [store.insert(key="{other}"), inside]
    f = versioned(store, sink.apply, using=using, key="{other}", hooks=[events.append])
    assert (yield f("row", 3, other="event 3")) == "applied 3"
    assert (yield f("row", 2, other="event 2")) == TOO_LATE
    assert (yield f("row", 4, other="event 4")) == "applied 4"
    for number, answer in ((3, "applied 3"), (2, TOO_LATE), (4, "applied 4")):
        outcome = yield f.outcome("row", number, other=f"event {number}")
        # What was superseded is no first result: it is asked again each time.
        assert (outcome.value, outcome.replayed) == (answer, answer != TOO_LATE)
    assert sink.of("row") == [3, 4]
    assert [event.detail for event in events if event.kind == "refused"] == ["superseded"] * 2


EXPLAINED: dict[str, tuple[Callable[[], Strategy], bool, bool]] = {
    "Memory": (Memory, False, False),
    "RedisCache": (lambda: RedisCache("redis://h"), False, True),
    "UniqueInsert": (lambda: UniqueInsert("sqlite:///never-made.db"), False, False),
    "joined": (lambda: UniqueInsert("sqlite:///never-made.db", join="session"), True, False),
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_explain_says_what_is_remembered_and_what_may_be_lost(name: str) -> None:
    make, joined, lossy = EXPLAINED[name]

    def f(e: str, v: int, session: Any = None) -> int:
        return v

    using = MonotonicVersion(make(), entity="{e}", version="{v}")
    explanation = idempotent(key="{e}", using=using, name="sync")(f).explain()
    (part,) = explanation.parts
    inside = "UniqueInsert" if joined else name
    assert (part.strategy, part.role) == (f"MonotonicVersion({inside})", "record")
    assert (part.joined, part.lossy) == (joined, lossy)
    assert explanation.joined_effects == ("exactly once" if joined else "at least once")
    text = str(explanation)
    assert "applies no version of an entity below the highest one" in text
    assert "for as long as keep= says" in text
    assert ("an eviction or a flush can run it twice" in text) == lossy
