"""The doctor on SQLite files."""

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from idempo import ConfigurationError, LedgerUnavailableError
from idempo.doctor import examine
from idempo.doctor.sqlite_checks import file_system, version
from tests.doctor.support import about, bad, examined, execute, initialised, level


@pytest.fixture
def url(tmp_path: Path) -> str:
    return initialised(f"sqlite:///{tmp_path}/idempo.db")


def test_a_fresh_file_has_nothing_bad(url: str) -> None:
    found = examined(url)
    assert [one for one in bad(found) if one.check != "file system"] == []  # here it may be a tmpfs
    checked = {
        "version",
        "file",
        "file system",
        "journal",
        "table",
        "columns",
        "unique key",
        "index",
        "retention",
    }
    assert {finding.check for finding in found} == checked


def test_a_missing_file_is_no_answer_and_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailableError, match="there is no file"):
        examined(f"sqlite:///{tmp_path}/idempo.db")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_no_answer(tmp_path: Path) -> None:
    (tmp_path / "idempo.db").write_text("hello, this is a text of more than a hundred bytes " * 9)
    with pytest.raises(LedgerUnavailableError, match="cannot be read"):
        examined(f"sqlite:///{tmp_path}/idempo.db")


def test_looking_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "idempo.db"
    execute(f"sqlite:///{file}", "CREATE TABLE mine (one INTEGER)")
    before = file.read_bytes()
    assert level("table", f"sqlite:///{file}") == "warning"
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["idempo.db"]


def test_a_log_that_a_killed_process_left_behind_is_not_written_back(tmp_path: Path) -> None:
    """Whoever opens it for writing, and closes it, would do that."""
    live, left = tmp_path / "live.db", tmp_path / "idempo.db"
    writer = sqlite3.connect(live)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("CREATE TABLE mine (one INTEGER)")
    writer.commit()
    for end in ("", "-wal"):
        shutil.copy(f"{live}{end}", f"{left}{end}")
    writer.close()
    before = left.read_bytes(), Path(f"{left}-wal").read_bytes()
    assert level("journal", f"sqlite:///{left}") == "ok"
    assert (left.read_bytes(), Path(f"{left}-wal").read_bytes()) == before


def test_a_file_by_its_uri_is_the_same_file(url: str, tmp_path: Path) -> None:
    assert level("table", f"sqlite:///file:{tmp_path}/idempo.db?uri=true") == "ok"


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"])
def test_a_database_in_memory_is_a_danger(url: str) -> None:
    assert level("file", url) == "danger"


def test_a_file_without_a_write_ahead_log_is_found(url: str) -> None:
    assert level("journal", url) == "ok"
    execute(url, "PRAGMA journal_mode = DELETE")
    assert level("journal", url) == "warning"


@pytest.mark.parametrize(
    ("check", "statement", "expected"),
    [
        ("index", "DROP INDEX idempo_records_keep_until", "warning"),
        ("columns", "ALTER TABLE idempo_records DROP COLUMN result", "danger"),
        ("columns", "ALTER TABLE idempo_records ADD COLUMN mine INTEGER DEFAULT 0", "ok"),
        ("unique key", "CREATE TABLE bare AS SELECT * FROM idempo_records", "danger"),
    ],
)
def test_a_table_that_was_changed_is_found(url: str, check: str, statement: str, expected: str) -> None:
    execute(url, statement)
    table = "bare" if "bare" in statement else "idempo_records"
    assert about(check, examined(url, table=table))[0].level == expected


@pytest.mark.parametrize("closed", ["file", "folder"])
def test_a_file_that_cannot_be_written_is_found(url: str, tmp_path: Path, closed: str) -> None:
    """Root may write everything, so another user looks."""
    file = tmp_path / "idempo.db"
    for path in (tmp_path, *tmp_path.parents):
        if not os.geteuid() and path.is_relative_to("/tmp") and path != Path("/tmp"):
            path.chmod(0o755)
    for path in tmp_path.iterdir():
        path.chmod(0o444 if closed == "file" else 0o666)
    tmp_path.chmod(0o555 if closed == "folder" else 0o777)
    script = (
        "import os, sys, idempo.doctor.sql_checks\n"
        "from idempo.doctor import examine\n"
        "os.geteuid() or os.setuid(65534)\n"
        "print(*[f.level for f in examine(sys.argv[1]) if f.check == 'file'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, f"sqlite:///{file}"], capture_output=True, text=True, check=False
    )
    tmp_path.chmod(0o755)
    assert done.stdout == "danger\n", done.stderr


MOUNTS = """\
/dev/vda / ext4 rw,relatime 0 0
tmpfs /run tmpfs rw 0 0
files:/export /srv nfs4 rw,vers=4.2 0 0
//files/share /srv/with\\040space cifs rw 0 0
me@host:/ /home/me/far fuse.sshfs rw 0 0
/dev/vdb /srv/disk xfs rw 0 0
files:/hidden /mnt/old nfs rw 0 0
/dev/vdc /mnt ext4 rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/var/lib/idempo.db", "ok"),
        ("/srv/idempo.db", "danger"),
        ("/srv/with space/idempo.db", "danger"),
        ("/srv/disk/idempo.db", "ok"),
        ("/srvother/idempo.db", "ok"),
        ("/home/me/far/idempo.db", "danger"),
        ("/run/idempo.db", "warning"),
        ("/mnt/old/idempo.db", "ok"),
    ],
)
def test_a_network_file_system_is_found(path: str, expected: str) -> None:
    assert file_system(Path(path), MOUNTS).level == expected


def test_an_old_library_is_refused() -> None:
    assert version((3, 34, 1)).level == "danger"
    assert version((3, 35, 0)).level == "ok"


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    for url in ("", "nonsense", "oracle://localhost/x"):
        with pytest.raises(ConfigurationError):
            examine(url)
    with pytest.raises(ConfigurationError):
        examine(f"sqlite:///{tmp_path}/x.db", table="no such name")
