"""The shortest history that still shows a violation: what is left out is left out of the record, nothing runs again.

The violation stays the same one, of the same calls: it was seen of the long history, with all that could excuse it.
"""

from collections.abc import Callable, Mapping, Sequence

from tests.faults.checker import Violation, check
from tests.faults.soaking.history import Event, Promise

__all__ = ["shortest"]

ANSWERS = ("invoke", "begin", "end", "return", "raise")
"""What makes a call: left out with the whole of it, or not at all. Everything else can be left out alone."""


def shortest(history: Sequence[Event], promises: Mapping[str, Promise], violation: Violation) -> list[Event]:
    """The events, of this key only, without which the same is not seen of the same calls."""
    world = ("fault", "over", "start")
    events: Sequence[Event] = [one for one in history if one.key == violation.key or one.what in world]

    def shows(some: Sequence[Event]) -> bool:
        return any(
            (found.rule, found.calls) == (violation.rule, violation.calls) for found in check(some, promises)
        )

    observers = {event.call for event in events if event.what == "invoke"} - set(violation.calls)
    if not violation.calls:  # it is about all of them: what was done to the record may explain the others
        done = [one for one in events if one.what == "begin" or one.more.get("replayed") is False]
        observers -= {event.call for event in done}
    events = _cut_short(events, shows)
    parts: list[list[Event]] = [
        [event for event in events if event.call == call] for call in sorted(observers)
    ]
    parts += [[one] for one in events if one.key and one.what not in ANSWERS and one.call not in observers]
    parts += [[event] for event in events if event.what in world]
    size = max(1, len(parts) // 2)
    while parts:
        kept = []
        for start in range(0, len(parts), size):
            chunk = {id(event) for part in parts[start : start + size] for event in part}
            fewer = [event for event in events if id(event) not in chunk]
            if shows(fewer):
                events = fewer
            else:
                kept += parts[start : start + size]
        if size == 1:
            break
        parts, size = kept, size // 2
    return sorted(events, key=lambda event: event.at)


def _cut_short(events: Sequence[Event], shows: Callable[[Sequence[Event]], bool]) -> Sequence[Event]:
    """Up to the moment at which it is seen. What was found at the end holds for all times."""
    ordered = sorted(events, key=lambda event: event.at)
    found = [event for event in ordered if event.what in ("told", "row")]
    told = [event for event in ordered if event.what not in ("told", "row")]
    low, high = 0, len(told)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if shows(told[:middle] + found) else (middle + 1, high)
    shorter = told[:low] + found
    return shorter if shows(shorter) else events
