"""The doctor on real MariaDB and MySQL servers, whose settings and tables are changed for the worse."""

from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, make_url
from sqlalchemy.pool import NullPool

from idempo import LedgerUnavailableError, OutcomeUnknownError, UniqueInsert, idempotent
from idempo.doctor.mysql_checks import version
from idempo.doctor.mysql_settings import _PACKET, clusters, durability, isolation, packets, writable
from tests.doctor.support import about, bad, examined, execute, initialised, level
from tests.servers import Server, fresh_database, start


@pytest.fixture(scope="module", params=["mariadb", "mysql"])
def own(request: pytest.FixtureRequest) -> Iterator[Server]:
    with start(request.param) as server:
        yield server


@pytest.fixture
def url(own: Server) -> str:
    """A fresh database with the table that `idempo init` makes, on a durable server."""
    return initialised(fresh_database(own))


def test_a_fresh_table_on_a_durable_server_has_nothing_bad(url: str) -> None:
    found = examined(url)
    assert bad(found) == []
    checked = {
        "version",
        "writable",
        "durability",
        "replication",
        "isolation",
        "sql_mode",
        "packets",
        "clock",
    }
    assert {finding.check for finding in found} == checked | {
        *("time limits", "table", "columns", "characters", "unique key", "index", "rights", "retention"),
    }


@pytest.mark.parametrize(
    ("check", "name", "value", "expected"),
    [
        ("durability", "innodb_flush_log_at_trx_commit", "0", "danger"),
        ("durability", "innodb_flush_log_at_trx_commit", "2", "warning"),
        ("writable", "read_only", "ON", "danger"),
        ("sql_mode", "sql_mode", "''", "warning"),
        ("packets", "max_allowed_packet", "1048576", "danger"),
        ("packets", "max_allowed_packet", "4194304", "ok"),
        ("time limits", "wait_timeout", "10", "warning"),
        ("time limits", "innodb_lock_wait_timeout", "1", "warning"),
        ("isolation", "transaction_isolation", "'READ-UNCOMMITTED'", "warning"),
        ("isolation", "transaction_isolation", "'SERIALIZABLE'", "warning"),
        ("isolation", "transaction_isolation", "'READ-COMMITTED'", "ok"),
    ],
)
def test_a_setting_is_found(own: Server, url: str, check: str, name: str, value: str, expected: str) -> None:
    if own.kind == "mariadb":
        name = name.replace("transaction_isolation", "tx_isolation")
    assert level(check, url) == "ok"
    before = variable(own.url, name)
    execute(own.url, f"SET GLOBAL {name} = {value}")
    try:
        assert level(check, url) == expected
    finally:
        text = before if before.isdigit() or before in ("ON", "OFF") else f"'{before}'"
        execute(own.url, f"SET GLOBAL {name} = {text}")
    assert level(check, url) == "ok"


def variable(url: str, name: str) -> str:
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        row = connection.exec_driver_sql(f"SHOW GLOBAL VARIABLES LIKE '{name}'").one()
    return str(row[1])


def test_a_result_does_not_fit_a_packet_that_is_called_too_small_and_fits_the_next_one(
    own: Server, url: str
) -> None:
    """The worst result: each of its bytes is escaped on its way."""
    before = variable(own.url, "max_allowed_packet")
    size = 1024 * 1024 - 64
    try:
        execute(own.url, "SET GLOBAL max_allowed_packet = 1048576")
        assert level("packets", url) == "danger"
        with pytest.raises(OutcomeUnknownError):
            returning(url, size)
        execute(own.url, f"SET GLOBAL max_allowed_packet = {_PACKET}")
        assert level("packets", url) == "ok"
        assert returning(url, size, name="doctor.fits") == size
    finally:
        execute(own.url, f"SET GLOBAL max_allowed_packet = {before}")


def returning(url: str, size: int, name: str = "doctor.large") -> int:
    ledger = UniqueInsert(url)

    @idempotent(key="{number}", using=ledger, name=name, lease=2)
    def call(number: str) -> bytes:
        return b"'" * size

    try:
        return len(call("A-1"))
    finally:
        ledger.close()


def test_a_missing_table_is_found_and_not_made(own: Server) -> None:
    url = fresh_database(own)
    for _ in range(2):
        assert level("table", url) == "danger"


@pytest.mark.parametrize(
    ("check", "change", "expected"),
    [
        ("table", "ENGINE = MyISAM", "danger"),
        ("index", "DROP INDEX idempo_records_keep_until", "warning"),
        ("unique key", "DROP PRIMARY KEY", "danger"),
        ("unique key", "DROP PRIMARY KEY, ADD PRIMARY KEY (digest, state)", "danger"),
        ("unique key", "DROP PRIMARY KEY, ADD UNIQUE (digest)", "ok"),
        ("columns", "MODIFY result BLOB", "danger"),
        ("columns", "MODIFY result LONGBLOB", "ok"),
        ("columns", "MODIFY digest BINARY(16) NOT NULL", "danger"),
        ("columns", "MODIFY digest VARBINARY(32) NOT NULL", "ok"),
        ("columns", "MODIFY digest VARCHAR(32) NOT NULL", "danger"),
        ("columns", "MODIFY owner VARBINARY(8) NOT NULL", "danger"),
        ("columns", "MODIFY fence INT NOT NULL", "danger"),
        ("columns", "MODIFY attempt SMALLINT NOT NULL", "danger"),
        ("columns", "DROP COLUMN result", "danger"),
        ("columns", "ADD COLUMN mine INT NOT NULL", "danger"),
        ("columns", "ADD COLUMN mine INT NOT NULL DEFAULT 0", "ok"),
        ("characters", "MODIFY business_key VARCHAR(255) CHARACTER SET latin1 NOT NULL", "danger"),
        ("characters", "MODIFY state VARCHAR(16) CHARACTER SET latin1 NOT NULL", "ok"),
    ],
)
def test_a_table_that_was_changed_is_found(url: str, check: str, change: str, expected: str) -> None:
    execute(url, f"ALTER TABLE idempo_records {change}")
    assert level(check, url) == expected


@pytest.mark.parametrize(
    ("granted", "expected"),
    [("SELECT, INSERT, UPDATE, DELETE", "ok"), ("SELECT, INSERT, UPDATE", "warning"), ("SELECT", "danger")],
)
def test_rights_that_are_missing_are_found_and_what_may_not_be_asked_is_unknown(
    own: Server, url: str, granted: str, expected: str
) -> None:
    host = "%" if own.kind == "mariadb" else "127.0.0.1"
    user, table = f"c_{make_url(url).database}"[:30], f"{make_url(url).database}.idempo_records"
    named = f"{user}@'{host}'".replace("%", "%%")
    execute(own.url, f"CREATE USER {named} IDENTIFIED BY ''", f"GRANT {granted} ON {table} TO {named}")
    theirs = make_url(url).set(username=user).render_as_string(hide_password=False)
    assert level("rights", theirs) == expected
    assert level("replication", theirs) == "unknown"


def test_a_replica_is_found(own: Server, url: str) -> None:
    new = own.kind == "mysql"
    execute(
        own.url,
        "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = 1"
        if new
        else "CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = 1",
    )
    try:
        assert level("replication", url) == "danger"
    finally:
        execute(own.url, "RESET REPLICA ALL" if new else "RESET SLAVE ALL")
    assert level("replication", url) == "ok"


def test_looking_changes_nothing(own: Server, url: str) -> None:
    """EXPLAIN INSERT and its like are only explained."""
    examined(url)
    with create_engine(url, poolclass=NullPool).connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM idempo_records").scalar() == 0


def test_clusters_and_binary_logs_are_known_by_their_variables() -> None:
    """Not on real ones: a Galera or a group takes several machines."""
    assert [one.level for one in clusters({"wsrep_on": "ON"})] == ["warning"]
    assert list(clusters({"wsrep_on": "OFF"})) == []
    group = {"group_replication_group_name": "aaaa", "group_replication_single_primary_mode": "OFF"}
    assert [one.level for one in clusters(group)] == ["warning"]
    assert list(clusters({**group, "group_replication_single_primary_mode": "ON"})) == []
    flushed = {"innodb_flush_log_at_trx_commit": "1"}
    assert [one.level for one in durability({**flushed, "log_bin": "ON", "sync_binlog": "0"})] == ["warning"]
    assert [one.level for one in durability({**flushed, "log_bin": "ON", "sync_binlog": "1"})] == ["ok"]
    assert [one.level for one in durability({**flushed, "innodb_doublewrite": "OFF"})] == ["danger"]
    assert writable({"super_read_only": "ON"}).level == "danger"


def test_a_server_that_tells_nothing_is_never_ok() -> None:
    for found in (*durability({}), isolation({}), packets({})):
        assert found.level == "unknown"


def test_old_versions_are_refused() -> None:
    assert version("5.7.44-log", mariadb=False).level == "danger"
    assert version("8.0.30", mariadb=False).level == "ok"
    assert version("10.5.27-MariaDB", mariadb=True).level == "danger"
    assert version("5.5.5-10.6.12-MariaDB-log", mariadb=True).level == "ok"
    assert version("11.4.2-MariaDB", mariadb=True).level == "ok"
    assert version("odd", mariadb=True).level == "unknown"


def test_a_server_that_hangs_is_given_up() -> None:
    with start("mariadb") as server:
        url = fresh_database(server)
        server.pause()
        with pytest.raises(LedgerUnavailableError):
            examined(url)
        server.resume()


def test_the_clock_is_compared(url: str) -> None:
    (found,) = about("clock", examined(url))
    assert found.level == "ok"


@pytest.mark.parametrize(
    ("log_bin", "binlog_format", "expected"),
    [
        ("ON", "STATEMENT", "warning"),
        ("ON", "ROW", "ok"),
        ("ON", "MIXED", "ok"),
        ("OFF", "STATEMENT", "ok"),
    ],
)
def test_a_log_of_statements_refuses_purges(log_bin: str, binlog_format: str, expected: str) -> None:
    settings = {
        "transaction_isolation": "REPEATABLE-READ",
        "log_bin": log_bin,
        "binlog_format": binlog_format,
    }
    assert isolation(settings).level == expected
