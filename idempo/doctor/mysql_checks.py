"""What is looked at in a MariaDB or MySQL.

Sources: MySQL Reference Manual, "Server System Variables", "InnoDB Startup Options and System Variables", "Server SQL
Modes", "EXPLAIN Statement" (which needs the rights of the statement it explains); MariaDB Knowledge Base, "Galera
Cluster System Variables", "SHOW REPLICA STATUS".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError

from idempo.doctor import table_checks
from idempo.doctor.clocks import offset_finding
from idempo.doctor.findings import Finding, danger, ok, unknown
from idempo.doctor.looking import Looking
from idempo.doctor.mysql_settings import (
    clusters,
    durability,
    isolation,
    limits,
    packets,
    sql_mode,
    writable,
)
from idempo.failures import codes
from idempo.schema import dialect_of
from idempo.sql import MICROSECONDS, Records

__all__ = ["checks"]

_DENIED = (1142, 1143)  # a table, a column
_OLDEST = {True: (10, 6), False: (8, 0)}
"""MariaDB, MySQL."""


def checks(connection: Connection, records: Records) -> Iterator[Looking]:
    found = {str(name): str(value) for name, value in connection.execute(text("SHOW VARIABLES"))}
    mariadb = bool(getattr(connection.dialect, "is_mariadb", False))
    yield "version", lambda: [version(found["version"], mariadb)]
    yield "writable", lambda: [writable(found)]
    yield "durability", lambda: durability(found)
    yield "replication", lambda: _replication(connection)
    yield "clusters", lambda: clusters(found)
    yield "isolation", lambda: [isolation(found)]
    yield "sql_mode", lambda: [sql_mode(found)]
    yield "packets", lambda: [packets(found)]
    yield "time limits", lambda: [limits(found)]
    yield "clock", lambda: [offset_finding(_clock(connection, records))]
    if not inspect(connection).has_table(records.name):
        yield "table", lambda: [table_checks.missing(records)]
        return
    yield "table", lambda: _table(connection, records)
    yield "columns", lambda: table_checks.columns(connection, records)
    yield "characters", lambda: _characters(connection, records)
    yield "unique key", lambda: table_checks.unique_key(connection, records)
    yield "index", lambda: table_checks.index(connection, records)
    yield "rights", lambda: [table_checks.rights(records, _lacking(connection, records))]


def version(said: str, mariadb: bool) -> Finding:
    name = "MariaDB" if mariadb else "MySQL"
    parts = re.search(r"(\d+)\.(\d+)\.(\d+)", said.removeprefix("5.5.5-"))
    if parts is None:
        return unknown(
            "version", f"the server says it is {said}", "see that it is MariaDB 10.6, MySQL 8, or newer"
        )
    if (int(parts[1]), int(parts[2])) < _OLDEST[mariadb]:
        least = ".".join(map(str, _OLDEST[mariadb]))
        return danger(
            "version", f"{name} {parts[0]} is older than {least}, which idempo needs", "update the server"
        )
    return ok("version", f"{name} {parts[0]}")


def _clock(connection: Connection, records: Records) -> Callable[[], float]:
    clock = text(f"SELECT {dialect_of(connection, records).clock}")
    return lambda: int(connection.scalar(clock) or 0) / MICROSECONDS


def _replication(connection: Connection) -> Iterator[Finding]:
    """Needs REPLICATION CLIENT, in MariaDB REPLICA MONITOR."""
    if connection.exec_driver_sql("SHOW REPLICA STATUS").fetchone() is None:
        yield ok("replication", "this is no replica")
        return
    yield danger(
        "replication",
        "this is a replica of another server: claims that are made here are not seen there, nor in a failover. It "
        "breaks Single claim",
        "give the URL of the primary",
    )


def _table(connection: Connection, records: Records) -> Iterator[Finding]:
    engine = connection.scalar(
        text(
            "SELECT engine FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = :name"
        ),
        {"name": records.name},
    )
    if str(engine).lower() == "innodb":
        yield ok("table", f"the table {records.name} is there, and is InnoDB")
        return
    yield danger(
        "table",
        f"{records.name} is {engine}, which has no transactions: with join=, the record of a first result stays "
        "when the business writes are rolled back, and a crash can corrupt the table. It breaks One result",
        f"ALTER TABLE {records.name} ENGINE = InnoDB",
    )


def _characters(connection: Connection, records: Records) -> Iterator[Finding]:
    rows = connection.execute(
        text(
            "SELECT column_name, collation_name FROM information_schema.columns "
            "WHERE table_schema = DATABASE() AND table_name = :name AND collation_name IS NOT NULL"
        ),
        {"name": records.name},
    )
    readable = {"operation", "scope", "business_key"}
    wrong = [
        f"{name} is {sort}" for name, sort in rows if name in readable and not sort.startswith("utf8mb4")
    ]
    if not wrong:
        yield ok("characters", "keys are stored in utf8mb4")
        return
    yield danger(
        "characters",
        f"{', '.join(wrong)}: a key or scope with other characters, such as an emoji, cannot be claimed",
        f"ALTER TABLE {records.name} MODIFY each of them VARCHAR(255) CHARACTER SET utf8mb4 "
        "COLLATE utf8mb4_bin NOT NULL",
    )


def _lacking(connection: Connection, records: Records) -> list[str]:
    """Which rights on the table this user lacks, found out by explaining statements, which runs none of them."""
    table = connection.dialect.identifier_preparer.quote(records.name)
    statements = {
        "SELECT": f"SELECT state FROM {table} WHERE digest = ''",  # noqa: S608 - a quoted name
        "INSERT": f"INSERT INTO {table} (digest) VALUES ('')",  # noqa: S608
        "UPDATE": f"UPDATE {table} SET state = 'x' WHERE digest = ''",  # noqa: S608
        "DELETE": f"DELETE FROM {table} WHERE digest = ''",  # noqa: S608
    }
    lacking = []
    for name, statement in statements.items():
        try:
            connection.exec_driver_sql(f"EXPLAIN {statement}")
        except DBAPIError as error:
            if codes(error)[1] not in _DENIED:
                raise
            lacking.append(name)
    return lacking
