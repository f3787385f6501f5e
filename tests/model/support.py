"""What the state machines share: a ledger beside its model, and answers in which only what may differ is left out."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import redis
from hypothesis import HealthCheck, settings
from msgspec.structs import replace
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.pool import NullPool

from idempo import Memory, UniqueInsert
from idempo.contracts import Colour, IssuingLedger
from idempo.records import Claimed, Completed, InProgress, NotIssued, Orphan, Record
from idempo.steps import Steps, arun, run

__all__ = ["InRedis", "InSQL", "Model", "Pairs", "Store", "examples", "schema", "seen"]

BACK = 36_000  # seconds
NOW = 1_000_000.0


def examples(number: int) -> settings:
    """The same examples in each run; with IDEMPO_TEST_EXAMPLES others, and as many as it says."""
    asked = os.environ.get("IDEMPO_TEST_EXAMPLES")
    return settings(
        max_examples=int(asked) if asked else number,
        derandomize=not asked,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


class Model:
    """`Memory`, under a clock that stands still: time passes where the machine says so."""

    def __init__(self) -> None:
        self._memory = Memory(clock=lambda: NOW)
        self.ledger: IssuingLedger = self._memory

    def ask(self, steps: Steps[Any]) -> Any:
        return run(steps)

    # No ledger offers this: only the store's clock ends a lease or a retention.
    def end_lease(self, digest: bytes) -> None:
        rows = self._memory._rows
        if digest in rows:
            rows[digest] = replace(rows[digest], lease_until=NOW)

    def set_clock_back(self, digest: bytes) -> None:
        """By more than a lease: as the record sees it, its lease begins in the future."""
        rows = self._memory._rows
        if digest in rows:
            row = rows[digest]
            ahead = {name: getattr(row, name) + BACK for name in ("leased_at", "lease_until")}
            rows[digest] = replace(row, **ahead)

    def end_retention(self, digest: bytes) -> None:
        rows = self._memory._rows
        if digest in rows:
            rows[digest] = replace(rows[digest], keep_until=NOW)


class Store:
    """The ledger under test, and a way to move the times of its records by hand."""

    def __init__(self, strategy: Any, ledger: IssuingLedger, colour: Colour) -> None:
        self.ledger = ledger
        self._strategy = strategy
        self._loop = asyncio.Runner() if colour == "async" else None

    def ask(self, steps: Steps[Any]) -> Any:
        return run(steps) if self._loop is None else self._loop.run(arun(steps))

    def close(self) -> None:
        if self._loop is None:
            self._strategy.close()
        else:
            self._loop.run(self._closing())
            self._loop.close()

    async def _closing(self) -> None:
        await self._strategy.close()

    def end_lease(self, digest: bytes) -> None:
        raise NotImplementedError

    def end_retention(self, digest: bytes) -> None:
        raise NotImplementedError

    def set_clock_back(self, digest: bytes) -> None:
        raise NotImplementedError


class InSQL(Store):
    def __init__(self, url: str, strategy: Any, ledger: IssuingLedger, colour: Colour) -> None:
        super().__init__(strategy, ledger, colour)
        self._engine: Engine = create_engine(url, isolation_level="AUTOCOMMIT")

    def end_lease(self, digest: bytes) -> None:
        self._execute("UPDATE idempo_records SET lease_until = 1 WHERE digest = :digest", digest)

    def end_retention(self, digest: bytes) -> None:
        self._execute("UPDATE idempo_records SET keep_until = 1 WHERE digest = :digest", digest)

    def set_clock_back(self, digest: bytes) -> None:
        ahead = (
            f"{name} = {name} + {BACK * 1_000_000}" for name in ("leased_at", "lease_until", "keep_until")
        )
        self._execute(f"UPDATE idempo_records SET {', '.join(ahead)} WHERE digest = :digest", digest)

    def _execute(self, sql: str, digest: bytes) -> None:
        with self._engine.connect() as connection:
            connection.execute(text(sql), {"digest": digest})

    def close(self) -> None:
        self._engine.dispose()
        super().close()


class InRedis(Store):
    def __init__(self, url: str, strategy: Any, ledger: IssuingLedger, colour: Colour) -> None:
        super().__init__(strategy, ledger, colour)
        self._client: Any = redis.Redis.from_url(url)

    def end_lease(self, digest: bytes) -> None:
        if self._client.exists(self._name(digest)):
            self._client.hset(self._name(digest), "lease", 1)

    def set_clock_back(self, digest: bytes) -> None:
        name = self._name(digest)
        for one in ("lease", "leased"):
            if self._client.exists(name):
                self._client.hincrby(name, one, BACK * 1_000_000)

    def end_retention(self, digest: bytes) -> None:
        self._client.pexpireat(self._name(digest), 1)

    def _name(self, digest: bytes) -> str:
        return f"idempo:{digest.hex()}"

    def close(self) -> None:
        self._client.close()
        super().close()


@dataclass
class Pairs:
    """The fences of one key that came up, as the model and as the store has them, in the order of the model."""

    known: dict[int, int] = field(default_factory=dict)

    def agree(self, model: int, store: int) -> bool:
        """Note a pair. False if fences that are equal, or in order, in one ledger are not in the other."""
        self.known.setdefault(model, store)
        ordered = [self.known[one] for one in sorted(self.known)]
        return self.known[model] == store and all(a < b for a, b in pairwise(ordered))

    def pick(self, number: int) -> tuple[int, int] | None:
        """The newest pair for 1, the one before it for 2, and so on; None for 0, or where there is none."""
        ordered = sorted(self.known.items())
        return ordered[-number] if 0 < number <= len(ordered) else None


def seen(answer: Any) -> tuple[Any, int | None]:
    """An answer without its fence and its times, and the fence."""
    match answer:
        case Claimed(fence, attempt):
            return ("claimed", attempt), fence
        case Completed():
            said = answer.payload, answer.fingerprint, answer.attempt, answer.owner, answer.durable
            return ("completed", *said, answer.keep_left > 0), answer.fence
        case InProgress(fingerprint, lease_left):
            return ("in progress", fingerprint, lease_left > 0), None
        case Orphan(fingerprint, fence):
            return ("orphan", fingerprint), fence
        case NotIssued():
            return ("not issued",), None
        case Record():
            readable = answer.operation, answer.scope, answer.key, answer.fingerprint
            said_too = answer.state, answer.attempt, answer.payload, answer.completed_at is not None
            # A key that is issued anew has fence 0, or in SQL that of the row before it: nobody holds a claim of it.
            fenced = None if answer.state == "issued" else answer.fence
            return ("record", *readable, *said_too, answer.keep_left > 0), fenced
        case _:
            return answer, None


def schema(url: str) -> None:
    """Create the records table."""
    engine = create_engine(url, poolclass=NullPool)
    UniqueInsert(engine).create_schema()
    engine.dispose()
