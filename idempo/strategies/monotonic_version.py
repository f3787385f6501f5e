"""`MonotonicVersion`: applies a change only if no higher version of its entity was applied before."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from idempo.asking import answered, check_answer
from idempo.contracts import Inner, KeySpec, Layer, Site, Strategy
from idempo.errors import KeyRefusedError, VersionConflictError
from idempo.events import tell
from idempo.guarantees import Part
from idempo.layers import asking_about, enclosed
from idempo.records import MISSING, Call, Done, Record, replace
from idempo.specs import value_reader
from idempo.steps import Steps
from idempo.versioned import MOST, SupersededError, Versioned, VersionedJoined, unframed
from idempo.versions import version_reader

__all__ = ["MonotonicVersion"]


class MonotonicVersion:
    """Applies a change only if no higher version of its entity was applied before, whatever the order of arrival.

    For the entity and version of a call, the function

    - runs, if the version is higher than all that were applied, or none was;
    - does not run, if it is the highest one: a repeat, which gets the first result;
    - does not run, if it is lower: superseded. `stale` is the answer, or `VersionConflictError`.

    What remembers the highest version is the ledger, so it works for any target: an index, a cache, another service.
    A deletion is a change like others: its version stays behind as a tombstone, and a late upsert does not bring the
    entity back, for as long as the decorator's `keep` says. Changes of one entity take turns. If the function raises,
    the version that was applied before stays the highest.

    The decorator's `key` names the change, such as `"{event_id}"`; it is what a ledger in front goes by.

    Args:
        ledger: what remembers: `Memory`, `RedisCache`, `UniqueInsert`; with `UniqueInsert(join=...)` version and
            business writes commit together.
        entity: a template, a callable or a tuple of parameter names for what the versions belong to.
        version: a template or callable for a whole number that grows with each change of the entity; never a time.
        stale: the answer for a superseded change: a value, or a callable of the version that was applied.
        changed: a template or callable for the aware datetime of the change. With it, a change that is older than
            `keep` and finds no record of its entity counts as superseded too: its tombstone may have been purged.

    Raises:
        ConfigurationError: while decorating, for a ledger that cannot stand here, or a version that is a time stamp.

    A call raises `VersionConflictError`, `KeyRefusedError` for a version or entity that is none, and what the ledger
    raises. Nothing is changed then.
    """

    def __init__(
        self,
        ledger: Strategy,
        *,
        entity: KeySpec,
        version: KeySpec,
        stale: Any = MISSING,
        changed: KeySpec | None = None,
    ) -> None:
        self._ledger = ledger
        self._entity = entity
        self._version = version
        self._stale = stale
        self._changed = changed

    @property
    def carried(self) -> Any:
        """The transaction that the version is part of, if the ledger joins one."""
        return getattr(self._ledger, "carried", None)

    def close(self) -> Any:
        """Close what the ledger has made from a URL, as its own `close()` does."""
        close = getattr(self._ledger, "close", None)
        return None if close is None else close()

    def bind(self, site: Site) -> Layer:
        check_answer("stale", self._stale, site)
        note = "applies no version of an entity below the highest one; it knows that one for as long as keep= says"
        layer, part = enclosed(site, self._ledger, "MonotonicVersion", note)
        if part.lossy and part.role == "own key":
            part = dataclasses.replace(
                part, notes=(*part.notes, f"{part.strategy} knows the highest version while it keeps the key")
            )
        changed = None
        if self._changed is not None:
            changed = value_reader(self._changed, site.parameters, what="changed", operation=site.operation)
        version = version_reader(self._version, site, "version")
        return _Layer(site, layer, part, site.rekeyed(self._entity, "entity"), version, changed, self._stale)


@dataclass(frozen=True)
class _Layer:
    site: Site
    layer: Any
    part: Part
    rekey: Callable[[Call], Call]
    version: Callable[[Call], int]
    changed: Callable[[Any], Any] | None
    stale: Any

    @property
    def injects(self) -> frozenset[str]:
        injects: frozenset[str] = self.layer.injects
        return injects

    def around(self, call: Call, inner: Inner) -> Steps[Done]:
        ledger = self._versioned(call)

        def admitted(mine: Call) -> Steps[Done]:
            # As the record, the claim of the entity is that of the call; in front of one, the record makes its own.
            own = replace(mine, key=call.key, digest=call.digest, demand=None)
            return inner(own if self.part.role == "record" else call)

        try:
            layer = dataclasses.replace(asking_about(self.layer, call), ledger=ledger)
            done: Done = yield from layer.around(self.rekey(call), admitted)
            return done
        except SupersededError as superseded:
            if superseded.source is not ledger.judge:
                raise  # of a function further inside
            tell(self.site.terms.hooks, "refused", call, "superseded")
            if self.stale is MISSING:
                raise VersionConflictError(
                    superseded.reason, operation=call.operation, key=call.key,
                    expected=superseded.expected, found=superseded.found,
                ) from None  # fmt: skip
            found = superseded.found
        answer = yield from answered(self.stale, found, call, self.site.terms)
        # The version that was found may still be undone, so nothing in front may keep this answer.
        return replace(answer, durable=False)

    def _versioned(self, call: Call) -> Versioned | VersionedJoined:
        version = self.version(call)
        if abs(version) > MOST:
            raise KeyRefusedError(
                f"version {version} does not fit into 64 bits; nothing ran",
                operation=call.operation,
                key=call.key,
            )
        kind = VersionedJoined if self.layer.part.joined else Versioned
        return kind.of(self.layer.ledger, version, too_old=self._is_too_old(call))

    def _is_too_old(self, call: Call) -> bool:
        if self.changed is None:
            return False
        changed = self.changed(call.arguments)
        if not isinstance(changed, datetime) or changed.tzinfo is None:
            raise KeyRefusedError(
                f"changed must be a datetime with a time zone, and this call has {changed!r:.50}",
                operation=call.operation,
                key=call.key,
            )
        return time.time() - changed.timestamp() > call.keep

    def lookup(self, call: Call) -> Steps[Record | None]:
        return unframed((yield from self.layer.lookup(self.rekey(call))))

    def forget(self, call: Call) -> Steps[bool]:
        forgotten: bool = yield from self.layer.forget(self.rekey(call))
        return forgotten
