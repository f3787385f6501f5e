"""Redis clients: the user's, or one made from a URL; in two colours, over forks and event loops."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from typing import Any

import redis
import redis.asyncio
import redis.connection

from idempo.clocks import StoreClock
from idempo.contracts import Colour
from idempo.errors import ColourMismatchError, ConfigurationError
from idempo.steps import Steps
from idempo.streams import Seats

__all__ = ["Clients"]


class Clients:
    """The user's client, or one made from a URL: per process if blocking, per event loop if async."""

    def __init__(self, source: Any) -> None:
        self._url = source if isinstance(source, str) else ""
        self._given = None if self._url else source
        self.clock = StoreClock()
        self.seats = Seats()
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._made: Any = None
        self._made_in_loop: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self._finding: weakref.WeakKeyDictionary[Any, asyncio.Future[Any]] = weakref.WeakKeyDictionary()
        if self._url:
            scheme = self._url.partition("://")[0]
            if scheme not in ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster"):
                raise ConfigurationError(
                    "RedisCache takes a URL that starts with redis://, rediss://, unix:// or redis+cluster://"
                )
            try:
                parse: Any = redis.connection.parse_url
                parse(self._url.replace("+cluster://", "://", 1))
            except ValueError:
                # Not from the error: it may show a part of the password.
                raise ConfigurationError(
                    "this Redis URL cannot be read; characters such as / @ : in a password are written as %2F %40 %3A"
                ) from None
        elif not callable(getattr(source, "execute_command", None)):
            raise ConfigurationError(
                f"RedisCache takes a URL or a client of redis-py, not {type(source).__name__}"
            )

    def check(self, colour: Colour, operation: str) -> None:
        if self._given is None:
            return
        given = (
            "async" if isinstance(self._given, redis.asyncio.Redis | redis.asyncio.RedisCluster) else "sync"
        )
        if given != colour:
            wanted = "redis.asyncio.Redis" if colour == "async" else "redis.Redis"
            raise ColourMismatchError(
                f"{operation} is {colour}, but its RedisCache has a client of the other colour; give it a {wanted}, "
                "or a URL"
            )

    def client(self, colour: Colour) -> Any:
        if self._given is not None:
            return self._given
        if self._pid != os.getpid():
            self._pid, self._made, self._lock = os.getpid(), None, threading.Lock()
            self._made_in_loop = weakref.WeakKeyDictionary()
        if colour == "async":
            loop = asyncio.get_running_loop()
            client = self._made_in_loop.get(loop)
            if client is None:
                for ended in [one for one in self._made_in_loop if one.is_closed()]:
                    del self._made_in_loop[ended]  # and its sockets: nobody can say goodbye on them any more
                client = self._made_in_loop[loop] = self._make(redis.asyncio)
            return client
        if self._made is None:
            with self._lock:
                if self._made is None:
                    self._made = self._make(redis)
        return self._made

    def ready(self, client: Any) -> Steps[None]:
        """Let one task find out about the nodes of a Cluster: redis-py's async client mixes up several that do."""
        if not isinstance(client, redis.asyncio.RedisCluster):
            return
        finding = self._finding.get(client)
        if finding is None or (finding.done() and (finding.cancelled() or finding.exception())):
            finding = self._finding[client] = asyncio.ensure_future(client.initialize())
        if not finding.done():
            yield asyncio.shield(finding)

    def _make(self, module: Any) -> Any:
        kind = module.RedisCluster if "+cluster" in self._url.partition("://")[0] else module.Redis
        return kind.from_url(self._url.replace("+cluster://", "://", 1))

    def close(self) -> Any:
        made, self._made = self._made, None
        if made is not None:
            made.close()
        clients = list(self._made_in_loop.values())
        self._made_in_loop.clear()
        if not clients:
            return None

        async def closing() -> None:
            for client in clients:
                await client.aclose()

        return closing()
