"""Looking into a store from outside: create its table, list and find records, purge. For `idempo list` and its like.

Nothing here is on the path of a call. Reading is bounded, and takes no lock and no claim.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from idempo.errors import ConfigurationError, LedgerUnavailableError
from idempo.records import Record
from idempo.steps import run

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection

__all__ = ["STATES", "Inspection", "State", "Wanted", "inspect", "redis_client"]

State: TypeAlias = Literal["issued", "running", "orphan", "completed", "failed"]
STATES: tuple[State, ...] = ("issued", "running", "orphan", "completed", "failed")
_SCANNED = 1_000_000
"""Keys of a Redis that are looked at, at the most."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records to list. `None`: any."""

    limit: int
    operation: str | None = None
    state: State | None = None
    key: str | None = None

    def takes(self, record: Record) -> bool:
        return (
            self.operation in (None, record.operation)
            and self.state in (None, record.state)
            and self.key in (None, record.key)
        )


class Inspection(Protocol):
    """A store seen from outside."""

    partial: bool
    """True if the last reading stopped before the end of the store."""

    def schema(self) -> str:
        """Return the statements that create the table; "" where there is none to create."""
        ...

    def create(self) -> None:
        """Create the table if it does not exist."""
        ...

    def records(self, wanted: Wanted) -> list[Record]:
        """Return records within their retention: those that are kept longest first, where the store has an order."""
        ...

    def purge(self, batch: int) -> int:
        """Delete up to `batch` records whose retention is over; return how many."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


def inspect(url: str, *, table: str = "idempo_records", prefix: str = "idempo:") -> Inspection:
    """Return the store of `url`. Raises `ConfigurationError` for one that idempo does not know."""
    if re.match(r"(rediss?(\+cluster)?|unix)://", url):
        return _RedisInspection(url, prefix)
    return _SqlInspection(url, table)


def redis_client(url: str) -> Any:
    """Return a client of redis-py, for a cluster too. Raises `ConfigurationError` for a URL that is none."""
    import redis

    kind: Any = redis.RedisCluster if "+cluster" in url.partition("://")[0] else redis.Redis
    try:
        return kind.from_url(url.replace("+cluster://", "://", 1))
    except ValueError as error:
        raise ConfigurationError(f"this is no Redis URL: {error}") from error


class _SqlInspection:
    partial = False

    def __init__(self, url: str, table: str) -> None:
        from idempo.connections import Database
        from idempo.sql import Records

        self._records = Records(table)
        self._database = Database(url)
        self._database.check("sync", "idempo")
        self._url = url

    def schema(self) -> str:
        from idempo.schema import ddl

        return ddl(self._database.dialect, self._records)

    def create(self) -> None:
        from idempo.schema import create

        run(self._database.autocommit("sync", lambda connection: create(connection, self._records)))

    def records(self, wanted: Wanted) -> list[Record]:
        self._refuse_missing_file()
        found: list[Record] = self._do(lambda connection: self._read(connection, wanted))
        return found

    def _read(self, connection: Connection, wanted: Wanted) -> list[Record]:
        from sqlalchemy import BigInteger, literal_column, select
        from sqlalchemy.sql.expression import ScalarSelect

        from idempo.schema import dialect_of
        from idempo.sql import COLUMNS, readable, row_of

        clock: ColumnElement[int] = literal_column(dialect_of(connection, self._records).clock, BigInteger)
        # Read once: compared with a clock that goes on, the index would be read to its end.
        now: ScalarSelect[int] = select(clock).scalar_subquery()
        column = self._records.table.c
        found = select(now, *(column[name] for name in COLUMNS))
        found = found.where(column.keep_until > now, column.state != "released")
        if wanted.operation is not None:
            found = found.where(column.operation == readable(wanted.operation))
        if wanted.key is not None:
            found = found.where(column.business_key == readable(wanted.key))
        ended = (column.lease_until <= now) | (column.lease_until <= column.leased_at)
        match wanted.state:
            case "running":
                found = found.where(column.state == "running", ~ended)
            case "orphan":
                found = found.where(column.state == "running", ended)
            case "issued" | "completed" | "failed":
                found = found.where(column.state == wanted.state)
        # By the one column with an index: also a table of millions answers at once.
        found = found.order_by(column.keep_until.desc()).limit(wanted.limit)
        rows = [tuple(row) for row in connection.execute(found)]
        records = (row_of(row).record(bytes(row[1])) for row in rows)
        # MySQL takes "A" and "A " for one text; we do not.
        exact = None if wanted.key is None else readable(wanted.key)
        return [record for record in records if record is not None and exact in (None, record.key)]

    def purge(self, batch: int) -> int:
        from idempo.schema import dialect_of

        self._refuse_missing_file()
        return int(
            self._do(lambda connection: dialect_of(connection, self._records).purge(connection, batch))
        )

    def _do(self, work: Any) -> Any:
        from idempo.failures import is_missing_table
        from idempo.schema import missing_table

        try:
            return run(self._database.autocommit("sync", work))
        except Exception as error:
            if is_missing_table(error):
                raise missing_table(self._records, self._database.dialect) from error
            raise

    def _refuse_missing_file(self) -> None:
        # SQLite would make an empty one.
        from sqlalchemy import make_url

        url = make_url(self._url)
        name = url.database or ""
        if url.get_backend_name() == "sqlite" and not name.startswith("file:") and not os.path.exists(name):
            raise LedgerUnavailableError(f"there is no file {name}")

    def close(self) -> None:
        run(self._database.close())


class _RedisInspection:
    partial = False

    def __init__(self, url: str, prefix: str) -> None:
        from idempo.strategies.redis_cache import RedisCache

        self._cache = RedisCache(url, prefix=prefix)
        self._prefix = prefix
        self._client = redis_client(url)

    def schema(self) -> str:
        return ""

    def create(self) -> None:
        """Nothing: a record is a key of its own."""

    def records(self, wanted: Wanted) -> list[Record]:
        return list(itertools.islice(filter(wanted.takes, self._candidates(wanted)), wanted.limit))

    def _candidates(self, wanted: Wanted) -> Iterator[Record]:
        """Records that have the operation and the key. Ask for few fields of many keys, then for the whole of few."""
        from idempo.strategies.redis_cache import RedisLedger

        ledger = RedisLedger(self._cache._clients, self._prefix.encode(), "sync")
        operation, key = (None if text is None else text.encode() for text in (wanted.operation, wanted.key))
        names = self._names()
        while batch := list(itertools.islice(names, 500)):
            with self._client.pipeline(transaction=False) as asked:
                for name in batch:
                    asked.hmget(name, "operation", "key")
                answers = asked.execute(raise_on_error=False)
            for name, answer in zip(batch, answers, strict=True):
                mine = (
                    isinstance(answer, list) and operation in (None, answer[0]) and key in (None, answer[1])
                )
                record = run(ledger.lookup(bytes.fromhex(name[-64:].decode()))) if mine else None
                if record is not None:
                    yield record

    def _names(self) -> Iterator[bytes]:
        escaped = re.sub(r"([*?\[\]\\^])", r"\\\1", self._prefix)
        ours = re.compile(re.escape(self._prefix.encode()) + rb"[0-9a-f]{64}")
        seen: set[bytes] = set()  # a scan may name a key twice
        for name in self._client.scan_iter(match=f"{escaped}*", count=1000):
            if ours.fullmatch(name) and name not in seen:
                if len(seen) == _SCANNED:
                    self.partial = True
                    return
                seen.add(name)
                yield name

    def purge(self, batch: int) -> int:
        """Nothing: the server lets records expire."""
        return 0

    def close(self) -> None:
        self._cache.close()
        self._client.close()
