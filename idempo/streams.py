"""How a Redis wakes those who wait for a key: by a stream beside the record, which lives for two seconds.

A duplicate that finds its key running leaves a mark in the record. Only where there is one, the script that completes
or frees the key adds an entry to the stream, and all who are blocked on it wake (Redis documentation, "XREAD"). That is
a hint and no more: whoever wakes, or does not, asks for the record as before.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from idempo.steps import Steps

__all__ = ["Seats", "listen", "stream_of"]

_SEATS = 8
_ROOMY = 4 * _SEATS
_SECONDS = 0.25  # so long does one that was not woken, for whatever reason, learn too late
_BEFORE = 10  # milliseconds: the clock that a server numbers entries by may lag behind the one that it tells


def stream_of(prefix: bytes, name: bytes) -> bytes | None:
    """The stream beside the record `name`, under the same prefix, and on a Cluster in the same slot.

    None where no name can be both (Redis Cluster specification, "Hash tags").
    """
    if b"{" not in prefix and b"}" not in prefix:
        return b"%bw{%b}" % (prefix, name)
    _, found, rest = prefix.partition(b"{")
    tag, closed, _ = rest.partition(b"}")
    return prefix + b"w" + name.removeprefix(prefix) if found and closed and tag else None


class Seats:
    """How many calls of a process may be blocked in a server at once: each takes a connection of the user's pool."""

    def __init__(self) -> None:
        self._pid = 0
        self._refused = False

    def take(self, client: Any) -> float:
        """Take a seat; return for how many seconds at the most, 0 if there is none.

        There is none in a small pool, whose connections are needed for other things.
        """
        if self._pid != os.getpid():  # in a forked child nobody sits yet
            self._pid, self._free = os.getpid(), threading.BoundedSemaphore(_SEATS)
        seconds = 0.0 if self._refused else _may_block(client)
        return seconds if seconds and self._free.acquire(blocking=False) else 0.0

    def leave(self) -> None:
        self._free.release()

    def close(self) -> None:
        """The server does not let us listen: nobody tries again."""
        self._refused = True


def _may_block(client: Any) -> float:
    """Seconds for which a connection of `client` may be blocked; 0 where it has none to spare, or does not say."""
    if getattr(client, "connection", None) is not None or getattr(client, "single_connection_client", False):
        return 0.0  # all that it does goes over one connection
    try:
        settings = client.get_connection_kwargs()
    except AttributeError:
        return 0.0
    pool = getattr(client, "connection_pool", None)
    most = getattr(pool, "max_connections", None) or settings.get("max_connections") or _ROOMY
    timeout = settings.get("socket_timeout")
    if most < _ROOMY:
        return 0.0
    return _SECONDS if timeout is None else min(_SECONDS, timeout / 2)


def listen(client: Any, stream: bytes, since: int, seconds: float) -> Steps[bool]:
    """Block until there is an entry later than `since`, in microseconds by the server. False: none came."""
    after = f"{since // 1000 - _BEFORE}-0"
    answer = yield client.xread({stream: after}, block=max(1, int(seconds * 1000)))
    return bool(answer)
