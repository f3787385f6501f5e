"""What each composition says of itself, as text and as data; and which compositions are refused while decorating."""

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine

from idempo import (
    ColourMismatchError,
    CompositionError,
    LocalCache,
    Memory,
    MonotonicVersion,
    OneTimeToken,
    ReadOnly,
    RedisCache,
    SelectForUpdate,
    StateGuard,
    UniqueInsert,
    VersionCheck,
    idempotent,
)
from idempo.contracts import Strategy

ORDERS = Table(
    "orders",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("status", String(20)),
    Column("version", Integer),
)
WHERE = {ORDERS.c.id: "{order}"}
FLOW = {"pending": ["paid", "cancelled"], "paid": ["shipped"]}
ROUND = {"on": ["off"], "off": ["on"]}
URL = "redis://127.0.0.1:1"
ENGINE = create_engine("sqlite:///one.db")
OTHER = create_engine("sqlite:///two.db")


def joined() -> UniqueInsert:
    return UniqueInsert(ENGINE, join="session")


def leased() -> UniqueInsert:
    return UniqueInsert(ENGINE)


def here(options: dict[str, Any]) -> dict[str, Any]:
    return {"engine": ENGINE} | options


def state(**options: Any) -> StateGuard:
    return StateGuard(ORDERS.c.status, WHERE, FLOW, "paid", **here(options))


def version(**options: Any) -> VersionCheck:
    return VersionCheck(ORDERS.c.version, WHERE, **here(options))


def lock(**options: Any) -> SelectForUpdate:
    return SelectForUpdate(ORDERS, WHERE, **here(options))


def tokens(ledger: Strategy, **options: Any) -> OneTimeToken:
    terms: dict[str, Any] = {"key": "{token}"} | options
    return OneTimeToken(ledger, **terms)


def newest(ledger: Strategy) -> MonotonicVersion:
    return MonotonicVersion(ledger, entity="{order}", version="{number}")


def decorated(using: Strategy | Sequence[Strategy], **terms: Any) -> Any:
    @idempotent(**{"key": "{order}", "using": using, "name": "shop.f"} | terms)
    def f(order: int, token: str = "t", number: int = 1, session: Any = None) -> None: ...

    return f


LOSSY = "keeps this promise while it keeps the key"

# The composition; strategy, role and joined of each part; effects in the joined database and elsewhere; a note.
COMPOSITIONS: dict[str, tuple[list[Strategy], list[tuple[str, str, bool]], str, str, str]] = {
    "a record": (
        [leased()],
        [("UniqueInsert", "record", False)],
        "at least once",
        "at least once",
        "run again",
    ),
    "a joined record": (
        [joined()],
        [("UniqueInsert", "record", True)],
        "exactly once",
        "at least once",
        "a crash, a kill or a lost commit reply leaves all of the transaction or nothing",
    ),
    "Redis": ([RedisCache(URL)], [("RedisCache", "record", False)], "at least once", "at least once", LOSSY),
    "memory": ([Memory()], [("Memory", "record", False)], "at least once", "at least once", "this process"),
    "Redis in front of a joined record": (
        [RedisCache(URL, required=False), joined()],
        [("RedisCache", "tier", False), ("UniqueInsert", "record", True)],
        "exactly once",
        "at least once",
        "downstream_key",
    ),
    "this process in front of Redis in front of a record": (
        [LocalCache(), RedisCache(URL), leased()],
        [("LocalCache", "tier", False), ("RedisCache", "tier", False), ("UniqueInsert", "record", False)],
        "at least once",
        "at least once",
        "forget in another process",
    ),
    "a token and an order number": (
        [tokens(RedisCache(URL)), joined()],
        [("OneTimeToken(RedisCache)", "own key", False), ("UniqueInsert", "record", True)],
        "exactly once",
        "at least once",
        "asks for a token that was issued for this operation",
    ),
    "a token alone": (
        [OneTimeToken(RedisCache(URL))],
        [("OneTimeToken(RedisCache)", "record", False)],
        "at least once",
        "at least once",
        LOSSY,
    ),
    "a token in the transaction": (
        [OneTimeToken(joined())],
        [("OneTimeToken(UniqueInsert)", "record", True)],
        "exactly once",
        "at least once",
        "asks for a token",
    ),
    "a token in front of a guard": (
        [tokens(Memory()), state()],
        [
            ("OneTimeToken(Memory)", "own key", False),
            ("UniqueInsert", "record", True),
            ("StateGuard", "guard", True),
        ],
        "exactly once",
        "at least once",
        "admits 'pending' to 'paid'",
    ),
    "a serial number and a state machine": (
        [joined(), state()],
        [("UniqueInsert", "record", True), ("StateGuard", "guard", True)],
        "exactly once",
        "at least once",
        "admits 'pending' to 'paid'",
    ),
    "a guard alone": (
        [state()],
        [("UniqueInsert", "record", True), ("StateGuard", "guard", True)],
        "exactly once",
        "at least once",
        "admits 'pending' to 'paid'",
    ),
    "a cached key and a version": (
        [RedisCache(URL, required=False), version(retries=3)],
        [("RedisCache", "tier", False), ("UniqueInsert", "record", True), ("VersionCheck", "guard", True)],
        "exactly once",
        "at least once",
        "finds a conflict after the function has run",
    ),
    "an expected version": (
        [version(expected="{number}")],
        [("UniqueInsert", "record", True), ("VersionCheck", "guard", True)],
        "exactly once",
        "at least once",
        "before the function runs",
    ),
    "a lock, then a state": (
        [lock(), state()],
        [
            ("UniqueInsert", "record", True),
            ("SelectForUpdate", "guard", True),
            ("StateGuard", "guard", True),
        ],
        "exactly once",
        "at least once",
        "take turns",
    ),
    "a record that is a tier in front of a guard": (
        [leased(), lock()],
        [
            ("UniqueInsert", "tier", False),
            ("UniqueInsert", "record", True),
            ("SelectForUpdate", "guard", True),
        ],
        "exactly once",
        "at least once",
        "take turns",
    ),
    "versions of an entity": (
        [newest(leased())],
        [("MonotonicVersion(UniqueInsert)", "record", False)],
        "at least once",
        "at least once",
        "applies no version of an entity below the highest one",
    ),
    "versions of an entity in the transaction": (
        [RedisCache(URL), newest(joined())],
        [("RedisCache", "tier", False), ("MonotonicVersion(UniqueInsert)", "record", True)],
        "exactly once",
        "at least once",
        "applies no version of an entity below the highest one",
    ),
    "versions in Redis, in front of a record": (
        [newest(RedisCache(URL)), joined()],
        [("MonotonicVersion(RedisCache)", "own key", False), ("UniqueInsert", "record", True)],
        "exactly once",
        "at least once",
        "for as long as keep= says",
    ),
    "a read": (
        [ReadOnly(ENGINE)],
        [("ReadOnly", "guard", False)],
        "none: it reads",
        "none: it reads",
        "anew",
    ),
    "a read that is kept": (
        [RedisCache(URL), ReadOnly(ENGINE)],
        [("RedisCache", "record", False), ("ReadOnly", "guard", False)],
        "at least once",
        "at least once",
        "a write in it fails",
    ),
}


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_a_composition_says_what_it_guarantees(name: str) -> None:
    using, parts, in_database, elsewhere, note = COMPOSITIONS[name]
    told = decorated(using).explain()
    assert [(part.strategy, part.role, part.joined) for part in told.parts] == parts
    assert (told.joined_effects, told.foreign_effects) == (in_database, elsewhere)
    assert any(note in one for one in told.notes)
    assert len(set(told.notes)) == len(told.notes)


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_the_text_says_the_same_as_the_data(name: str) -> None:
    told = decorated(COMPOSITIONS[name][0]).explain()
    lines = str(told).splitlines()
    assert lines[0] == told.operation == "shop.f"
    assert [line.strip().partition(":")[0] for line in lines[1 : len(told.parts) + 1]] == [
        part.strategy for part in told.parts
    ]
    assert [line.removeprefix("  - ") for line in lines if line.startswith("  - ")] == list(told.notes)
    effects = [line for line in lines if line.startswith("  effects")]
    if any(part.joined for part in told.parts):
        assert effects == [
            f"  effects in the joined database: {told.joined_effects}",
            f"  effects elsewhere: {told.foreign_effects}",
        ]
    else:
        assert effects == [f"  effects: {told.foreign_effects}"]


@pytest.mark.parametrize(
    ("on_orphan", "effects"),
    [
        ("rerun", "at least once"),
        ("refuse", "at most once"),
        (lambda call: None, "exactly once by the probe"),
    ],
)
def test_what_becomes_of_orphans_decides_what_a_lease_guarantees(on_orphan: Any, effects: str) -> None:
    for using in ([leased()], [RedisCache(URL)], [newest(leased())], [OneTimeToken(leased())]):
        told = decorated(using, on_orphan=on_orphan).explain()
        assert (told.joined_effects, told.foreign_effects) == (effects, effects)
    assert decorated([joined()], on_orphan=on_orphan).explain().joined_effects == "exactly once"


def test_a_function_without_the_transaction_is_told_where_its_own_writes_are() -> None:
    @idempotent(key="{order}", using=state())
    def f(order: int) -> None: ...

    assert any("takes no session" in note for note in f.explain().notes)


# What is refused, and a word of the reason.
REFUSED: dict[str, tuple[list[Strategy], str]] = {
    "a guard in front of a ledger": ([state(), joined()], "a guard stands inside the ledgers"),
    "a guard between ledgers": ([RedisCache(URL), lock(), joined()], "a guard stands inside the ledgers"),
    "a read in front of a ledger": ([ReadOnly(ENGINE), leased()], "a guard stands inside the ledgers"),
    "a joined record in front of a ledger": ([joined(), leased()], "it stands last"),
    "a joined record under a key of its own": (
        [UniqueInsert(ENGINE, join="session", key="{token}")],
        "under the decorator's key",
    ),
    "a local cache alone": ([LocalCache()], "in front of a ledger"),
    "a local cache as the record": ([RedisCache(URL), LocalCache()], "in front of a ledger"),
    "a ledger around a token": ([RedisCache(URL), tokens(Memory())], "stands first"),
    "a local cache around a token": ([LocalCache(), tokens(Memory()), joined()], "stands first"),
    "two tokens": ([tokens(Memory()), tokens(Memory())], "stands first"),
    "a token around a token": ([OneTimeToken(tokens(Memory()))], "takes a ledger"),
    "a token around a local cache": ([tokens(LocalCache()), leased()], "in front of a ledger"),
    "a token around a guard": ([tokens(state())], "takes a ledger"),
    "a token around a ledger with a key of its own": (
        [tokens(Memory(key="{token}"))],
        "give key= to OneTimeToken",
    ),
    "a token in the transaction, in front of a record": ([tokens(joined()), leased()], "stands last"),
    "versions around versions": ([newest(newest(leased()))], "takes a ledger"),
    "versions around a token": ([newest(OneTimeToken(Memory()))], "takes a ledger"),
    "versions around a local cache": ([newest(LocalCache())], "in front of a ledger"),
    "versions in the transaction, in front of a record": ([newest(joined()), leased()], "stands last"),
    "a record that may be passed by": ([RedisCache(URL, required=False)], "required=False"),
    "a claim that may be passed by": (
        [RedisCache(URL, key="{token}", required=False), leased()],
        "required=False",
    ),
    "a guard of another transaction": ([joined(), state(join="connection")], "is another parameter"),
    "a guard of another database": ([joined(), state(engine=OTHER)], "two databases"),
    "two guards of two databases": ([state(), lock(engine=OTHER)], "two databases"),
    "two guards of two transactions": ([state(), lock(join="number")], "is another parameter"),
    "versions in one database, a guard in another": (
        [newest(joined()), state(engine=OTHER)],
        "two databases",
    ),
    "a read in a transaction that writes": ([joined(), ReadOnly(ENGINE)], "cannot stand in a transaction"),
    "a read beside a guard": ([ReadOnly("session"), state()], "cannot stand in a transaction"),
    "the same object twice": ([(same := Memory()), same], "the same strategy object twice"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_break_the_promise_inside_is_refused_while_decorating(name: str) -> None:
    using, reason = REFUSED[name]
    with pytest.raises(CompositionError, match=reason):
        decorated(using)


def test_a_cycle_needs_a_ledger_that_knows_the_key() -> None:
    def switch() -> StateGuard:
        return StateGuard(ORDERS.c.status, WHERE, ROUND, "on", engine=ENGINE)

    with pytest.raises(CompositionError, match="put a ledger in front"):
        decorated(switch())
    for ledger in (joined(), RedisCache(URL), tokens(Memory())):
        assert decorated([ledger, switch()]).explain().joined_effects == "exactly once"


def test_a_guard_with_a_client_of_the_other_colour_is_refused() -> None:
    async def f(order: int, session: Any = None) -> None: ...

    for guard in (state(), version(), lock(), ReadOnly(ENGINE)):
        with pytest.raises(ColourMismatchError):
            idempotent(key="{order}", using=guard)(f)


def test_a_guard_without_a_transaction_to_work_in_is_refused() -> None:
    def f(order: int) -> None: ...

    for guard in (state(engine=None), version(engine=None), lock(engine=None), ReadOnly("session")):
        with pytest.raises(CompositionError, match="names no parameter"):
            idempotent(key="{order}", using=guard)(f)
