"""From a function, its key and its strategies to an `Operation`: what is found out while decorating."""

from __future__ import annotations

import functools
import inspect
import logging
import typing
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from idempo.binding import Binder
from idempo.composing import bind
from idempo.contracts import Colour, KeySpec, Layer, Site, Strategy, Terms
from idempo.errors import CompositionError, ConfigurationError
from idempo.keys import fingerprint_source, key_source
from idempo.operation import Keying, Operation, function_steps
from idempo.protocol import compose
from idempo.records import Call

__all__ = ["Subject", "assemble", "operation_of"]

logger = logging.getLogger("idempo")


@dataclass(frozen=True, slots=True)
class Subject:
    """A function about to be decorated."""

    function: Callable[..., Any]
    operation: str
    colour: Colour
    signature: inspect.Signature
    hints: Mapping[str, Any]

    @classmethod
    def of(cls, function: Any, name: str | None, names: Mapping[str, Any]) -> Subject:
        """Look at `function`. Raises `ConfigurationError` for what cannot be decorated."""
        colour = _colour(function)
        return cls(
            function,
            _operation_name(function, name),
            colour,
            inspect.signature(function),
            _hints(function, names),
        )


def assemble(
    subject: Subject,
    terms: Terms,
    using: Strategy | Sequence[Strategy] | None,
    *,
    key: KeySpec,
    scope: KeySpec | None,
    fingerprint: Any,
) -> Operation:
    """Put the strategies in front of the function. Raises `ConfigurationError` where they do not fit."""
    parameters = tuple(subject.signature.parameters)
    source = functools.partial(key_source, parameters=parameters, operation=subject.operation)
    keying = Keying(
        subject.operation, source(key, what="key"), None if scope is None else source(scope, what="scope")
    )
    site = Site(
        operation=subject.operation,
        colour=subject.colour,
        parameters=parameters,
        hints=subject.hints,
        terms=terms,
        tier=False,
        key=key,
        scope=scope,
        # What the strategies fill in is no part of the fingerprint, so that one is known only after all are bound.
        rekeyed=lambda spec, role: functools.partial(
            _rekey, source(spec, what=role), role, lambda: operation
        ),
    )
    layers = bind(using, site)
    injects = frozenset[str]().union(*(layer.injects for layer in layers))
    exclude = {"self", "cls", *injects}.union(*(getattr(layer, "ignores", ()) for layer in layers))
    fingerprints = fingerprint_source(fingerprint, parameters, exclude=exclude, operation=subject.operation)
    binder = Binder(subject.signature, injects)
    innermost = function_steps(subject.function, binder, terms, subject.colour)
    operation = Operation(
        name=subject.operation,
        function=subject.function,
        signature=subject.signature,
        colour=subject.colour,
        keying=replace(keying, fingerprint=fingerprints, shown=_shown(layers) or keying.shown),
        terms=terms,
        layers=layers,
        inner=compose(layers, innermost),
        innermost=innermost,
        injects=injects,
        binder=binder,
    )
    return operation


def _shown(layers: Sequence[Layer]) -> Callable[[str], str] | None:
    """What hides the key, where it is a secret."""
    return next(filter(None, (getattr(layer, "shown", None) for layer in layers)), None)


def _rekey(key: Callable[..., Any], role: str, operation: Callable[[], Operation], call: Call) -> Call:
    return operation().keying.rekeyed(key, role, call)


def operation_of(decorated: Any) -> Operation:
    """Return the operation behind a decorated function."""
    return cast(Operation, decorated.__idempo__)


_named: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


def _warn_of_namesakes(operation: str, function: Any) -> None:
    """Functions of one name have each other's keys and results: those of a factory, or two in one file."""
    if not inspect.isfunction(function):
        return
    earlier = _named.get(operation)
    _named[operation] = function
    if earlier is None or earlier is function:
        return
    here, there = function.__code__, earlier.__code__
    factory = here is there and earlier.__closure__ != function.__closure__
    if factory:
        logger.warning(
            "%s is decorated again with other closures and shares its keys; give each a name=", operation
        )
    elif here.co_filename == there.co_filename and here.co_firstlineno != there.co_firstlineno:
        logger.warning(
            "%s is the name of two functions, in lines %s and %s, which share their keys; give each a name=",
            operation,
            there.co_firstlineno,
            here.co_firstlineno,
        )


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
        raise ConfigurationError(
            f"{_name_of(function)} is a class; decorate a function that makes the instance"
        )
    return "async" if inspect.iscoroutinefunction(inside) or inspect.iscoroutinefunction(function) else "sync"


def _name_of(function: Any) -> str:
    module = getattr(function, "__module__", None) or "?"
    return f"{module}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def _operation_name(function: Any, name: str | None) -> str:
    if name is None and not hasattr(function, "__qualname__"):
        raise ConfigurationError(
            f"a {type(function).__name__} has no name of its own, and would share its keys with others of its kind: "
            "give it a name="
        )
    if name is None and function.__qualname__.rpartition(".")[2] in ("<lambda>", "_"):
        raise ConfigurationError(
            f"{_name_of(function)} is what others are called too, and they would share their keys: give it a name="
        )
    operation: Any = _name_of(function) if name is None else name
    if not isinstance(operation, str) or not 1 <= len(operation) <= 255:
        raise ConfigurationError(f"name={operation!r:.300}: an operation is named with 1 to 255 characters")
    if name is None:
        _warn_of_namesakes(operation, function)
    earlier = getattr(function, "__idempo__", None)
    if isinstance(earlier, Operation) and earlier.name == operation:
        raise CompositionError(
            f"{operation} is decorated twice under one name, so every call would wait for itself; put the strategies "
            "into one using=[...], or give one of them a name="
        )
    return str(operation)


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
                hints.update(
                    typing.get_type_hints(holder, globalns=scope, localns=scope, include_extras=True)
                )
            except Exception as error:
                logger.debug("%s: the annotation of %s is not resolved: %r", function, parameter, error)
        return hints
