"""How far the clock of a store is from ours."""

from __future__ import annotations

import time
from collections.abc import Callable

from idempo.doctor.findings import Finding, ok, warning

__all__ = ["offset", "offset_finding"]

_SAMPLES = 5
_NOTABLE = 1.0
"""Seconds. Below that, nobody who reads a time of day would notice."""


def offset(ask: Callable[[], float]) -> tuple[float, float]:
    """Return the offset of the clock that `ask` reads from ours, and how far it may be off; in seconds.

    Of several readings the one with the shortest round trip counts: the server's reading lies somewhere in it
    (Cristian's algorithm).
    """
    best: tuple[float, float] | None = None
    for _ in range(_SAMPLES):
        before, started = time.time(), time.monotonic()
        theirs = ask()
        took = time.monotonic() - started
        if best is None or took < best[1]:
            best = theirs - (before + took / 2), took
    assert best is not None  # noqa: S101
    return best[0], best[1] / 2


def offset_finding(ask: Callable[[], float]) -> Finding:
    """Compare the store's clock with ours. Leases and retention are the store's alone, so it is never a danger."""
    ahead, error = offset(ask)
    if abs(ahead) - error <= _NOTABLE:
        return ok(
            "clock", f"the store's clock is {abs(ahead):.3f} s from ours (measured within {error:.3f} s)"
        )
    side = "ahead of" if ahead > 0 else "behind"
    return warning(
        "clock",
        f"the store's clock is {abs(ahead):.1f} s {side} ours; leases and retention go by the store's alone, but the "
        "times that `idempo list` and logs show do not fit together",
        "let both machines keep time by NTP",
    )
