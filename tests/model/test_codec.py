"""Values of every type that can be stored come back as they went in: with their annotation, and without one."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import enum
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NamedTuple, TypedDict
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempo.codec import UnstorableError, codec_for
from idempo.errors import ResultUnavailableError
from tests.model.support import examples


class Status(enum.Enum):
    PAID = "paid"
    OPEN = ("o", 1)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Word(enum.StrEnum):
    YES = "yes"


class Pair(NamedTuple):
    left: int
    right: str | None = None


class Movie(TypedDict, total=False):
    name: str
    year: int


@dataclasses.dataclass
class Line:
    sku: str
    amount: Decimal
    tags: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    id: UUID
    lines: tuple[Line, ...]
    status: Status | None = None


@attrs.define
class Parcel:
    order: Order
    at: dt.datetime


@attrs.frozen
class Weight:
    grams: int


class Event(msgspec.Struct):
    name: str
    seen: set[int]


class Fixed(msgspec.Struct, frozen=True):
    by_number: dict[int, str]


class Model(pydantic.BaseModel):
    level: Level
    children: list[Model] = []


def same(one: Any, other: Any) -> bool:
    """Say whether two values are equal in value and in type, all the way down, by what Python itself shows of them."""
    if type(one) is not type(other):
        return False
    match one:
        case float():
            return bool(one.hex() == other.hex() or (math.isnan(one) and math.isnan(other)))
        case Decimal():
            return bool(one.as_tuple() == other.as_tuple())
        case enum.Enum():
            return one is other
        case dt.datetime() | dt.time():
            return (repr(one), one.fold) == (repr(other), other.fold)
        case dict():
            return same(list(one.items()), list(other.items()))
        case set() | frozenset():
            return len(one) == len(other) and all(any(same(part, its) for its in other) for part in one)
        case list() | tuple():
            return len(one) == len(other) and all(map(same, one, other))
        case _ if fields := fields_of(one):
            return all(same(getattr(one, name), getattr(other, name)) for name in fields)
        case _:
            return bool(one == other)


def fields_of(value: Any) -> list[str]:
    if dataclasses.is_dataclass(value):
        return [field.name for field in dataclasses.fields(value)]
    if attrs.has(type(value)):
        return [field.name for field in attrs.fields(type(value))]
    if isinstance(value, msgspec.Struct):
        return list(value.__struct_fields__)
    return list(type(value).model_fields) if isinstance(value, pydantic.BaseModel) else []


zones = st.none() | st.timezones() | st.just(dt.UTC) | st.just(dt.timezone(dt.timedelta(hours=-3, minutes=7)))
text = st.text(st.characters(), max_size=8)  # lone surrogates too
lines = st.builds(Line, text, st.decimals(), st.lists(text, max_size=2))
orders = st.builds(
    Order, st.uuids(), st.lists(lines, max_size=2).map(tuple), st.none() | st.sampled_from(Status)
)
models = st.recursive(
    st.builds(Model, level=st.sampled_from(Level)),
    lambda inner: st.builds(Model, level=st.sampled_from(Level), children=st.lists(inner, max_size=2)),
    max_leaves=3,
)
moments = st.datetimes(timezones=zones)

TYPED: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "None": (None, st.none()),
    "bool": (bool, st.booleans()),
    "int": (int, st.integers() | st.integers(2**62, 2**70) | st.integers(-(2**70), -(2**62))),
    "float": (float, st.floats()),
    "str": (str, text),
    "bytes": (bytes, st.binary(max_size=20)),
    "Decimal": (Decimal, st.decimals()),
    "datetime": (dt.datetime, moments),
    "date": (dt.date, st.dates()),
    "time": (dt.time, st.times(timezones=st.none() | st.just(dt.UTC))),
    "timedelta": (dt.timedelta, st.timedeltas()),
    "UUID": (UUID, st.uuids()),
    "Enum": (Status, st.sampled_from(Status)),
    "IntEnum": (Level, st.sampled_from(Level)),
    "StrEnum": (Word, st.sampled_from(Word)),
    "NamedTuple": (Pair, st.builds(Pair, st.integers(), st.none() | text)),
    "TypedDict": (Movie, st.fixed_dictionaries({}, optional={"name": text, "year": st.integers()})),
    "dataclass": (Line, lines),
    "frozen dataclass with slots": (Order, orders),
    "attrs": (Parcel, st.builds(Parcel, orders, moments)),
    "frozen attrs": (Weight, st.builds(Weight, st.integers())),
    "msgspec": (Event, st.builds(Event, text, st.sets(st.integers(), max_size=3))),
    "frozen msgspec": (Fixed, st.builds(Fixed, st.dictionaries(st.integers(), text, max_size=3))),
    "pydantic": (Model, models),
}
HASHABLE = ("bool", "int", "str", "bytes", "date", "timedelta", "UUID", "Enum", "IntEnum", "NamedTuple")


def containers(annotation: Any, values: st.SearchStrategy[Any], hashable: bool) -> Iterator[tuple[Any, Any]]:
    """The type itself, and in everything that can hold it."""
    yield annotation, values
    yield list[annotation], st.lists(values, max_size=3)
    yield tuple[annotation, ...], st.lists(values, max_size=3).map(tuple)
    yield dict[str, annotation], st.dictionaries(text, values, max_size=3)
    yield (
        dict[int, list[annotation]],
        st.dictionaries(st.integers(), st.lists(values, max_size=2), max_size=2),
    )
    if annotation is not None:
        yield annotation | None, st.none() | values
    if hashable:
        yield set[annotation], st.sets(values, max_size=3)
        yield frozenset[annotation], st.frozensets(values, max_size=3)
        yield dict[annotation, str], st.dictionaries(values, text, max_size=3)


def one_of(kinds: list[str]) -> st.SearchStrategy[tuple[Any, Any]]:
    """An annotation, and a value that fits it."""
    pairs: list[st.SearchStrategy[tuple[Any, Any]]] = []
    for kind in kinds:
        for annotation, values in containers(*TYPED[kind], kind in HASHABLE):
            pairs.append(st.tuples(st.just(annotation), values))
    return st.one_of(pairs)


anything = st.recursive(
    st.one_of([values for _, values in TYPED.values()]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(text, inner, max_size=3),
        st.dictionaries(st.integers(), inner, max_size=3),
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("kind", TYPED)
def test_a_value_comes_back_with_its_annotation_and_without_one(kind: str) -> None:
    @examples(40)
    @given(one_of([kind]))
    def comes_back(pair: tuple[Any, Any]) -> None:
        annotation, value = pair
        for codec in (codec_for(annotation), codec_for()):
            stored = codec.encode(value)
            assert same(codec.decode(stored), value)
            assert codec.encode(value) == stored  # the same value, the same bytes
        # What one function stored, a function without the annotation reads too, and the other way round.
        assert same(codec_for().decode(codec_for(annotation).encode(value)), value)
        assert same(codec_for(annotation).decode(codec_for().encode(value)), value)

    comes_back()


@examples(150)
@given(anything, one_of(list(TYPED)))
def test_an_annotation_that_does_not_fit_changes_no_value(value: Any, other: tuple[Any, Any]) -> None:
    codec = codec_for(other[0])
    assert same(codec.decode(codec.encode(value)), value)


@examples(150)
@given(anything)
def test_what_comes_back_shares_nothing_that_can_change(value: Any) -> None:
    codec = codec_for()
    stored = codec.encode(value)
    first, second = codec.decode(stored), codec.decode(stored)
    held = {id(part) for part in changeable(value)}
    assert not held & {id(part) for part in changeable(first)}
    assert not {id(part) for part in changeable(first)} & {id(part) for part in changeable(second)}
    assert len(changeable(first)) == len(changeable(value))


def changeable(value: Any) -> list[Any]:
    """All that could be changed in place in a value."""
    found: list[Any] = [value] if isinstance(value, list | dict | set | Line | Parcel | Event | Model) else []
    parts: list[Any] = []
    if isinstance(value, dict):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        parts = list(value)
    elif not isinstance(value, enum.Enum):
        parts = [getattr(value, name) for name in fields_of(value)]
    return found + [inner for part in parts for inner in changeable(part)]


@examples(150)
@given(anything, st.data())
def test_damaged_bytes_are_unavailable_or_a_value_and_no_other_error(value: Any, data: st.DataObject) -> None:
    codec = codec_for()
    stored = codec.encode(value)
    at = data.draw(st.integers(0, len(stored)))
    put = data.draw(st.binary(max_size=3))
    for damaged in (stored[:at] + put + stored[at:], stored[:at] + put, stored[:at] + put + stored[at + 1 :]):
        with contextlib.suppress(ResultUnavailableError):
            codec.decode(damaged)


class Opaque:
    pass


@examples(80)
@given(anything, st.sampled_from([Opaque(), object(), Opaque, iter([]), lambda: 1, (1).__add__]))
def test_one_part_that_cannot_be_stored_refuses_the_whole_wherever_it_is(value: Any, part: Any) -> None:
    for whole in ([value, part], {"a": (value, [part])}, (part, value), {1: {2: part}}, Event(part, set())):
        with pytest.raises(UnstorableError):
            codec_for().encode(whole)
