"""What `key=`, `scope=` and `fingerprint=` may be: templates, parameter names, callables.

Templates are `"{order.id}"`, `"{payload[total_amount]}"`, `"{tenant}:{order_no}"`: attribute and item
access on the bound arguments, nothing else. No conversions and no format specs: they turn two values into
one text.
"""

from __future__ import annotations

import difflib
import inspect
import re
import string
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeAlias

from idempo.errors import KeyRefusedError, KeyTemplateError

__all__ = ["Arguments", "Field", "Template", "caller", "entry_of", "parse", "value_reader"]

Arguments: TypeAlias = Mapping[str, Any]
"""The bound arguments of a call, by parameter name."""

_NAME: Final = r"[^\W\d]\w*"
_FIELD: Final = re.compile(rf"(?P<parameter>{_NAME})(?P<steps>(?:\.{_NAME}|\[[^\[\]]+\])*)")
_STEP: Final = re.compile(rf"\.({_NAME})|\[([^\[\]]+)\]")


@dataclass(frozen=True, slots=True)
class Field:
    """One `{...}` of a template, without the braces."""

    text: str
    parameter: str
    steps: tuple[tuple[str, str | None], ...]
    """Attribute and item names on the way: `.name` is ("name", None), `[name]` is ("", "name")."""

    def read(self, arguments: Arguments) -> Any:
        """Return what this call has there. Raises KeyRefusedError without naming any value."""
        try:
            value = arguments[self.parameter]
        except KeyError:
            raise KeyRefusedError(f"{{{self.text}}}: the call has no argument {self.parameter!r}.") from None
        for attribute, item in self.steps:
            try:
                value = getattr(value, attribute) if item is None else _item(value, item)
            except Exception as error:  # properties and __getitem__ are the user's, and may raise anything
                step = f"attribute {attribute!r}" if item is None else f"item {item!r}"
                raise KeyRefusedError(
                    f"{{{self.text}}}: a {type(value).__qualname__} gave no {step} ({type(error).__name__})."
                ) from error
        return value


def _item(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        if name in value or not name.isdecimal():
            return _present(value, name)
        return _present(value, int(name))
    return value[int(name)] if name.isdecimal() else value[name]


def _present(value: Mapping[Any, Any], key: object) -> Any:
    if key not in value:  # a defaultdict would make the item up
        raise KeyError
    return value[key]


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template: literal texts and fields in turn."""

    text: str
    parts: tuple[str | Field, ...]


def parse(text: str, parameters: Collection[str], *, what: str, operation: str) -> Template:
    """Return the template, or raise KeyTemplateError, which says what to write instead."""

    def refuse(why: str) -> NoReturn:
        raise KeyTemplateError(f"The {what} template {text!r} {why}.", operation=operation)

    parts: list[str | Field] = []
    try:
        pieces = list(string.Formatter().parse(text))
    except ValueError as error:
        refuse(f"cannot be read ({error}); a brace that is meant as such is written twice")
    for literal, named, spec, conversion in pieces:
        if literal:
            parts.append(literal)
        if named is None:
            continue
        if conversion or spec:
            refuse(f"formats {named!r}, and formatting can make one key of two values: write {{{named}}}")
        if named == "" or named.isdecimal():
            refuse("counts arguments by position: name the parameter")
        parts.append(_field(named, refuse))
    fields = [part for part in parts if isinstance(part, Field)]
    if not fields:
        name = text if text in parameters else next(iter(parameters), "order_no")
        refuse(f"has no field, so all calls would share it: write {'{' + name + '}'!r}")
    for field in fields:
        if field.parameter not in parameters:
            refuse(_unknown(field.parameter, parameters))
    return Template(text, tuple(parts))


def _field(named: str, refuse: Callable[[str], NoReturn]) -> Field:
    match = _FIELD.fullmatch(named)
    if match is None:
        refuse(f"has the field {named!r}: only parameter, .attribute and [item] are understood")
    steps: list[tuple[str, str | None]] = []
    for attribute, item in _STEP.findall(match["steps"]):
        if attribute.startswith("_"):
            refuse(f"reads {attribute!r}: attributes that begin with an underscore are private")
        steps.append((attribute, item or None))
    return Field(named, match["parameter"], tuple(steps))


def _unknown(name: str, parameters: Collection[str]) -> str:
    """Return the end of a sentence about a name that the function does not have."""
    close = difflib.get_close_matches(name, list(parameters), n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    there = ", ".join(parameters) if parameters else "none"
    return f"names {name!r}, which is no parameter of the function{hint}; there are: {there}"


def entry_of(entry: str, parameters: Collection[str], *, what: str, operation: str) -> Template:
    """Return the template for one entry of a tuple or list: a parameter name or a template."""
    if entry in parameters:
        return Template(entry, (Field(entry, entry, ()),))
    if "{" in entry:
        return parse(entry, parameters, what=what, operation=operation)
    raise KeyTemplateError(f"The {what} {_unknown(entry, parameters)}.", operation=operation)


def caller(
    spec: Callable[..., object], parameters: Collection[str], *, what: str, operation: str
) -> Callable[[Arguments], object]:
    """Return what calls `spec` with those arguments that it has parameters for."""

    def refuse(why: str) -> NoReturn:
        raise KeyTemplateError(f"The {what} callable {why}.", operation=operation)

    if inspect.iscoroutinefunction(spec) or inspect.iscoroutinefunction(type(spec).__call__):
        refuse("is async: it must return at once, from the arguments alone")
    try:
        wanted = inspect.signature(spec).parameters.values()
    except (TypeError, ValueError):
        refuse("does not say which parameters it takes: wrap it in a lambda")
    for one in wanted:
        required = one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        if required and one.name not in parameters:
            refuse(_unknown(one.name, parameters))
    given = [one.name for one in wanted if one.kind is one.POSITIONAL_ONLY and one.name in parameters]
    takes_all = any(one.kind is one.VAR_KEYWORD for one in wanted)
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {one.name for one in wanted if one.kind in by_name} & set(parameters)
    if takes_all:
        named = set(parameters) - set(given)

    def call(arguments: Arguments) -> object:
        try:
            value = spec(*[arguments[n] for n in given], **{n: arguments[n] for n in named})
        except Exception as error:
            raise KeyRefusedError(f"The callable raised {type(error).__name__}.") from error
        if inspect.isawaitable(value):
            if inspect.iscoroutine(value):
                value.close()
            raise KeyRefusedError("The callable returned an awaitable: it must return the value itself.")
        return value

    return call


def value_reader(
    spec: object, parameters: Collection[str], *, what: str, operation: str
) -> Callable[[Arguments], Any]:
    """Return what reads one value of a call: of a template that is one field as it is, of a longer one as text.

    `spec` is a template, or a callable that is given those arguments that it has parameters for. Raises
    KeyTemplateError for what can never work; what it returns raises KeyRefusedError.
    """
    if callable(spec):
        return caller(spec, parameters, what=what, operation=operation)
    if not isinstance(spec, str):
        raise KeyTemplateError(
            f"A {what} is a template such as '{{order_no}}' or a callable, not {type(spec).__qualname__}.",
            operation=operation,
        )
    parts = parse(spec, parameters, what=what, operation=operation).parts
    if len(parts) == 1 and isinstance(parts[0], Field):
        return parts[0].read

    def read(arguments: Arguments) -> str:
        return "".join(part if isinstance(part, str) else str(part.read(arguments)) for part in parts)

    return read
