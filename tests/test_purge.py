"""Purges beside traffic: they wait for nobody, nobody waits for them, and people see how far they are."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, TextClause, create_engine, event, insert, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from idempo import UniqueInsert, purging
from idempo.cli import main
from idempo.contracts import Colour
from idempo.records import Claimed, Payload
from idempo.roundtrip import prefixed
from idempo.schema import dialect_of
from idempo.sending import by_sqlalchemy, every
from idempo.sql import Records
from idempo.steps import Steps, run
from idempo.testing import ledger_of, new_call
from tests.servers import Server
from tests.traps.support import (
    SECONDS,
    Running,
    Shop,
    calling,
    caught,
    create_tables,
    driven,
    empty_tables,
    place,
    shop_database,
    until,
)

SERVERS = ("postgres", "mariadb", "mysql")

# Whoever waits for a lock fails at last, instead of holding up the tests. Nobody is to wait at all.
IMPATIENT = {
    "postgresql": {"options": "-c lock_timeout=5000"},
    "mysql": {"init_command": "SET SESSION innodb_lock_wait_timeout = 5"},
}

# The deletion of the record "a" waits for whoever holds the lock.
GATE = (
    "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN OLD; END $$",
    "CREATE TRIGGER gate BEFORE DELETE ON idempo_records FOR EACH ROW "
    "WHEN (OLD.business_key = 'a') EXECUTE FUNCTION wait()",
)
WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)

colours = pytest.mark.parametrize("colour", ["sync", "async"])


@pytest.fixture(scope="module", params=SERVERS)
def prepared(request: pytest.FixtureRequest) -> str:
    return shop_database(request.getfixturevalue(request.param))


@pytest.fixture
def url(prepared: str) -> str:
    """A server that locks rows, with empty tables."""
    empty_tables(prepared)
    return prepared


@pytest.fixture(params=[*SERVERS, "sqlite"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Any SQL database, with empty tables."""
    url: str
    if request.param == "sqlite":
        url = request.getfixturevalue("file")
    else:
        url = shop_database(request.getfixturevalue(request.param))
    return url


@pytest.fixture(params=["mariadb", "mysql"])
def innodb(request: pytest.FixtureRequest) -> str:
    return shop_database(request.getfixturevalue(request.param))


@pytest.fixture
def file(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/idempo.db"
    create_tables(url)
    return url


def backend(url: str) -> str:
    return make_url(url).get_backend_name()


def beside(url: str, colour: Colour, test: Callable[[Shop], Steps[None]]) -> None:
    driven(url, colour, test, connect_args=IMPATIENT.get(backend(url), {}))


def leased(shop: Shop, ran: "Counter[str] | None" = None, **options: Any) -> Any:
    """A function whose record commits on its own; `ran` counts its runs."""
    counted = Counter() if ran is None else ran

    def body(order_no: str, session: Any) -> Steps[str]:
        yield from ()
        counted[order_no] += 1
        return f"placed {order_no}"

    return shop.decorate(body, using=UniqueInsert(shop.engine), **options)


def ended(shop: Shop, f: Any, keys: Sequence[str]) -> Steps[None]:
    """Records of these keys whose retention is over, the first one the longest."""
    for key in keys:
        yield f(key)
    make_over(shop.url, keys)


def make_over(url: str, keys: Sequence[str]) -> None:
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        for number, key in enumerate(keys, start=1):
            connection.execute(
                text("UPDATE idempo_records SET keep_until = :number WHERE business_key = :key"),
                {"number": number, "key": key},
            )


def kept(url: str) -> set[str]:
    """The keys of all rows."""
    with create_engine(url, poolclass=NullPool).connect() as connection:
        return set(connection.scalars(text("SELECT business_key FROM idempo_records")))


def filled(url: str, over: int, live: int = 0) -> None:
    """So many records whose retention is over, the first one the longest, and so many others."""
    same = {"operation": "f", "scope": "", "state": "completed", "owner": b"", "fence": 1, "attempt": 1}
    same |= {"fingerprint": b"", "result": b"1"} | dict.fromkeys(
        ("leased_at", "lease_until", "created_at"), 1
    )
    rows = [
        same
        | {
            "digest": number.to_bytes(32, "big"),
            "business_key": f"over-{number}" if number < over else f"live-{number - over}",
            "keep_until": number + 1 if number < over else 2**62,
        }
        for number in range(over + live)
    ]
    with create_engine(url, poolclass=NullPool).begin() as connection:
        connection.execute(insert(Records().table), rows)


def all_but_the_commit(
    connection: Connection, statement: TextClause, values: Mapping[str, Any], taken: Callable[[Any], Any]
) -> Any:
    return 0 if statement.text == "COMMIT" else by_sqlalchemy(connection, statement, values, taken)


@contextmanager
def under_way(url: str, batch: int) -> Iterator[int]:
    """A purge that has deleted a batch, and has not committed."""
    # On PostgreSQL it is one statement; elsewhere it begins and ends its transaction by itself.
    level: Any = {} if backend(url) == "postgresql" else {"isolation_level": "AUTOCOMMIT"}
    engine = create_engine(url, poolclass=NullPool, connect_args=IMPATIENT[backend(url)], **level)
    with engine.connect() as connection:
        yield dialect_of(connection, Records(), all_but_the_commit).purge(connection, batch)
        connection.exec_driver_sql("COMMIT")


# ------------------------------------------------------------------------------------------ beside traffic


@colours
@pytest.mark.parametrize("batch", [1, 2, 1000])
def test_a_purge_passes_by_a_record_that_an_open_transaction_has_taken_over(
    url: str, colour: Colour, batch: int
) -> None:
    def test(shop: Shop) -> Steps[None]:
        ledger = UniqueInsert(shop.engine)
        f = shop.decorate(place)
        yield from ended(shop, f, ["held", "a", "b", "c"])
        session = shop.sessions()
        try:
            assert (yield f("held", session=session)) == "placed held"  # anew, and not committed
            deleted = 0
            while count := (yield ledger.purge(batch)):
                assert count <= batch
                deleted += count
            assert deleted == 3
            yield session.commit()
        finally:
            yield session.close()
        assert kept(url) == {"held"}
        assert (yield f.outcome("held")).replayed
        assert shop.orders("held") == 2

    beside(url, colour, test)


@colours
@pytest.mark.parametrize("batch", [2, 1000])
def test_callers_do_not_wait_for_a_purge_that_has_not_committed(url: str, colour: Colour, batch: int) -> None:
    """Not even those whose records stand next to the purged ones, in the index along which it goes."""

    def test(shop: Shop) -> Steps[None]:
        f, joined, brief = leased(shop), shop.decorate(place, name="joined"), leased(shop, keep=60, lease=30)
        ledger = ledger_of(UniqueInsert(shop.engine), colour)
        calls = [new_call(key, keep=3600.0) for key in ("to complete", "to renew", "to release", "spare")]
        yield f("live")
        yield from ended(shop, f, ["a", "b", "c", "d"])
        for call in calls:
            assert isinstance((yield from ledger.claim(call, None)), Claimed)
        with under_way(url, batch) as deleted:
            assert deleted == min(batch, 4)
            assert (yield f.outcome("live")).replayed
            assert not (yield f.outcome("new")).replayed
            assert not (yield brief.outcome("next to the purged ones")).replayed
            assert not (yield joined.outcome("in a transaction")).replayed
            assert (yield from ledger.complete(calls[0], Payload("completed", b"1")))
            assert (yield from ledger.renew(calls[1], 60.0))
            assert (yield from ledger.release(calls[2]))
            if batch == 2:
                assert not (yield f.outcome("c")).replayed  # the next one that is over is claimed anew
            assert (yield f.forget("live"))
        assert kept(url) >= {"new", "next to the purged ones", "in a transaction", "to complete", "to renew"}
        assert kept(url) & {"a", "b"} == set()

    beside(url, colour, test)


@colours
def test_purges_at_the_same_time_pass_by_each_other(url: str, colour: Colour) -> None:
    def test(shop: Shop) -> Steps[None]:
        yield from ended(shop, leased(shop), ["a", "b", "c", "d", "e"])
        with under_way(url, 2) as deleted:
            assert deleted == 2
            assert (yield UniqueInsert(shop.engine).purge()) == 3
        assert kept(url) == set()

    beside(url, colour, test)


def test_a_record_that_is_claimed_anew_between_the_look_and_the_lock_is_not_deleted(innodb: str) -> None:
    """MariaDB and MySQL look first, and lock then. PostgreSQL does it in one statement."""

    def test(shop: Shop) -> Steps[None]:
        ran: Counter[str] = Counter()
        f = leased(shop, ran)
        yield from ended(shop, f, ["a", "b", "c"])

        def send(
            connection: Connection,
            statement: TextClause,
            values: Mapping[str, Any],
            taken: Callable[[Any], Any],
        ) -> Any:
            if statement.text == "START TRANSACTION":
                assert kept(innodb) == {"a", "b", "c"}
                f("b")
            return by_sqlalchemy(connection, statement, values, taken)

        engine = create_engine(innodb, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            assert dialect_of(connection, Records(), send).purge(connection, 3) == 2
        assert kept(innodb) == {"b"}
        assert (yield f.outcome("b")).replayed
        assert ran == {"a": 1, "b": 2, "c": 1}

    beside(innodb, "sync", test)


@colours
def test_who_claims_anew_what_a_purge_is_deleting_waits_for_it_and_has_a_record(
    postgres: Server, colour: Colour
) -> None:
    """All of a batch is locked before the first record goes: nothing can be claimed anew, and deleted all the same."""
    url = shop_database(postgres)

    def test(shop: Shop) -> Steps[None]:
        ran: Counter[str] = Counter()
        f, ledger, claimed = leased(shop, ran), UniqueInsert(shop.engine), []

        def claim() -> Steps[None]:
            claimed.append((yield f("b")))

        yield from ended(shop, f, ["a", "b"])
        with shop.outside.connect() as gate:
            for statement in GATE:
                gate.exec_driver_sql(statement)
            gate.exec_driver_sql("SELECT pg_advisory_lock(1)")
            purge = Running(colour, [calling(ledger.purge)])
            yield from shop.until(WAITING, 1)
            caller = Running(colour, [claim])
            yield from until(
                lambda: bool(claimed) or shop.scalar(WAITING) == 2, "a caller that waits, or has it"
            )
            gate.exec_driver_sql("SELECT pg_advisory_unlock(1)")
        assert (yield from purge.results()) == [2]
        assert (yield from caller.results()) == [None]
        assert kept(url) == {"b"}
        assert (yield f.outcome("b")).replayed
        assert ran == {"a": 1, "b": 2}

    driven(url, colour, test)


@colours
def test_records_that_are_claimed_anew_beside_purges_stay(anywhere: str, colour: Colour) -> None:
    def test(shop: Shop) -> Steps[None]:
        ran: Counter[str] = Counter()
        f, ledger = leased(shop, ran), UniqueInsert(shop.engine)
        keys = [str(number) for number in range(60)]
        yield from ended(shop, f, keys)
        claimed = 0

        def purge() -> Steps[None]:
            while claimed < len(keys):
                yield ledger.purge(3)

        def claim() -> Steps[None]:
            nonlocal claimed
            try:
                for key in reversed(keys):
                    yield f(key)
                    claimed += 1
            finally:
                claimed = len(keys)

        found = yield from Running(colour, [purge, purge, claim]).results()
        assert found == [None, None, None]
        assert kept(anywhere) == set(keys)
        for key in keys:
            assert (yield f.outcome(key)).replayed
        assert ran == dict.fromkeys(keys, 2)

    beside(anywhere, colour, test)


@colours
def test_a_batch_has_no_more_than_was_asked_for_and_takes_what_ended_first(
    anywhere: str, colour: Colour
) -> None:
    def test(shop: Shop) -> Steps[None]:
        filled(anywhere, over=7, live=2)
        ledger = UniqueInsert(shop.engine)
        assert (yield ledger.purge(3)) == 3
        assert kept(anywhere) == {"over-3", "over-4", "over-5", "over-6", "live-0", "live-1"}
        assert [(yield ledger.purge(3)), (yield ledger.purge(3)), (yield ledger.purge(3))] == [3, 1, 0]
        assert kept(anywhere) == {"live-0", "live-1"}

    beside(anywhere, colour, test)


def test_a_purge_that_fails_leaves_nothing_locked(innodb: str) -> None:
    """Also on connections that idempo makes, which nobody resets on their way back to the pool."""

    def test(shop: Shop) -> Steps[None]:
        f, ledger = leased(shop), UniqueInsert(innodb)
        yield from ended(shop, f, ["a"])
        with shop.outside.connect() as connection:
            connection.exec_driver_sql(
                "CREATE TRIGGER never BEFORE DELETE ON idempo_records FOR EACH ROW "
                "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not now'"
            )
        error = yield from caught(DBAPIError, ledger.purge)
        assert "not now" in str(error.orig)
        assert not (yield f.outcome("a")).replayed
        yield ledger.close()

    beside(innodb, "sync", test)


def test_the_last_batch_does_not_read_what_is_kept(anywhere: str) -> None:
    filled(anywhere, over=0, live=300)
    engine = create_engine(anywhere, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    plans: list[str] = []

    def explained(
        connection: Connection, statement: TextClause, values: Mapping[str, Any], taken: Callable[[Any], Any]
    ) -> Any:
        how = {
            "postgresql": "EXPLAIN (ANALYZE, TIMING OFF, COSTS OFF) ",
            "sqlite": "EXPLAIN QUERY PLAN ",
        }[backend(anywhere)]
        plans.extend(
            str(row[-1]) for row in by_sqlalchemy(connection, prefixed(how, statement), values, every)
        )
        return by_sqlalchemy(connection, statement, values, taken)

    with engine.connect() as connection:
        match backend(anywhere):
            case "mysql":
                connection.exec_driver_sql("FLUSH STATUS")
                assert dialect_of(connection, Records()).purge(connection, 1000) == 0
                read = connection.exec_driver_sql("SHOW SESSION STATUS LIKE 'Handler_read%%'")
                assert sum(int(row[1]) for row in read) < 20
            case "postgresql":
                connection.exec_driver_sql("ANALYZE idempo_records")
                connection.exec_driver_sql("SET enable_seqscan = off")  # as if there were more of them
                assert dialect_of(connection, Records(), explained).purge(connection, 1000) == 0
                assert "Rows Removed by Filter" not in "\n".join(plans)
                assert any("Index Cond: (keep_until <=" in line for line in plans)
            case _:
                assert dialect_of(connection, Records(), explained).purge(connection, 1000) == 0
                assert any("idempo_records_keep_until (keep_until<?)" in line for line in plans)


# ------------------------------------------------------------------------------------------ the command


def idempo(*words: str, terminal: io.TextIOWrapper | None = None) -> "subprocess.CompletedProcess[str]":
    out, err = io.StringIO(), io.StringIO()
    with pytest.raises(SystemExit) as end, redirect_stdout(out), redirect_stderr(terminal or err):
        main(words)
    assert isinstance(end.value.code, int)
    return subprocess.CompletedProcess(words, end.value.code, out.getvalue(), err.getvalue())


@contextmanager
def at_each_delete(work: Callable[[], None]) -> Iterator[None]:
    """Do this while a batch is being deleted."""

    def listener(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith("DELETE"):
            work()

    event.listen(Engine, "before_cursor_execute", listener)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", listener)


def test_a_short_purge_says_only_how_many_there_were(anywhere: str) -> None:
    filled(anywhere, over=25, live=1)
    found = idempo("purge", anywhere, "--batch", "10")
    assert (found.returncode, found.stdout, found.stderr) == (0, "purged 25 records\n", "")
    assert kept(anywhere) == {"live-0"}


def test_a_long_purge_adds_a_line_now_and_then_where_nobody_looks(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purging, "_ADDED", 0.0)
    filled(file, over=25)
    found = idempo("purge", file, "--batch", "10")
    assert (found.returncode, found.stdout) == (0, "purged 25 records\n")
    lines = found.stderr.splitlines()
    assert [line.split(" in ")[0] for line in lines] == [
        f"{count} records deleted" for count in (10, 20, 25, 25)
    ]
    assert all(line.endswith(" a second") and " s, " in line for line in lines)
    assert "\r" not in found.stderr


def test_a_long_purge_rewrites_one_line_on_a_terminal(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purging, "_REWRITTEN", 0.0)
    monkeypatch.setattr(purging, "_ADDED", 3600.0)
    filled(file, over=25)
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal:
        found = idempo("purge", file, "--batch", "10", terminal=terminal)
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal ends
        while more := os.read(ours, 4096):
            shown += more
    os.close(ours)
    assert (found.returncode, found.stdout) == (0, "purged 25 records\n")
    first, *looks = shown.decode().split("\r")
    assert first == ""
    assert looks.pop() == "\n"  # the terminal itself makes \r\n of the end of the line
    assert [look.split(" in ")[0] for look in looks] == [
        f"{count} records deleted" for count in (10, 20, 25, 25)
    ]
    assert len({len(look) for look in looks}) == 1


def test_a_purge_ends_after_so_many(file: str) -> None:
    filled(file, over=25)
    assert idempo("purge", file, "--batch", "10", "--at-most", "12").stdout == "purged 12 records\n"
    assert len(kept(file)) == 13
    assert idempo("purge", file, "--batch", "10", "--at-most", "13").stdout == "purged 13 records\n"
    assert idempo("purge", file, "--at-most", "13").stdout == "purged 0 records\n"


def test_a_purge_ends_with_a_batch_that_is_not_full_though_more_ends_meanwhile(file: str) -> None:
    filled(file, over=25, live=40)
    live = iter(range(40))

    def one_more() -> None:
        make_over(file, [f"live-{next(live)}"])

    with at_each_delete(one_more):
        assert idempo("purge", file, "--batch", "10").stdout == "purged 28 records\n"
    assert next(live) == 3


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as in a terminal, wherever these tests run."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_waits_for_the_end_of_the_batch_and_all_that_is_gone_is_told(anywhere: str) -> None:
    filled(anywhere, over=25)
    with at_each_delete(lambda: signal.raise_signal(signal.SIGINT)):
        found = idempo("purge", anywhere, "--batch", "10")
    assert (found.returncode, found.stdout) == (130, "purged 10 records\n")
    assert len(kept(anywhere)) == 15


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_does_not_wait(anywhere: str) -> None:
    filled(anywhere, over=25)

    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with at_each_delete(twice):
        found = idempo("purge", anywhere, "--batch", "10")
    assert (found.returncode, found.stdout) == (130, "")
    assert len(kept(anywhere)) == 25


def test_an_interrupt_ends_the_rest_between_batches(anywhere: str) -> None:
    filled(anywhere, over=25)
    words = ["purge", anywhere, "--batch", "10", "--pause", "3600"]
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from idempo.cli import main; main(sys.argv[1:])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as purge:
        try:
            run(until(lambda: len(kept(anywhere)) == 15, "the end of the first batch"))
            purge.send_signal(signal.SIGINT)
            out, err = purge.communicate(timeout=SECONDS)
        finally:
            purge.kill()
    assert (purge.returncode, out, err) == (130, "purged 10 records\n", "")
    assert len(kept(anywhere)) == 15


def test_a_purge_that_fails_on_its_way_tells_what_is_gone(file: str) -> None:
    filled(file, over=25)
    with create_engine(file, poolclass=NullPool).begin() as connection:
        connection.execute(
            text(
                "CREATE TRIGGER never BEFORE DELETE ON idempo_records WHEN OLD.business_key = 'over-15' "
                "BEGIN SELECT RAISE(ABORT, 'not now'); END"
            )
        )
    found = idempo("purge", file, "--batch", "10")
    assert (found.returncode, found.stdout) == (1, "purged 10 records\n")
    assert "not now" in found.stderr
    assert len(kept(file)) == 15
