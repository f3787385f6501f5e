"""No space left on the device: a small tmpfs holds the data of a server, or a SQLite file, and is filled and freed."""

import contextlib
import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from idempo import (
    Event,
    IdempoError,
    LedgerUnavailableError,
    OutcomeUnknownError,
    RedisCache,
    UniqueInsert,
)
from idempo.contracts import Colour
from idempo.steps import Steps
from idempo.testing import Effects, drive
from tests.guards.support import Payment, Shop, create_tables
from tests.provide.processes import poll, temporary_folder
from tests.servers import fresh_database, start
from tests.traps.support import caught, decorated

colours = pytest.mark.parametrize("colour", ["sync", "async"])

MEGABYTES = {"postgres": 150, "mariadb": 400}
DISK_FULL = "53100"
BIG = "x" * 900_000  # a result that needs new pages


class Disk:
    """A file system of `megabytes` that can be filled to the last byte."""

    def __init__(self, megabytes: int) -> None:
        self.folder = temporary_folder()
        done = _mount("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "tmpfs", self.folder)
        if done.returncode:
            self.folder.rmdir()
            pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
        self._filler = self.folder / "filler"

    def fill(self) -> None:
        while self._has_room():  # a database may still let go of some that it does not use any more
            with self._filler.open("ab", buffering=0) as filler:
                for size in (1 << 20, 1 << 12, 1):
                    with contextlib.suppress(OSError):
                        while True:
                            filler.write(b"\0" * size)

    def _has_room(self) -> bool:
        more = self.folder / "more"
        try:
            more.write_bytes(b"\0" * 8192)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return False
        finally:
            more.unlink(missing_ok=True)
        return True

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)

    def remove(self) -> None:
        # The kernel may hold on to files of a server that has just been killed.
        poll(self._unmount, seconds=30)
        self.folder.rmdir()

    def _unmount(self) -> None:
        done = _mount("umount", self.folder)
        if done.returncode:
            raise OSError(done.stderr)


def _mount(*command: str | Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as missing:
        return subprocess.CompletedProcess(command, 127, "", str(missing))


@contextlib.contextmanager
def disk_of(megabytes: int) -> Iterator[Disk]:
    disk = Disk(megabytes)
    try:
        yield disk
    finally:
        disk.free()
        disk.remove()


@pytest.fixture(scope="module", params=["postgres", "mariadb", "sqlite"])
def database(request: pytest.FixtureRequest) -> Iterator[tuple[Disk, str]]:
    """A disk, and the URL of a database whose tables are on it, with no page yet."""
    with contextlib.ExitStack() as stack:
        if request.param == "sqlite":
            disk = stack.enter_context(disk_of(4))
            yield disk, ""
            return
        disk = stack.enter_context(disk_of(MEGABYTES[request.param]))
        server = stack.enter_context(start(request.param, within=disk.folder))
        yield disk, server.url


@pytest.fixture
def disk(database: tuple[Disk, str]) -> Iterator[Disk]:
    yield database[0]
    database[0].free()


@pytest.fixture
def url(database: tuple[Disk, str], disk: Disk, request: pytest.FixtureRequest) -> str:
    where = database[1]
    if where:
        engine = create_engine(where, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:
            for table in ("idempo_records", "orders", "payments"):
                connection.execute(text(f"DROP TABLE IF EXISTS {table}"))
    else:
        for old in disk.folder.glob("shop.db*"):
            old.unlink()
        where = f"sqlite:///{disk.folder}/shop.db"
    create_tables(where)
    return where


def body(disk: Disk, effects: Effects, result: str) -> Any:
    def fills(key: str) -> Steps[str]:
        yield from ()
        effects.add(key)
        disk.fill()
        return result

    return fills


@colours
@pytest.mark.parametrize("database", ["postgres", "sqlite"], indirect=True)
def test_nothing_runs_while_the_disk_is_full_at_the_claim(disk: Disk, url: str, colour: Colour) -> None:
    """The first page of a table is new. MariaDB makes its first pages with the table: a claim finds room there."""

    def test() -> Steps[None]:
        effects = Effects()
        using = UniqueInsert(url)

        def counts(key: str) -> Steps[int]:
            yield from ()
            return effects.add(key)

        f = decorated(counts, colour, using=using)
        yield f.lookup("A-1")  # connected; nothing is written
        disk.fill()
        error = yield from caught(LedgerUnavailableError, lambda: f("A-1"))
        assert (error.ran, len(effects)) == (False, 0)
        disk.free()
        assert (yield f("A-1")) == 1
        assert (yield f.outcome("A-1")).replayed
        yield using.close()

    drive(colour, test())


@colours
def test_a_completion_is_tried_again_until_there_is_space(disk: Disk, url: str, colour: Colour) -> None:
    def test() -> Steps[None]:
        effects, tries, using = Effects(), Effects(), UniqueInsert(url)

        def hook(event: Event) -> None:
            if event.detail.startswith("completion") and tries.add(event.kind) == 2:
                disk.free()

        f = decorated(body(disk, effects, BIG), colour, using=using, hooks=[hook])
        assert (yield f("A-1")) == BIG
        outcome = yield f.outcome("A-1")
        assert (outcome.value, outcome.attempt, outcome.replayed) == (BIG, 1, True)
        assert (len(tries), len(effects)) == (2, 1)
        yield using.close()

    drive(colour, test())


@colours
def test_a_disk_that_stays_full_makes_the_outcome_unknown_and_the_claim_stays(
    disk: Disk, url: str, colour: Colour
) -> None:
    def test() -> Steps[None]:
        effects, using = Effects(), UniqueInsert(url)
        f = decorated(body(disk, effects, BIG), colour, using=using, lease=0.5, on_orphan="refuse", wait=30)
        error = yield from caught(OutcomeUnknownError, lambda: f("A-1"))
        assert (error.ran, error.result) == (None, BIG)
        disk.free()
        yield from caught(OutcomeUnknownError, lambda: f("A-1"))
        assert len(effects) == 1
        yield using.close()

    drive(colour, test())


def filling(disk: Disk, result: str, before: str = "") -> Any:
    """A payment that fills the disk when it is made for the first time; before that it sends one more statement."""
    full = [True]

    def pays(order: int, key: str, session: Any) -> Steps[str]:
        session.add(Payment(order_id=order, no=key))
        yield session.flush()
        if full.pop():
            if before:
                yield session.execute(text(before))
            disk.fill()
        full.append(False)
        return result

    return pays


@colours
def test_a_transaction_that_cannot_be_completed_for_want_of_space_has_no_effect(
    disk: Disk, url: str, colour: Colour
) -> None:
    """What the function wrote is undone with it; when there is space, the repeat has the one effect."""
    shop = Shop(url, colour, poolclass=NullPool)

    def test() -> Steps[None]:
        f = shop.function(filling(disk, BIG), UniqueInsert(shop.engine, join="session"))
        error = yield from caught(LedgerUnavailableError, lambda: f(1, "A-1"))
        assert error.ran is True
        assert isinstance(error.__cause__, OperationalError)
        disk.free()
        assert shop.payments(1) == 0
        assert (yield f(1, "A-1")) == BIG
        assert (yield f.outcome(1, "A-1")).replayed
        assert shop.payments(1) == 1
        yield from shop.close()

    drive(colour, test())


LATE = (
    # Work that the database does at the commit, and that needs new pages.
    "CREATE FUNCTION audited() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN INSERT INTO audit SELECT random()::text || n FROM generate_series(1, 100000) n; RETURN NULL; END $$",
    "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON payments DEFERRABLE INITIALLY DEFERRED "
    "FOR EACH ROW EXECUTE FUNCTION audited()",
)


@colours
@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_a_commit_that_fails_for_want_of_space_has_no_effect(disk: Disk, url: str, colour: Colour) -> None:
    """A deferred constraint trigger writes at the commit itself, when the first result is already recorded."""
    shop = Shop(url, colour, poolclass=NullPool)
    with shop.outside.connect() as connection:
        connection.exec_driver_sql("DROP FUNCTION IF EXISTS audited CASCADE")
        connection.exec_driver_sql("DROP TABLE IF EXISTS audit")
        connection.exec_driver_sql("CREATE TABLE audit (line text)")
        for statement in LATE:
            connection.exec_driver_sql(statement)

    def test() -> Steps[None]:
        f = shop.function(filling(disk, "paid"), UniqueInsert(shop.engine, join="session"))
        error = yield from caught(LedgerUnavailableError, lambda: f(1, "A-1"))
        assert error.ran is True
        assert error.__cause__.orig.sqlstate == DISK_FULL
        disk.free()
        assert (shop.payments(1), shop.scalar("SELECT count(*) FROM audit")) == (0, 0)
        assert (yield f(1, "A-1")) == "paid"
        assert (yield f.outcome(1, "A-1")).replayed
        assert (shop.payments(1), shop.scalar("SELECT count(*) FROM audit")) == (1, 100_000)
        yield from shop.close()

    drive(colour, test())


@colours
def test_a_postgres_that_ends_at_the_commit_for_want_of_space_has_all_or_nothing(colour: Colour) -> None:
    """Its log has to grow to take the commit, and cannot: it ends all connections, and recovers when there is space.

    Source: PostgreSQL manual, "Disk Full Failure".
    """
    with disk_of(150) as disk, start("postgres", within=disk.folder) as server:
        url = fresh_database(server)
        create_tables(url)
        shop = Shop(url, colour, poolclass=NullPool)

        def test() -> Steps[None]:
            switch = "SELECT pg_switch_wal()"
            f = shop.function(filling(disk, "paid", switch), UniqueInsert(shop.engine, join="session"))
            error = yield from caught(IdempoError, lambda: f(1, "A-1"))
            assert isinstance(error, LedgerUnavailableError | OutcomeUnknownError)
            assert error.ran is not False
            disk.free()
            server.kill()
            server.start()
            outcome = yield f.outcome(1, "A-1")
            assert outcome.value == "paid"
            assert (yield f.outcome(1, "A-1")).replayed
            assert shop.payments(1) == 1
            yield from shop.close()

        drive(colour, test())


def test_what_valkey_acknowledged_before_its_disk_was_full_is_there_after_the_restart() -> None:
    """With appendfsync=always it ends itself when it cannot append: every answer until then is kept."""
    with disk_of(8) as disk, start("valkey", within=disk.folder) as server:
        effects = Effects()
        client: Any = redis.Redis.from_url(fresh_database(server))

        def big(key: str) -> Steps[str]:
            yield from ()
            effects.add(key)
            return key + BIG[:300_000]

        f = decorated(big, "sync", using=RedisCache(client), lease=1, on_orphan="refuse", wait=30)
        disk.fill()
        answered, failed = [], None
        for number in range(100):
            try:
                answered.append(f(f"A-{number}"))
            except (LedgerUnavailableError, OutcomeUnknownError) as error:
                failed = error
                break
        assert failed is not None
        disk.free()
        server.kill()
        server.start()
        for number, value in enumerate(answered):
            outcome = f.outcome(f"A-{number}")
            assert (outcome.value, outcome.replayed) == (value, True)
        assert len(effects) == len(answered) + (failed.ran is None)
        client.close()


@colours
def test_nothing_runs_on_a_file_that_may_only_be_read(tmp_path: Path, colour: Colour) -> None:
    """What is in it is still replayed."""
    file = tmp_path / "shop.db"
    engine = create_engine(f"sqlite:///{file}", poolclass=NullPool)
    UniqueInsert(engine).create_schema()

    def test() -> Steps[None]:
        effects = Effects()

        def counts(key: str) -> Steps[int]:
            yield from ()
            return effects.add(key)

        writes, reads = (
            UniqueInsert(f"sqlite:///{file}"),
            UniqueInsert(f"sqlite:///file:{file}?mode=ro&uri=true"),
        )
        assert (yield decorated(counts, colour, using=writes, name="read only")("A-1")) == 1
        f = decorated(counts, colour, using=reads, name="read only")
        error = yield from caught(LedgerUnavailableError, lambda: f("A-2"))
        assert (error.ran, len(effects)) == (False, 1)
        assert (yield f.outcome("A-1")).replayed
        yield writes.close()
        yield reads.close()

    drive(colour, test())
