"""Decides about a history, by what each composition promises. Imports nothing of idempo.

Each rule is a function of the history of one key, named by what went wrong. None goes by how long something should
take: a lease is over when its owner's own heartbeats, as it has seen them answered, do not reach further.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from tests.faults.soaking.history import Call, Event, KeyHistory, Promise, by_key
from tests.faults.soaking.order import TOLERANCE, explained

__all__ = ["RULES", "Violation", "check", "check_key", "undecided"]

EXPLAINED = {"InProgressError", "LedgerUnavailableError", "OutcomeUnknownError"}


@dataclass(frozen=True)
class Violation:
    rule: str
    key: str
    calls: tuple[str, ...]
    """Those that it is about."""
    text: str


Found = Iterator[tuple[tuple[str, ...], str]]


def two_values(key: KeyHistory) -> Found:
    """Everybody who gets a value for a key gets the same one."""
    for call in key.successes[1:]:
        first = key.successes[0]
        if call.value != first.value:
            yield (first.id, call.id), f"{first.id} was given {first.value}, {call.id} {call.value}"


def value_of_no_run(key: KeyHistory) -> Found:
    """A value is what some run has brought, and that run had its effect."""
    runs = {run.result: run for run in key.runs if run.result}
    effects = {run for run, _, _ in key.told}
    for call in key.successes:
        run = runs.get(call.value)
        if run is None and key.promise.on_orphan == "probe" and call.value in effects:
            continue  # found by the probe: its run was killed after the effect
        if run is None:
            yield (call.id,), f"{call.id} was given {call.value}, which no run has returned"
        elif run.begin > call.told_at:
            yield (call.id, run.call), f"{call.id} was given {call.value} before that run began"
        elif not key.promise.joined and run.id not in effects:
            yield (call.id, run.call), f"{call.id} was given {call.value}, and that run has had no effect"


def untrue_replayed(key: KeyHistory) -> Found:
    """`replayed` is False for the call that made the first result, and True for all others."""
    for call in key.successes:
        said = call.answer.replayed if call.answer else None
        own = any(run.result == call.value for run in call.runs)
        if said is None or said != own or (not said and key.promise.on_orphan == "probe"):
            continue
        yield (call.id,), f"{call.id} was told replayed={said}, and its own run has brought {own=}"


def rows_not_exactly_one(key: KeyHistory) -> Found:
    """In the joined database: one row for a first result that is a value, the same; none for an exception."""
    if not key.promise.joined:
        return
    if len(key.rows) > 1:
        calls = tuple(run.call for run in key.runs if run.id in key.rows)
        yield calls, f"{len(key.rows)} effects are committed: {', '.join(key.rows)}"
    for call in key.successes[:1]:
        expected = [] if call.value.startswith("error:") else [call.value]
        if len(key.rows) <= 1 and key.rows != expected:
            yield (call.id,), f"{call.id} was given {call.value}, and committed is {key.rows}"


def refused_and_ran(key: KeyHistory) -> Found:
    """A call that is told ran=False has not entered the function, and has left no effect."""
    for call in key.calls.values():
        if call.answer and call.answer.kind == "idempo" and call.answer.ran is False and call.runs:
            yield (call.id,), f"{call.id} got {call.error} with ran=False, and {call.runs[0].id} had begun"


def effect_of_a_failure(key: KeyHistory) -> Found:
    """What a run has written in the joined database is undone if its call ended in the function's own failure."""
    for call in key.calls.values():
        if call.answer and call.answer.kind == "own" and key.promise.joined:
            for run in call.runs:
                if run.id in key.rows:
                    yield (call.id,), f"{call.id} got its own {call.error}, and {run.id} is committed"


def ran_after_success(key: KeyHistory) -> Found:
    """Nobody who asks after somebody was given a value runs the function."""
    for first in key.successes[:1]:
        for run in key.runs:
            if run.asked > first.told_at:
                yield (first.id, run.call), f"{first.id} was given {first.value}; then {run.id} began"


def overtaken_too_early(key: KeyHistory) -> Found:
    """A second run begins when the first has failed, or when its owner's lease can have been over."""
    if key.promise.joined:
        return
    for first in key.runs:
        for second in key.runs:
            later = second.fence > first.fence and second.begin >= first.asked
            if not later or (first.released and first.end <= second.begin):
                continue
            short = key.lease_end(first) - TOLERANCE - second.begin
            if short > 0:
                yield (
                    (first.call, second.call),
                    f"{second.id} began {short:.3f} s before the lease of {first.id} could be over",
                )


def fences_not_growing(key: KeyHistory) -> Found:
    """Each claim has a larger fence than all before it."""
    for first in key.runs:
        for second in key.runs:
            same = first.id < second.id and first.fence == second.fence and not key.promise.joined
            if same or (first.begin < second.asked and first.fence >= second.fence):
                yield (
                    (first.call, second.call),
                    f"{first.id} with fence {first.fence} came before {second.id} with fence {second.fence}",
                )


def second_effect_under_refuse(key: KeyHistory) -> Found:
    """At most one effect where an orphan is refused."""
    if key.promise.on_orphan == "refuse" and len(key.told) > 1:
        effects = [run for run, _, _ in key.told]
        calls = tuple(run.call for run in key.runs if run.id in effects)
        yield calls, f"{len(effects)} effects: {', '.join(effects)}"


def guarded_write_went_back(key: KeyHistory) -> Found:
    """A table guarded by the fence ends with the write of the first result, and has only ever gone forward."""
    taken = [(run, fence) for run, fence, kept in key.told if kept]
    for (one, before), (other, fence) in pairwise(taken):
        if fence <= before:
            calls = tuple(run.call for run in key.runs if run.id in (one, other))
            yield calls, f"{other} with fence {fence} was written over {one} with fence {before}"
    for call in key.successes[:1]:
        written = call.value.removeprefix("error:")
        if key.promise.on_orphan != "rerun" or key.promise.joined:
            continue  # a probe takes over without writing
        if taken and taken[-1][0] != written:
            yield (call.id,), f"{call.id} was given {call.value}, and {taken[-1][0]} was written last"


def lost_to_nobody(key: KeyHistory) -> Found:
    """`LeaseLostError` is for an owner whose lease can have been over, and whom somebody else overtook."""
    for call in key.calls.values():
        if call.error != "LeaseLostError" or key.promise.joined:
            continue
        others = [other for other in key.calls.values() if other is not call and _may_have_claimed(other)]
        if not any(other.invoke < call.told_at for other in others):
            yield (call.id,), f"{call.id} lost its claim, and nobody else has claimed the key"
        elif any(key.lease_end(run) - TOLERANCE > call.told_at for run in call.runs):
            yield (call.id,), f"{call.id} lost its claim before its lease could be over"


def _may_have_claimed(call: Call) -> bool:
    """It ran, was answered by a probe, or nobody knows how far it came."""
    answer = call.answer
    unclear = answer is None or (bool(answer.error) and answer.error != "InProgressError")
    return bool(call.runs) or unclear or (answer is not None and answer.replayed is False)


def stored_is_another(key: KeyHistory) -> Found:
    """The first result that `LeaseLostError` carries is the one that others are given."""
    values = {call.value: call for call in key.successes}
    for call in key.calls.values():
        stored = call.answer.stored if call.answer else ""
        for value, other in values.items():
            if stored and stored != value:
                yield (call.id, other.id), f"{call.id} was shown {stored}, {other.id} was given {value}"


def unknown_without_reason(key: KeyHistory) -> Found:
    """ran=None is for an orphan under "refuse", and for those whose completion or commit a fault can have met."""
    for call in key.calls.values():
        if not call.answer or call.answer.kind != "idempo" or call.answer.ran is not None:
            continue
        orphan = key.promise.on_orphan == "refuse" and any(
            other.invoke + key.promise.lease - TOLERANCE <= call.told_at
            and not (other.value and other.told_at < call.invoke)
            for other in key.calls.values()
            if other is not call and _may_have_claimed(other)
        )
        if not orphan and not _met_a_fault(key, call):
            yield (call.id,), f"{call.id} got {call.error} with ran=None, and nothing had happened to it"


def unavailable_without_fault(key: KeyHistory) -> Found:
    """A ledger is called away, and a driver fails, only where a server, or the way to it, was broken before."""
    for call in key.calls.values():
        away = call.error == "LedgerUnavailableError" or (call.answer and call.answer.kind == "driver")
        if away and not _met_a_fault(key, call):
            yield (call.id,), f"{call.id} got {call.error}, and nothing had happened to its servers"


def _gave_up(key: KeyHistory, call: Call) -> bool:
    """It took so long that a client, or a limit, may have ended it: no limit is shorter than the lease."""
    return call.told_at - call.invoke >= key.promise.lease


def _met_a_fault(key: KeyHistory, call: Call) -> bool:
    """Since its process began: a connection that was cut while it was idle is found out when it is used."""
    if _gave_up(key, call):
        return True
    since = key.starts.get(call.pid, 0.0)
    return any(
        fault.at <= call.told_at
        and since <= fault.until
        and (not fault.target.isdigit() or fault.target == str(call.pid))
        for fault in key.faults
    )


def unexplained_error(key: KeyHistory) -> Found:
    """No other errors, and a driver's own only where the function works in a transaction."""
    for call in key.calls.values():
        if call.answer is None or not call.error:
            continue
        match call.answer.kind:
            case "own":
                allowed = any(run.how == "declined" for run in call.runs)
            case "driver":
                allowed = key.promise.joined
            case "idempo":
                allowed = call.error in EXPLAINED or (
                    call.error == "LeaseLostError" and not key.promise.joined
                )
            case _:
                allowed = False
        if not allowed:
            yield (call.id,), f"{call.id} got {call.error}, which nothing explains"


def not_settled(key: KeyHistory) -> Found:
    """When all faults are over, everybody is given the first result, or told that it is unknown under "refuse"."""
    for call in key.calls.values():
        refused = key.promise.on_orphan == "refuse" and call.error == "OutcomeUnknownError"
        slow = call.error == "LedgerUnavailableError" and _gave_up(key, call)
        if call.settling and not (call.value or refused or slow):
            yield (call.id,), f"{call.id}, after all faults, got {call.error or 'no answer'}"


def no_order_explains_it(key: KeyHistory) -> Found:
    """There is an order of claims, releases and completions in which each answer is right."""
    if explained(key) is False:
        yield (), "no order of what was done to the record explains all that was seen of it"


Rule = Callable[[KeyHistory], Found]
PLAIN: tuple[Rule, ...] = (
    two_values,
    value_of_no_run,
    untrue_replayed,
    rows_not_exactly_one,
    refused_and_ran,
    effect_of_a_failure,
    ran_after_success,
    overtaken_too_early,
    fences_not_growing,
    second_effect_under_refuse,
    guarded_write_went_back,
    lost_to_nobody,
    stored_is_another,
    unknown_without_reason,
    unavailable_without_fault,
    unexplained_error,
    not_settled,
)
RULES = (*PLAIN, no_order_explains_it)


def check_key(key: KeyHistory) -> Iterator[Violation]:
    """All that is wrong with one key. Where a plain rule is broken, there is no order to look for."""
    found = [Violation(rule.__name__, key.key, calls, text) for rule in PLAIN for calls, text in rule(key)]
    yield from found or (
        Violation(no_order_explains_it.__name__, key.key, calls, text)
        for calls, text in no_order_explains_it(key)
    )


def check(events: Iterable[Event], promises: Mapping[str, Promise]) -> list[Violation]:
    """All that is wrong with a history."""
    return [violation for key in by_key(events, promises) for violation in check_key(key)]


def undecided(events: Iterable[Event], promises: Mapping[str, Promise]) -> list[str]:
    """The keys whose order the search could not find, nor rule out, within its limit."""
    return [key.key for key in by_key(events, promises) if explained(key) is None]
