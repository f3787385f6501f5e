"""Versions of an entity: rules that no test held until a mutant went unnoticed (docs/explanation/mutation.md)."""

import contextvars
import datetime as dt
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

from idempo import (
    LeaseLostError,
    Memory,
    MonotonicVersion,
    UniqueInsert,
    VersionConflictError,
    idempotent,
)
from idempo.steps import Steps
from tests.faults.proxy import Proxy
from tests.servers import Server, fresh_database
from tests.tokens import support
from tests.tokens.support import Store, driven, on
from tests.traps.support import Declined, caught
from tests.versions.support import Sink, versioned

store = support.store
leased = on("memory", "sqlite", "redis", colours=("sync",))


@leased
@driven
@pytest.mark.parametrize("next_one", [6, 7])
def test_a_version_that_crashed_and_then_failed_runs_when_it_comes_again_and_so_does_a_higher_one(
    store: Store, next_one: int
) -> Steps[None]:
    sink, ends = Sink(), [KeyboardInterrupt(), Declined("6")]

    def body(entity: str, version: int, content: str) -> Steps[str]:
        if ends:
            raise ends.pop(0)
        return (yield from sink.apply(entity, version, content))

    f = versioned(store, body, wait=0)
    yield from caught(KeyboardInterrupt, partial(f, "row", 6))
    store.end_leases()
    yield from caught(Declined, partial(f, "row", 6))
    assert (yield f("row", next_one)) == f"applied {next_one}"
    assert (yield from caught(VersionConflictError, partial(f, "row", 5))).found == next_one
    assert sink.of("row") == [next_one]


@leased
@driven
def test_a_change_that_crashed_is_taken_over_however_old_it_is_by_then(store: Store) -> Steps[None]:
    """Its record is still there: no tombstone can have been purged."""
    sink, ends, now = Sink(), [KeyboardInterrupt()], dt.datetime.now(dt.UTC)

    def body(entity: str, version: int, content: str) -> Steps[str]:
        if ends:
            raise ends.pop()
        return (yield from sink.apply(entity, version, content))

    f = versioned(store, body, changed="{when}", keep=7200, wait=0)
    yield from caught(KeyboardInterrupt, partial(f, "row", 5, "five", now))
    store.end_leases()
    assert (yield f("row", 5, "five", now - dt.timedelta(hours=3))) == "applied 5"
    assert sink.of("row") == [5]


@leased
@driven
def test_a_version_in_front_that_lost_its_claim_says_so_though_the_record_inside_has_its_result(
    store: Store,
) -> Steps[None]:
    """A higher version has been applied meanwhile, and this one after it."""
    yield from ()
    front = MonotonicVersion(store.ledger(), entity="{entity}", version="{version}")

    @idempotent(key=("entity", "version"), using=[front, Memory()], name=store.name, wait=0)
    def apply(entity: str, version: int) -> str:
        if version == 5:
            store.end_leases()
            assert contextvars.Context().run(apply, entity, 6) == "applied 6"
        return f"applied {version}"

    with pytest.raises(LeaseLostError) as lost:
        apply("row", 5)
    assert lost.value.result == "applied 5"


def test_closing_a_version_closes_the_ledger_in_it() -> None:
    closed: list[str] = []

    class Closing(Memory):
        def close(self) -> None:
            closed.append("closed")

    MonotonicVersion(Closing(), entity="{row}", version="{version}").close()
    assert closed == ["closed"]


def test_a_version_that_is_committed_is_replayed_by_the_tier_in_front_without_its_database(
    tmp_path: Path,
) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/shop.db", poolclass=NullPool)
    behind = UniqueInsert(engine, join="session")
    behind.create_schema()
    versions = MonotonicVersion(behind, entity="{row}", version="{version}")
    runs: list[int] = []

    @idempotent(key="{row}/{version}", using=[Memory(), versions], wait=0)
    def apply(row: str, version: int, session: Any = None) -> int:
        runs.append(version)
        return version

    assert apply("row", 5) == 5
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE idempo_records"))
    assert apply("row", 5) == 5
    assert runs == [5]


def test_a_version_whose_commit_has_no_reply_is_read_again(postgres: Server) -> None:
    with Proxy(postgres.port) as proxy:
        url = make_url(fresh_database(postgres)).set(host="127.0.0.1", port=proxy.port)
        engine = create_engine(url.update_query_dict({"sslmode": "disable"}))
        behind = UniqueInsert(engine, join="session")
        behind.create_schema()
        runs: list[int] = []

        @idempotent(
            key="{row}/{version}", using=MonotonicVersion(behind, entity="{row}", version="{version}")
        )
        def apply(row: str, version: int, session: Any = None) -> int:
            runs.append(version)
            return version

        assert apply("row", 4) == 4
        proxy.drop_reply(
            b"COMMIT\x00"
        )  # the whole request: BEGIN ISOLATION LEVEL READ COMMITTED is another one
        assert apply("row", 5) == 5
        assert proxy.fired.is_set()
        assert apply.outcome("row", 5).replayed
        assert runs == [4, 5]
        engine.dispose()
