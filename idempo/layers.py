"""`Leased`: the layer of every ledger that claims under a lease, wherever it stands in a composition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from idempo.contracts import Inner, KeySpec, Ledger, Site, Terms
from idempo.errors import CompositionError
from idempo.guarantees import Part, Role
from idempo.protocol import once, tier
from idempo.records import Call, Done, Record
from idempo.steps import Steps

__all__ = ["Leased"]


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
        rekey = None if key is None else site.rekeyed(key)
        terms = site.terms
        if site.tier:
            terms = replace(terms, final=False, on_orphan="rerun", unknown_errors=())
        role: Role = ("own key" if rekey else "tier") if site.tier else "record"
        return cls(ledger, terms, Part(name, role, lossy=lossy, notes=notes), rekey, required)

    def around(self, call: Call, inner: Inner) -> Steps[Done]:
        if self.part.role == "tier":
            return (yield from tier(self.ledger, call, self.terms, inner, required=self.required))
        if self.rekey is None:
            return (yield from once(self.ledger, call, self.terms, inner))
        return (yield from once(self.ledger, self.rekey(call), self.terms, lambda _: inner(call)))

    def lookup(self, call: Call) -> Steps[Record | None]:
        return (yield from self.ledger.lookup(self._digest(call)))

    def forget(self, call: Call) -> Steps[bool]:
        return (yield from self.ledger.forget(self._digest(call)))

    def _digest(self, call: Call) -> bytes:
        return call.digest if self.rekey is None else self.rekey(call).digest
