"""Which strategies may stand together, and in which order; what is refused would break the promise of one inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeGuard

from idempo.contracts import Carried, Guard, Layer, Site, Strategy
from idempo.errors import CompositionError

__all__ = ["bind"]


def bind(using: Strategy | Sequence[Strategy] | None, site: Site) -> tuple[Layer, ...]:
    """Return the layers of the function at `site`, outermost first: ledgers, the last of which keeps the record, then
    guards. Raises `CompositionError` for strategies that cannot stand together."""
    strategies = _listed(using, site)
    guards = tuple(strategy for strategy in strategies if _is_guard(strategy))
    ledgers = tuple(strategy for strategy in strategies if not _is_guard(strategy))
    if strategies != (*ledgers, *guards):
        raise CompositionError(
            f"{site.operation}: a guard stands inside the ledgers, so that a repeat is answered before the row is "
            f"judged; write {', '.join(type(one).__name__ for one in (*ledgers, *guards))}"
        )
    site = replace(site, named=bool(ledgers))
    ledgers += _brought(ledgers, guards)
    for strategy in ledgers[1:]:
        if getattr(strategy, "outermost", False):
            raise CompositionError(
                f"{site.operation}: {type(strategy).__name__} stands first in using=[...]: what stands around it would "
                "answer without asking for the token"
            )
    carried = _carried(ledgers, guards, site)
    outer = tuple(strategy.bind(replace(site, tier=True)) for strategy in ledgers[:-1])
    record = tuple(strategy.bind(replace(site, carried=carried)) for strategy in ledgers[-1:])
    return (*outer, *record, *(guard.bind(replace(site, carried=carried)) for guard in guards))


def _is_guard(strategy: Strategy) -> TypeGuard[Guard]:
    return callable(getattr(strategy, "record", None))


def _brought(ledgers: Sequence[Strategy], guards: Sequence[Guard]) -> tuple[Strategy, ...]:
    """The ledger that the guards bring where none joins their transaction."""
    if ledgers and getattr(ledgers[-1], "carried", None) is not None:
        return ()
    for guard in guards:
        record = guard.record()
        if record is not None:
            return (record,)
    return ()


def _carried(ledgers: Sequence[Strategy], guards: Sequence[Guard], site: Site) -> Carried | None:
    """The transaction of the record. Raises `CompositionError` for a guard that works in another one."""
    carried: Carried | None = getattr(ledgers[-1], "carried", None) if ledgers else None
    for guard in guards:
        if carried is None or guard.carried is None:
            continue
        reason = carried.differs(guard.carried)
        if reason:
            raise CompositionError(
                f"{site.operation}: {type(guard).__name__} works in another transaction than the record: {reason}"
            )
    return carried


def _listed(using: Strategy | Sequence[Strategy] | None, site: Site) -> tuple[Strategy, ...]:
    if using is None:
        from idempo.embedded import embedded

        strategies: tuple[Strategy, ...] = (embedded(),)
    elif isinstance(using, Sequence):
        strategies = tuple(using)
    else:
        strategies = (using,)
    if not strategies:
        raise CompositionError(
            f"{site.operation}: using=[] names no strategy; leave it out for the embedded default"
        )
    for strategy in strategies:
        if isinstance(strategy, type) or not callable(getattr(strategy, "bind", None)):
            raise CompositionError(
                f"{site.operation}: using= takes strategies such as UniqueInsert(...), not {_named(strategy)}"
            )
    if len({id(strategy) for strategy in strategies}) < len(strategies):
        raise CompositionError(f"{site.operation}: using= names the same strategy object twice")
    return strategies


def _named(thing: object) -> str:
    return f"the class {thing.__name__}" if isinstance(thing, type) else type(thing).__name__
