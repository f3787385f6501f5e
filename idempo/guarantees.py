"""What a composition guarantees under which fault, in words and as data: the answer of `f.explain()`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Effects", "Explanation", "Orphans", "Part", "Role", "explain"]

Effects: TypeAlias = Literal[
    "exactly once", "at least once", "at most once", "exactly once by the probe", "none: it reads"
]

Orphans: TypeAlias = Literal["rerun", "refuse", "probe"]
Role: TypeAlias = Literal["record", "tier", "own key", "guard"]

_FOREIGN_NOTE = "send current().downstream_key(system) along, so that the other system can tell a repeat"


@dataclass(frozen=True, slots=True)
class Part:
    """What one strategy does in a composition."""

    strategy: str
    role: Role
    joined: bool = False
    lossy: bool = False
    """True for a store that may lose acknowledged writes (failover, eviction)."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """The guarantees of one decorated function. `str()` gives the text."""

    operation: str
    parts: tuple[Part, ...]
    joined_effects: Effects
    """Effects in the database that the record is part of; the same as `foreign_effects` without `join=`."""
    foreign_effects: Effects
    """Effects elsewhere: a mail, another API, another database."""
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.operation}"]
        lines += [f"  {part.strategy}: {_ROLES[part.role]}" for part in self.parts]
        if any(part.joined for part in self.parts):
            lines.append(f"  effects in the joined database: {self.joined_effects}")
            lines.append(f"  effects elsewhere: {self.foreign_effects}")
        else:
            lines.append(f"  effects: {self.foreign_effects}")
        return "\n".join(lines + [f"  - {note}" for note in self.notes])


_ROLES: dict[Role, str] = {
    "record": "keeps the record; its word is final",
    "tier": "replays in front of the record; losing it costs speed, never correctness",
    "own key": "claims a key of its own before the record inside it is asked",
    "guard": "admits by the business row",
}


def explain(operation: str, parts: Sequence[Part], orphans: Orphans) -> Explanation:
    """Return what the composition `parts`, outermost first, guarantees."""
    keeping = [part for part in parts if part.role != "guard"]
    if not keeping:
        notes = [note for part in parts for note in part.notes]
        notes.append("nothing is recorded: a repeat reads anew")
        return Explanation(operation, tuple(parts), "none: it reads", "none: it reads", tuple(notes))
    record = keeping[-1]
    foreign: Effects
    match record.joined, orphans:
        case True, _:
            foreign = "at least once"
            notes = ["a crash, a kill or a lost commit reply leaves all of the transaction or nothing"]
            notes += [_FOREIGN_NOTE]
        case False, "rerun":
            foreign = "at least once"
            notes = [
                "an owner that vanished after its effect is run again once its lease is over",
                _FOREIGN_NOTE,
            ]
        case False, "refuse":
            foreign = "at most once"
            notes = [
                "an owner that vanished leaves an unknown outcome, which repeats get as OutcomeUnknownError"
            ]
        case _:
            foreign = "exactly once by the probe"
            notes = [
                "an owner that vanished is judged by the on_orphan probe; it is as right as the probe is"
            ]
    if record.lossy:
        notes.append(
            f"{record.strategy} keeps this promise while it keeps the key: a failover that loses acknowledged writes, "
            "an eviction or a flush can run it twice"
        )
    notes += [note for part in parts for note in part.notes]
    joined: Effects = "exactly once" if record.joined else foreign
    return Explanation(operation, tuple(parts), joined, foreign, tuple(dict.fromkeys(notes)))
