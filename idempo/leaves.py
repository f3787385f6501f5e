"""Values without parts, in both directions: a number, a text, a moment <-> what MessagePack can hold.

What MessagePack has itself stands for itself. The rest is an array: a tag, then plain values.
"""

from __future__ import annotations

import datetime as dt
import decimal
import fractions
import ipaddress
import pathlib
import sys
import uuid
import zoneinfo
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

__all__ = ["FROM_TREE", "PLAIN", "TO_TREE", "UnstorableError", "is_odd"]


class UnstorableError(Exception):
    """The value cannot be stored. `reason` names types, never contents."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


# The tags are in stored data: a number never changes its meaning. Those in tagged.py begin at 32.
BIG_INT: Final = 0
ODD_STR: Final = 1
BYTEARRAY: Final = 2
COMPLEX: Final = 3
FRACTION: Final = 4
TEXT: Final = 5
DATETIME: Final = 6
DATE: Final = 7
TIME: Final = 8
TIMEDELTA: Final = 9
OFFSET: Final = 10
ZONE: Final = 11
RANGE: Final = 12
PYDANTIC_ZONE: Final = 13

PLAIN: Final[frozenset[type]] = frozenset({type(None), bool, float, bytes})
"""Types that stand for themselves, whatever the value."""

# Types that are their text and nothing more: type(value)(str(value)) is the value again, in the same form.
_TEXTS: Final[dict[str, type[Any]]] = {
    cls.__name__: cls
    for cls in (
        decimal.Decimal,
        uuid.UUID,
        pathlib.PurePosixPath,
        pathlib.PureWindowsPath,
        pathlib.PosixPath,
        pathlib.WindowsPath,
        ipaddress.IPv4Address,
        ipaddress.IPv6Address,
        ipaddress.IPv4Network,
        ipaddress.IPv6Network,
        ipaddress.IPv4Interface,
        ipaddress.IPv6Interface,
    )
}


def is_odd(text: str) -> bool:
    """Say whether `text` has lone surrogates, for which UTF-8 has no form."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _int(value: int) -> object:
    if -(1 << 63) <= value < 1 << 64:
        return value
    return [BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)]


def _str(value: str) -> object:
    if value.isascii() or not is_odd(value):
        return value
    return [ODD_STR, value.encode("utf-8", "surrogatepass")]


def _text(value: object) -> object:
    return [TEXT, type(value).__name__, _str(str(value))]


def _datetime(value: dt.datetime) -> object:
    return [DATETIME, value.replace(tzinfo=None).isoformat(), value.fold, _zone(value.tzinfo)]


def _time(value: dt.time) -> object:
    return [TIME, value.replace(tzinfo=None).isoformat(), value.fold, _zone(value.tzinfo)]


def _zone(zone: dt.tzinfo | None) -> object:
    if zone is None:
        return None
    if type(zone) is dt.timezone:
        return _offset(zone)
    if type(zone) is zoneinfo.ZoneInfo:
        return _zone_info(zone)
    if type(zone) is _pydantic_zone():
        return [PYDANTIC_ZONE, _span(cast(dt.timedelta, zone.utcoffset(None)))]
    raise UnstorableError(f"a time zone of type {type(zone).__qualname__} has no stable name, a zoneinfo has")


def _pydantic_zone() -> type[Any] | None:
    """Return the class of the fixed offsets in datetimes that pydantic has parsed, if it is at hand."""
    return getattr(sys.modules.get("pydantic_core"), "TzInfo", None)


def _offset(zone: dt.timezone) -> object:
    offset = zone.utcoffset(None)
    name = zone.tzname(None)
    # A name that the offset gives by itself is not kept: it would make a zone with a name of its own.
    return [OFFSET, _span(offset), None if name == dt.timezone(offset).tzname(None) else _str(name)]


def _zone_info(zone: zoneinfo.ZoneInfo) -> object:
    if zone.key is None:
        raise UnstorableError("a ZoneInfo that was read from a file has no key")
    return [ZONE, zone.key]


def _span(value: dt.timedelta) -> list[object]:
    return [TIMEDELTA, value.days, value.seconds, value.microseconds]


def _range(value: range) -> object:
    return [RANGE, _int(value.start), _int(value.stop), _int(value.step)]


TO_TREE: Final[dict[type, Callable[[Any], object]]] = {
    int: _int,
    str: _str,
    bytearray: lambda value: [BYTEARRAY, bytes(value)],
    complex: lambda value: [COMPLEX, value.real, value.imag],
    fractions.Fraction: lambda value: [FRACTION, _int(value.numerator), _int(value.denominator)],
    dt.datetime: _datetime,
    dt.date: lambda value: [DATE, value.isoformat()],
    dt.time: _time,
    dt.timedelta: _span,
    dt.timezone: _offset,
    zoneinfo.ZoneInfo: _zone_info,
    range: _range,
    **dict.fromkeys(_TEXTS.values(), _text),
}


# What is inside a leaf (a zone, a big number, an odd text) has been decoded when these are called.


def _whole(found: Any) -> int:
    if type(found) is not int:
        raise ValueError("not a whole number")
    return found


def _from_datetime(tree: Sequence[Any]) -> dt.datetime:
    _, text, fold, zone = tree
    return dt.datetime.fromisoformat(text).replace(fold=fold, tzinfo=zone)


def _from_time(tree: Sequence[Any]) -> dt.time:
    _, text, fold, zone = tree
    return dt.time.fromisoformat(text).replace(fold=fold, tzinfo=zone)


def _from_pydantic_zone(tree: Sequence[Any]) -> dt.tzinfo:
    made = _pydantic_zone()
    # Without pydantic, the zone that is equal to it.
    return dt.timezone(tree[1]) if made is None else made(int(tree[1].total_seconds()))


def _from_offset(tree: Sequence[Any]) -> dt.timezone:
    _, offset, name = tree
    return dt.timezone(offset) if name is None else dt.timezone(offset, name)


FROM_TREE: Final[dict[int, Callable[[Any], object]]] = {
    BIG_INT: lambda tree: int.from_bytes(tree[1], "big", signed=True),
    ODD_STR: lambda tree: tree[1].decode("utf-8", "surrogatepass"),
    BYTEARRAY: lambda tree: bytearray(memoryview(tree[1])),
    COMPLEX: lambda tree: complex(tree[1], tree[2]),
    FRACTION: lambda tree: fractions.Fraction(_whole(tree[1]), _whole(tree[2])),
    TEXT: lambda tree: _TEXTS[tree[1]](tree[2]),
    DATETIME: _from_datetime,
    DATE: lambda tree: dt.date.fromisoformat(tree[1]),
    TIME: _from_time,
    TIMEDELTA: lambda tree: dt.timedelta(tree[1], tree[2], tree[3]),
    OFFSET: _from_offset,
    PYDANTIC_ZONE: _from_pydantic_zone,
    ZONE: lambda tree: zoneinfo.ZoneInfo(tree[1]),
    RANGE: lambda tree: range(_whole(tree[1]), _whole(tree[2]), _whole(tree[3])),
}
