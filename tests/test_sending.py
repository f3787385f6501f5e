"""A ledger sends its statements by the driver's own cursor: errors are those of SQLAlchemy all the same."""

import gc
import sqlite3
import traceback
import uuid
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from idempo import UniqueInsert, idempotent
from idempo.contracts import Colour
from idempo.roundtrip import together
from idempo.sending import by_the_driver, count, first
from idempo.steps import Steps
from idempo.testing import drive
from tests.servers import Server, async_url

COLOURS: tuple[Colour, ...] = ("sync", "async")
ID = {"postgres": "SELECT pg_backend_pid()", "mariadb": "SELECT CONNECTION_ID()"}
END = {"postgres": "SELECT pg_terminate_backend({}, 30000)", "mariadb": "KILL {}"}


@pytest.fixture(params=ID)
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def table(server: Server) -> str:
    name = f"sent_{uuid.uuid4().hex}"
    UniqueInsert(create_engine(server.url, poolclass=NullPool), table=name).create_schema()
    return name


@pytest.mark.parametrize("colour", COLOURS)
def test_a_call_runs_where_every_connection_of_the_pool_was_ended_by_the_server(
    server: Server, table: str, colour: Colour
) -> None:
    engine: Any = (
        create_engine(server.url) if colour == "sync" else create_async_engine(async_url(server.url))
    )

    def f(key: str) -> str:
        return key

    async def af(key: str) -> str:
        return key

    once: Any = idempotent(key="{key}", name="f", using=UniqueInsert(engine, table=table))(
        f if colour == "sync" else af
    )

    def steps() -> Steps[Any]:
        held = []
        for _ in range(4):
            held.append((yield engine.connect()))
        numbers = []
        for connection in held:
            numbers.append((yield connection.exec_driver_sql(ID[server.kind])).scalar_one())
        for connection in held:
            yield connection.close()
        with create_engine(server.url, poolclass=NullPool).connect() as outside:
            for number in numbers:
                outside.execute(text(END[server.kind].format(int(number))))
        answer = yield once("k")
        yield engine.dispose()
        return answer

    assert drive(colour, steps()) == "k"


def test_errors_are_sqlalchemys_own_and_show_no_values(server: Server, table: str) -> None:
    engine = create_engine(server.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    insert = text(
        f"INSERT INTO {table} (digest, operation, scope, business_key, state, owner, fence, attempt, fingerprint, "
        "leased_at, lease_until, created_at, keep_until) "
        "VALUES (:digest, 'o', '', 'k', :state, :digest, 1, 1, :digest, 1, 1, 1, 1)"
    )
    values = {"digest": b"secret digest of thirty-two bytes"[:16], "state": "secret"}
    with engine.connect() as connection:
        assert by_the_driver(connection, insert, values, count) == 1
        with pytest.raises(IntegrityError) as twice:
            by_the_driver(connection, insert, values, count)
        with pytest.raises(ProgrammingError) as missing:
            by_the_driver(connection, text("SELECT :state FROM missing_table"), {"state": "secret"}, first)
        assert by_the_driver(connection, text(f"SELECT fence FROM {table}"), {}, first) == (1,)
    for error in (twice.value, missing.value):
        assert isinstance(error, DBAPIError)
        assert not error.connection_invalidated
        assert error.params is None
        assert error.hide_parameters


def failing(kind: str, url: str) -> list[Callable[[], BaseException | None]]:
    """Weak references to the error of a statement and to the driver's; nobody here keeps a strong one."""
    missing = text("SELECT :state FROM missing_table"), {"state": "x"}
    with create_engine(url, poolclass=NullPool).connect() as connection:
        try:
            if kind == "together":
                together(connection, [missing])
            else:
                by_the_driver(connection, *missing, first)
        except DBAPIError as error:
            return [weakref.ref(one) for one in (error, error.__cause__) if one is not None]
    raise AssertionError("it did not fail")


@pytest.mark.parametrize("kind", ["alone", "together"])
def test_an_error_goes_with_its_last_reference(postgres: Server, kind: str) -> None:
    """It holds the frames that it came through, and all that is in them, but not itself."""
    gc.disable()
    try:
        assert [one() for one in failing(kind, postgres.url)] == [None, None]
    finally:
        gc.enable()


def test_an_error_that_is_kept_holds_no_cursor(tmp_path: Path) -> None:
    """With a cursor of SQLite's, the file would stay open, whoever closed the connection."""
    with create_engine(f"sqlite:///{tmp_path}/any.db", poolclass=NullPool).connect() as connection:
        with pytest.raises(DBAPIError) as failed:
            by_the_driver(connection, text("SELECT 1 FROM missing_table"), {}, first)
        frames = (frame for frame, _ in traceback.walk_tb(failed.value.__traceback__))
        cursors = [one.f_locals["cursor"] for one in frames if "cursor" in one.f_locals]
        with pytest.raises(sqlite3.ProgrammingError, match="closed cursor"):
            cursors[0].execute("SELECT 1")


def test_a_lost_connection_is_told_as_such_and_not_used_again(server: Server) -> None:
    engine = create_engine(server.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        number = connection.exec_driver_sql(ID[server.kind]).scalar_one()
        with create_engine(server.url, poolclass=NullPool).connect() as outside:
            outside.execute(text(END[server.kind].format(int(number))))
        with pytest.raises(DBAPIError) as lost:
            by_the_driver(connection, text("SELECT 1"), {}, first)
        assert lost.value.connection_invalidated
        assert connection.invalidated
    with engine.connect() as connection:
        assert connection.exec_driver_sql(ID[server.kind]).scalar_one() != number
    engine.dispose()


def test_an_interrupted_statement_takes_its_connection_along(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = create_engine(server.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        cursor = connection.connection.cursor()

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(type(cursor), "execute", interrupted)
        with pytest.raises(KeyboardInterrupt):
            by_the_driver(connection, text("SELECT 1"), {}, first)
        assert connection.invalidated
    monkeypatch.undo()
    engine.dispose()


def test_an_error_that_is_not_the_databases_passes_untouched(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/any.db", poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        with pytest.raises(OverflowError):  # the driver's: a number that has more than 64 bits
            by_the_driver(connection, text("SELECT :number"), {"number": 1 << 64}, first)
        assert by_the_driver(connection, text("SELECT :number"), {"number": 1}, first) == (1,)
