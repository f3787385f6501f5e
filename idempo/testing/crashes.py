"""`CrashingLedger`: a caller that dies, or loses a message, at any request to its ledger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from idempo.contracts import Colour, Layer, Site, Strategy
from idempo.errors import CompositionError, ConfigurationError
from idempo.steps import arun, run
from idempo.testing.layers import tapped
from idempo.testing.tapping import Crashed, Fault, LostError, Tap

__all__ = ["Crashed", "CrashingLedger", "Fault", "LostError"]


class CrashingLedger:
    """A ledger whose callers die, or lose a message, at any request: `using=CrashingLedger(UniqueInsert(engine))`.

        with ledger.die(at="complete"):  # the function has run, and its process dies before that is recorded
            f("A-1")
        ledger.end_leases()
        f("A-1")  # and now?

    The dead say nothing more: no release, no renewal, no completion reaches the store. A transaction that they had
    begun is undone, as the database does it. Without a fault the strategy is as it was.

    The requests of a call are, under a lease, `claim`, `complete`, `release`, `renew` (where a claim is given up as an
    orphan), `lookup` and `fill`; in a transaction `open`, `enter`, `claim`, `complete`, `close`, and more rarely
    `recall`, `undo` and `abandon`. Renewals while the function runs, `forget`, and the issue of tokens are not counted.

    Args:
        strategy: a ledger, or what encloses one: `Memory`, `UniqueInsert`, `RedisCache`, `OneTimeToken`,
            `MonotonicVersion`. All else that the strategy has, such as `issue`, `close`, `create_schema`, is here too.
    """

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._tap = Tap()
        self._colour: Colour | None = None

    def bind(self, site: Site) -> Layer:
        """Return the layer of the strategy, with its ledger watched.

        Raises `CompositionError` for a strategy without a ledger, and in front of functions of both colours.
        """
        if self._colour not in (None, site.colour):
            raise CompositionError(
                f"{site.operation}: a CrashingLedger stands in front of plain functions, or of async ones"
            )
        layer = tapped(self._strategy.bind(site), self._tap)
        if layer is None:
            raise CompositionError(
                f"{site.operation}: a CrashingLedger takes a ledger, and {type(self._strategy).__name__} asks none"
            )
        self._colour = site.colour
        return layer

    @property
    def requests(self) -> list[str]:
        """The names of all requests so far, in order; a list to read and to clear."""
        return self._tap.requests

    @contextmanager
    def die(self, *, at: int | str, moment: Literal["before", "after"] = "before") -> Iterator[Fault]:
        """Within the block, the caller that sends one request dies there; the block ends where it died.

        Args:
            at: the number of the request, counted from 1 at the beginning of the block, or a name: the first of it.
            moment: before the store has the request, or after the store has acted on it.

        Returns:
            The fault: `reached` is False if there was no such request, which ends a walk over all of them; `request`
            names it. Where calls run in other threads or tasks, `Crashed` ends up there.
        """
        with self._armed(Fault("die before" if moment == "before" else "die after", at)) as fault:
            try:
                yield fault
            except Crashed:
                if not fault.reached:
                    raise

    @contextmanager
    def lose(self, what: Literal["request", "reply"], *, at: int | str) -> Iterator[Fault]:
        """Within the block, one request does not arrive, or its reply does not; once, with a `ConnectionError`.

        `at` and what is returned are as for `die`. A transaction is undone with its connection, if not yet committed.
        """
        with self._armed(Fault("lose request" if what == "request" else "lose reply", at)) as fault:
            yield fault

    def end_leases(self) -> Any:
        """End the lease of every claim of a caller that died; return how many. Awaitable where the function is.

        What nobody claims by then is an orphan, as if its time had passed.
        """
        steps = self._tap.end_leases()
        return arun(steps) if self._colour == "async" else run(steps)

    @contextmanager
    def _armed(self, fault: Fault) -> Iterator[Fault]:
        if self._tap.fault is not None:
            raise ConfigurationError("a CrashingLedger has one fault at a time")
        self._tap.fault = fault
        try:
            yield fault
        finally:
            self._tap.fault = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._strategy, name)
