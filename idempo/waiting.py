"""What a duplicate does while the first run goes on: it asks again, in the rhythm of a tenacity policy."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeAlias

from tenacity import RetryCallState, Retrying, stop_after_attempt, stop_after_delay, wait_random_exponential
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from idempo.errors import ConfigurationError

__all__ = ["Patience", "Wait", "WaitPolicy", "completion_policy", "retry_policy", "wait_policy"]

Wait: TypeAlias = float | timedelta | tuple[wait_base, stop_base]
"""Seconds to wait at the most, or a tenacity wait and stop: `(wait_fixed(0.1), stop_after_attempt(5))`."""

# Duplicates of one key come in swarms: the jitter spreads their questions, the ceiling bounds how late they learn.
# One of those in a process asks for all of them.
_ASKING = wait_random_exponential(multiplier=0.01, max=0.03, min=0.005)
_RHYTHM = wait_random_exponential(multiplier=0.01, max=0.2, min=0.005)
_SHORTEST = 0.001
_DAY = 86_400.0
_IN_SILENCE = 30.0  # below what a connection made from a URL takes for a dead one


@dataclass(frozen=True, slots=True)
class WaitPolicy:
    """How often a duplicate asks, and when it gives up."""

    rhythm: wait_base
    stop: stop_base
    limit: float
    """Seconds after which it gives up at the latest."""
    at_once: float
    """Seconds that a database may wait by itself before `stop` is asked again."""

    together: bool = False
    """True if the duplicates in one process may wait together, one of them asking for all."""

    def within(self, seconds: float) -> WaitPolicy:
        """Return the same policy for somebody who has only so much time left."""
        return replace(self, limit=min(self.limit, seconds), at_once=min(self.at_once, seconds))


def wait_policy(wait: Wait) -> WaitPolicy:
    """Return the policy for `wait=` of the decorator.

    Raises `ConfigurationError` for a negative or endless wait.
    """
    match wait:
        case (wait_base() as rhythm, stop_base() as stop):
            return WaitPolicy(rhythm, stop, limit=_DAY, at_once=1.0)
        case timedelta():
            seconds = wait.total_seconds()
        case bool():
            raise ConfigurationError(
                "wait= takes seconds, a timedelta or a tenacity (wait, stop) pair, not a bool"
            )
        case int() | float():
            seconds = float(wait)
        case _:
            raise ConfigurationError(
                f"wait= takes seconds, a timedelta or a tenacity (wait, stop) pair, not {wait!r}"
            )
    if not 0 <= seconds <= _DAY:
        raise ConfigurationError(f"wait={seconds} is not between 0 seconds and a day: every wait has a limit")
    at_once = min(seconds, _IN_SILENCE)
    return WaitPolicy(_ASKING, stop_after_delay(seconds), limit=seconds, at_once=at_once, together=True)


class Patience:
    """One duplicate's waiting: counts its questions and says how long to pause before the next."""

    __slots__ = ("_began", "_policy", "_state")

    def __init__(self, policy: WaitPolicy) -> None:
        self._policy = policy
        self._began = time.monotonic()
        self._state: RetryCallState | None = None

    @property
    def left(self) -> float:
        """Seconds until the limit."""
        return max(0.0, self._policy.limit - (time.monotonic() - self._began))

    @property
    def at_once(self) -> float:
        """Seconds that a database may wait by itself now."""
        return min(self.left, self._policy.at_once)

    @property
    def first(self) -> bool:
        """True until the first pause."""
        return self._state is None

    def next_pause(self, at_most: float) -> float | None:
        """Return the seconds to pause before asking again, or None when the time to wait is over.

        `at_most` is when an answer is certain to change: the end of the owner's lease.
        """
        state = self._state
        if state is None:
            unused: Any = None  # tenacity's state names a function; ours asks a ledger instead
            state = self._state = RetryCallState(Retrying(), unused, (), {})
            state.start_time = self._began
        else:
            state.attempt_number += 1
        state.outcome_timestamp = time.monotonic()
        if self.left <= 0 or self._policy.stop(state):
            return None
        pause = min(float(self._policy.rhythm(state)), self.left, max(at_most, _SHORTEST))
        state.idle_for += pause
        return max(pause, _SHORTEST)


def completion_policy(lease: float) -> WaitPolicy:
    """The policy for writing a completion again while the ledger is away: for as long as a lease lasts."""
    return WaitPolicy(_RHYTHM, stop_after_delay(lease), limit=lease, at_once=lease)


def retry_policy(retries: int) -> WaitPolicy:
    """The policy for running again at most `retries` times. Raises `ConfigurationError` for a number that is none."""
    if type(retries) is not int or not 0 <= retries <= 1000:
        raise ConfigurationError(f"retries={retries!r} is not a number between 0 and 1000")
    return WaitPolicy(_RHYTHM, stop_after_attempt(retries + 1), limit=_DAY, at_once=_DAY)
