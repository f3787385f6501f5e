"""Whatever the order of arrival, and however often a change arrives: the last state is that of the highest version."""

import random
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from idempo import Memory, MonotonicVersion, VersionConflictError, idempotent
from idempo.contracts import Colour
from idempo.steps import Steps, run
from idempo.testing import drive
from tests.servers import Server
from tests.tokens import support, workers
from tests.tokens.support import InDatabase, Store, driven, on
from tests.traps.support import Declined, Running, calling, caught, create_tables
from tests.versions.support import TOO_LATE, Sink, applying, versioned

store = support.store
ENTITIES = ("a", "b")
Change = tuple[str, int, Any]
"""Entity, version, content; None deletes."""


@st.composite
def arrivals(draw: st.DrawFn) -> list[Change]:
    """Changes of two entities, upserts and deletions, in any order, each at least once."""
    changes: list[Change] = []
    for entity in ENTITIES:
        deleted = draw(st.lists(st.booleans(), min_size=1, max_size=6))
        for version, gone in enumerate(deleted, 1):
            changes.append((entity, version, None if gone else f"{entity}{version}"))
    repeats = draw(st.lists(st.sampled_from(changes), max_size=6))
    return draw(st.permutations(changes + repeats))


def last_state(changes: Sequence[Change]) -> dict[str, tuple[int, Any]]:
    """What the highest versions say."""
    highest = {entity: (version, content) for entity, version, content in sorted(changes, key=lambda c: c[1])}
    return {entity: found for entity, found in highest.items() if found[1] is not None}


def deliver(f: Any, changes: Sequence[Change]) -> Steps[list[Any]]:
    answers = []
    for entity, version, content in changes:
        answers.append((yield f(entity, version, str(content))))
    return answers


def decorated(sink: Sink, colour: Colour, fails: Callable[[], bool] = lambda: False, **options: Any) -> Any:
    """Changes that go into a sink, in Memory."""

    def body(entity: str, version: int, content: str) -> Steps[str]:
        if fails():
            raise Declined(entity)
        return (yield from sink.apply(entity, version, None if content == "None" else content))

    using = MonotonicVersion(Memory(), entity="{entity}", version="{version}", **options)
    name = f"arrivals.{uuid.uuid4()}"
    return idempotent(key=("entity", "version"), using=using, name=name)(applying(body, colour))


# ------------------------------------------------------------------------ one after the other


@pytest.mark.parametrize("colour", support.COLOURS)
@given(changes=arrivals())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_last_state_is_that_of_the_highest_versions(colour: Colour, changes: list[Change]) -> None:
    """Each version is applied once at the most, in growing order, and a deletion is not undone by a late upsert."""
    sink = Sink()
    f = decorated(sink, colour, stale=TOO_LATE)
    answers = drive(colour, deliver(f, changes))
    assert sink.state == last_state(changes)
    for entity in ENTITIES:
        applied = sink.of(entity)
        assert applied == sorted(set(applied))
    for (_, version, _), answer in zip(changes, answers, strict=True):
        assert answer in (TOO_LATE, f"applied {version}")


@pytest.mark.parametrize("colour", support.COLOURS)
@given(changes=arrivals(), seed=st.integers(0, 10_000))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_so_it_is_when_some_fail_and_are_delivered_again(
    colour: Colour, changes: list[Change], seed: int
) -> None:
    sink, dice = Sink(), random.Random(seed)
    f = decorated(sink, colour, lambda: dice.random() < 0.4, stale=TOO_LATE)

    def all_of_them() -> Steps[None]:
        queue = list(changes)
        while queue:
            entity, version, content = queue.pop(0)
            try:
                yield f(entity, version, str(content))
            except Declined:
                queue.insert(dice.randrange(len(queue) + 1), (entity, version, content))

    drive(colour, all_of_them())
    assert sink.state == last_state(changes)
    for entity in ENTITIES:
        applied = sink.of(entity)
        assert applied == sorted(set(applied))


class LastWriteWins(Sink):
    """As it is often written."""

    def take(self, change: Change) -> None:
        run(self.apply(*change))


class ForgetfulVersions(Sink):
    """With versions, but a deletion removes the version too."""

    def take(self, change: Change) -> None:
        entity, version, content = change
        if version > self.state.get(entity, (0, None))[0]:
            run(self.apply(entity, version, content))


ORDERS: dict[str, list[Change]] = {
    "an old upsert comes last": [("a", 1, "a1"), ("a", 3, "a3"), ("a", 2, "a2")],
    "an upsert comes after the deletion": [("a", 1, "a1"), ("a", 3, None), ("a", 2, "a2")],
    "an upsert is repeated after the deletion": [("a", 1, "a1"), ("a", 2, None), ("a", 1, "a1")],
    "the deletion comes first": [("a", 2, None), ("a", 1, "a1")],
}


@pytest.mark.parametrize("order", ORDERS)
def test_the_usual_sinks_end_in_another_state_and_ours_does_not(order: str) -> None:
    changes = ORDERS[order]
    last_wins, forgetful, ours = LastWriteWins(), ForgetfulVersions(), Sink()
    for change in changes:
        last_wins.take(change)
        forgetful.take(change)
    drive("sync", deliver(decorated(ours, "sync", stale=TOO_LATE), changes))
    assert ours.state == last_state(changes)
    assert last_wins.state != last_state(changes)
    assert (forgetful.state == last_state(changes)) == (order == "an old upsert comes last")


# ------------------------------------------------------------------------ in a batch


@on("memory", "redis", "redis62", "cluster", "postgres", "postgres joined", "mariadb joined", "sqlite")
@driven
def test_of_a_batch_of_100_with_10_stale_90_are_applied_and_none_raises(store: Store) -> Steps[None]:
    sink = Sink()
    f = versioned(store, sink.apply, stale=TOO_LATE)
    batch: list[Change] = [(f"row {number}", 1, "one") for number in range(80)]
    batch += [(f"row {number}", 3, "three") for number in range(10)]
    batch += [(f"row {number}", 2, "late") for number in range(10)]
    answers = []
    for entity, version, content in batch:
        answers.append((yield f(entity, version, content)))
    assert len(answers) == 100
    assert answers.count(TOO_LATE) == 10
    assert len(sink.applied) == 90
    assert {sink.state[f"row {number}"] for number in range(10)} == {(3, "three")}


# ------------------------------------------------------------------------ at once

VERSIONS = 12


@on("memory", "redis", "postgres", "postgres joined", "mariadb joined")
@driven
def test_versions_that_arrive_at_once_end_in_the_highest(store: Store) -> Steps[None]:
    """Each twice, in threads or tasks."""
    sink = Sink()
    f = versioned(store, sink.apply, stale=TOO_LATE, wait=60)
    versions = [*range(1, VERSIONS + 1)] * 2
    random.Random(7).shuffle(versions)
    running = Running(store.colour, [calling(partial(f, "row", version)) for version in versions])
    found = yield from running.results()
    assert sink.state["row"][0] == VERSIONS
    applied = sink.of("row")
    assert applied == sorted(set(applied))
    for version, answer in zip(versions, found, strict=True):
        assert answer in ((f"applied {version}", TOO_LATE) if version in applied else (TOO_LATE,))


@pytest.mark.parametrize("kind", ["redis", "postgres", "postgres joined"])
def test_versions_that_processes_bring_at_once_end_in_the_highest(
    kind: str, request: pytest.FixtureRequest, redis_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """And none is applied twice: the table of serials would not take it."""
    database = support.database_url("postgres", request, tmp_path_factory)
    table = InDatabase("postgres", "sync", database)
    table.do("INSERT INTO orders (order_no) VALUES ('0')")
    url = redis_server.url if kind == "redis" else database
    prefix = f"{uuid.uuid4()}:"
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.tokens.workers"])
    several: list[list[int]] = []
    for seed in range(4):
        versions = [*range(1, VERSIONS + 1)]
        random.Random(seed).shuffle(versions)
        several.append(versions)
    with ProcessPoolExecutor(4, mp_context=context) as pool:
        running = [
            pool.submit(workers.bring_all, kind, url, prefix, database, versions) for versions in several
        ]
        found = [one.result(60) for one in running]
    assert {answer for answers in found for answer in answers} > {f"applied {VERSIONS}"}
    assert table.do("SELECT order_no FROM orders")[0]["order_no"] == str(VERSIONS)


def test_in_a_transaction_the_version_and_the_write_commit_together(tmp_path: Path) -> None:
    """A version whose transaction is rolled back was not applied: it comes again, and the state is its own."""
    url = f"sqlite:///{tmp_path}/shop.db"
    create_tables(url)
    database = InDatabase("sqlite joined", "sync", url)

    def body(entity: str, version: int, content: str, session: Any) -> Steps[str]:
        yield session.execute(text("DELETE FROM orders"))
        yield session.execute(text("INSERT INTO orders (order_no) VALUES (:no)"), {"no": content})
        if content == "bad":
            raise Declined(content)
        return content

    f = versioned(database, body)

    def test() -> Steps[None]:
        yield f("row", 1, "one")
        yield from caught(Declined, partial(f, "row", 2, "bad"))
        assert database.do("SELECT order_no FROM orders")[0]["order_no"] == "one"
        yield f("row", 2, "two")
        yield from caught(VersionConflictError, partial(f, "row", 1, "one"))
        assert database.do("SELECT order_no FROM orders")[0]["order_no"] == "two"
        yield from database.closing()

    drive("sync", test())
