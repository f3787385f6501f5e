"""The floors: what a person writes by hand with the bare driver, in as few round trips, and no more than that.

They claim atomically, record a result and give it back. They check no arguments, have no lease, no owner, no retention
of their own and no errors worth the name. What idempo costs beyond them is what it does beyond them.
"""

from collections.abc import Callable
from typing import Any

import psycopg
import redis
import redis.asyncio

from idempo.scripts import CLAIM, COMPLETE

__all__ = [
    "ByHand",
    "postgres_by_hand",
    "postgres_by_hand_async",
    "redis_by_hand",
    "redis_by_hand_async",
    "redis_scripts",
]

_KEEP_MS = 7 * 86_400_000
_RESULT = b"\x93\x01\x90\x01"


class ByHand:
    """`first` makes two requests and `replay` one. The asynchronous ones are awaited, and `close` too."""

    def __init__(
        self,
        first: Callable[[str], Any],
        replay: Callable[[str], Any],
        close: Callable[[], Any] = lambda: None,
    ) -> None:
        self.first = first
        self.replay = replay
        self.close = close


def redis_by_hand(url: str, result: bytes = _RESULT) -> ByHand:
    client = redis.Redis.from_url(url)

    def first(key: str) -> None:
        assert client.set(f"hand:{key}", b"running", nx=True, get=True, px=_KEEP_MS) is None
        client.set(f"hand:{key}", result, xx=True, px=_KEEP_MS)

    def replay(key: str) -> None:
        assert client.set(f"hand:{key}", b"running", nx=True, get=True, px=_KEEP_MS) == result

    return ByHand(first, replay, client.close)


def redis_by_hand_async(url: str, result: bytes = _RESULT) -> ByHand:
    client: list[Any] = []  # made in the loop

    def opened() -> Any:
        if not client:
            client.append(redis.asyncio.Redis.from_url(url))
        return client[0]

    async def first(key: str) -> None:
        assert await opened().set(f"hand:{key}", b"running", nx=True, get=True, px=_KEEP_MS) is None
        await opened().set(f"hand:{key}", result, xx=True, px=_KEEP_MS)

    async def replay(key: str) -> None:
        assert await opened().set(f"hand:{key}", b"running", nx=True, get=True, px=_KEEP_MS) == result

    async def close() -> None:
        await opened().aclose()

    return ByHand(first, replay, close)


def redis_scripts(url: str) -> ByHand:
    """The requests that idempo sends, by hand: what of its cost is Redis and redis-py, and not idempo."""
    client: Any = redis.Redis.from_url(url)
    claim, complete = client.script_load(CLAIM), client.script_load(COMPLETE)
    owner, fingerprint = b"o" * 16, b"f" * 24

    def claimed(key: str) -> Any:
        name = b"idempo:" + key.encode().rjust(64, b".")
        return name, client.execute_command(
            "EVALSHA", claim, 1, name, owner, fingerprint, 30_000_000, _KEEP_MS, -1, b"operation", b"", b"key", -1, 0,
            NEVER_DECODE=True,
        )  # fmt: skip

    def first(key: str) -> None:
        name, answer = claimed(key)
        assert answer[0] == b"claimed"
        client.execute_command(
            "EVALSHA", complete, 1, name, owner, "completed", _RESULT, "1", _KEEP_MS, NEVER_DECODE=True
        )

    def replay(key: str) -> None:
        assert claimed(key)[1][0] == b"completed"

    return ByHand(first, replay, client.close)


_TABLE = """CREATE TABLE IF NOT EXISTS by_hand (
    digest bytea PRIMARY KEY, state text NOT NULL, owner bytea NOT NULL, created_at timestamptz NOT NULL,
    result bytea)"""
_CLAIM = "INSERT INTO by_hand VALUES (%s, 'running', %s, clock_timestamp(), NULL) ON CONFLICT DO NOTHING RETURNING 1"
_COMPLETE = "UPDATE by_hand SET state = 'completed', result = %s WHERE digest = %s AND owner = %s"
_REPLAY = "SELECT state, result FROM by_hand WHERE digest = %s"
_OWNER = b"o" * 16


def postgres_by_hand(url: str, result: bytes = _RESULT) -> ByHand:
    connection = psycopg.connect(url, autocommit=True)
    connection.execute(_TABLE)

    def first(key: str) -> None:
        digest = key.encode()
        assert connection.execute(_CLAIM, (digest, _OWNER)).fetchone()
        assert connection.execute(_COMPLETE, (result, digest, _OWNER)).rowcount == 1

    def replay(key: str) -> None:
        assert connection.execute(_REPLAY, (key.encode(),)).fetchone() == ("completed", result)

    return ByHand(first, replay, connection.close)


def postgres_by_hand_async(url: str, result: bytes = _RESULT) -> ByHand:
    opened: list[psycopg.AsyncConnection] = []

    async def connection() -> psycopg.AsyncConnection:
        if not opened:
            opened.append(await psycopg.AsyncConnection.connect(url, autocommit=True))
            await opened[0].execute(_TABLE)
        return opened[0]

    async def first(key: str) -> None:
        digest = key.encode()
        cursor = await (await connection()).execute(_CLAIM, (digest, _OWNER))
        assert await cursor.fetchone()
        assert (await (await connection()).execute(_COMPLETE, (result, digest, _OWNER))).rowcount == 1

    async def replay(key: str) -> None:
        cursor = await (await connection()).execute(_REPLAY, (key.encode(),))
        assert await cursor.fetchone() == ("completed", result)

    async def close() -> None:
        await (await connection()).close()

    return ByHand(first, replay, close)
