"""What is looked at in a SQLite file.

Sources: SQLite documentation, "File Locking And Concurrency In SQLite Version 3" (network file systems), "Write-Ahead
Logging" (all processes on one machine), "PRAGMA Statements" (journal_mode, synchronous).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, Connection, create_engine, inspect, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool

from idempo.doctor import table_checks
from idempo.doctor.findings import Finding, danger, ok, unknown, warning
from idempo.doctor.looking import Looking, looked, said
from idempo.errors import LedgerUnavailableError
from idempo.sql import Records

__all__ = ["examine", "file_system", "in_memory"]

_SECONDS = 3.0
_NETWORK = {
    "nfs",
    "nfs3",
    "nfs4",
    "cifs",
    "smb2",
    "smb3",
    "smbfs",
    "afs",
    "9p",
    "ncpfs",
    "ceph",
    "lustre",
    "glusterfs",
}
_NETWORK |= {"fuse.sshfs", "fuse.s3fs", "fuse.glusterfs", "fuse.ceph", "fuse.rclone", "fuse.gcsfuse", "davfs"}
_IN_MEMORY = {"tmpfs", "ramfs"}


def in_memory(url: str) -> Finding | None:
    """The finding for a database that is no file; None for any other."""
    try:
        named = make_url(url)
    except ArgumentError:
        return None
    name = named.database or ""
    if named.get_backend_name() != "sqlite":
        return None
    if name not in ("", ":memory:") and "mode=memory" not in url and not name.startswith("file::memory:"):
        return None
    return danger(
        "file",
        "this database is in the memory of one process: other processes do not see its claims, and its end is "
        "theirs. It breaks Single claim and One result; idempo refuses such a URL",
        "name a file: sqlite:///idempo.db; in tests use Memory()",
    )


def examine(url: URL, records: Records) -> list[Finding]:
    path = Path(str(url.database).removeprefix("file:").partition("?")[0]).absolute()
    if not path.is_file():
        raise LedgerUnavailableError(f"there is no file {path}")
    # Read-only: nothing is made, not even by mistake.
    engine = create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=_SECONDS),
        poolclass=NullPool,
    )
    found = [version(sqlite3.sqlite_version_info), _writable(path), _file_system(path)]
    try:
        with engine.connect() as connection:
            found += looked(_checks(connection, records))
    except DBAPIError as error:
        if found[1].level == "ok":
            raise LedgerUnavailableError(f"the file {path} cannot be read: {said(error)}") from error
        found.append(unknown("table", f"the file cannot be read: {said(error)}", "mend the file first"))
    finally:
        engine.dispose()
    return found


def _checks(connection: Connection, records: Records) -> Iterator[Looking]:
    yield "journal", lambda: [_journal(connection)]
    if not inspect(connection).has_table(records.name):
        yield "table", lambda: [_missing(records)]
        return
    yield "table", lambda: [ok("table", f"the table {records.name} is there")]
    yield "columns", lambda: table_checks.columns(connection, records)
    yield "unique key", lambda: table_checks.unique_key(connection, records)
    yield "index", lambda: table_checks.index(connection, records)


def _missing(records: Records) -> Finding:
    return warning(
        "table",
        f"there is no table {records.name} in this file; the first call makes it. Is it the right file?",
        "idempo init URL",
    )


def version(found: tuple[int, int, int]) -> Finding:
    text = ".".join(map(str, found))
    if found < (3, 35, 0):
        return danger(
            "version", f"SQLite {text} is older than 3.35, which idempo needs", "a newer Python, or system"
        )
    return ok("version", f"SQLite {text}")


def _writable(path: Path) -> Finding:
    if not os.access(path, os.W_OK):
        return danger(
            "file", f"{path} is not writable for this user: every call fails", f"chmod u+w {path}, or chown"
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return danger(
            "file",
            f"the folder {path.parent} is not writable for this user, and SQLite keeps a journal beside the file: "
            "every call fails",
            "give this user the folder",
        )
    return ok("file", f"{path} and its folder are writable")


def _file_system(path: Path) -> Finding:
    try:
        mounts = Path("/proc/mounts").read_text()
    except OSError:
        return unknown(
            "file system",
            "this machine does not tell what the file lies on",
            "see that it is a disk of this machine, not a network file system",
        )
    return file_system(path.resolve(), mounts)


def file_system(path: Path, mounts: str) -> Finding:
    """Judge the file system that `path` lies on, by the text of /proc/mounts."""
    lies_on = ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        where = fields[1].replace("\\040", " ") if len(fields) > 2 else ""
        if where and path.is_relative_to(where):
            lies_on = fields[2]  # the last one: a later mount hides an earlier one
    if lies_on in _NETWORK:
        return danger(
            "file system",
            f"the file lies on {lies_on}: on a network file system locks cannot be relied on, and the journal that "
            "idempo asks for (WAL) needs all processes on one machine. It breaks Single claim",
            "a disk of this machine; for several machines a server: PostgreSQL, MariaDB, MySQL",
        )
    if lies_on in _IN_MEMORY:
        return warning(
            "file system",
            f"the file lies on {lies_on}, which is memory: a restart of the machine forgets all records",
            "a folder on a disk",
        )
    return ok("file system", f"the file lies on {lies_on or 'a disk'}")


def _journal(connection: Connection) -> Finding:
    """Only WAL is written down in the file; any other mode belongs to the connection that sets it."""
    mode = str(connection.exec_driver_sql("PRAGMA journal_mode").scalar_one())
    if mode == "wal":
        return ok(
            "journal", "the file has a write-ahead log, so those who read do not wait for the one who writes"
        )
    return warning(
        "journal",
        "the file has no write-ahead log: readers and the writer wait for each other. Connections that idempo "
        "makes from a URL change that, and write each commit to the disk (synchronous FULL); an engine of your own "
        "keeps its settings, which cannot be seen from here",
        "PRAGMA journal_mode = WAL once; in your own engine, never journal_mode MEMORY or OFF, nor synchronous OFF",
    )
