"""The arguments of a call by parameter name, and back: what `inspect.Signature.bind` does, at a tenth of its cost."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

__all__ = ["Binder"]

_USUAL = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Binder:
    """Binds calls of one signature.

    Usual calls are bound by hand. Unusual ones, and all of a signature with `*args`, `**kwargs` or positional-only
    parameters, are bound by `inspect`, which also raises the TypeError of a wrong call.
    """

    __slots__ = (
        "_defaults",
        "_keywords",
        "_missable",
        "_names",
        "_positional",
        "_required",
        "_signature",
        "_usual",
    )

    def __init__(self, signature: inspect.Signature, missable: Collection[str] = ()) -> None:
        parameters = signature.parameters.values()
        self._signature = signature
        self._missable = frozenset(missable)
        self._usual = all(one.kind in _USUAL for one in parameters)
        self._names = frozenset(signature.parameters)
        self._positional = tuple(one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD)
        self._keywords = tuple(one.name for one in parameters if one.kind is one.KEYWORD_ONLY)
        optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        self._required = frozenset(
            one.name for one in parameters if one.default is one.empty and one.kind not in optional
        ).difference(missable)
        self._defaults = {one.name: one.default for one in parameters if one.default is not one.empty}

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
        """Return the arguments by parameter name, defaults among them; parameters that are missable may be missing.

        Raises Python's own TypeError for a call that does not fit.
        """
        if not self._usual or len(args) > len(self._positional):
            return self._bind_unusual(args, kwargs)
        arguments = dict(zip(self._positional, args, strict=False))
        if kwargs:
            if not (kwargs.keys() <= self._names and arguments.keys().isdisjoint(kwargs)):
                return self._bind_unusual(args, kwargs)
            arguments.update(kwargs)
        if len(arguments) < len(self._names):
            arguments = self._defaults | arguments
            if not self._required <= arguments.keys():
                return self._bind_unusual(args, kwargs)
        return arguments

    def _bind_unusual(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
        bind = self._signature.bind_partial if self._missable else self._signature.bind
        bound = bind(*args, **kwargs)
        if missing := [name for name in self._signature.parameters if self._lacks(name, bound.arguments)]:
            bound = self._signature.bind(*args, **kwargs)
            if not bound.arguments.keys() >= set(missing):
                # Python 3.13.0 takes a keyword into **kwargs for the positional-only parameter of that name.
                raise TypeError(f"missing a required argument: {missing[0]!r}")
        bound.apply_defaults()
        return bound.arguments

    def _lacks(self, name: str, arguments: Mapping[str, Any]) -> bool:
        return name in self._required and name not in arguments

    def call(self, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        """Call `function` with bound arguments, each in the way in which its parameter takes it."""
        if not self._usual or len(arguments) < len(self._names):
            bound = inspect.BoundArguments(self._signature, dict(arguments))
            return function(*bound.args, **bound.kwargs)
        positional = [arguments[name] for name in self._positional]
        if not self._keywords:
            return function(*positional)
        return function(*positional, **{name: arguments[name] for name in self._keywords})
