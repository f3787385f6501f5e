"""`Leased`: the layer of every ledger that claims under a lease, wherever it stands in a composition."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from idempo.contracts import BatchingLedger, Inner, KeySpec, Ledger, Site, Strategy, Terms
from idempo.errors import CompositionError
from idempo.fingerprints import with_key
from idempo.guarantees import Part, Role
from idempo.protocol import once, tier
from idempo.records import Call, Done, Record, replace
from idempo.steps import Steps

__all__ = ["Leased", "asking_about", "enclosed", "good_for"]


@dataclass(frozen=True, slots=True)
class Leased:
    """A ledger bound to one function: the record itself, a tier in front of one, or a claim of a key of its own."""

    ledger: Ledger
    terms: Terms
    part: Part
    rekey: Callable[[Call], Call] | None = None
    required: bool = True
    injects: frozenset[str] = frozenset()

    @classmethod
    def at(
        cls,
        site: Site,
        ledger: Ledger,
        name: str,
        *,
        key: KeySpec | None = None,
        required: bool = True,
        lossy: bool = False,
        notes: tuple[str, ...] = (),
    ) -> Leased:
        """Return the layer of `ledger` for the function at `site`.

        A ledger outside another one is a tier, which only replays, unless it has a `key` of its own: that one must
        be claimed, since the record inside does not know it.
        """
        if not required and (not site.tier or key is not None):
            raise CompositionError(
                f"{site.operation}: required=False is for a {name} in front of another ledger and under its key; one "
                "that keeps the record, or claims a key of its own, cannot be passed by"
            )
        rekey = None if key is None else site.rekeyed(key, "key of its own")
        terms = site.terms
        if site.tier:
            terms = dataclasses.replace(terms, final=False, on_orphan="rerun", unknown_errors=())
        role: Role = ("own key" if rekey else "tier") if site.tier else "record"
        return cls(ledger, terms, Part(name, role, lossy=lossy, notes=notes), rekey, required)

    def around(self, call: Call, inner: Inner) -> Steps[Done]:
        if self.part.role == "tier":
            return (yield from tier(self.ledger, call, self.terms, inner, required=self.required))
        if self.rekey is None:
            return (yield from once(self.ledger, call, self.terms, inner))
        mine = self.rekey(call)
        if self.part.role == "own key":
            mine = good_for(call, mine)
        return (yield from once(self.ledger, mine, self.terms, lambda _: inner(call)))

    @property
    def batching(self) -> BatchingLedger | None:
        """The ledger, if it keeps the record under the decorator's key and can be asked about many calls at once."""
        alone = self.part.role == "record" and self.rekey is None
        return cast(BatchingLedger, self.ledger) if alone and hasattr(self.ledger, "claim_many") else None

    def lookup(self, call: Call) -> Steps[Record | None]:
        return (yield from self.ledger.lookup(self._digest(call)))

    def forget(self, call: Call) -> Steps[bool]:
        return (yield from self.ledger.forget(self._digest(call)))

    def _digest(self, call: Call) -> bytes:
        return call.digest if self.rekey is None else self.rekey(call).digest


def good_for(call: Call, other: Call) -> Call:
    """The call `other`, under a key of its own: what was claimed with it for one business key is good for no other."""
    return replace(other, fingerprint=with_key(other.fingerprint, call.digest, other.digest))


def asking_about(layer: Any, call: Call) -> Any:
    """The layer, with an `on_orphan` probe that is told of `call`, and not of the key that the ledger has for it."""
    probe = layer.terms.on_orphan
    if not callable(probe):
        return layer
    told = lambda mine: probe(replace(mine, key=call.key, digest=call.digest, demand=None))  # noqa: E731
    return dataclasses.replace(layer, terms=dataclasses.replace(layer.terms, on_orphan=told))


def enclosed(site: Site, strategy: Strategy, name: str, *notes: str) -> tuple[Any, Part]:
    """Bind the ledger that another strategy, `name`, puts in front of the function under keys of its own.

    Returns its layer, which claims wherever it stands, and what the two do in the composition. Raises
    `CompositionError` for a strategy that is no ledger, or has a key of its own.
    """
    if isinstance(strategy, type) or not callable(getattr(strategy, "bind", None)):
        raise CompositionError(f"{site.operation}: {name} takes a ledger, not {strategy!r:.100}")
    if site.tier and getattr(strategy, "carried", None) is not None:
        raise CompositionError(
            f"{site.operation}: the ledger of {name} joins the transaction of the function: it is the record itself, "
            "and stands last in using=[...]"
        )
    terms = (
        dataclasses.replace(site.terms, final=False, on_orphan="rerun", unknown_errors=())
        if site.tier
        else site.terms
    )
    layer: Any = strategy.bind(dataclasses.replace(site, tier=False, terms=terms))
    if getattr(layer, "ledger", None) is None or layer.part.role != "record":
        raise CompositionError(f"{site.operation}: {name} takes a ledger, not {type(strategy).__name__}")
    if getattr(layer, "rekey", None) is not None:
        raise CompositionError(f"{site.operation}: give key= to {name}, not to the ledger in it")
    inside = layer.part
    whole = f"{name}({inside.strategy})"
    role: Role = "own key" if site.tier else "record"
    part = Part(whole, role, joined=inside.joined, lossy=inside.lossy, notes=(*inside.notes, *notes))
    return layer, part
