"""What the calls of one key have done to its record and seen of it, as operations for the search."""

from collections.abc import Iterator

from tests.faults.soaking.history import Call, KeyHistory
from tests.faults.soaking.search import Op, possible

__all__ = ["TOLERANCE", "explained"]

TOLERANCE = 0.05
"""Seconds by which the clock of a store may differ from ours over a lease."""


def explained(key: KeyHistory) -> bool | None:
    """True if there is such an order, False if there is none, None where the search cannot tell within its limit."""
    ends = {call.id: call.invoke + key.promise.lease for call in key.calls.values()}
    ends |= {run.call: key.lease_end(run) for run in key.runs}

    def may_take(owner: str, op: Op) -> bool:
        return key.promise.on_orphan != "refuse" and op.end >= ends[owner] - TOLERANCE

    return possible([op for call in key.calls.values() for op in _ops(key, call)], may_take)


def _ops(key: KeyHistory, call: Call) -> Iterator[Op]:
    """What a call has done to the record, and seen of it."""
    answer, at = call.answer, call.told_at
    own = any(run.result == call.value for run in call.runs)
    if call.value and not own and (answer is None or answer.replayed is not False):
        yield Op("replay", call.id, call.invoke, at, call.value)
        if call.runs:
            yield from _of_runs(key, call, own=False)
    elif call.runs:
        yield from _of_runs(key, call, own=own)
    elif key.promise.joined:
        return
    elif call.value:  # a probe has found it
        yield Op("claim", call.id, call.invoke, at)
        yield Op("complete", call.id, call.invoke, at, call.value)
    elif call.error == "InProgressError":
        if not key.promise.tiers:
            yield Op("in progress", call.id, call.invoke, at)
    elif call.error == "OutcomeUnknownError" and key.promise.on_orphan == "refuse":
        yield Op("orphan", call.id, call.invoke, at)
    else:
        yield Op("claim", call.id, call.invoke)
        if key.promise.on_orphan == "probe" and key.successes:
            yield Op("complete", call.id, call.invoke, value=key.successes[0].value)


def _of_runs(key: KeyHistory, call: Call, *, own: bool) -> Iterator[Op]:
    for run in call.runs:
        told = call.told_at if own and run.result == call.value else float("inf")
        if key.promise.joined:
            if run.result:
                yield Op("commit", call.id, run.begin, told, run.result)
            continue
        yield Op("claim", call.id, run.asked, run.begin)
        if run.released:
            yield Op("release", call.id, run.end)
        elif run.result and call.error == "LeaseLostError":
            yield Op("lost", call.id, run.end, call.told_at)
        elif run.result:
            yield Op("complete", call.id, run.end, told, run.result)
