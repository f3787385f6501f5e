"""`@idempotent(...)`: takes the function and the terms, checks that they fit, and puts the strategies in front."""

from __future__ import annotations

import functools
import inspect
import math
import sys
import typing
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar, cast, overload

from idempo.codec import Codec, codec_for
from idempo.contracts import Colour, KeySpec, Layer, Probe, Site, Strategy, Terms
from idempo.errors import CompositionError, ConfigurationError
from idempo.events import Hook
from idempo.functions import AsyncIdempotent, Idempotent, Method, wrap
from idempo.keys import fingerprint_source, key_source
from idempo.operation import Keying, Operation, function_steps
from idempo.protocol import compose
from idempo.records import MISSING
from idempo.waiting import Wait, completion_policy, wait_policy

P = ParamSpec("P")
R = TypeVar("R")

__all__ = ["Duration", "idempotent"]

Duration: TypeAlias = float | timedelta
"""Seconds, or a timedelta."""

_CENTURY = 100 * 365 * 86_400.0
_DAY = 86_400.0


class Decorator:
    """What `idempotent(...)` returns: takes the function."""

    def __init__(self, decorate: Callable[[Any], Any]) -> None:
        self._decorate = decorate

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]]) -> AsyncIdempotent[P, R]: ...
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


def operation_of(decorated: Any) -> Operation:
    """Return the operation behind a decorated function."""
    return cast(Operation, decorated.__idempo__)


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
        A decorator. The decorated function keeps its signature and gains `outcome`, `key_for`, `lookup`, `forget` and
        `explain`.

    Raises:
        ConfigurationError: while decorating, where the parts do not fit together.

    A call raises `KeyRefusedError`, a `RefusedError`, or `LedgerUnavailableError` before the function has run,
    `LeaseLostError` or `OutcomeUnknownError` after it, `ResultUnavailableError` for a result that cannot be given
    back; and whatever the function itself raises, untouched.
    """
    names = sys._getframe(1).f_locals  # where local classes of the annotations are found

    def decorate(function: Any) -> Any:
        colour = _colour(function)
        operation = _operation_name(function, name)
        signature = inspect.signature(function)
        hints = _hints(function, names)
        terms = Terms(
            lease=_seconds("lease", lease, most=_DAY),
            keep=_seconds("keep", keep, most=_CENTURY),
            wait=wait_policy(wait, lease=_seconds("lease", lease, most=_DAY)),
            completing=completion_policy(_seconds("lease", lease, most=_DAY)),
            on_orphan=on_orphan,
            replay_errors=_exceptions("replay_errors", replay_errors),
            unknown_errors=_exceptions("unknown_errors", unknown_errors),
            codec=codec if codec is not None else codec_for(hints.get("return", MISSING), operation=operation),
            max_result=max_result,
            hooks=tuple(hooks),
        )
        _check(terms, operation, colour)
        return wrap(_assemble(function, operation, colour, signature, hints, terms))

    def _assemble(
        function: Any,
        operation: str,
        colour: Colour,
        signature: inspect.Signature,
        hints: Mapping[str, Any],
        terms: Terms,
    ) -> Operation:
        parameters = tuple(signature.parameters)
        source = functools.partial(key_source, parameters=parameters, operation=operation)
        keying = Keying(
            operation,
            source(key, what="key"),
            None if scope is None else source(scope, what="scope"),
            lambda arguments, salt: fingerprints(arguments, salt),
        )
        site = Site(
            operation=operation,
            colour=colour,
            parameters=parameters,
            hints=hints,
            terms=terms,
            tier=False,
            rekeyed=lambda spec: keying.rekeyed(source(spec, what="key")),
        )
        layers = _bind(using, site)
        injects = frozenset[str]().union(*(layer.injects for layer in layers))
        fingerprints = fingerprint_source(
            fingerprint, parameters, exclude={"self", "cls", *injects}, operation=operation
        )
        return Operation(
            name=operation,
            function=function,
            signature=signature,
            colour=colour,
            keying=keying,
            terms=terms,
            layers=layers,
            inner=compose(layers, function_steps(function, signature, terms)),
            injects=injects,
        )

    return Decorator(decorate)


def _bind(using: Strategy | Sequence[Strategy] | None, site: Site) -> tuple[Layer, ...]:
    if using is None:
        from idempo.embedded import embedded

        strategies: tuple[Strategy, ...] = (embedded(),)
    elif isinstance(using, Sequence):
        strategies = tuple(using)
    else:
        strategies = (using,)
    if not strategies:
        raise CompositionError(f"{site.operation}: using=[] names no strategy; leave it out for the embedded default")
    for strategy in strategies:
        if not callable(getattr(strategy, "bind", None)):
            raise CompositionError(
                f"{site.operation}: using= takes strategies such as UniqueInsert(...), not {type(strategy).__name__}"
            )
    if len({id(strategy) for strategy in strategies}) < len(strategies):
        raise CompositionError(f"{site.operation}: using= names the same strategy object twice")
    outer = tuple(strategy.bind(replace(site, tier=True)) for strategy in strategies[:-1])
    return (*outer, strategies[-1].bind(site))


def _colour(function: Any) -> Colour:
    if not callable(function):
        raise ConfigurationError(
            f"@idempotent decorates functions, not {type(function).__name__}; on a property decorate the method below"
        )
    inside = inspect.unwrap(function)
    while isinstance(inside, functools.partial):
        inside = inside.func
    if not inspect.isroutine(inside) and not inspect.isclass(inside):
        inside = inside.__call__
    if inspect.isgeneratorfunction(inside) or inspect.isasyncgenfunction(inside):
        raise ConfigurationError(
            f"{_name_of(function)} is a generator: what it yields cannot be replayed; return a list instead"
        )
    if inspect.isclass(inside):
        raise ConfigurationError(f"{_name_of(function)} is a class; decorate a function that makes the instance")
    return "async" if inspect.iscoroutinefunction(inside) or inspect.iscoroutinefunction(function) else "sync"


def _name_of(function: Any) -> str:
    module = getattr(function, "__module__", None) or "?"
    return f"{module}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def _operation_name(function: Any, name: str | None) -> str:
    operation = _name_of(function) if name is None else name
    if not operation or len(operation) > 255:
        raise ConfigurationError(f"name={operation[:300]!r}: the name of an operation has 1 to 255 characters")
    earlier = getattr(function, "__idempo__", None)
    if isinstance(earlier, Operation) and earlier.name == operation:
        raise CompositionError(
            f"{operation} is decorated twice under one name, so every call would wait for itself; put the strategies "
            "into one using=[...], or give one of them a name="
        )
    return operation


def _hints(function: Any, names: Mapping[str, Any]) -> dict[str, Any]:
    """The annotations, resolved as far as they can be: a name that exists only for type checkers is left out."""
    try:
        return typing.get_type_hints(function, localns=dict(names), include_extras=True)
    except Exception:
        hints = {}
        annotated = inspect.unwrap(function)
        for parameter, annotation in getattr(annotated, "__annotations__", {}).items():
            try:
                holder = type("Holder", (), {"__annotations__": {parameter: annotation}})
                scope = {**getattr(annotated, "__globals__", {}), **names}
                hints.update(typing.get_type_hints(holder, globalns=scope, localns=scope, include_extras=True))
            except Exception:
                continue
        return hints


def _seconds(what: str, value: Duration, *, most: float) -> float:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(f"{what}= takes seconds or a timedelta, not {value!r}")
    if math.isnan(value) or not 0 < value <= most:
        raise ConfigurationError(f"{what}={value} is not between 0 and {most:.0f} seconds")
    return float(value)


def _exceptions(what: str, value: Any) -> tuple[type[Exception], ...]:
    classes = (value,) if isinstance(value, type) else tuple(value)
    for one in classes:
        if not (isinstance(one, type) and issubclass(one, Exception)):
            raise ConfigurationError(f"{what}= takes subclasses of Exception, not {one!r}")
    return classes


def _check(terms: Terms, operation: str, colour: Colour) -> None:
    if terms.keep < terms.lease:
        raise ConfigurationError(
            f"{operation}: keep={terms.keep} is below lease={terms.lease}: the record would be gone while the function "
            "runs; keep it at least as long as the repeats may come"
        )
    if not (terms.on_orphan in ("rerun", "refuse") or callable(terms.on_orphan)):
        raise ConfigurationError(f'{operation}: on_orphan= takes "rerun", "refuse" or a probe, not {terms.on_orphan!r}')
    if inspect.iscoroutinefunction(terms.on_orphan) and colour == "sync":
        raise ConfigurationError(f"{operation}: an async on_orphan probe needs an async function")
    both = set(terms.replay_errors) & set(terms.unknown_errors)
    if both:
        raise ConfigurationError(f"{operation}: {both} cannot be both a result and an unknown outcome")
    if not (isinstance(terms.max_result, int) and terms.max_result > 0):
        raise ConfigurationError(f"{operation}: max_result={terms.max_result!r} is not a number of bytes")
    for method in ("encode", "decode"):
        if not callable(getattr(terms.codec, method, None)):
            raise ConfigurationError(f"{operation}: codec= needs a method {method}()")
    for hook in terms.hooks:
        if not callable(hook):
            raise ConfigurationError(f"{operation}: hooks= takes callables of one Event, not {hook!r}")


