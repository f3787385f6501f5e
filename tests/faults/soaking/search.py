"""Can what was seen of one record have happened in some order? A memoised search, after Wing and Gong.

    J. M. Wing, C. Gong: Testing and Verifying Concurrent Objects, 1993

Every operation takes effect at one moment between its start and its end. One whose outcome nobody knows may take
effect at any time after its start, or never. What only looks is put in as soon as it fits: it changes nothing for the
others. Knows nothing of idempo.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["FREE", "Op", "Record", "possible"]

Kind = Literal["claim", "release", "complete", "commit", "replay", "in progress", "orphan", "lost"]
LOOKING = ("replay", "in progress", "orphan", "lost")


@dataclass(frozen=True)
class Record:
    """How a key stands: free, owned by a call, or done with a value."""

    owner: str = ""
    value: str = ""


FREE = Record()


@dataclass(frozen=True)
class Op:
    """One thing that a call did to the record, or saw of it."""

    kind: Kind
    who: str
    start: float
    end: float = math.inf
    """Infinite: nobody knows whether it took place."""
    value: str = ""

    @property
    def certain(self) -> bool:
        return self.end < math.inf


def after(record: Record, op: Op, may_take: Callable[[str, Op], bool]) -> Record | None:
    """The record after `op`; None if `op` cannot take effect on it. `may_take` judges a claim over an owner."""
    mine = record.owner == op.who
    match op.kind:
        case "claim":
            free = record == FREE or (record.owner and not mine and may_take(record.owner, op))
            return Record(owner=op.who) if free else None
        case "release":
            return FREE if mine else None
        case "complete":
            return Record(value=op.value) if mine else None
        case "commit":
            return Record(value=op.value) if record == FREE else None
        case "replay":
            return record if record.value == op.value else None
        case "in progress" | "orphan":
            return record if record.owner and not mine else None
        case "lost":
            return None if mine else record


def possible(ops: Sequence[Op], may_take: Callable[[str, Op], bool], *, limit: int = 20_000) -> bool | None:
    """True if there is such an order, False if there is none; None where `limit` states do not suffice to tell."""
    seen: set[tuple[int, Record]] = set()
    stack = [(0, FREE)]
    while stack:
        done, record = stack.pop()
        done = _looked(ops, done, record, may_take)
        left = [number for number in range(len(ops)) if not done >> number & 1]
        if not any(ops[number].certain for number in left):
            return True
        if (done, record) in seen:
            continue
        seen.add((done, record))
        if len(seen) > limit:
            return None
        horizon = min(ops[number].end for number in left)
        ghosts: set[str] = (
            set()
        )  # claims of calls that vanished are all alike: the first stands for the others
        for number in sorted(left, key=lambda number: (-ops[number].end, ops[number].start)):
            op = ops[number]
            if op.start > horizon or op.kind in LOOKING:
                continue
            if op.kind == "claim" and not op.certain:
                if ghosts:
                    continue
                ghosts.add(op.who)
            if (changed := after(record, op, may_take)) is not None:
                stack.append((done | 1 << number, changed))
    return False


def _looked(ops: Sequence[Op], done: int, record: Record, may_take: Callable[[str, Op], bool]) -> int:
    """What is done when all that only looks, and can do so now, has looked."""
    while True:
        left = [number for number in range(len(ops)) if not done >> number & 1]
        horizon = min((ops[number].end for number in left), default=math.inf)
        now = [
            number
            for number in left
            if ops[number].kind in LOOKING
            and ops[number].start <= horizon
            and after(record, ops[number], may_take) is not None
        ]
        if not now:
            return done
        for number in now:
            done |= 1 << number
