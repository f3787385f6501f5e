"""One form per value: equal values have equal bytes, different values or types have different bytes.

The bytes carry the type and the length of each part, so no two values run together. What has no such form is
refused: never `repr`, never an identity, never a hash of this process.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import math
import pathlib
import types
import uuid
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from idempo.errors import KeyRefusedError
from idempo.shapes import shape_of

__all__ = ["MAX_DEPTH", "canonical", "framed", "labelled"]

MAX_DEPTH: Final = 100


def canonical(value: object, *, floats: bool = False) -> bytes:
    """Return the one form of `value`, or raise KeyRefusedError with its type.

    Values of different types differ, although Python calls `1`, `True` and `Decimal(1)` equal. Values of
    one type that Python calls equal have one form: 1.0 and 1.00 as Decimal, 12:00 UTC and 14:00 at +02:00,
    dicts in any order. Classes of data go by their qualified name, so moving one to another module keeps
    its keys. `floats` allows floats: they serve to compare, not to identify.
    """
    leaf = _LEAVES.get(type(value))
    if leaf is not None:
        return leaf(value)
    try:
        return _Parts(floats).form(value)
    except RecursionError:
        raise KeyRefusedError("The value is nested too deep for the stack that is left.") from None


def labelled(value: object, label: str, *, floats: bool) -> bytes:
    """Return the canonical form, or raise KeyRefusedError with a message that begins with `label`."""
    try:
        return canonical(value, floats=floats)
    except KeyRefusedError as error:
        raise KeyRefusedError(f"{label}: {error}") from error.__cause__
    except Exception as error:  # from an object that cannot be read: a lazy field, a broken property
        raise KeyRefusedError(f"{label}: reading it raised {type(error).__name__}.") from error


def framed(tag: bytes, content: bytes) -> bytes:
    """Return `content` with its kind and length in front, so that parts can stand in a row."""
    return tag + len(content).to_bytes(4, "big") + content


def _text(tag: bytes, text: str) -> bytes:
    try:
        content = text.encode()
    except UnicodeEncodeError:  # lone surrogates, for which UTF-8 has no form
        content = text.encode("utf-8", "surrogatepass")
    return framed(tag, content)


def _str(value: str) -> bytes:
    return _text(b"s", value)


def _decimal(value: decimal.Decimal) -> bytes:
    if value.is_nan():
        raise KeyRefusedError("Decimal NaN is not equal to itself, so it cannot be told apart from others.")
    return _text(b"D", str(_EXACT.normalize(value)) if value else "0")


# Takes the zeros off the end of any Decimal without rounding it, whatever the context of the caller.
_EXACT: Final = decimal.Context(decimal.MAX_PREC, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX, traps=[])

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def _datetime(value: dt.datetime) -> bytes:
    if value.utcoffset() is None:
        return _text(b"n", value.replace(tzinfo=None, fold=0).isoformat())
    return framed(b"a", _ticks(value - _EPOCH))  # a difference: astimezone() fails near the years 1 and 9999


def _time(value: dt.time) -> bytes:
    offset = value.utcoffset()
    naive = value.replace(tzinfo=None, fold=0)
    if offset is None:
        return _text(b"h", naive.isoformat())
    since = dt.timedelta(
        hours=naive.hour, minutes=naive.minute, seconds=naive.second, microseconds=naive.microsecond
    )
    return framed(b"H", _ticks(since - offset))


def _ticks(value: dt.timedelta) -> bytes:
    return b"%d.%d.%d" % (value.days, value.seconds, value.microseconds)


def _path(value: pathlib.PurePath) -> bytes:
    if isinstance(value, pathlib.PureWindowsPath):
        return _text(b"w", value.as_posix().lower())  # such paths are equal whatever their case
    return _text(b"p", str(value))


_LEAVES: Final[dict[type, Callable[[Any], bytes]]] = {
    str: _str,
    int: lambda value: framed(b"i", b"%x" % value),
    type(None): lambda _: framed(b"0", b""),
    bool: lambda value: framed(b"t", b"1" if value else b"0"),
    bytes: lambda value: framed(b"b", value),
    bytearray: lambda value: framed(b"b", bytes(value)),
    memoryview: lambda value: framed(b"b", value.tobytes()),
    uuid.UUID: lambda value: framed(b"u", value.bytes),
    decimal.Decimal: _decimal,
    dt.datetime: _datetime,
    dt.date: lambda value: _text(b"d", value.isoformat()),
    dt.time: _time,
    dt.timedelta: lambda value: framed(b"l", _ticks(value)),
    pathlib.PosixPath: _path,
    pathlib.PurePosixPath: _path,
    pathlib.WindowsPath: _path,
    pathlib.PureWindowsPath: _path,
}


class _Parts:
    def __init__(self, floats: bool) -> None:
        self.floats = floats
        self.depth = 0

    def form(self, value: Any) -> bytes:
        kind = type(value)
        leaf = _LEAVES.get(kind)
        if leaf is not None:
            return leaf(value)
        if kind is float:
            return self.real(value)
        if isinstance(value, enum.Enum):
            return self.member(value)
        if self.depth >= MAX_DEPTH:
            raise KeyRefusedError(f"The value is nested deeper than {MAX_DEPTH} levels, or contains itself.")
        self.depth += 1
        form = _PARTS.get(kind, _Parts.data)(self, value)
        self.depth -= 1
        return form

    def real(self, value: float) -> bytes:
        if not self.floats:
            raise KeyRefusedError(
                "A float is no identity (0.1 + 0.2 is not 0.3): use an int, a str or a Decimal instead."
            )
        if math.isnan(value):
            return framed(b"f", b"nan")
        return _text(b"f", (value + 0.0).hex())  # -0.0 + 0.0 is 0.0

    def member(self, value: enum.Enum) -> bytes:
        # A combination of flags may have no name, and its value says it all.
        named = value._value_ if isinstance(value, enum.Flag) else value._name_
        return framed(b"e", _text(b"s", type(value).__qualname__) + self.form(named))

    def row(self, value: list[object] | tuple[object, ...]) -> bytes:
        return _counted(b"L" if type(value) is list else b"T", [self.form(part) for part in value])

    def set(self, value: Iterable[object]) -> bytes:
        return _counted(b"S", sorted([self.form(part) for part in value]))

    def mapping(self, value: Mapping[object, object]) -> bytes:
        return _counted(b"M", sorted([self.form(key) + self.form(held) for key, held in value.items()]))

    def data(self, value: object) -> bytes:
        kind = type(value)
        shape = shape_of(kind)
        if shape is None:
            raise KeyRefusedError(
                f"A {kind.__module__}.{kind.__qualname__} has no stable form: use something of it that"
                " has one, such as its number or name."
            )
        fields, extras = shape.read(value)
        parts = [_text(b"s", name) + self.form(fields[name]) for name in shape.compared if name in fields]
        more = extras.get(
            "__pydantic_extra__"
        )  # the fields that a pydantic model with extra="allow" was given
        if more:
            parts.append(self.form(more))
        return framed(b"o", _text(b"s", kind.__qualname__) + _counted(b"T", parts))


def _counted(tag: bytes, parts: list[bytes]) -> bytes:
    return tag + len(parts).to_bytes(4, "big") + b"".join(parts)


_PARTS: Final[dict[type, Callable[[_Parts, Any], bytes]]] = {
    **dict.fromkeys((list, tuple), _Parts.row),
    **dict.fromkeys((set, frozenset), _Parts.set),
    **dict.fromkeys((dict, OrderedDict, defaultdict, Counter, types.MappingProxyType), _Parts.mapping),
}
