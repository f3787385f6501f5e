"""What is looked at in a PostgreSQL.

Sources: PostgreSQL manual, "Server Configuration" (Write Ahead Log, Replication, Client Connection Defaults), "CREATE
TABLE" (UNLOGGED, storage parameters), "System Information Functions", and the catalog pg_index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Connection, inspect, text

from idempo.doctor import poolers, table_checks
from idempo.doctor.clocks import offset_finding
from idempo.doctor.findings import Finding, danger, ok, unknown, warning
from idempo.doctor.looking import Looking
from idempo.schema import dialect_of
from idempo.sql import MICROSECONDS, Records

__all__ = ["checks"]

_ASKED = (
    *(
        "server_version_num",
        "server_version",
        "synchronous_commit",
        "fsync",
        "full_page_writes",
        "autovacuum",
    ),
    *("default_transaction_isolation", "default_transaction_read_only", "synchronous_standby_names"),
)
_LIMITS = {
    "statement_timeout": (
        10_000,
        "a duplicate that waits in the database (wait=10 by default) is cut off by an error",
    ),
    "transaction_timeout": (30_000, "a joined function that takes longer loses its transaction"),
    "lock_timeout": (
        1_000,
        "a guard's or the function's own statement gives up a lock that is held for a moment",
    ),
    "idle_in_transaction_session_timeout": (
        30_000,
        "a joined function that is busy elsewhere loses its transaction",
    ),
}
"""Milliseconds below which a limit is felt, and by whom."""


def checks(
    connection: Connection, records: Records, another: Callable[[], AbstractContextManager[Any]]
) -> Iterator[Looking]:
    rows = connection.execute(
        text("SELECT name, setting FROM pg_settings WHERE name = ANY(:names)"), {"names": [*_ASKED, *_LIMITS]}
    )
    found: dict[str, str] = {str(name): str(setting) for name, setting in rows}
    if untold := [name for name in _ASKED if name not in found]:
        yield "settings", lambda: [_untold(untold)]
    else:
        yield "version", lambda: [version(found)]
        yield "writable", lambda: _writable(connection, found)
        yield "durability", lambda: durability(found)
        yield "replication", lambda: _replication(connection, found)
        yield "isolation", lambda: [isolation(found)]
        yield "time limits", lambda: [limits(found)]
    yield "proxy", lambda: poolers.proxy(connection.connection.driver_connection, another)
    yield "clock", lambda: [offset_finding(_clock(connection, records))]
    if not inspect(connection).has_table(records.name):
        yield "table", lambda: [table_checks.missing(records)]
        return
    name = connection.dialect.identifier_preparer.quote(records.name)
    yield "table", lambda: _table(connection, records, name, found)
    yield "columns", lambda: table_checks.columns(connection, records)
    yield "unique key", lambda: _unique(connection, records, name)
    yield "index", lambda: table_checks.index(connection, records)
    yield "rights", lambda: _rights(connection, records, name)


def _untold(names: list[str]) -> Finding:
    return unknown(
        "settings",
        f"the server does not tell {', '.join(names)}, so neither version, durability nor replication is known",
        "see that it is PostgreSQL 13 or newer, and not something that speaks like it",
    )


def version(found: dict[str, str]) -> Finding:
    if int(found["server_version_num"]) < 130_000:
        return danger(
            "version",
            f"PostgreSQL {found['server_version']} is older than 13, which idempo needs",
            "update the server",
        )
    return ok("version", f"PostgreSQL {found['server_version']}")


def _writable(connection: Connection, found: dict[str, str]) -> Iterator[Finding]:
    if connection.scalar(text("SELECT pg_is_in_recovery()")):
        yield danger(
            "writable",
            "this is a standby, which takes no writes: every call fails",
            "give the URL of the primary",
        )
    elif found["default_transaction_read_only"] == "on":
        yield danger(
            "writable",
            "default_transaction_read_only is on: every call fails",
            "ALTER ROLE, ALTER DATABASE or ALTER SYSTEM ... SET default_transaction_read_only = off",
        )
    else:
        yield ok("writable", "the server takes writes")


def durability(found: dict[str, str]) -> Iterator[Finding]:
    fine = True
    if found["synchronous_commit"] == "off":
        fine = False
        yield danger(
            "durability",
            "synchronous_commit is off: a crash loses claims and completions that were acknowledged, and their "
            "operations run again. It breaks One result where the effect is elsewhere, or the record does not join "
            "the transaction; joined effects are lost together with their record",
            "ALTER ROLE or ALTER SYSTEM SET synchronous_commit = on",
        )
    for name, what in (
        ("fsync", "a crash of the machine loses or corrupts what was acknowledged"),
        ("full_page_writes", "a crash of the machine can leave pages that are written by half"),
    ):
        if found[name] == "off":
            fine = False
            yield danger(
                "durability",
                f"{name} is off: {what}, joined or not. It breaks Single claim and One result",
                f"ALTER SYSTEM SET {name} = on, and SELECT pg_reload_conf()",
            )
    if fine:
        yield ok(
            "durability", f"a commit is on the disk first (synchronous_commit {found['synchronous_commit']})"
        )


def _replication(connection: Connection, found: dict[str, str]) -> Iterator[Finding]:
    # Without a right to know, the state is null. A backup is no standby.
    sql = "SELECT count(*) FROM pg_stat_replication WHERE coalesce(state, 'streaming') NOT IN ('startup', 'backup')"
    standbys = connection.scalar(text(sql))
    yield replication(found, int(standbys or 0))


def replication(found: dict[str, str], standbys: int) -> Finding:
    named = bool(found["synchronous_standby_names"].strip())
    if named and found["synchronous_commit"] in ("local", "off"):
        return warning(
            "replication",
            f"synchronous standbys are named, but synchronous_commit is {found['synchronous_commit']}, so nobody "
            "waits for them: a failover loses claims and results of the last moment",
            "ALTER SYSTEM SET synchronous_commit = on",
        )
    if named or not standbys:
        return ok("replication", "commits wait for a standby" if named else "no standby is connected")
    return warning(
        "replication",
        f"{standbys} standby{'s are' if standbys > 1 else ' is'} connected, and no commit waits for one "
        "(synchronous_standby_names is empty): a failover loses the claims and results of the last moment, and their "
        "operations run again; joined effects are lost with them",
        "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)', if you can wait for it",
    )


def isolation(found: dict[str, str]) -> Finding:
    level = found["default_transaction_isolation"]
    if level in ("read committed", "read uncommitted"):
        return ok("isolation", f"default_transaction_isolation is {level}")
    return warning(
        "isolation",
        f"default_transaction_isolation is {level}: callers of one key, and unrelated ones, meet more serialization "
        "failures (40001). idempo tries its own transactions again; in yours the error reaches you",
        "set the level where it is needed: create_engine(..., isolation_level='READ COMMITTED')",
    )


def limits(found: dict[str, str]) -> Finding:
    low = [
        f"{name} is {found[name]} ms: {what}"
        for name, (least, what) in _LIMITS.items()
        if 0 < int(found.get(name, 0)) < least
    ]
    if low:
        return warning(
            "time limits",
            "; ".join(low),
            "raise them for the role that idempo connects as: ALTER ROLE ... SET",
        )
    return ok("time limits", "no time limit of the server cuts a call off")


def _clock(connection: Connection, records: Records) -> Callable[[], float]:
    clock = text(f"SELECT {dialect_of(connection, records).clock}")
    return lambda: int(connection.scalar(clock) or 0) / MICROSECONDS


def _table(connection: Connection, records: Records, name: str, found: dict[str, str]) -> Iterator[Finding]:
    kept, options = connection.execute(
        text(
            "SELECT relpersistence, coalesce(reloptions, '{}') FROM pg_class WHERE oid = to_regclass(:name)"
        ),
        {"name": name},
    ).one()
    if kept == "u":
        yield danger(
            "table",
            f"{records.name} is UNLOGGED: a crash empties it, and a standby has none of it. It breaks Single claim "
            "and One result, joined or not",
            f"ALTER TABLE {records.name} SET LOGGED",
        )
    else:
        yield ok("table", f"the table {records.name} is there")
    off = {"autovacuum_enabled=false", "autovacuum_enabled=off", "autovacuum_enabled=0"} & set(options)
    if off or found.get("autovacuum") == "off":
        where = records.name if off else "the whole server"
        yield warning(
            "autovacuum",
            f"autovacuum is off for {where}: each claim and completion leaves a dead row, so the table grows and "
            "slows",
            f"ALTER TABLE {records.name} RESET (autovacuum_enabled)"
            if off
            else "ALTER SYSTEM SET autovacuum = on",
        )


def _unique(connection: Connection, records: Records, name: str) -> Iterator[Finding]:
    """ON CONFLICT takes a unique index that is valid, whole and not deferrable."""
    sql = (
        "SELECT count(*) FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid "
        "AND a.attname = 'digest' AND i.indkey[0] = a.attnum WHERE i.indrelid = to_regclass(:name) AND i.indisunique "
        "AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indnkeyatts = 1"
    )
    if connection.scalar(text(sql), {"name": name}):
        yield ok("unique key", f"a digest is unique in {records.name}")
        return
    yield danger(
        "unique key",
        f"{records.name} has no unique index on digest that ON CONFLICT takes: every call fails",
        f"ALTER TABLE {records.name} ADD PRIMARY KEY (digest), not deferrable",
    )


def _rights(connection: Connection, records: Records, name: str) -> Iterator[Finding]:
    asked = ("SELECT", "INSERT", "UPDATE", "DELETE")
    sql = ", ".join(f"has_table_privilege(to_regclass(:name)::oid, '{one}')" for one in asked)
    row = connection.execute(text(f"SELECT {sql}"), {"name": name}).one()
    yield table_checks.rights(records, [one for one, given in zip(asked, row, strict=True) if not given])
