"""`RedisCache`: one hash per business key, in Redis 6.2 and newer or Valkey; single node, Sentinel or Cluster.

Each ledger operation is one Lua script over one key: it reads the server's clock, compares owner and fence, and
writes, atomically (Redis documentation, "Scripting with Lua"). Sent again by the driver after a lost reply, a script
finds its own owner in the record and answers as before.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from idempo.clients import Clients
from idempo.clocks import StoreClock
from idempo.contracts import Colour, KeySpec, Layer, Site
from idempo.evaluating import evaluate, evaluate_many, sent
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
from idempo.scripts import CLAIM, COMPLETE, FILL, FORGET, ISSUE, LOOKUP, RELEASE, RENEW, REVOKE, WAKING
from idempo.steps import Steps
from idempo.streams import listen, stream_of

__all__ = ["RedisCache"]


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

    Duplicates that wait are woken by the server. Each takes a connection meanwhile, eight of them at the most; clients
    with fewer than 32 connections have none to spare for that.

    Raises:
        ConfigurationError: for a source that is none.
    """

    def __init__(
        self, source: Any, *, key: KeySpec | None = None, required: bool = True, prefix: str = "idempo:"
    ) -> None:
        self._clients = Clients(source)
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

    clients: Clients
    prefix: bytes
    colour: Colour

    @property
    def store(self) -> Clients:
        """What all ledgers on this server share: one thread renews their leases."""
        return self.clients

    def claim(self, call: Call, over: int | None) -> Steps[Answer]:
        asked = time.monotonic()
        answer = yield from self._script(CLAIM, call.digest, *_claiming(call, over))
        return _answer(answer, asked, self.clients.clock)

    def claim_many(self, calls: Sequence[Call]) -> Steps[list[Answer]]:
        scripts = [(CLAIM, call.digest, *_claiming(call, None)) for call in calls]
        asked = time.monotonic()
        answers = yield from self._scripts(scripts)
        return [_answer(answer, asked, self.clients.clock) for answer in answers]

    def complete(self, call: Call, payload: Payload) -> Steps[bool]:
        return bool((yield from self._script(COMPLETE, call.digest, *_completing(call, payload))))

    def complete_many(self, firsts: Sequence[tuple[Call, Payload]]) -> Steps[list[bool]]:
        asked = [(COMPLETE, call.digest, *_completing(call, payload)) for call, payload in firsts]
        return [bool(done) for done in (yield from self._scripts(asked))]

    def release(self, call: Call) -> Steps[bool]:
        free = "issued" if isinstance(call.demand, Issued) else "released"
        return bool((yield from self._script(RELEASE, call.digest, call.owner, free)))

    def renew(self, call: Call, lease: float) -> Steps[bool]:
        return bool(
            (yield from self._script(RENEW, call.digest, call.owner, _us(lease), _ms(lease + call.keep)))
        )

    def lookup(self, digest: bytes) -> Steps[Record | None]:
        now, keep_left, fields = yield from self._script(LOOKUP, digest)
        state, _, fence, attempt, fingerprint, lease, result, created, completed, *readable, leased = fields
        if state is None or state == b"released":
            return None
        operation, scope, key = (_text(one) for one in readable)
        live = "running" if int(lease) > max(int(now), int(leased)) else "orphan"
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

    def hear(self, call: Call, told: InProgress, seconds: float) -> Steps[bool | None]:
        stream = stream_of(self.prefix, self._name(call.digest))
        client = yield from self._client()
        at_most = 0.0 if stream is None else self.clients.seats.take(client)
        if stream is None or not at_most:
            return None
        try:
            return (yield from listen(client, stream, told.asked_at, min(seconds, at_most)))
        except ResponseError:  # not allowed, or unknown to what stands between us and the server
            self.clients.seats.close()
            return None
        finally:
            self.clients.seats.leave()

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
        """One request."""
        client = yield from self._client()
        return (yield from sent(lambda: evaluate(client, script, self._keys(script, digest), *arguments)))

    def _scripts(self, asked: Sequence[tuple[Any, ...]]) -> Steps[list[Any]]:
        """One request for many keys; on a Cluster one for each."""
        client = yield from self._client()
        named = [(script, self._keys(script, digest), *arguments) for script, digest, *arguments in asked]
        return (yield from sent(lambda: evaluate_many(client, named)))

    def _client(self) -> Steps[Any]:
        client = self.clients.client(self.colour)
        yield from self.clients.ready(client)
        return client

    def _keys(self, script: str, digest: bytes) -> list[bytes]:
        name = self._name(digest)
        stream = stream_of(self.prefix, name) if script in WAKING else None
        return [name] if stream is None else [name, stream]

    def _name(self, digest: bytes) -> bytes:
        return self.prefix + digest.hex().encode()


def _claiming(call: Call, over: int | None) -> tuple[Any, ...]:
    return (
        call.owner,
        call.fingerprint,
        _us(call.lease),
        _ms(max(call.keep, call.lease)),
        -1 if over is None else over,
        *_readable(call),
        call.demand.fence if isinstance(call.demand, Above) else -1,
        int(isinstance(call.demand, Issued)),
    )


def _completing(call: Call, payload: Payload) -> tuple[Any, ...]:
    return call.owner, *_stored(payload), _ms(call.keep)


def _answer(answer: Any, asked: float, clock: StoreClock) -> Answer:
    match _text(answer[0]):
        case "not issued":
            return NotIssued()
        case "claimed":
            clock.hear(int(answer[1]), asked)
            return Claimed(fence=int(answer[2]), attempt=int(answer[3]))
        case "running":
            clock.hear(int(answer[1]), asked)
            return InProgress(answer[2], int(answer[3]) / 1_000_000, int(answer[1]))
        case "orphan":
            now, fingerprint, fence, since, until = answer[1:]
            clock.hear(int(now), asked)
            left = clock.lease_left(int(now), int(since), int(until))
            if left > 0:
                return InProgress(fingerprint, left / 1_000_000, int(now))
            return Orphan(fingerprint, int(fence))
        case state:
            _, owner, fence, attempt, fingerprint, keep_left, result = answer
            payload = Payload("failed" if state == "failed" else "completed", result)
            return Completed(payload, fingerprint, int(fence), int(attempt), int(keep_left) / 1000, owner)


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
