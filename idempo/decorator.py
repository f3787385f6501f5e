"""`@idempotent(...)`: takes the function and the terms, checks that they fit, and puts the strategies in front."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from datetime import timedelta
from typing import Any, Literal, ParamSpec, TypeVar, overload

from idempo.assembly import Subject, assemble, operation_of
from idempo.codec import Codec
from idempo.contracts import KeySpec, Probe, Strategy
from idempo.events import Hook
from idempo.functions import AsyncIdempotent, Idempotent, Method, wrap
from idempo.records import MISSING
from idempo.terms import Duration, terms_of
from idempo.waiting import Wait

P = ParamSpec("P")
R = TypeVar("R")

__all__ = ["idempotent"]


class Decorator:
    """What `idempotent(...)` returns: takes the function."""

    def __init__(self, decorate: Callable[[Any], Any]) -> None:
        self._decorate = decorate

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a coroutine function is a callable too: the first match counts
        self, function: Callable[P, Coroutine[Any, Any, R]]
    ) -> AsyncIdempotent[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R]) -> Idempotent[P, R]: ...
    def __call__(self, function: Any) -> Any:
        match function:
            case staticmethod():
                return staticmethod(self._decorate(function.__func__))
            case classmethod():
                return Method(operation_of(self._decorate(function.__func__)), of_class=True)
        decorated = self._decorate(function)
        operation = operation_of(decorated)
        if next(iter(operation.signature.parameters), "") in ("self", "cls"):
            return Method(operation, of_class=False)
        return decorated


def idempotent(
    *,
    key: KeySpec,
    using: Strategy | Sequence[Strategy] | None = None,
    name: str | None = None,
    scope: KeySpec | None = None,
    fingerprint: Any = ...,
    keep: Duration = timedelta(days=7),
    lease: Duration = 30.0,
    wait: Wait = 10.0,
    replay_errors: Iterable[type[Exception]] = (),
    unknown_errors: Iterable[type[Exception]] = (),
    on_orphan: Literal["rerun", "refuse"] | Probe = "rerun",
    codec: Codec | None = None,
    max_result: int = 1024 * 1024,
    hooks: Iterable[Hook] = (),
) -> Decorator:
    """Make a function safe to repeat: it runs once per business key, and every repeat gets the first result.

    Args:
        key: the business key of a call: a template over its arguments (`"{order.id}"`), a callable of them, or a tuple
            of parameter names.
        using: one strategy or several, outermost first. Without it: what the environment variable `IDEMPO_URL` names,
            or else the SQLite file `idempo.db` in the working directory.
        name: the operation; by default the function's module and qualified name. Two functions never share keys
            unless they share a name.
        scope: tenant or principal, in the same forms as `key`.
        fingerprint: the arguments that must be the same in a repeat: names or templates, or a callable. By default all
            but `self`, `cls` and what a strategy fills in. None switches the check off.
        keep: how long the first result is kept, in seconds or as a timedelta.
        lease: seconds that a claim is honoured without a sign of life; it is renewed while the function runs.
        wait: seconds that a duplicate waits for the first run; 0 refuses at once; a tenacity `(wait, stop)` for more.
        replay_errors: exceptions that are results: stored, and raised again on a replay.
        unknown_errors: exceptions after which nobody can say whether the effect happened.
        on_orphan: what becomes of a claim whose owner vanished: "rerun", "refuse", or a probe, which gets the `Call`
            and returns `Found(value)` or `RERUN`.
        codec: an object with `encode(value) -> bytes` and `decode(bytes)`; by default made from the return annotation.
        max_result: bytes of an encoded result; a larger one is not stored.
        hooks: callables of one `Event`.

    Returns:
        A decorator. The decorated function keeps its signature and gains `outcome`, `many`, `key_for`, `lookup`,
        `forget` and `explain`.

    Raises:
        ConfigurationError: while decorating, where the parts do not fit together.

    A call raises `KeyRefusedError`, a `RefusedError`, or `LedgerUnavailableError` before the function has run,
    `LeaseLostError` or `OutcomeUnknownError` after it, `ResultUnavailableError` for a result that cannot be given
    back; and whatever the function itself raises, untouched.
    """
    names = sys._getframe(1).f_locals  # where local classes of the annotations are found

    def decorate(function: Any) -> Any:
        subject = Subject.of(function, name, names)
        terms = terms_of(
            subject.operation,
            subject.colour,
            subject.hints.get("return", MISSING),
            keep=keep,
            lease=lease,
            wait=wait,
            replay_errors=replay_errors,
            unknown_errors=unknown_errors,
            on_orphan=on_orphan,
            codec=codec,
            max_result=max_result,
            hooks=hooks,
        )
        return wrap(assemble(subject, terms, using, key=key, scope=scope, fingerprint=fingerprint))

    return Decorator(decorate)
