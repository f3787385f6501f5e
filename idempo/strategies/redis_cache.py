"""`RedisCache`: one hash per business key, in Redis 6.2 and newer or Valkey; single node, Sentinel or Cluster.

Each ledger operation is one Lua script over one key: it reads the server's clock, compares owner and fence, and
writes, atomically (Redis documentation, "Scripting with Lua"). Sent again by the driver after a lost reply, a script
finds its own owner in the record and answers as before.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from dataclasses import dataclass
from typing import Any

import redis
import redis.asyncio
import redis.connection
import redis.exceptions
from redis.exceptions import NoScriptError

from idempo.contracts import Colour, KeySpec, Layer, Site
from idempo.errors import ColourMismatchError, ConfigurationError
from idempo.layers import Leased
from idempo.records import (
    Above,
    Answer,
    Call,
    Claimed,
    Completed,
    Done,
    InProgress,
    Issued,
    NotIssued,
    Orphan,
    Payload,
    Record,
)
from idempo.scripts import CLAIM, COMPLETE, FILL, FORGET, ISSUE, LOOKUP, RELEASE, RENEW, REVOKE, SHA
from idempo.steps import Pause, Steps
from idempo.waiting import Patience, completion_policy

__all__ = ["RedisCache"]

_ALL_IN_USE: type[Exception] | tuple[()] = getattr(redis.exceptions, "MaxConnectionsError", ())
_POOL_SECONDS = 20.0


class RedisCache:
    """Remembers in Redis or Valkey, one key per record.

    It keeps its promise while the server keeps the key: an eviction, a flush, or a failover that loses acknowledged
    writes can let an operation run twice. In front of a SQL ledger losing it costs speed only.

    Args:
        source: a client of redis-py (`Redis`, `RedisCluster`, or what Sentinel's `master_for` gives; from
            `redis.asyncio` for async functions), or a URL: `redis://`, `rediss://`, `unix://`; with `+cluster`, as in
            `redis+cluster://host:6379`, for a Cluster.
        key: a key of its own, where it differs from the decorator's.
        required: False lets a call fall through to the ledger inside while this one is down.
        prefix: the start of each key's name in the server.

    Raises:
        ConfigurationError: for a source that is none.
    """

    def __init__(
        self, source: Any, *, key: KeySpec | None = None, required: bool = True, prefix: str = "idempo:"
    ) -> None:
        self._clients = _Clients(source)
        self._key = key
        self._required = required
        self._prefix = prefix.encode()

    def bind(self, site: Site) -> Layer:
        self._clients.check(site.colour, site.operation)
        ledger = RedisLedger(self._clients, self._prefix, site.colour)
        return Leased.at(site, ledger, "RedisCache", key=self._key, required=self._required, lossy=True)

    def close(self) -> Any:
        """Close the connections made from a URL; awaitable inside an event loop. A given client is left alone."""
        return self._clients.close()


@dataclass(frozen=True, eq=False)
class RedisLedger:
    """The ledger behind `RedisCache`, for one colour."""

    clients: _Clients
    prefix: bytes
    colour: Colour

    @property
    def store(self) -> _Clients:
        """What all ledgers on this server share: one thread renews their leases."""
        return self.clients

    def claim(self, call: Call, over: int | None) -> Steps[Answer]:
        answer = yield from self._script(
            CLAIM,
            call.digest,
            call.owner,
            call.fingerprint,
            _us(call.lease),
            _ms(max(call.keep, call.lease)),
            -1 if over is None else over,
            *_readable(call),
            call.demand.fence if isinstance(call.demand, Above) else -1,
            int(isinstance(call.demand, Issued)),
        )
        match _text(answer[0]):
            case "not issued":
                return NotIssued()
            case "claimed":
                return Claimed(fence=int(answer[1]), attempt=int(answer[2]))
            case "running":
                return InProgress(answer[1], int(answer[2]) / 1_000_000)
            case "orphan":
                return Orphan(answer[1], int(answer[2]))
            case state:
                _, owner, fence, attempt, fingerprint, keep_left, result = answer
                payload = Payload("failed" if state == "failed" else "completed", result)
                return Completed(payload, fingerprint, int(fence), int(attempt), int(keep_left) / 1000, owner)

    def complete(self, call: Call, payload: Payload) -> Steps[bool]:
        done = yield from self._script(COMPLETE, call.digest, call.owner, *_stored(payload), _ms(call.keep))
        return bool(done)

    def release(self, call: Call) -> Steps[bool]:
        free = "issued" if isinstance(call.demand, Issued) else "released"
        return bool((yield from self._script(RELEASE, call.digest, call.owner, free)))

    def renew(self, call: Call, lease: float) -> Steps[bool]:
        return bool(
            (yield from self._script(RENEW, call.digest, call.owner, _us(lease), _ms(lease + call.keep)))
        )

    def lookup(self, digest: bytes) -> Steps[Record | None]:
        now, keep_left, fields = yield from self._script(LOOKUP, digest)
        state, _, fence, attempt, fingerprint, lease, result, created, completed, *readable = fields
        if state is None or state == b"released":
            return None
        operation, scope, key = (_text(one) for one in readable)
        live = "running" if int(lease) > int(now) else "orphan"
        payload = Payload(_text(state), result) if state in (b"completed", b"failed") else None  # type: ignore[arg-type]
        return Record(
            digest=digest,
            operation=operation,
            scope=scope,
            key=key,
            state=live if state == b"running" else _text(state),  # type: ignore[arg-type]
            attempt=int(attempt),
            fence=int(fence),
            fingerprint=fingerprint,
            created_at=int(created) / 1_000_000,
            completed_at=None if completed is None else int(completed) / 1_000_000,
            lease_until=int(lease) / 1_000_000,
            keep_until=int(now) / 1_000_000 + keep_left / 1000,
            keep_left=keep_left / 1000,
            payload=payload,
        )

    def forget(self, digest: bytes) -> Steps[bool]:
        return bool((yield from self._script(FORGET, digest)))

    def issue(self, call: Call) -> Steps[bool]:
        issued = yield from self._script(ISSUE, call.digest, _ms(call.keep), *_readable(call))
        return bool(issued)

    def revoke(self, digest: bytes) -> Steps[bool]:
        return bool((yield from self._script(REVOKE, digest)))

    def fill(self, call: Call, done: Done) -> Steps[None]:
        yield from self._script(
            FILL,
            call.digest,
            call.owner,
            *_stored(done.payload),
            _ms(done.keep_left),
            done.fence,
            done.attempt,
            call.fingerprint,
            *_readable(call),
        )

    def _script(self, script: str, digest: bytes, *arguments: Any) -> Steps[Any]:
        """One request; a client whose connections are all in use is asked again for a while."""
        client = self.clients.client(self.colour)
        yield from self.clients.ready(client)
        name = self.prefix + digest.hex().encode()
        patience = Patience(completion_policy(_POOL_SECONDS))
        while True:
            try:
                return (yield from _evaluate(client, script, name, *arguments))
            except _ALL_IN_USE:
                seconds = patience.next_pause(_POOL_SECONDS)
                if seconds is None:
                    raise
            yield Pause(seconds)


def _evaluate(client: Any, script: str, *arguments: Any) -> Steps[Any]:
    # Results are bytes, whatever decode_responses says of the user's client.
    try:
        return (yield client.execute_command("EVALSHA", SHA[script], 1, *arguments, NEVER_DECODE=True))
    except NoScriptError:
        return (yield client.execute_command("EVAL", script, 1, *arguments, NEVER_DECODE=True))


def _stored(payload: Payload) -> tuple[str, bytes, str]:
    return payload.state, payload.data or b"", "0" if payload.data is None else "1"


def _readable(call: Call) -> tuple[bytes, bytes, bytes]:
    one, two, three = (
        text.encode("utf-8", "backslashreplace") for text in (call.operation, call.scope, call.key)
    )
    return one, two, three


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode()


def _us(seconds: float) -> int:
    return int(seconds * 1_000_000)


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))


class _Clients:
    """The user's client, or one made from a URL: per process if blocking, per event loop if async."""

    def __init__(self, source: Any) -> None:
        self._url = source if isinstance(source, str) else ""
        self._given = None if self._url else source
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
