"""The floors on MariaDB and SQLite, and many connections at once: as in `floors`, by the bare drivers."""

import contextlib
import sqlite3
from collections.abc import Callable
from typing import Any

from sqlalchemy.engine import make_url

from benchmarks.floors import ByHand

__all__ = [
    "mariadb_by_hand",
    "mariadb_by_hand_async",
    "spread",
    "spread_async",
    "sqlite_by_hand",
    "sqlite_by_hand_async",
]

_RESULT = b"\x93\x01\x90\x01"
_OWNER = b"o" * 16
_MARIADB = """CREATE TABLE IF NOT EXISTS by_hand (
    digest varbinary(64) PRIMARY KEY, state varchar(16) NOT NULL, owner varbinary(16) NOT NULL,
    created_at datetime(6) NOT NULL, result mediumblob) ENGINE=InnoDB"""
_MARIADB_CLAIM = "INSERT IGNORE INTO by_hand VALUES (%s, 'running', %s, UTC_TIMESTAMP(6), NULL)"
_MARIADB_COMPLETE = "UPDATE by_hand SET state = 'completed', result = %s WHERE digest = %s AND owner = %s"
_MARIADB_REPLAY = "SELECT state, result FROM by_hand WHERE digest = %s"


def mariadb_by_hand(url: str) -> ByHand:
    import pymysql

    connection: Any = pymysql.connect(**_mysql(url))
    cursor: Any = connection.cursor()
    _created(cursor.execute)

    def first(key: str) -> None:
        assert cursor.execute(_MARIADB_CLAIM, (key.encode(), _OWNER)) == 1
        assert cursor.execute(_MARIADB_COMPLETE, (_RESULT, key.encode(), _OWNER)) == 1

    def replay(key: str) -> None:
        cursor.execute(_MARIADB_REPLAY, (key.encode(),))
        assert cursor.fetchone() == ("completed", _RESULT)

    return ByHand(first, replay, connection.close)


def mariadb_by_hand_async(url: str) -> ByHand:
    """The table must be there: `mariadb_by_hand` makes it."""
    opened: list[Any] = []

    async def cursor() -> Any:
        if not opened:
            import asyncmy

            opened.append(await asyncmy.connect(**_mysql(url)))
            opened.append(opened[0].cursor())
        return opened[1]

    async def first(key: str) -> None:
        at = await cursor()
        assert await at.execute(_MARIADB_CLAIM, (key.encode(), _OWNER)) == 1
        assert await at.execute(_MARIADB_COMPLETE, (_RESULT, key.encode(), _OWNER)) == 1

    async def replay(key: str) -> None:
        at = await cursor()
        await at.execute(_MARIADB_REPLAY, (key.encode(),))
        assert await at.fetchone() == ("completed", _RESULT)

    async def close() -> None:
        await opened[1].close()
        await opened[0].ensure_closed()

    return ByHand(first, replay, close)


def _mysql(url: str) -> dict[str, Any]:
    at = make_url(url)
    given = {"host": at.host, "port": at.port, "user": at.username, "password": at.password or ""}
    return {**given, "database": at.database, "autocommit": True}


def _created(execute: Callable[[str], Any]) -> None:
    """Make the table; PyMySQL warns where it is there already."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        execute(_MARIADB)


_SQLITE = """CREATE TABLE IF NOT EXISTS by_hand (
    digest BLOB PRIMARY KEY, state TEXT NOT NULL, owner BLOB NOT NULL, created_at TEXT NOT NULL, result BLOB)"""
# The settings that idempo gives a SQLite file.
_SETTINGS = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL")
_SQLITE_CLAIM = (
    "INSERT INTO by_hand VALUES (?, 'running', ?, datetime('now'), NULL) ON CONFLICT DO NOTHING RETURNING 1"
)
_SQLITE_COMPLETE = "UPDATE by_hand SET state = 'completed', result = ? WHERE digest = ? AND owner = ?"
_SQLITE_REPLAY = "SELECT state, result FROM by_hand WHERE digest = ?"


def sqlite_by_hand(url: str) -> ByHand:
    connection = sqlite3.connect(make_url(url).database or "", isolation_level=None, timeout=10)
    for statement in (*_SETTINGS, _SQLITE):
        connection.execute(statement)

    def first(key: str) -> None:
        assert connection.execute(_SQLITE_CLAIM, (key.encode(), _OWNER)).fetchall()
        assert connection.execute(_SQLITE_COMPLETE, (_RESULT, key.encode(), _OWNER)).rowcount == 1

    def replay(key: str) -> None:
        assert connection.execute(_SQLITE_REPLAY, (key.encode(),)).fetchone() == ("completed", _RESULT)

    return ByHand(first, replay, connection.close)


def sqlite_by_hand_async(url: str) -> ByHand:
    opened: list[Any] = []

    async def connection() -> Any:
        if not opened:
            import aiosqlite

            opened.append(
                await aiosqlite.connect(make_url(url).database or "", isolation_level=None, timeout=10)
            )
            for statement in (*_SETTINGS, _SQLITE):
                await opened[0].execute(statement)
        return opened[0]

    async def first(key: str) -> None:
        at = await connection()
        assert list(await at.execute_fetchall(_SQLITE_CLAIM, (key.encode(), _OWNER)))
        assert (await at.execute(_SQLITE_COMPLETE, (_RESULT, key.encode(), _OWNER))).rowcount == 1

    async def replay(key: str) -> None:
        found = await (await connection()).execute_fetchall(_SQLITE_REPLAY, (key.encode(),))
        assert list(found) == [("completed", _RESULT)]

    async def close() -> None:
        await (await connection()).close()

    return ByHand(first, replay, close)


def spread(make: Callable[[], ByHand]) -> ByHand:
    """By hand in many threads: each call has a connection for itself, and gives it back."""
    free: list[ByHand] = []
    made: list[ByHand] = []

    def taken() -> ByHand:
        with contextlib.suppress(IndexError):
            return free.pop()
        made.append(make())
        return made[-1]

    def first(key: str) -> None:
        hand = taken()
        hand.first(key)
        free.append(hand)

    def replay(key: str) -> None:
        hand = taken()
        hand.replay(key)
        free.append(hand)

    def close() -> None:
        for hand in made:
            hand.close()

    return ByHand(first, replay, close)


def spread_async(make: Callable[[], ByHand]) -> ByHand:
    """By hand in many tasks: each call has a connection for itself, and gives it back."""
    free: list[ByHand] = []
    made: list[ByHand] = []

    def taken() -> ByHand:
        if not free:
            made.append(make())
            return made[-1]
        return free.pop()

    async def first(key: str) -> None:
        hand = taken()
        await hand.first(key)
        free.append(hand)

    async def replay(key: str) -> None:
        hand = taken()
        await hand.replay(key)
        free.append(hand)

    async def close() -> None:
        for hand in made:
            await hand.close()

    return ByHand(first, replay, close)
