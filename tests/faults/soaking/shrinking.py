"""The shortest history that still shows a violation: what is left out is left out of the record, nothing runs again.

Only what cannot be an excuse is left out, so that the short history does not accuse where the long one explains.
"""

from collections.abc import Mapping, Sequence

from tests.faults.checker import Violation, check
from tests.faults.soaking.history import Event, Promise

__all__ = ["shortest"]

ALONE = {
    "claimed",
    "renewed",
    "waited",
    "replayed",
    "refused",
    "effect",
    "released",
    "completed",
    "took over",
    "unavailable",
    "lost",
    "unknown",
    "failed",
    "told",
    "row",
}
"""What a process has noted on the way: without it a rule sees less, never more, to accuse."""


def shortest(history: Sequence[Event], promises: Mapping[str, Promise], violation: Violation) -> list[Event]:
    """The events, of this key only, without which the same is not seen of the same calls."""
    events = [
        event for event in history if event.key == violation.key or event.what in ("fault", "over", "start")
    ]

    def shows(some: Sequence[Event]) -> bool:
        return any(
            (found.rule, found.calls) == (violation.rule, violation.calls) for found in check(some, promises)
        )

    observers = {event.call for event in events if event.what == "invoke"} - set(violation.calls)
    if not violation.calls:  # it is about all of them: those that ran, or vanished, may be what explains it
        answered = {event.call for event in events if event.what in ("return", "raise")}
        observers &= answered - {event.call for event in events if event.what == "begin"}
        events = _cut_short(events, shows)
    parts: list[list[Event]] = [
        [event for event in events if event.call == call] for call in sorted(observers)
    ]
    parts += [[event] for event in events if event.what in ALONE and event.call not in observers]
    parts += [[event] for event in events if event.what in ("fault", "over", "start")]
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


def _cut_short(events: Sequence[Event], shows: object) -> list[Event]:
    """Up to the first answer with which it is seen: what is seen of a longer history is seen of its beginning."""
    assert callable(shows)
    ordered = sorted(events, key=lambda event: event.at)
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if shows(ordered[:middle]) else (middle + 1, high)
    return ordered[:low]
