"""What a return annotation says: whether it can be stored at all, and which classes are in it."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import enum
import inspect
import io
import types
import typing
from collections import Counter, OrderedDict, deque
from typing import Any, Final, cast

from idempo.leaves import PLAIN, TO_TREE
from idempo.records import MISSING
from idempo.shapes import is_data, shape_of

__all__ = ["CannotBeStoredError", "survey"]


class CannotBeStoredError(Exception):
    """The annotation promises values that have no stored form. The message says why, and what to do."""


_KNOWN: Final = frozenset({*PLAIN, *TO_TREE, list, tuple, set, frozenset, dict, OrderedDict, Counter, deque})

_NEVER: Final[tuple[tuple[type | tuple[type, ...], str], ...]] = (
    ((cabc.Iterator, cabc.AsyncIterable), "an iterator is used up by its first reader: return a list"),
    (cabc.Awaitable, "an awaitable is awaited once: make the function `async def`"),
    (
        (contextlib.AbstractContextManager, contextlib.AbstractAsyncContextManager),
        "a context manager belongs to one caller: return data, and let the caller open what is needed",
    ),
    ((io.IOBase, typing.IO), "an open file belongs to one caller: return its name or its content"),
    (BaseException, "an exception is raised, not returned: name it in replay_errors="),
    (type, "a class is not data: return its name"),
    (
        (types.ModuleType, types.FunctionType, types.MethodType, cast(type, cabc.Callable)),
        "code is not data: return its name",
    ),
)

_PYDANTIC: Final = {
    "unicode_string": "a URL of pydantic's has no stored form: declare it as str, or return model_dump(mode='json')",
    "get_secret_value": "a secret is not kept in a record: leave it out of the result",
}
"""What tells the classes of pydantic's that no validator turns into plain data: a method, by its name."""

_UNKNOWN: Final = (Any, object, None, MISSING, inspect.Signature.empty, typing.Never, typing.NoReturn)


def survey(annotation: object) -> tuple[type, ...]:
    """Return the classes that values under this annotation may have, directly or further inside.

    Raises CannotBeStoredError where no value of some part of the annotation could be stored. The fields of
    classes are judged mildly, for what they hold is often not what they say (a pydantic `EmailStr` is a str).
    """
    found = _Survey()
    found.visit(annotation, strict=True)
    return tuple(found.classes)


class _Survey:
    def __init__(self) -> None:
        self.classes: dict[type, None] = {}
        self.seen: list[object] = []  # the annotations themselves: ids alone would be given to others

    def visit(self, said: Any, *, strict: bool) -> None:
        if any(said is one for one in _UNKNOWN) or any(said is one for one in self.seen):
            return
        self.seen.append(said)
        origin = typing.get_origin(said)
        if origin is not None:
            self.generic(said, origin, strict=strict)
        elif isinstance(said, typing.TypeVar):
            for bound in (*said.__constraints__, said.__bound__):
                self.visit(bound, strict=strict)
        elif hasattr(said, "__supertype__"):  # NewType
            self.visit(said.__supertype__, strict=strict)
        elif type(said).__name__ == "TypeAliasType":
            self.visit(said.__value__, strict=strict)
        elif isinstance(said, type):
            self.plain_class(said, strict=strict)
        elif strict and not _is_typing(said):
            raise CannotBeStoredError(f"{_name(said)} is not a type")

    def generic(self, said: Any, origin: Any, *, strict: bool) -> None:
        parts = typing.get_args(said)
        if origin is typing.Literal:
            for value in parts:
                self.visit(type(value), strict=strict)
        elif origin in (typing.Union, types.UnionType):
            self.union(parts, strict=strict)
        elif origin is typing.Annotated:
            self.visit(parts[0], strict=strict)
        elif type(origin).__name__ == "TypeAliasType":
            self.visit(origin.__value__, strict=strict)
            self.all(parts, strict=strict)
        else:
            if isinstance(origin, type):
                self.plain_class(origin, strict=strict)
            self.all(parts, strict=strict)

    def all(self, parts: cabc.Iterable[Any], *, strict: bool) -> None:
        for part in parts:
            if part is not ... and not isinstance(part, list):
                self.visit(part, strict=strict)

    def union(self, parts: tuple[Any, ...], *, strict: bool) -> None:
        if strict:
            return self.all(parts, strict=True)
        errors: list[CannotBeStoredError] = []
        for part in parts:  # a field may be None for ever: one way to store it is enough
            try:
                self.visit(part, strict=False)
            except CannotBeStoredError as error:
                errors.append(error)
        if len(errors) == len(parts):
            raise errors[0]

    def plain_class(self, cls: type, *, strict: bool) -> None:
        if cls in _UNKNOWN or any(cls in known.__mro__ for known in _KNOWN):
            return
        if is_data(cls) or typing.is_typeddict(cls):
            if cls not in self.classes:
                self.classes[cls] = None
                self.fields(cls)
            return
        for never, why in _NEVER:
            if _is_subclass(cls, never):
                raise CannotBeStoredError(f"{_name(cls)}: {why}")
        if any(base.__module__.partition(".")[0] in ("pydantic", "pydantic_core") for base in cls.__mro__):
            for method, why in _PYDANTIC.items():
                if hasattr(cls, method):
                    raise CannotBeStoredError(f"{_name(cls)}: {why}")
        if getattr(cls, "_is_protocol", False) or inspect.isabstract(cls) or _has_storable(cls):
            self.classes[cls] = None  # its subclasses are looked for when they are needed
        elif strict:
            raise CannotBeStoredError(_advice(cls))

    def fields(self, cls: type) -> None:
        if issubclass(cls, enum.Enum):
            return
        for name, said in self.hints(cls).items():
            try:
                self.visit(said, strict=False)
            except CannotBeStoredError as error:
                raise CannotBeStoredError(f"field {name!r} of {cls.__qualname__}: {error}") from None

    def hints(self, cls: type) -> dict[str, Any]:
        fields = getattr(cls, "model_fields", None) if hasattr(cls, "__pydantic_core_schema__") else None
        if isinstance(fields, dict):  # pydantic: resolved, and with the arguments of a generic model
            return {name: field.annotation for name, field in fields.items()}
        try:
            # A class inside a function cannot be looked up by name; those met on the way here can.
            hints = typing.get_type_hints(cls, localns={known.__name__: known for known in self.classes})
        except Exception:  # a name that only the type checker imports: the class is looked up by name later
            return {}
        shape = shape_of(cls)
        return hints if shape is None else {name: hints[name] for name in shape.fields if name in hints}


def _is_typing(said: Any) -> bool:
    known = ("typing", "typing_extensions")
    return isinstance(said, str | typing.ForwardRef) or type(said).__module__ in known


def _is_subclass(cls: type, of: Any) -> bool:
    try:
        return issubclass(cls, of)
    except TypeError:  # a protocol that cannot be asked
        return False


def _has_storable(cls: type) -> bool:
    subclasses: list[type] = type.__subclasses__(cls)
    return any(_is_subclass(known, cls) for known in _KNOWN) or any(
        is_data(below) or _has_storable(below) for below in subclasses
    )


def _name(said: Any) -> str:
    return f"{said.__module__}.{said.__qualname__}" if hasattr(said, "__qualname__") else type(said).__name__


def _advice(cls: type) -> str:
    if hasattr(cls, "_sa_class_manager"):
        return f"{_name(cls)} is a mapped row, which belongs to its session: return a dataclass or a dict"
    for known in (dict, list, tuple, set, str, int, float, bytes):
        if issubclass(cls, known):
            return f"{_name(cls)} would not come back as itself: return a plain {known.__name__}"
    return f"{_name(cls)} is not plain data: return a dataclass, NamedTuple, Struct, pydantic model or dict"
