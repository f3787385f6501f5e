"""Classes that are plain data: which fields an instance has, and how to build it without running its code.

Dataclasses, attrs classes, named tuples, msgspec Structs and pydantic models. attrs and pydantic are never
imported: an instance of theirs can only exist where somebody else imported them.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import sys
import types
import weakref
from collections.abc import Collection, Mapping
from typing import Any, Final, TypeAlias, cast

import msgspec

__all__ = ["HEAP_TYPE", "Shape", "attributes_of", "imported", "is_data", "shape_of"]

HEAP_TYPE: Final = 1 << 9
"""The bit of `__flags__` of classes that were made by a class statement, as opposed to those written in C."""

State: TypeAlias = tuple[dict[str, object], dict[str, object]]
"""The values of the fields, and what the instance holds beside them."""


def attributes_of(value: object) -> dict[str, object]:
    """Return the attributes of the instance, from its `__dict__` and its slots, as they are stored."""
    # Not value.__getstate__, which may be the user's: pickling is not what is asked.
    state: Any = object.__getstate__(value)
    held, slots = state if isinstance(state, tuple) else (state, None)
    return {**(held or {}), **(slots or {})}


class Shape:
    """One class of plain data.

    Attributes:
        fields: the names of its fields, in their order.
        compared: those that take part in `==`.
    """

    def __init__(self, cls: type, fields: Collection[str], compared: Collection[str]) -> None:
        self.cls = cls
        self.fields = tuple(fields)
        self.compared = tuple(compared)

    def read(self, value: object) -> State:
        """Return what `value` holds. A field that was never set is left out."""
        raise NotImplementedError

    def build(self, fields: dict[str, object], extras: dict[str, object]) -> object:
        """Return an instance that holds this, without `__init__`, `__post_init__` and validation."""
        raise NotImplementedError

    def default(self, name: str) -> object:
        """Return the default of a field, or raise LookupError."""
        raise NotImplementedError


class _Attributes(Shape):
    """Dataclasses and attrs classes: fields are attributes, in `__dict__` or in slots."""

    def __init__(self, cls: type, fields: Collection[Any], defaults: Mapping[str, Any]) -> None:
        by_identity = inspect.getattr_static(cls, "__eq__") is object.__eq__
        compared = [f.name for f in fields if by_identity or getattr(f, "compare", getattr(f, "eq", True))]
        super().__init__(cls, [f.name for f in fields], compared)
        self._defaults = defaults
        self._slots = frozenset(
            name
            for klass in cls.__mro__
            for name, found in vars(klass).items()
            if isinstance(found, types.MemberDescriptorType)
        )

    def read(self, value: object) -> State:
        extras = attributes_of(value)
        fields: dict[str, object] = {}
        for name in self.fields:
            if name in extras:
                fields[name] = extras.pop(name)
            elif hasattr(value, name):  # a default that lives on the class
                fields[name] = getattr(value, name)
        return fields, self._own(extras) if extras else extras

    def _own(self, extras: dict[str, object]) -> dict[str, object]:
        kept = {name: held for name, held in extras.items() if not self._derived(name)}
        if "_attrs_cached_hash" in kept:  # hashes of str differ from process to process
            kept["_attrs_cached_hash"] = None
        return kept

    def _derived(self, name: str) -> bool:
        found = inspect.getattr_static(self.cls, name, None)
        return isinstance(found, functools.cached_property) or name == "__orig_class__"

    def build(self, fields: dict[str, object], extras: dict[str, object]) -> object:
        made: object = object.__new__(self.cls)
        held = getattr(made, "__dict__", None)
        for name, value in (*fields.items(), *extras.items()):
            if name in self._slots:
                object.__setattr__(made, name, value)
            elif held is not None:
                held[name] = value
        return made

    def default(self, name: str) -> object:
        return self._defaults[name]()


class _NamedTuple(Shape):
    def read(self, value: object) -> State:
        items = cast("tuple[object, ...]", value)
        return dict(zip(self.fields, items, strict=True)), dict(getattr(value, "__dict__", ()))

    def build(self, fields: dict[str, object], extras: dict[str, object]) -> object:
        made: Any = tuple.__new__(self.cls, [fields[name] for name in self.fields])
        if extras:
            made.__dict__.update(extras)
        return made

    def default(self, name: str) -> object:
        return cast(Any, self.cls)._field_defaults[name]


class _Struct(Shape):
    def __init__(self, cls: type[msgspec.Struct], fields: Collection[str]) -> None:
        super().__init__(cls, fields, fields)
        self._blank: type[Any] = cls
        if hasattr(cls, "__post_init__"):
            # A Struct can only be made by a call, and the call runs __post_init__: make a sister without.
            meta: Any = type(cls)
            self._blank = meta("_Blank", (cls,), {"__post_init__": _nothing})

    def read(self, value: object) -> State:
        return {name: getattr(value, name) for name in self.fields}, dict(getattr(value, "__dict__", ()))

    def build(self, fields: dict[str, object], extras: dict[str, object]) -> object:
        made = self._blank(**fields)
        if self._blank is not self.cls:
            # Struct has a __setattr__ of its own, which a frozen one closes; the slot itself stays open.
            object.__dict__["__class__"].__set__(made, self.cls)
        if extras:
            made.__dict__.update(extras)
        return made

    def default(self, name: str) -> object:
        for found in msgspec.structs.fields(cast("type[msgspec.Struct]", self.cls)):
            if found.name == name and found.default is not msgspec.NODEFAULT:
                return found.default
            if found.name == name and found.default_factory is not msgspec.NODEFAULT:
                return found.default_factory()
        raise LookupError(name)


def _nothing(_: object) -> None: ...


_MODEL_STATE = ("__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")


class _Model(Shape):
    """pydantic models: the fields are in `__dict__`, the rest in three slots of pydantic's."""

    def read(self, value: object) -> State:
        held = vars(value)
        fields = {name: held[name] for name in self.fields if name in held}
        return fields, {name: getattr(value, name, None) for name in _MODEL_STATE}

    def build(self, fields: dict[str, object], extras: dict[str, object]) -> object:
        made: object = object.__new__(self.cls)
        object.__setattr__(made, "__dict__", fields)
        for name in _MODEL_STATE:
            object.__setattr__(made, name, extras.get(name))
        return made

    def default(self, name: str) -> object:
        found = cast(Any, self.cls).model_fields[name]
        if found.is_required():
            raise LookupError(name)
        return found.get_default(call_default_factory=True)


_SHAPES: weakref.WeakKeyDictionary[type, Shape | None] = weakref.WeakKeyDictionary()


def shape_of(cls: type) -> Shape | None:
    """Return the shape of a class of plain data, None for any other class."""
    try:
        return _SHAPES[cls]
    except KeyError:
        pass
    shape = _SHAPES[cls] = _find_shape(cls)
    return shape


def _find_shape(cls: type) -> Shape | None:
    if hasattr(cls, "_sa_class_manager") or hasattr(cls, "__del__") or issubclass(cls, enum.Enum):
        return None  # a mapped row belongs to its session, and what must be closed is not data
    if issubclass(cls, msgspec.Struct):
        return _Struct(cls, cls.__struct_fields__)
    if issubclass(cls, tuple):
        names = getattr(cls, "_fields", None)
        known = isinstance(names, tuple) and hasattr(cls, "_field_defaults")
        return _NamedTuple(cls, names, names) if known and names is not None else None
    if _solid_base(cls) is not object:
        return None  # an exception, a dict and so on, which holds more than its fields
    if dataclasses.is_dataclass(cls):
        found = dataclasses.fields(cls)
        return _Attributes(cls, found, {f.name: _dataclass_default(f) for f in found})
    if (attributes := getattr(cls, "__attrs_attrs__", None)) is not None:
        return _Attributes(cls, attributes, {a.name: _attrs_default(a) for a in attributes})
    if (pydantic := sys.modules.get("pydantic")) is not None and issubclass(cls, pydantic.BaseModel):
        names = tuple(cast(Any, cls).model_fields)
        return _Model(cls, names, names)
    return None


def _solid_base(cls: type) -> type:
    while cls.__flags__ & HEAP_TYPE:
        base = cls.__base__
        if base is None:
            break
        cls = base
    return cls


def _missing() -> object:
    raise LookupError


def _dataclass_default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory
    return _missing if field.default is dataclasses.MISSING else lambda: field.default


def _attrs_default(attribute: Any) -> Any:
    default = attribute.default
    if type(default).__name__ == "Factory":  # attrs.Factory; one that takes the instance is no default for us
        return _missing if default.takes_self else default.factory
    return _missing if type(default).__name__ == "_Nothing" else lambda: default


def is_data(cls: type) -> bool:
    """Say whether instances of `cls` are stored field by field or, for enumerations, by name."""
    return issubclass(cls, enum.Enum) or shape_of(cls) is not None


def imported(module: str, qualname: str) -> type | None:
    """Return the class of plain data with this name, if its module was imported by somebody else.

    Runs no code: neither an import, nor a module's `__getattr__`, nor a descriptor.
    """
    found: object = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    return found if isinstance(found, type) and is_data(found) else None
