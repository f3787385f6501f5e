"""The doctor on a real PostgreSQL whose settings and table are changed for the worse, and behind PgBouncer."""

import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, make_url
from sqlalchemy.pool import NullPool

from idempo import IdempoError, LedgerUnavailableError, UniqueInsert, idempotent
from idempo.doctor import postgresql_checks, sql_checks
from idempo.doctor.poolers import Seen, judged
from idempo.doctor.postgresql_checks import limits, replication, version
from tests.doctor.pgbouncer import pgbouncer
from tests.doctor.support import about, bad, examined, execute, initialised, level
from tests.provide.processes import Local, poll
from tests.servers import Server, fresh_database, start


@pytest.fixture(scope="module")
def own() -> Iterator[Server]:
    with start("postgres") as server:
        yield server


@pytest.fixture
def url(own: Server) -> str:
    """A fresh database with the table that `idempo init` makes, on a durable server."""
    return initialised(fresh_database(own))


def name_of(url: str) -> str:
    return str(make_url(url).database)


def test_a_fresh_table_on_a_durable_server_has_nothing_bad(url: str) -> None:
    found = examined(url)
    assert bad(found) == []
    checked = {
        "version",
        "writable",
        "durability",
        "replication",
        "isolation",
        "time limits",
        "proxy",
        "clock",
    }
    assert {finding.check for finding in found} == checked | {
        *("table", "columns", "unique key", "index", "rights", "retention"),
    }


@pytest.mark.parametrize(
    ("check", "setting", "expected"),
    [
        ("durability", "synchronous_commit = off", "danger"),
        ("durability", "synchronous_commit = local", "ok"),
        ("writable", "default_transaction_read_only = on", "danger"),
        ("isolation", "default_transaction_isolation = 'serializable'", "warning"),
        ("isolation", "default_transaction_isolation = 'repeatable read'", "warning"),
        ("time limits", "statement_timeout = '5s'", "warning"),
        ("time limits", "statement_timeout = '1min'", "ok"),
        ("time limits", "lock_timeout = '100ms'", "warning"),
        ("time limits", "idle_in_transaction_session_timeout = '10s'", "warning"),
    ],
)
def test_a_setting_of_the_database_is_found(url: str, check: str, setting: str, expected: str) -> None:
    assert level(check, url) == "ok"
    execute(url, f"ALTER DATABASE {name_of(url)} SET {setting}")
    assert level(check, url) == expected


@pytest.mark.parametrize(
    ("check", "setting", "expected"),
    [
        ("durability", "full_page_writes", "danger"),
        ("autovacuum", "autovacuum", "warning"),
    ],
)
def test_a_setting_of_the_server_is_found(
    own: Server, url: str, check: str, setting: str, expected: str
) -> None:
    before = shown(own.url, setting)
    assert "off" not in before
    execute(own.url, f"ALTER SYSTEM SET {setting} = off", "SELECT pg_reload_conf()")
    try:
        poll(lambda: expect(shown(own.url, setting) == "off"), seconds=30)
        assert level(check, url) == expected
    finally:
        execute(own.url, f"ALTER SYSTEM SET {setting} = on", "SELECT pg_reload_conf()")
        poll(lambda: expect(shown(own.url, setting) == "on"), seconds=30)


def test_a_server_without_fsync_is_found(postgres: Server) -> None:
    if shown(postgres.url, "fsync") == "on":
        pytest.skip("the shared server is durable: it was named in the environment, or comes from Docker")
    found = about("durability", examined(fresh_database(postgres)))
    assert [finding.level for finding in found] == ["danger"]
    assert "fsync is off" in found[0].says


def shown(url: str, setting: str) -> str:
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        row = connection.execute("SELECT current_setting(%s)", [setting]).fetchone()
    assert row is not None
    return str(row[0])


def expect(true: bool) -> None:
    assert true


# ------------------------------------------------------------------------------------------ the table


def test_a_missing_table_is_found_and_not_made(own: Server) -> None:
    url = fresh_database(own)
    for _ in range(2):
        assert level("table", url) == "danger"
    assert "idempo init URL" in about("table", examined(url))[0].mend
    initialised(url)
    assert level("table", url) == "ok"
    other = examined(url, table="other_records")
    assert "other_records" in about("table", other)[0].says


@pytest.mark.parametrize(
    ("check", "statement", "expected"),
    [
        ("table", "ALTER TABLE idempo_records SET UNLOGGED", "danger"),
        ("autovacuum", "ALTER TABLE idempo_records SET (autovacuum_enabled = false)", "warning"),
        ("index", "DROP INDEX idempo_records_keep_until", "warning"),
        (
            "index",
            "DROP INDEX idempo_records_keep_until; CREATE INDEX other ON idempo_records (state, keep_until)",
            "warning",
        ),
        ("unique key", "ALTER TABLE idempo_records DROP CONSTRAINT idempo_records_pkey", "danger"),
        (
            "unique key",
            "ALTER TABLE idempo_records DROP CONSTRAINT idempo_records_pkey, ADD PRIMARY KEY (digest) DEFERRABLE",
            "danger",
        ),
        (
            "unique key",
            "ALTER TABLE idempo_records DROP CONSTRAINT idempo_records_pkey, ADD PRIMARY KEY (digest, state)",
            "danger",
        ),
        (
            "unique key",
            "ALTER TABLE idempo_records DROP CONSTRAINT idempo_records_pkey, ADD UNIQUE (digest)",
            "ok",
        ),
        ("columns", "ALTER TABLE idempo_records DROP COLUMN result", "danger"),
        ("columns", "ALTER TABLE idempo_records ALTER lease_until TYPE integer", "danger"),
        ("columns", "ALTER TABLE idempo_records ALTER operation TYPE varchar(50)", "danger"),
        ("columns", "ALTER TABLE idempo_records ALTER operation TYPE text", "ok"),
        ("columns", "ALTER TABLE idempo_records ALTER result TYPE text USING ''", "danger"),
        ("columns", "ALTER TABLE idempo_records ALTER completed_at SET NOT NULL", "danger"),
        ("columns", "ALTER TABLE idempo_records ADD COLUMN mine integer NOT NULL", "danger"),
        ("columns", "ALTER TABLE idempo_records ADD COLUMN mine integer NOT NULL DEFAULT 0", "ok"),
    ],
)
def test_a_table_that_was_changed_is_found(url: str, check: str, statement: str, expected: str) -> None:
    execute(url, statement)
    assert level(check, url) == expected


@pytest.mark.parametrize("instead", ["", ", ADD PRIMARY KEY (digest) DEFERRABLE"])
def test_without_a_unique_key_calls_fail_as_it_says(url: str, instead: str) -> None:
    execute(url, f"ALTER TABLE idempo_records DROP CONSTRAINT idempo_records_pkey{instead}")
    assert "every call fails" in about("unique key", examined(url))[0].says
    with pytest.raises(LedgerUnavailableError):
        calling(url)


def test_it_names_the_column_that_is_wrong(url: str) -> None:
    execute(url, "ALTER TABLE idempo_records DROP COLUMN fence")
    worst = examined(url)[0]
    assert worst.check == "columns"
    assert "fence is missing" in worst.says


@pytest.mark.parametrize(
    ("granted", "expected"),
    [("SELECT, INSERT, UPDATE, DELETE", "ok"), ("SELECT, INSERT, UPDATE", "warning"), ("SELECT", "danger")],
)
def test_rights_on_the_table_that_are_missing_are_found(
    own: Server, url: str, granted: str, expected: str
) -> None:
    role = f"clerk_{name_of(url)}"
    execute(url, f"CREATE ROLE {role} LOGIN", f"GRANT {granted} ON idempo_records TO {role}")
    theirs = make_url(url).set(username=role).render_as_string(hide_password=False)
    assert level("rights", theirs) == expected


# ------------------------------------------------------------------------------------------ standbys


def test_a_standby_is_found() -> None:
    with start("postgres") as server:
        if not isinstance(server.engine, Local):
            pytest.skip("a standby is made in the server's own folder, which Docker hides")
        url = initialised(fresh_database(server))
        server.kill()
        (server.engine._folder / "data" / "standby.signal").touch()
        server.start()
        assert level("writable", url) == "danger"
        with pytest.raises(IdempoError):
            calling(url)


def test_a_standby_that_no_commit_waits_for_is_found(own: Server, url: str) -> None:
    """As a standby does it: ask for the log from here on, and leave the stream open."""
    dsn = own.url.replace("+psycopg", "") + "?replication=true"
    with psycopg.connect(dsn, autocommit=True) as stream:
        position = stream.pgconn.exec_(b"IDENTIFY_SYSTEM").get_value(0, 2)
        assert position is not None
        assert level("replication", url) == "ok"  # connected, but not streaming
        stream.pgconn.exec_(b"START_REPLICATION PHYSICAL " + position)
        poll(lambda: expect(level("replication", url) == "warning"), seconds=30)
        stream.pgconn.finish()


def test_a_standby_that_commits_wait_for_is_fine() -> None:
    waiting = {"synchronous_standby_names": "ANY 1 (*)", "synchronous_commit": "on"}
    assert replication(waiting, 1).level == "ok"
    assert replication({**waiting, "synchronous_commit": "local"}, 1).level == "warning"
    assert replication({**waiting, "synchronous_standby_names": ""}, 1).level == "warning"


def test_the_limit_of_newer_servers_is_known() -> None:
    """PostgreSQL 17 has it; older ones do not tell it at all."""
    assert limits({"transaction_timeout": "5000"}).level == "warning"
    assert limits({"transaction_timeout": "60000"}).level == "ok"
    assert limits({}).level == "ok"


def test_an_old_server_is_refused() -> None:
    assert version({"server_version_num": "120020", "server_version": "12.20"}).level == "danger"
    assert version({"server_version_num": "130000", "server_version": "13.0"}).level == "ok"


# ------------------------------------------------------------------------------------------ poolers


def calling(*urls: Any, times: int = 10) -> None:
    """Call in turns over several ledgers of one store, each with a connection of its own."""
    ledgers = [UniqueInsert(one) for one in urls]
    try:
        for number in range(times):
            for at, ledger in enumerate(ledgers):

                @idempotent(key="{number}", using=ledger, name=f"doctor.calling_{at}", lease=1)
                def call(number: int) -> str:
                    return "done"

                assert call(number) == "done"
    finally:
        for ledger in ledgers:
            ledger.close()


def engine_for(url: str) -> Any:
    return create_engine(url, connect_args={"prepare_threshold": None}, poolclass=NullPool)


def test_a_pooler_of_transactions_that_forgets_prepared_statements_is_a_danger(own: Server) -> None:
    """And the danger is real: idempo fails there, and does not once it is mended as the finding says."""
    with pgbouncer(own, "transaction") as url:
        initialised(url)
        (found,) = about("proxy", examined(url))
        assert found.level == "danger"
        assert "prepare_threshold" in found.mend
        with pytest.raises(LedgerUnavailableError) as failed:
            calling(url, url)
        assert "prepared statement" in str(failed.value.__cause__)
        engines = [engine_for(url) for _ in range(2)]
        functions = [leased(engine, at) for at, engine in enumerate(engines)]
        assert [call(number) for number in range(10) for call in functions] == ["done"] * 20


def leased(engine: Any, at: int) -> Any:
    @idempotent(key="{number}", using=UniqueInsert(engine), name=f"doctor.leased_{at}")
    def call(number: int) -> str:
        return "done"

    return call


@pytest.mark.parametrize("settings", ["server_round_robin = 1", "default_pool_size = 1"])
def test_however_a_pooler_deals_out_sessions_it_is_found(own: Server, settings: str) -> None:
    with pgbouncer(own, "transaction", settings=settings) as url:
        assert level("proxy", url) == "danger"


def test_a_pooler_of_transactions_that_follows_prepared_statements_is_a_warning(own: Server) -> None:
    with pgbouncer(own, "transaction", newest=True, settings="max_prepared_statements = 200") as url:
        initialised(url)
        assert level("proxy", url) == "warning"
        calling(url, url)
    with pgbouncer(own, "transaction", newest=True, settings="max_prepared_statements = 0") as url:
        assert level("proxy", url) == "danger"


def test_a_pooler_of_sessions_is_fine(own: Server) -> None:
    with pgbouncer(own, "session") as url:
        (found,) = about("proxy", examined(url))
        assert found.level == "ok"
        assert "a proxy stands between" in found.says


def test_a_pooler_without_a_connection_to_spare_is_unknown(
    own: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_checks, "_SECONDS", 4.0)
    with pgbouncer(own, "session", settings="max_client_conn = 1") as url:
        (found,) = about("proxy", examined(url))
    assert found.level == "unknown"


def test_no_prepared_statement_stays_behind_in_the_poolers_sessions(own: Server) -> None:
    with pgbouncer(own, "transaction") as url:
        examined(url)
        dsn = url.replace("+psycopg", "")
        with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as one:
            with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as two:
                with one.transaction(), two.transaction():  # both sessions that the doctor can have had
                    for connection in (one, two):
                        assert connection.execute("SELECT name FROM pg_prepared_statements").fetchall() == []


def test_who_served_and_who_was_announced_decides() -> None:
    assert "of its own" in judged(Seen([1, 2], [[1, 1], [2, 2]])).says
    assert "a proxy" in judged(Seen([901, 902], [[1, 1], [2, 2]])).says
    assert judged(Seen([901, 902], [[1, 1], [1, 1]], prepared=False)).level == "danger"
    assert judged(Seen([901, 902], [[1, 2], [3, 3]], prepared=False)).level == "danger"
    assert judged(Seen([901, 902], [[1, 2], [2, 1]], prepared=True)).level == "warning"


# ------------------------------------------------------------------------------------------ a server in trouble


def test_a_clock_that_is_off_is_found(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr("idempo.doctor.clocks.time.time", lambda: real() - 30)
    (found,) = about("clock", examined(url))
    assert found.level == "warning"
    assert "30.0 s ahead of" in found.says


def test_a_server_that_hangs_is_given_up() -> None:
    with start("postgres") as server:
        url = fresh_database(server)
        server.pause()
        with pytest.raises(LedgerUnavailableError):
            examined(url)
        server.resume()


def test_a_server_that_hangs_in_the_middle_is_given_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_checks, "_SECONDS", 4.0)
    monkeypatch.setattr(
        postgresql_checks,
        "_writable",
        lambda connection, _: connection.exec_driver_sql("SELECT pg_sleep(600)"),
    )
    with pytest.raises(LedgerUnavailableError):
        examined(url)


def test_a_server_that_does_not_tell_its_settings_is_never_ok(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As something that merely speaks like PostgreSQL may do."""
    monkeypatch.setattr(postgresql_checks, "_ASKED", (*postgresql_checks._ASKED, "no_such_setting"))
    found = examined(url)
    assert [(one.check, one.level) for one in bad(found)] == [("settings", "unknown")]
    assert not about("durability", found)


def test_what_the_server_refuses_to_tell_is_unknown(url: str) -> None:
    role = f"nosy_{name_of(url)}"
    execute(
        url,
        f"CREATE ROLE {role} LOGIN",
        "REVOKE SELECT ON pg_stat_replication FROM PUBLIC",
        f"GRANT ALL ON idempo_records TO {role}",
    )
    theirs = make_url(url).set(username=role).render_as_string(hide_password=False)
    found = examined(theirs)
    assert [(one.check, one.level) for one in bad(found)] == [("replication", "unknown")]
    assert "permission denied" in about("replication", found)[0].says
