"""What the doctor found: one frozen value for each thing it looked at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

__all__ = ["LEVELS", "Finding", "Level", "danger", "ok", "sorted_by_level", "unknown", "warning"]

Level: TypeAlias = Literal["danger", "warning", "unknown", "ok"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""From the worst to the best."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    `danger`: a promise of idempo can be broken, or no call can succeed. `warning`: it costs, or may surprise.
    `unknown`: it could not be checked, for want of a right or of an answer. `ok`: it was checked.
    """

    check: str
    """One word or two that name what was looked at, the same in each run: "eviction", "table"."""
    level: Level
    says: str
    """What is so, and what follows from it."""
    mend: str = ""
    """What to do about it; "" where there is nothing to do."""


def ok(check: str, says: str) -> Finding:
    return Finding(check, "ok", says)


def warning(check: str, says: str, mend: str) -> Finding:
    return Finding(check, "warning", says, mend)


def danger(check: str, says: str, mend: str) -> Finding:
    return Finding(check, "danger", says, mend)


def unknown(check: str, says: str, mend: str) -> Finding:
    return Finding(check, "unknown", says, mend)


def sorted_by_level(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first; those of one level in the order in which they were looked at."""
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))
