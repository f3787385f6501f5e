"""Two runs against each other, by what does not depend on the machine's mood: ratios to a floor, and counted requests.

A change of a ratio is real if the intervals of the two do not overlap and it is more than 5 %. Requests are counted, so
each change of theirs is real.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from benchmarks.method import Measured
from benchmarks.report import Results

__all__ = ["Change", "change", "changes", "worded"]

Direction: TypeAlias = Literal["slower", "faster"]

LEAST = 0.05
COUNTED = ("latency", "transactions", "mixed")
"""Where the same calls always make the same requests."""


@dataclass(frozen=True)
class Change:
    """A real change of one row."""

    name: str
    what: Literal["ratio", "requests"]
    before: float
    now: float
    direction: Direction

    def __str__(self) -> str:
        share = f" ({self.now / self.before - 1:+.0%})" if self.before else ""
        return f"{self.direction}: {self.name}: {self.what} {self.before:.2f} -> {self.now:.2f}{share}"


def changes(before: Results, now: Results) -> list[Change]:
    """Return the real changes of the rows that both runs have."""
    found = []
    for name, old, new in paired(before, now):
        counted = name.split(" / ")[0] in COUNTED
        found += change(name, old, new, counted=counted)
    return found


def change(name: str, old: Measured, new: Measured, *, counted: bool = False) -> list[Change]:
    """Return what has really changed in one row: its ratio, its requests where they count, both, or nothing."""
    found = []
    if old.ratio is not None and new.ratio is not None and apart(old, new):
        worse = (new.ratio > old.ratio) is not new.at_least
        found.append(Change(name, "ratio", old.ratio, new.ratio, "slower" if worse else "faster"))
    if counted and old.requests is not None and new.requests is not None and old.requests != new.requests:
        worse = new.requests > old.requests
        found.append(Change(name, "requests", old.requests, new.requests, "slower" if worse else "faster"))
    return found


def apart(old: Measured, new: Measured) -> bool:
    """True if the two ratios are more than noise apart."""
    if None in (old.ratio, old.low, old.high, new.ratio, new.low, new.high):
        return False
    (middle, low, high), (other, lowest, highest) = old.judged, new.judged
    return (low > highest or lowest > high) and abs(other - middle) > LEAST * abs(middle)


def paired(before: Results, now: Results) -> Iterator[tuple[str, Measured, Measured]]:
    for benchmark, tables in now.items():
        for title, rows in tables.items():
            known = {row.name: row for row in before.get(benchmark, {}).get(title, ())}
            for row in rows:
                if row.name in known and known[row.name].floor == row.floor:
                    yield f"{benchmark} / {title} / {row.name}", known[row.name], row


def worded(before: Results, now: Results) -> tuple[str, bool]:
    """Return the comparison as text, and whether anything is really slower."""
    pairs = sum(1 for _ in paired(before, now))
    found = sorted(changes(before, now), key=lambda one: (one.direction != "slower", one.name))
    lines = [f"{pairs} rows compared, {len(found)} real changes", *(f"  {one}" for one in found)]
    return "\n".join(lines), any(one.direction == "slower" for one in found)
