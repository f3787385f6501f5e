"""A history: what the processes of a soak have written down, and what it says of each key. Knows nothing of idempo."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["Answer", "Call", "Event", "Fault", "KeyHistory", "Promise", "Run", "by_key"]


@dataclass(frozen=True)
class Event:
    """One line: something that happened in one process, at a time of the clock that all processes share."""

    at: float
    what: str
    """invoke, begin, effect, end, return, raise; claimed, renewed and the other words of hooks; fault, start; and what
    was found at the end: row, told."""
    key: str = ""
    """Place, composition and number: "postgres+redis/insert/17"."""
    call: str = ""
    run: str = ""
    fence: int = 0
    more: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        words = [self.what, self.call, self.run]
        words += [f"fence {self.fence}"] if self.fence else []
        words += [f"{name}={value}" for name, value in self.more.items() if value not in (None, "")]
        return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Promise:
    """What a composition promises, in the words of its `explain()`."""

    joined: bool
    """The function's write is in the transaction of the record: exactly once."""
    on_orphan: str
    """Without a joined transaction: rerun (at least once), refuse (at most once), probe."""
    lease: float
    tiers: bool = False
    """Another ledger stands in front, and may refuse or know a result for reasons of its own."""
    callers: bool = False
    """The caller commits."""
    servers: frozenset[str] = frozenset()
    """Which of the servers of its place it needs: "database", "redis"."""


@dataclass(frozen=True)
class Fault:
    """Something done to a server, to a process or to what lies between."""

    kind: str
    target: str
    """The name of a server, or the number of a process."""
    at: float
    until: float
    """When it was over, infinite where that cannot be said: what is to be dropped waits for the next request."""


@dataclass
class Run:
    """One time that the function was entered."""

    id: str
    call: str
    fence: int
    asked: float
    """Not later than the claim was made at the store."""
    begin: float
    end: float = math.inf
    how: str = ""
    """value, error (an exception that is a result), declined (its own failure), failed (its database did); "" while it
    has not ended."""

    @property
    def released(self) -> bool:
        """It raised, so that its owner then frees the key."""
        return self.how in ("declined", "failed")

    @property
    def result(self) -> str:
        """What it brings as a first result."""
        return {"value": self.id, "error": f"error:{self.id}"}.get(self.how, "")


@dataclass(frozen=True)
class Answer:
    """What the caller got: a value, or an error."""

    at: float
    value: str = ""
    replayed: bool | None = None
    error: str = ""
    kind: str = ""
    """Of an error: own, idempo, driver, other."""
    ran: bool | None = None
    stored: str = ""
    """The first result that a `LeaseLostError` carries."""


@dataclass
class Call:
    id: str
    pid: int
    invoke: float
    settling: bool = False
    """Made at the end, when all faults were over."""
    runs: list[Run] = field(default_factory=list)
    answer: Answer | None = None

    @property
    def value(self) -> str:
        return self.answer.value if self.answer else ""

    @property
    def error(self) -> str:
        return self.answer.error if self.answer else ""

    @property
    def told_at(self) -> float:
        return self.answer.at if self.answer else math.inf


@dataclass
class KeyHistory:
    key: str
    promise: Promise
    calls: dict[str, Call] = field(default_factory=dict)
    renewals: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    """When each owner, by its fence, was told that its lease goes on."""
    rows: list[str] = field(default_factory=list)
    """The runs whose write is committed."""
    told: list[tuple[str, int, bool]] = field(default_factory=list)
    """What the other system was told, in its order: run, fence, and whether a table guarded by the fence took it."""
    faults: list[Fault] = field(default_factory=list)
    """Those on its servers, and those on processes."""
    starts: dict[int, float] = field(default_factory=dict)

    @property
    def runs(self) -> list[Run]:
        return [run for call in self.calls.values() for run in call.runs]

    @property
    def successes(self) -> list[Call]:
        """The calls that were given a value, in the order in which they were."""
        return sorted((call for call in self.calls.values() if call.value), key=lambda call: call.told_at)

    def lease_end(self, run: Run) -> float:
        """The lease of this run lasted at least until then, by what its owner itself has seen.

        A heartbeat that is answered at t was sent a third of a lease after the answer to the one before, or later.
        """
        sent = before = run.asked
        for at in sorted(self.renewals.get(run.fence, ())):
            sent, before = before + self.promise.lease / 3, at
        return sent + self.promise.lease


def by_key(events: Iterable[Event], promises: Mapping[str, Promise]) -> list[KeyHistory]:
    """Sort a history by keys. `promises` is by composition."""
    found: dict[str, KeyHistory] = {}
    runs: dict[str, Run] = {}
    faults: list[Fault] = []
    starts: dict[int, float] = {}
    for event in sorted(events, key=lambda event: event.at):
        if event.what == "fault":
            target = str(event.more["target"])
            until = event.at if target.isdigit() else math.inf
            faults.append(Fault(event.more["kind"], target, event.at, until))
        elif event.what == "over" and event.more["kind"] != "drop":
            faults = [_ended(fault, event) for fault in faults]
        elif event.what == "start":
            starts[event.more["pid"]] = event.at
        elif event.key:
            one = found.get(event.key)
            if one is None:
                one = found[event.key] = KeyHistory(event.key, promises[event.key.split("/")[1]])
            _note(one, event, runs)
    for one in found.values():
        place = one.key.partition("/")[0].split("+")
        named = zip(place, ("database", "redis"), strict=True)
        own = {name for name, kind in named if kind in one.promise.servers}
        one.starts = starts
        one.faults = [fault for fault in faults if fault.target in own or fault.target.isdigit()]
    return list(found.values())


def _ended(fault: Fault, event: Event) -> Fault:
    last = (fault.kind, fault.target, fault.until) == (event.more["kind"], event.more["target"], math.inf)
    return replace(fault, until=event.at) if last else fault


def _note(one: KeyHistory, event: Event, runs: dict[str, Run]) -> None:
    more = event.more
    match event.what:
        case "invoke":
            one.calls[event.call] = Call(event.call, more["pid"], event.at, more.get("settling", False))
        case "begin":
            call = one.calls[event.call]
            asked = call.invoke if one.promise.joined else more["asked"]
            runs[event.run] = Run(event.run, event.call, event.fence, asked, event.at)
            call.runs.append(runs[event.run])
        case "end":
            runs[event.run].end, runs[event.run].how = event.at, more["how"]
        case "return":
            one.calls[event.call].answer = Answer(event.at, more["value"], more.get("replayed"))
        case "raise":
            one.calls[event.call].answer = Answer(
                event.at,
                error=more["error"],
                kind=more["kind"],
                ran=more["ran"],
                stored=more.get("stored", ""),
            )
        case "renewed":
            one.renewals[event.fence].append(event.at)
        case "row":
            one.rows.append(event.run)
        case "told":
            one.told.append((event.run, event.fence, more["taken"]))
