"""The terms of an operation: what the decorator was told, checked before anything is decorated."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Literal, TypeAlias

from idempo.codec import Codec, codec_for
from idempo.contracts import Colour, Probe, Terms
from idempo.errors import ConfigurationError
from idempo.events import Hook
from idempo.waiting import Wait, completion_policy, wait_policy

__all__ = ["Duration", "seconds_of", "terms_of"]

Duration: TypeAlias = float | timedelta
"""Seconds, or a timedelta."""

_CENTURY = 100 * 365 * 86_400.0
_DAY = 86_400.0


def terms_of(
    operation: str,
    colour: Colour,
    returns: Any,
    *,
    keep: Duration,
    lease: Duration,
    wait: Wait,
    replay_errors: Iterable[type[Exception]],
    unknown_errors: Iterable[type[Exception]],
    on_orphan: Literal["rerun", "refuse"] | Probe,
    codec: Codec | None,
    max_result: Any,
    hooks: Iterable[Hook],
) -> Terms:
    """Return the terms. Raises `ConfigurationError`, with the reason, where they cannot hold together."""
    seconds = seconds_of("lease", lease, most=_DAY)
    terms = Terms(
        lease=seconds,
        keep=seconds_of("keep", keep, most=_CENTURY),
        wait=wait_policy(wait),
        completing=completion_policy(seconds),
        on_orphan=on_orphan,
        replay_errors=_exceptions("replay_errors", replay_errors),
        unknown_errors=_exceptions("unknown_errors", unknown_errors),
        codec=codec if codec is not None else codec_for(returns, operation=operation),
        max_result=max_result,
        hooks=_several("hooks", hooks),
    )
    _check_times(terms, operation)
    _check_callables(terms, operation, colour)
    return terms


def _check_times(terms: Terms, operation: str) -> None:
    if terms.keep < terms.lease:
        raise ConfigurationError(
            f"{operation}: keep={terms.keep:g} is below lease={terms.lease:g}: the record would be gone while the "
            "function runs; keep it at least for as long as repeats may come"
        )
    if not _is_positive(terms.max_result):
        raise ConfigurationError(f"{operation}: max_result={terms.max_result!r} is not a number of bytes")


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_callables(terms: Terms, operation: str, colour: Colour) -> None:
    if terms.on_orphan not in ("rerun", "refuse") and not callable(terms.on_orphan):
        raise ConfigurationError(
            f'{operation}: on_orphan= takes "rerun", "refuse" or a probe, not {terms.on_orphan!r}'
        )
    if inspect.iscoroutinefunction(terms.on_orphan) and colour == "sync":
        raise ConfigurationError(f"{operation}: an async on_orphan probe needs an async function")
    both = set(terms.replay_errors) & set(terms.unknown_errors)
    if both:
        raise ConfigurationError(f"{operation}: {both} cannot be both a result and an unknown outcome")
    for method in ("encode", "decode"):
        if not callable(getattr(terms.codec, method, None)):
            raise ConfigurationError(f"{operation}: codec= needs a method {method}()")
    for hook in terms.hooks:
        if inspect.iscoroutinefunction(hook) or not callable(hook):
            raise ConfigurationError(f"{operation}: hooks= takes plain callables of one Event, not {hook!r}")


def seconds_of(what: str, value: Duration, *, most: float) -> float:
    """Return `value` in seconds. Raises `ConfigurationError` unless it is between 0 and `most`."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(f"{what}= takes seconds or a timedelta, not {value!r}")
    if math.isnan(value) or not 0 < value <= most:
        raise ConfigurationError(f"{what}={value} is not between 0 and {most:.0f} seconds")
    return float(value)


def _several(what: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, Iterable):
        takes = "callables of one Event" if what == "hooks" else "subclasses of Exception"
        raise ConfigurationError(f"{what}= takes a list of {takes}, not {values!r}")
    return tuple(values)


def _exceptions(what: str, value: Any) -> tuple[type[Exception], ...]:
    classes = (value,) if isinstance(value, type) else _several(what, value)
    for one in classes:
        if not (isinstance(one, type) and issubclass(one, Exception)):
            raise ConfigurationError(f"{what}= takes subclasses of Exception, not {one!r}")
    return classes
