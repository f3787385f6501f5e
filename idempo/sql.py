"""The records table: its schema, and one plain function of a connection for each thing a ledger does with it.

Everything that decides is decided by the database: its clock, its unique index, its comparison of owner and fence.
How the databases differ is in `dialects`.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import msgspec
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TextClause,
    bindparam,
    text,
)
from sqlalchemy.dialects.mysql import BINARY, MEDIUMBLOB, VARBINARY
from sqlalchemy.dialects.mysql import VARCHAR as MYSQL_VARCHAR

from idempo.errors import ConfigurationError
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

__all__ = ["COLUMNS", "JUDGED", "MICROSECONDS", "Records", "Row", "typed"]

MICROSECONDS = 1_000_000
_TEXT_LIMIT = 255

COLUMNS = (
    "digest",
    "operation",
    "scope",
    "business_key",
    "state",
    "owner",
    "fence",
    "attempt",
    "fingerprint",
    "leased_at",
    "lease_until",
    "created_at",
    "completed_at",
    "keep_until",
    "result",
)

JUDGED = (
    "r.digest, r.state, r.owner, r.fence, r.attempt, r.fingerprint, "
    "r.leased_at, r.lease_until, r.keep_until, r.result"
)
"""What decides about a claim, and makes its answer."""

_TYPES: dict[str, Any] = {
    "digest": LargeBinary,
    "owner": LargeBinary,
    "fingerprint": LargeBinary,
    "result": LargeBinary,
    "operation": String,
    "scope": String,
    "business_key": String,
    "state": String,
    "fence": BigInteger,
    "seen": BigInteger,
    "over": BigInteger,
    "above": BigInteger,
    "issued": Boolean,
    "free": String,
    "lease": BigInteger,
    "keep": BigInteger,
    "attempt": Integer,
    "batch": Integer,
    "wait": String,
    **dict.fromkeys(("digests", "owners", "fingerprints", "results"), partial(ARRAY, LargeBinary)),
    **dict.fromkeys(("operations", "scopes", "keys", "states"), partial(ARRAY, String)),
    "listed": Text,
}


def _table(name: str, metadata: MetaData) -> Table:
    """Keys are compared as bytes, never as text: no collation can make two keys one."""
    readable = String(_TEXT_LIMIT).with_variant(
        MYSQL_VARCHAR(_TEXT_LIMIT, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
    )
    digest = LargeBinary(32).with_variant(BINARY(32), "mysql", "mariadb")
    owner = LargeBinary(16).with_variant(VARBINARY(16), "mysql", "mariadb")
    blob = LargeBinary().with_variant(MEDIUMBLOB(), "mysql", "mariadb")
    table = Table(
        name,
        metadata,
        Column("digest", digest, primary_key=True, autoincrement=False),
        Column("operation", readable, nullable=False),
        Column("scope", readable, nullable=False),
        Column("business_key", readable, nullable=False),
        Column("state", String(16), nullable=False),
        Column("owner", owner, nullable=False),
        Column("fence", BigInteger, nullable=False),
        Column("attempt", Integer, nullable=False),
        Column("fingerprint", blob, nullable=False),
        Column("leased_at", BigInteger, nullable=False),
        Column("lease_until", BigInteger, nullable=False),
        Column("created_at", BigInteger, nullable=False),
        Column("completed_at", BigInteger),
        Column("keep_until", BigInteger, nullable=False),
        Column("result", blob),
        mysql_engine="InnoDB",
        mariadb_engine="InnoDB",
    )
    Index(f"{name}_keep_until", table.c.keep_until)
    return table


class Row(msgspec.Struct, frozen=True):
    """A row of the table and the database's clock, read in one request. Times in microseconds since 1970, UTC."""

    now: int
    state: str
    """As stored: issued (a token nobody has spent), running, completed, failed, released (free, but counted); "absent"
    where there is no row."""
    operation: str = ""
    scope: str = ""
    business_key: str = ""
    owner: bytes = b""
    fence: int = 0
    attempt: int = 0
    fingerprint: bytes = b""
    leased_at: int = 0
    """When the lease began: at the claim, or when it was renewed last."""
    lease_until: int = 0
    created_at: int = 0
    completed_at: int | None = None
    keep_until: int = 0
    result: bytes | None = None

    @property
    def free(self) -> bool:
        """True if nobody has claimed the key within the retention."""
        return self.state in ("absent", "released", "issued") or self.keep_until <= self.now

    @property
    def known(self) -> bool:
        """True if there is a row within its retention, whatever it says."""
        return self.state != "absent" and self.keep_until > self.now

    @property
    def lease_left(self) -> int:
        """Microseconds; never more than the lease is long, where the clock was set back since it began."""
        return self.lease_until - max(self.now, self.leased_at)

    def answer(self, call: Call, over: int | None) -> Answer | None:
        """How the key stands for `call`; None: it is free to claim."""
        if self.free:
            return NotIssued() if isinstance(call.demand, Issued) and not self.known else None
        if self.state != "running":
            return None if call.demand == Above(self.fence) else self.completed()
        if self.owner == call.owner:
            return Claimed(self.fence, self.attempt)
        if self.lease_left > 0:
            return InProgress(self.fingerprint, self.lease_left / MICROSECONDS)
        return None if self.fence == over else Orphan(self.fingerprint, self.fence)

    def completed(self) -> Completed:
        keep_left = (self.keep_until - self.now) / MICROSECONDS
        return Completed(self._payload(), self.fingerprint, self.fence, self.attempt, keep_left, self.owner)

    def _payload(self) -> Payload:
        return Payload("failed" if self.state == "failed" else "completed", self.result)

    def record(self, digest: bytes) -> Record | None:
        if self.free and not (self.known and self.state == "issued"):
            return None
        running = self.state == "running"
        live = "running" if self.lease_left > 0 else "orphan"
        return Record(
            digest=digest,
            operation=self.operation,
            scope=self.scope,
            key=self.business_key,
            state=live if running else self.state,  # type: ignore[arg-type]
            attempt=self.attempt,
            fence=self.fence,
            fingerprint=self.fingerprint,
            created_at=self.created_at / MICROSECONDS,
            completed_at=None if self.completed_at is None else self.completed_at / MICROSECONDS,
            lease_until=self.lease_until / MICROSECONDS,
            keep_until=self.keep_until / MICROSECONDS,
            keep_left=(self.keep_until - self.now) / MICROSECONDS,
            payload=self._payload() if self.state in ("completed", "failed") else None,
        )


class Records:
    """The records table, by name, and its MetaData."""

    def __init__(self, name: str = "idempo_records") -> None:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,50}", name):
            raise ConfigurationError(
                f"table={name!r}: a records table is named with up to 51 letters, digits and underscores"
            )
        self.name = name
        self.metadata = MetaData()
        self.table = _table(name, self.metadata)


def typed(sql: str) -> TextClause:
    """Return `sql` with the types of its parameters, as their names have it."""
    names = set(re.findall(r"(?<![:\w]):(\w+)", sql))
    return text(sql).bindparams(*(bindparam(name, type_=_TYPES[name]()) for name in names))


def row_of(found: Any) -> Row:
    """Make a `Row` of (now, digest, ...), of all columns or those that judge a claim.

    A null digest: there is no such row, only the clock.
    """
    if found is None or found[1] is None:
        return Row(0 if found is None else int(found[0]), "absent")
    if len(found) < len(COLUMNS):
        now, _, state, owner, fence, attempt, fingerprint, leased_at, lease_until, keep_until, result, *_ = (
            found
        )
        stored = None if result is None else bytes(result)
        described = "", "", "", bytes(owner), fence, attempt, bytes(fingerprint)
        return Row(int(now), state, *described, leased_at, lease_until, 0, None, keep_until, stored)
    now, _, operation, scope, key, state, owner, fence, attempt, fingerprint, *rest = found
    leased_at, lease_until, created_at, completed_at, keep_until, result, *_ = rest
    stored = None if result is None else bytes(result)
    described = operation, scope, key, bytes(owner), fence, attempt, bytes(fingerprint)
    times = leased_at, lease_until, created_at, completed_at, keep_until
    return Row(int(now), state, *described, *times, stored)


def identity(call: Call) -> dict[str, Any]:
    """The parameters that name the record and describe the claim."""
    return {
        "digest": call.digest,
        "operation": readable(call.operation),
        "scope": readable(call.scope),
        "business_key": readable(call.key),
        "owner": call.owner,
        "fingerprint": call.fingerprint,
        "lease": int(call.lease * MICROSECONDS),
        "keep": int(max(call.keep, call.lease) * MICROSECONDS),
    }


def completion(call: Call, payload: Payload) -> dict[str, Any]:
    """The parameters of a first result."""
    return {
        "digest": call.digest,
        "owner": call.owner,
        "state": payload.state,
        "result": payload.data,
        "keep": int(call.keep * MICROSECONDS),
    }


def readable(value: str) -> str:
    """Text that every database takes: what people read is no part of the identity, so it may be shortened."""
    clean = value.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\0")
    return clean if len(clean) <= _TEXT_LIMIT else clean[: _TEXT_LIMIT - 1] + "…"


def filled(call: Call, done: Done) -> dict[str, Any]:
    """The parameters of a record that another ledger has completed."""
    return {
        **identity(call),
        "state": done.payload.state,
        "result": done.payload.data,
        "fence": done.fence,
        "attempt": done.attempt,
        "keep": int(done.keep_left * MICROSECONDS),
    }
