"""The self-describing encoding: each value carries its type, and classes are named, never imported.

MessagePack inside. None, bool, float, bytes, ordinary int and str, and dicts whose keys are such str stand
for themselves. All else is an array that begins with a tag. Classes stand once, in a table at the front.
"""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from idempo.errors import ResultUnavailableError
from idempo.leaves import FROM_TREE, PLAIN, TO_TREE, UnstorableError, is_odd
from idempo.shapes import Shape, shape_of

__all__ = ["MAX_DEPTH", "Finder", "dump", "load"]

VERSION: Final = b"\x01"
MAX_DEPTH: Final = 200

# Numbers below 32 are the leaves'. They are in stored data: a number never changes its meaning.
LIST: Final = 32
TUPLE: Final = 33
SET: Final = 34
FROZENSET: Final = 35
DEQUE: Final = 36
DICT: Final = 37
ORDERED: Final = 38
COUNTER: Final = 39
ENUM: Final = 40
FLAG: Final = 41
DATA: Final = 42
UNSET: Final = 43

Finder: TypeAlias = Callable[[str, str], type | None]
"""Module and qualified name -> the class of plain data with this name, or None."""

_SEQUENCES: Final[dict[type, int]] = {list: LIST, tuple: TUPLE, set: SET, frozenset: FROZENSET}
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def dump(value: object, find: Finder) -> bytes:
    """Encode `value`, or raise UnstorableError. `find` must find its classes, as `load` will have to."""
    writer = _Writer(find)
    try:
        tree = writer.tree(value)
        return VERSION + _encode((writer.table, tree))
    except UnstorableError:
        raise
    except RecursionError:
        raise UnstorableError("it is nested too deep for the stack that is left") from None
    except Exception as error:
        raise UnstorableError(f"reading it raised {type(error).__name__}") from error


def load(data: bytes, find: Finder) -> Any:
    """Decode what `dump` made. Any other bytes raise ResultUnavailableError."""
    if data[:1] != VERSION:
        raise ResultUnavailableError("The stored result has a format that this idempo cannot read.")
    try:
        table, tree = _decode(memoryview(data)[1:])
        return _Reader(table, find).value(tree)
    except ResultUnavailableError:
        raise
    except Exception as error:  # whatever is wrong with bytes from a store, it is not the caller's doing
        raise ResultUnavailableError(
            f"The stored result cannot be read: it is damaged, or not idempo's ({type(error).__name__})."
        ) from error


class _Writer:
    def __init__(self, find: Finder) -> None:
        self.find = find
        self.table: list[object] = []
        self.rows: dict[object, int] = {}
        self.depth = 0

    def tree(self, value: object) -> object:
        kind = type(value)
        if kind in PLAIN:
            return value
        leaf = TO_TREE.get(kind)
        if leaf is not None:
            return leaf(value)
        if isinstance(value, enum.Enum):
            return self.member(value)
        if self.depth >= MAX_DEPTH:
            raise UnstorableError(f"it is nested deeper than {MAX_DEPTH} levels, or contains itself")
        self.depth += 1
        parts = _PARTS.get(kind, _Writer.data)(self, value)
        self.depth -= 1
        return parts

    # A level of the value costs two frames: RecursionError is for stacks that were nearly full before.

    def sequence(self, value: Iterable[object]) -> list[object]:
        into: list[object] = [_SEQUENCES[type(value)]]
        for item in value:
            into.append(self.tree(item))
        return into

    def deque(self, value: deque[object]) -> list[object]:
        into: list[object] = [DEQUE, value.maxlen]
        for item in value:
            into.append(self.tree(item))
        return into

    def mapping(self, value: dict[object, object]) -> object:
        made: dict[str, object] = {}
        for key, held in value.items():
            if type(key) is not str or (not key.isascii() and is_odd(key)):
                return self.pairs(value)
            made[key] = self.tree(held)
        return made

    def pairs(self, value: dict[object, object]) -> list[object]:
        into: list[object] = [_MAPPINGS[type(value)]]
        for key, held in value.items():
            into.append(self.tree(key))
            into.append(self.tree(held))
        return into

    def member(self, value: enum.Enum) -> list[object]:
        cls = type(value)
        if isinstance(value, enum.Flag):
            return [FLAG, self.row(cls, (), ()), self.tree(value._value_)]
        if cls.__members__.get(value._name_) is not value:
            raise UnstorableError(f"a member of {cls.__qualname__} in it has no name there")
        return [ENUM, self.row(cls, (), ()), value._name_]

    def data(self, value: object) -> list[object]:
        kind = type(value)
        shape = shape_of(kind)
        if shape is None:
            raise UnstorableError(f"{kind.__module__}.{kind.__qualname__} is not a type of plain data")
        fields, extras = shape.read(value)
        into: list[object] = [DATA, self.row(kind, shape.fields, tuple(extras))]
        for name in shape.fields:
            into.append(self.tree(fields[name]) if name in fields else [UNSET])
        for extra in extras.values():
            into.append(self.tree(extra))
        return into

    def row(self, cls: type, fields: tuple[str, ...], extras: tuple[str, ...]) -> int:
        """Return the number of this class in the table."""
        known = self.rows.get((cls, extras))
        if known is not None:
            return known
        module, qualname = cls.__module__, cls.__qualname__
        if self.find(module, qualname) is not cls:
            raise UnstorableError(
                f"the class {module}.{qualname} would not be found again: define it at the top of a module,"
                " or name it in the return annotation"
            )
        row = self.rows[cls, extras] = len(self.table)
        self.table.append((module, qualname, fields, extras))
        return row


_MAPPINGS: Final[dict[type, int]] = {dict: DICT, OrderedDict: ORDERED, Counter: COUNTER}
_PARTS: Final[dict[type, Callable[[_Writer, Any], object]]] = {
    **dict.fromkeys(_SEQUENCES, _Writer.sequence),
    dict: _Writer.mapping,
    OrderedDict: _Writer.pairs,
    Counter: _Writer.pairs,
    deque: _Writer.deque,
}


class _Reader:
    def __init__(self, table: Sequence[Any], find: Finder) -> None:
        self.table = table
        self.find = find
        self.classes: dict[int, type] = {}

    def value(self, tree: Any) -> Any:
        kind = type(tree)
        if kind is list:
            for at, part in enumerate(tree):
                if type(part) is list or type(part) is dict:
                    tree[at] = self.value(part)
            made = FROM_TREE.get(tree[0])
            return made(tree) if made is not None else _FROM_PARTS[tree[0]](self, tree)
        if kind is dict:
            for key, part in tree.items():
                tree[key] = self.value(part)
            return tree
        if kind is str or kind is int or kind in PLAIN:
            return tree
        raise ValueError("a kind of value that is never written")

    def member(self, tree: list[Any]) -> object:
        tag, row, named = tree
        cls: Any = self.class_of(row)
        if not issubclass(cls, enum.Enum):
            raise ValueError("not an enumeration")
        member = cls.__members__.get(named) if tag == ENUM else cls(named)
        if member is None or (tag == FLAG and member._value_ != named):
            raise ResultUnavailableError(
                f"The stored result holds a member of {cls.__qualname__} that the enumeration has no longer."
            )
        return member

    def data(self, tree: list[Any]) -> object:
        cls = self.class_of(tree[1])
        shape = shape_of(cls)
        if shape is None:
            raise ValueError("not plain data")
        _, _, names, extra_names = self.table[tree[1]]
        cut = 2 + len(names)
        held = dict(zip(names, tree[2:cut], strict=True))
        extras = dict(zip(extra_names, tree[cut:], strict=True))
        fields: dict[str, object] = {}
        for name in shape.fields:  # a field that the class has no longer is left out
            if name not in held:
                fields[name] = _default(shape, name)
            elif held[name] is not _UNSET:
                fields[name] = held[name]
        return shape.build(fields, extras)

    def class_of(self, row: int) -> type:
        cls = self.classes.get(row)
        if cls is None:
            module, qualname = self.table[row][:2]
            cls = self.find(module, qualname)
            if cls is None:
                raise ResultUnavailableError(
                    f"The stored result holds a {module}.{qualname}, which is not found in this process:"
                    " import its module, or name the class in the return annotation."
                )
            self.classes[row] = cls
        return cls


_UNSET: Final = object()


def _default(shape: Shape, name: str) -> object:
    try:
        return shape.default(name)
    except LookupError:
        raise ResultUnavailableError(
            f"The stored result holds a {shape.cls.__qualname__} from before it had the field {name!r}:"
            " give the field a default."
        ) from None


def _dict(tree: Sequence[Any]) -> dict[Any, Any]:
    return dict(zip(tree[1::2], tree[2::2], strict=True))


_FROM_PARTS: Final[dict[int, Callable[[_Reader, list[Any]], object]]] = {
    LIST: lambda _, tree: tree[1:],
    TUPLE: lambda _, tree: tuple(tree[1:]),
    SET: lambda _, tree: set(tree[1:]),
    FROZENSET: lambda _, tree: frozenset(tree[1:]),
    DEQUE: lambda _, tree: deque(tree[2:], tree[1]),
    DICT: lambda _, tree: _dict(tree),
    ORDERED: lambda _, tree: OrderedDict(_dict(tree)),
    COUNTER: lambda _, tree: Counter(_dict(tree)),
    ENUM: _Reader.member,
    FLAG: _Reader.member,
    DATA: _Reader.data,
    UNSET: lambda _reader, _tree: _UNSET,
}
