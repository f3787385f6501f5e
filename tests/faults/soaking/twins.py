"""Libraries that are wrong on purpose, each in one way, so that the checker can be seen to find it."""

import time
from collections.abc import Callable
from typing import Any

from idempo.records import Answer, Call, Claimed, Completed, InProgress, Payload
from idempo.steps import Steps
from idempo.strategies.redis_cache import RedisLedger
from idempo.strategies.unique_insert import SqlLedger

__all__ = ["TWINS", "become"]

TWINS = {
    "believes": "an owner that was overtaken takes its refused completion for a success",
    "unclaimed": "a duplicate runs while the first run goes on",
    "forgetful": "a repeat runs again although the first result is recorded",
    "not-joined": "the function's write commits on its own, before the record",
}


def become(twin: str) -> None:
    """Make this process wrong, for the rest of its life."""
    assert twin in TWINS, f"{twin!r} is none of {', '.join(TWINS)}"
    over = {"unclaimed": InProgress, "forgetful": Completed}.get(twin)
    for ledger in (RedisLedger, SqlLedger):
        if over is not None:
            _set(ledger, "claim", _claiming(ledger.claim, over))
        if twin != "not-joined":
            _set(ledger, "complete", _completing(ledger.complete))


def _set(ledger: type, name: str, function: Any) -> None:
    setattr(ledger, name, function)


def _claiming(claim: Callable[..., Steps[Answer]], over: type) -> Any:
    def claiming(self: Any, call: Call, orphan: int | None) -> Steps[Answer]:
        answer = yield from claim(self, call, orphan)
        return Claimed(fence=time.time_ns() // 1000, attempt=2) if isinstance(answer, over) else answer

    return claiming


def _completing(complete: Callable[..., Steps[bool]]) -> Any:
    def completing(self: Any, call: Call, payload: Payload) -> Steps[bool]:
        yield from complete(self, call, payload)
        return True

    return completing
