"""What the variables of a MariaDB or MySQL mean for idempo: plain functions of SHOW VARIABLES."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from idempo.doctor.findings import Finding, danger, ok, unknown, warning

__all__ = ["clusters", "durability", "isolation", "limits", "packets", "sql_mode", "writable"]

_RESULT = 1024 * 1024
_PACKET = 2 * _RESULT + 64 * 1024
"""A result of 1 MiB, each of its bytes escaped, and the statement around it."""


def _untold(check: str, name: str) -> Finding:
    return unknown(check, f"the server does not tell {name}", "see that it is MariaDB or MySQL, with InnoDB")


def writable(found: Mapping[str, str]) -> Finding:
    for name in ("super_read_only", "read_only", "innodb_read_only", "transaction_read_only", "tx_read_only"):
        if found.get(name, "OFF") not in ("OFF", "0"):
            return danger(
                "writable",
                f"{name} is {found[name]}: every call fails, except for users who may write all the same",
                f"give the URL of the server that takes writes, or SET GLOBAL {name} = OFF",
            )
    return ok("writable", "the server takes writes")


def durability(found: Mapping[str, str]) -> Iterator[Finding]:
    fine = "innodb_flush_log_at_trx_commit" in found
    flush = found.get("innodb_flush_log_at_trx_commit")
    if not fine:
        yield _untold("durability", "innodb_flush_log_at_trx_commit")
    if flush in ("0", "2"):
        fine = False
        says = f"innodb_flush_log_at_trx_commit is {flush}: a crash of the {{}} loses the commits of the last second"
        what = (
            ", and their operations run again. It breaks One result where the effect is elsewhere, or the record "
            "does not join the transaction"
        )
        mend = "SET GLOBAL innodb_flush_log_at_trx_commit = 1, in the configuration file too"
        if flush == "0":
            yield danger("durability", says.format("server") + what, mend)
        else:
            yield warning("durability", says.format("machine") + what, mend)
    if found.get("innodb_doublewrite", "ON") == "OFF":
        fine = False
        yield danger(
            "durability",
            "innodb_doublewrite is OFF: a crash of the machine can leave pages that are written by half",
            "innodb_doublewrite = ON in the configuration file, unless the file system writes pages whole",
        )
    if found.get("log_bin") == "ON" and found.get("sync_binlog") != "1":
        fine = False
        yield warning(
            "durability",
            f"sync_binlog is {found.get('sync_binlog')}: after a crash of the machine the binary log lacks commits "
            "that were acknowledged, so replicas lack them, and the server may undo them",
            "SET GLOBAL sync_binlog = 1, in the configuration file too",
        )
    if fine:
        yield ok("durability", "a commit is on the disk before it is acknowledged")


def clusters(found: Mapping[str, str]) -> Iterator[Finding]:
    if found.get("wsrep_on") == "ON":
        yield warning(
            "cluster",
            "this is a Galera node: a lock does not reach the other nodes, so of callers of one key on two nodes "
            "one is refused at its commit (1213); with join= that is after its function has run, which is undone",
            "send all calls of idempo to one node, and let a proxy choose another when it fails",
        )
    if (
        found.get("group_replication_group_name")
        and found.get("group_replication_single_primary_mode") == "OFF"
    ):
        yield warning(
            "cluster",
            "this is a group with several primaries: of callers of one key on two of them one is refused at its "
            "commit; with join= that is after its function has run, which is undone",
            "group_replication_single_primary_mode = ON, or send all calls of idempo to one member",
        )


def isolation(found: Mapping[str, str]) -> Finding:
    level = found.get("transaction_isolation") or found.get("tx_isolation", "")
    if not level:
        return _untold("isolation", "transaction_isolation")
    if level == "READ-UNCOMMITTED":
        return warning(
            "isolation",
            "the default isolation is READ-UNCOMMITTED: idempo's own reading takes only what is committed, but your "
            "functions decide by what may be rolled back",
            "SET GLOBAL transaction_isolation = 'READ-COMMITTED', in the configuration file too",
        )
    if level == "SERIALIZABLE":
        return warning(
            "isolation",
            "the default isolation is SERIALIZABLE: each reading takes locks, and deadlocks (1213) are more. "
            "idempo tries its own transactions again; in yours the error reaches you",
            "create_engine(..., isolation_level='READ COMMITTED'), unless your functions need it",
        )
    if found.get("log_bin") == "ON" and found.get("binlog_format") == "STATEMENT":
        return warning(
            "isolation",
            "binlog_format is STATEMENT: the server refuses writes at READ COMMITTED (1665), so `idempo purge` fails, "
            "and transactions of yours at that level do",
            "SET GLOBAL binlog_format = 'ROW', in the configuration file too",
        )
    return ok("isolation", f"the default isolation is {level}")


def sql_mode(found: Mapping[str, str]) -> Finding:
    modes = set(found.get("sql_mode", "").split(","))
    if modes & {"STRICT_TRANS_TABLES", "STRICT_ALL_TABLES", "TRADITIONAL"}:
        return ok("sql_mode", "sql_mode is strict")
    return warning(
        "sql_mode",
        "sql_mode is not strict: a value that is too long is cut off without an error. idempo's own columns hold "
        "what it stores, up to a max_result= of 16 MiB; your functions' columns may not",
        "SET GLOBAL sql_mode = CONCAT(@@GLOBAL.sql_mode, ',STRICT_TRANS_TABLES'), in the configuration file too",
    )


def packets(found: Mapping[str, str]) -> Finding:
    if "max_allowed_packet" not in found:
        return _untold("packets", "max_allowed_packet")
    size = int(found.get("max_allowed_packet", 0))
    if size >= _PACKET:
        return ok("packets", f"max_allowed_packet is {size >> 10} KiB, enough for a result of 1 MiB")
    return danger(
        "packets",
        f"max_allowed_packet is {size >> 10} KiB: a result of 1 MiB (max_result=) may not fit when it is escaped; "
        "then the completion fails after the function ran, and the outcome is unknown",
        "SET GLOBAL max_allowed_packet = 16777216, in the configuration file too; or a smaller max_result=",
    )


def limits(found: Mapping[str, str]) -> Finding:
    low = []
    if 0 < int(found.get("wait_timeout", 0)) < 30:
        low.append(
            f"wait_timeout is {found['wait_timeout']} s: a joined function that is busy elsewhere loses its "
            "transaction"
        )
    if 0 < int(found.get("innodb_lock_wait_timeout", 0)) < 3:
        low.append(
            f"innodb_lock_wait_timeout is {found['innodb_lock_wait_timeout']} s: a function's own statement gives "
            "up a lock that is held for a moment"
        )
    if low:
        return warning("time limits", "; ".join(low), "raise them: SET GLOBAL, and in the configuration file")
    return ok("time limits", "no time limit of the server cuts a call off")
