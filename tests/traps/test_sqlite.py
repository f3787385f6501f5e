"""SQLite: deferred transactions that write after they have read, and many processes on one file."""

import json
import multiprocessing
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, func, insert, select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool, Pool

from idempo import IdempoError, InProgressError, UniqueInsert, idempotent, urls
from idempo.connections import beside
from idempo.contracts import Colour
from idempo.steps import Steps
from idempo.testing import Effects, drive
from tests.faults.stalled import leased
from tests.servers import async_url
from tests.traps.support import (
    CALLERS,
    Base,
    Declined,
    Order,
    Running,
    Shop,
    calling,
    caught,
    create_tables,
    driven,
    in_session,
    output,
    place,
    until,
)
from tests.traps.workers import KEYS, PROCESSES, embedded_worker, joined_worker

colours = pytest.mark.parametrize("colour", ["sync", "async"])
callers = pytest.mark.parametrize("caller", list(CALLERS))


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/shop.db"
    create_tables(url)
    with create_engine(url, poolclass=NullPool).connect() as connection:
        connection.execute(text("PRAGMA journal_mode = WAL"))
    return url


def on_file(url: str, colour: Colour, test: Callable[[Shop], Steps[None]], **options: Any) -> None:
    settings: dict[str, Any] = {"poolclass": NullPool, "connect_args": {"timeout": 20}} | options

    def with_plain_outside(shop: Shop) -> Steps[None]:
        shop.outside = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        yield from test(shop)

    driven(url, colour, with_plain_outside, **settings)


@colours
@pytest.mark.parametrize("begun", ["before the write", "not at all"])
def test_a_callers_transaction_that_read_before_another_wrote_never_runs_twice(
    url: str, colour: Colour, begun: str
) -> None:
    """The driver's deferred BEGIN: read, somebody else writes, then write. A replay, or a typed error; never a run."""

    def test(shop: Shop) -> Steps[None]:
        effects = Effects()

        def body(order_no: str, session: Any) -> Steps[Any]:
            effects.add(order_no)
            return (yield from place(order_no, session))

        f = shop.decorate(body, wait=1)
        caller = shop.sessions()
        try:
            if begun == "before the write":
                yield caller.execute(text("BEGIN"))
            assert (yield caller.scalar(select(func.count()).select_from(Order))) == 0
            assert (yield f("A-1")) == "placed A-1"
            with suppress(InProgressError):
                assert (yield f.outcome("A-1", session=caller)).replayed
            yield caller.rollback()
            assert (yield f.outcome("A-1", session=caller)).replayed
            yield caller.commit()
        finally:
            yield caller.close()
        assert len(effects) == 1
        assert shop.orders() == 1

    on_file(url, colour, test)


@colours
def test_a_claim_behind_a_stale_snapshot_is_a_typed_error_that_says_to_roll_back(
    url: str, colour: Colour
) -> None:
    """Waiting does not help: nothing can be written in this transaction any more."""

    def test(shop: Shop) -> Steps[None]:
        f = shop.decorate(place, wait=1)
        caller = shop.sessions()
        try:
            yield caller.execute(text("BEGIN"))
            assert (yield caller.scalar(select(func.count()).select_from(Order))) == 0
            yield f("A-1")
            error = yield from caught(InProgressError, lambda: f("A-2", session=caller))
            yield caller.rollback()
            yield f("A-2", session=caller)
            yield caller.commit()
        finally:
            yield caller.close()
        assert (shop.orders("A-1"), shop.orders("A-2")) == (1, 1)
        assert error.ran is False
        assert "roll your transaction back" in str(error)

    on_file(url, colour, test)


@colours
def test_a_writer_that_stays_is_a_typed_error_and_the_callers_timeout_is_as_it_was(
    url: str, colour: Colour
) -> None:
    def test(shop: Shop) -> Steps[None]:
        hasty = shop.decorate(place, wait=0.1)
        owner, caller = shop.sessions(), shop.sessions()
        try:
            yield owner.execute(insert(Order).values(order_no="held"))
            yield caller.execute(text("PRAGMA busy_timeout = 1234"))
            error = yield from caught(InProgressError, lambda: hasty("A-1", session=caller))
            assert error.ran is False
            assert (yield caller.scalar(text("PRAGMA busy_timeout"))) == 1234
            yield owner.commit()
            assert (yield hasty("A-1", session=caller)) == "placed A-1"
            yield caller.commit()
        finally:
            yield caller.close()
            yield owner.close()
        assert (shop.orders("held"), shop.orders("A-1")) == (1, 1)

    on_file(url, colour, test)


@colours
def test_nothing_of_a_failed_function_stays_when_the_caller_commits(url: str, colour: Colour) -> None:
    def test(shop: Shop) -> Steps[None]:
        def body(order_no: str, session: Any) -> Steps[Any]:
            yield from place(order_no, session)
            raise Declined

        f, caller = shop.decorate(body), shop.sessions()
        try:
            yield from caught(Declined, lambda: f("first thing", session=caller))
            yield caller.execute(insert(Order).values(order_no="earlier"))
            yield from caught(Declined, lambda: f("A-1", session=caller))
            yield caller.execute(insert(Order).values(order_no="later"))
            yield caller.commit()
        finally:
            yield caller.close()
        assert (shop.orders("earlier"), shop.orders("later"), shop.orders()) == (1, 1, 2)
        assert shop.scalar("SELECT count(*) FROM idempo_records") == 0

    on_file(url, colour, test)


@colours
@callers
def test_one_of_many_at_once_runs(url: str, colour: Colour, caller: str) -> None:
    def test(shop: Shop) -> Steps[None]:
        effects = Effects()

        def body(order_no: str, session: Any) -> Steps[Any]:
            effects.add(order_no)
            yield from place(order_no, session)
            if effects.of(order_no) == 1:
                raise Declined
            return effects.of(order_no)

        call = CALLERS[caller](shop, shop.decorate(body), "A-1")
        found = yield from Running(colour, [call] * 10).results()
        assert sorted(map(str, found)) == ["", *["2"] * 9]
        assert shop.orders() == 1

    on_file(url, colour, test)


# ------------------------------------------------------------------------ many processes, one file


@pytest.mark.parametrize("worker", [embedded_worker, joined_worker])
def test_six_processes_on_one_file_run_each_key_exactly_once(
    tmp_path: Path, worker: Callable[..., None]
) -> None:
    if worker is joined_worker:
        engine = create_engine(f"sqlite:///{tmp_path}/shop.db")
        Base.metadata.create_all(engine)
        engine.dispose()
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(PROCESSES)
    several = [
        context.Process(target=worker, args=(str(tmp_path), number, start), daemon=True)
        for number in range(PROCESSES)
    ]
    for process in several:
        process.start()
    for process in several:
        process.join(60)
    assert [process.exitcode for process in several] == [0] * PROCESSES
    results: dict[str, Any] = {}
    for number in range(PROCESSES):
        for key, value in json.loads((tmp_path / f"seen-{number}").read_text()):
            assert results.setdefault(key, value) == value
    if worker is embedded_worker:
        effects = Counter((tmp_path / "effects").read_text().split())
    else:
        with create_engine(f"sqlite:///{tmp_path}/shop.db", poolclass=NullPool).connect() as connection:
            effects = Counter(connection.scalars(select(Order.order_no)))
    assert effects == dict.fromkeys(results, 1)
    assert len(results) == KEYS


_PLAIN = """
import sys
from idempo import idempotent

@idempotent(key="{order_no}", name="plain")
def f(order_no):
    print("ran", flush=True)
    return {"order": order_no}

print(f("A-1"))
"""


def test_the_embedded_file_survives_its_process(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "IDEMPO_URL"}
    environment["PYTHONPATH"] = os.pathsep.join([os.getcwd(), environment.get("PYTHONPATH", "")])
    first = output(_PLAIN, cwd=tmp_path, env=environment)
    second = output(_PLAIN, cwd=tmp_path, env=environment)
    assert first.split("\n")[:2] == ["ran", "{'order': 'A-1'}"]
    assert second == "{'order': 'A-1'}\n"
    assert (tmp_path / "idempo.db").exists()


def test_a_file_that_cannot_be_opened_runs_nothing(tmp_path: Path) -> None:
    effects = Effects()

    @idempotent(key="{order_no}", using=UniqueInsert(f"sqlite:///{tmp_path}/missing/idempo.db"))
    def f(order_no: str) -> int:
        return effects.add(order_no)

    with pytest.raises(IdempoError) as caught:
        f("A-1")
    assert caught.value.ran is False
    assert isinstance(caught.value.__cause__, OperationalError | DBAPIError)
    assert len(effects) == 0


@colours
def test_a_replay_in_the_callers_own_session_needs_no_write(url: str, colour: Colour) -> None:
    """A repeat does not wait for a writer of another business."""

    def test(shop: Shop) -> Steps[None]:
        f = shop.decorate(place)
        yield f("A-1")
        owner = shop.sessions()
        try:
            yield owner.execute(insert(Order).values(order_no="held"))
            assert (yield shop.decorate(place, wait=0)("A-1")) == "placed A-1"
        finally:
            yield owner.close()
        assert (yield from in_session(shop, f, "A-1")()) == "placed A-1"

    on_file(url, colour, test)


@colours
def test_a_file_without_write_ahead_log_that_somebody_writes_to_is_waited_for(
    tmp_path: Path, colour: Colour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite itself refuses the switch to its write-ahead log at once, whatever busy timeout there is."""
    tried = threading.Event()
    rest = urls._rest

    def resting(connection: Any) -> None:
        tried.set()
        rest(connection)

    monkeypatch.setattr(urls, "_rest", resting)
    path = tmp_path / "fresh.db"

    def body(key: str) -> Steps[str]:
        yield from ()
        return key

    def test() -> Steps[None]:
        ledger = UniqueInsert(f"sqlite:///{path}")
        f = leased(ledger, colour, "fresh", body)
        with sqlite3.connect(path, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            running = Running(colour, [calling(lambda: f("A-1"))])
            yield from until(tried.is_set, "it has been refused, and tries again")
            other.execute("COMMIT")
        other.close()
        assert (yield from running.results()) == ["A-1"]
        yield ledger.close()

    drive(colour, test())


@colours
def test_a_renewal_beside_the_pool_opens_one_connection_and_leaves_none(url: str, colour: Colour) -> None:
    opened: list[Any] = []

    def opening(connection: Any, record: Any) -> None:
        opened.append(record)

    event.listen(Pool, "connect", opening)
    try:

        def steps() -> Steps[Any]:
            engine = create_engine(url) if colour == "sync" else create_async_engine(async_url(url))
            sync: Any = getattr(engine, "sync_engine", engine)
            found = yield from beside(sync, colour, lambda c: c.exec_driver_sql("SELECT 1").scalar())
            assert [record.dbapi_connection for record in opened] == [None]
            yield engine.dispose()
            return found

        assert drive(colour, steps()) == 1
    finally:
        event.remove(Pool, "connect", opening)
