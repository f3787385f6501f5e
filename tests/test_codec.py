"""What comes back from the codec equals what went in, in value and in type."""

import contextlib
import dataclasses
import datetime as dt
import enum
import math
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from fractions import Fraction
from ipaddress import IPv4Address, IPv6Interface
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple, TypedDict
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from idempo.codec import UnstorableError, codec_for
from idempo.errors import ResultUnavailableError
from idempo.shapes import shape_of

PLAIN = codec_for()


class Colour(enum.Enum):
    RED = "red"
    ROUGE = "red"


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    YES = "yes"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Mask(enum.IntFlag):
    A = 1


class Point(NamedTuple):
    x: int
    y: object = 0


class Movie(TypedDict):
    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    sku: str
    amount: object


@dataclasses.dataclass
class Order:
    id: object
    lines: list[Any] = dataclasses.field(default_factory=list)


class MyStr(str): ...


class MyInt(int): ...


def same(one: Any, other: Any) -> Any:
    """Say whether two values are equal in value and in type, all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return one.hex() == other.hex() or (math.isnan(one) and math.isnan(other))
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, Decimal):
        return one.as_tuple() == other.as_tuple()
    if isinstance(one, dt.datetime | dt.time):
        return one.replace(tzinfo=None) == other.replace(tzinfo=None) and (one.fold, repr(one.tzinfo)) == (
            other.fold,
            repr(other.tzinfo),
        )
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, set | frozenset):
        return len(one) == len(other) and all(any(same(a, b) for b in other) for a in one)
    if isinstance(one, list | tuple | deque):
        return len(one) == len(other) and all(map(same, one, other))
    if not isinstance(one, enum.Enum) and (shape := shape_of(type(one))) is not None:
        return same(list(shape.read(one)), list(shape.read(other)))
    return bool(one == other)


def again(value: object, annotation: object = Any) -> Any:
    codec = codec_for(annotation)
    return codec.decode(codec.encode(value))


BERLIN = ZoneInfo("Europe/Berlin")
VALUES: list[object] = [
    *[None, True, False, 0, 1, -1, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**63) - 1, 10**5000, -(10**5000)],
    *[0.0, -0.0, 1.5, math.inf, -math.inf, math.nan, 1j, complex(-0.0, math.nan)],
    *["", "é", "\ud800", "a\udfff\U0001f600", "\x00", b"", b"\xff", bytearray(b"a"), bytearray()],
    *[Decimal("1.0"), Decimal("1.00"), Decimal("-0"), Decimal("1E+5"), Decimal("NaN"), Decimal("sNaN12")],
    *[Decimal("-Infinity"), Fraction(1, 3), Fraction(10**30, 7), range(3), range(0, 10**30, 7)],
    *[
        UUID(int=5),
        IPv4Address("10.0.0.1"),
        IPv6Interface("::1/64"),
        PurePosixPath("a/b"),
        PureWindowsPath("C:\\x"),
    ],
    *[dt.date.min, dt.date.max, dt.datetime.min, dt.datetime.max, dt.time.min, dt.time.max],
    dt.datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN),
    dt.datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1),
    dt.datetime(2024, 1, 1, 12, 0, 0, 5, tzinfo=dt.UTC),
    dt.datetime(2024, 1, 1, tzinfo=ZoneInfo("UTC")),
    dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=-3, microseconds=7))),
    dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1), "CET")),
    dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(0), "Z")),
    *[dt.time(2, 30, fold=1), dt.time(2, tzinfo=dt.UTC), dt.time(2, tzinfo=BERLIN), BERLIN, dt.UTC],
    *[dt.timedelta.min, dt.timedelta.max, dt.timedelta(microseconds=-1)],
    *[Colour.RED, Colour.ROUGE, Level.LOW, Word.YES, Right.READ, Right.READ | Right.WRITE, Right(0)],
    *[Mask.A, Mask(8), Mask(0)],
    *[[], (), set(), frozenset(), {}, [[]], ([],), {"": {}}, [None], {None}, {None: None}],
    *[{1: "a", "1": "b"}, {(1, "a"): 2}, {Decimal("1.0"): 1}, {"b": 1, "a": 2}, {"\ud800": 1}, {b"a": 1}],
    *[{True: 1, "x": [1, {2: (3,)}]}, {frozenset({1}): {2}}, {Level.LOW: Level.LOW}],
    *[OrderedDict([("b", 1), ("a", 2)]), Counter("abca"), deque([1, 2]), deque([1], maxlen=3), deque()],
    *[Point(1), Point(1, (2,)), Line("a", Decimal("1.00")), Order(1, [Line("b", None)]), [Point(1), (1, 0)]],
    Movie(name="x"),
]


def named(value: object) -> str:
    return type(value).__name__


@pytest.mark.parametrize("annotation", [Any, int, str | Order, dict[str, Colour] | None])
@pytest.mark.parametrize("value", VALUES, ids=named)
def test_value_and_type_come_back_whatever_the_annotation(value: object, annotation: object) -> None:
    assert same(again(value, annotation), value)
    assert same(again([value, {"a": value}, (value,)], annotation), [value, {"a": value}, (value,)])


def test_the_comparison_of_these_tests_can_fail() -> None:
    for one, other in [(1, True), (0.0, -0.0), (Decimal("1.0"), Decimal("1.00")), ([1], (1,)), ({1}, {1.0})]:
        assert one == other or isinstance(one, list)
        assert not same(one, other)
    assert not same({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert not same(Order(1), Order(True))


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters()),
    st.binary(max_size=20),
    st.decimals(),
    st.datetimes(timezones=st.one_of(st.none(), st.timezones())),
    st.times(),
    st.timedeltas(),
    st.uuids(),
    st.sampled_from([Colour.RED, Level.LOW, Word.YES, Right.READ | Right.WRITE]),
)
hashable = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(),
    st.binary(),
    st.uuids(),
    st.tuples(st.integers(), st.text()),
)
nested = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(inner, max_size=4).map(deque),
        st.sets(hashable, max_size=4),
        st.frozensets(hashable, max_size=4),
        st.dictionaries(hashable, inner, max_size=4),
        st.dictionaries(st.text(), inner, max_size=4),
        st.builds(Point, st.integers(), inner),
        st.builds(Line, st.text(), inner),
        st.builds(Order, inner, st.lists(inner, max_size=3)),
    ),
    max_leaves=20,
)


@given(nested)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_any_nested_value_comes_back(value: object) -> None:
    assert same(again(value), value)
    assert same(again(value, Order | list[Point] | None), value)


@given(st.binary(), st.booleans())
def test_strange_bytes_are_a_result_that_is_unavailable(data: bytes, versioned: bool) -> None:
    with contextlib.suppress(ResultUnavailableError):
        PLAIN.decode(b"\x01" * versioned + data)


@given(nested, st.data())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_damaged_bytes_are_a_result_that_is_unavailable(value: object, data: st.DataObject) -> None:
    stored = bytearray(PLAIN.encode(value))
    for _ in range(data.draw(st.integers(1, 4))):
        stored[data.draw(st.integers(0, len(stored) - 1))] = data.draw(st.integers(0, 255))
    for damaged in (bytes(stored), bytes(stored[: len(stored) // 2]), bytes(stored) + b"\x00"):
        with contextlib.suppress(ResultUnavailableError):
            PLAIN.decode(damaged)


DEEP = b"\x01\x92\x90" + b"\x91" * 5000 + b"\xc0"


@pytest.mark.parametrize("data", [b"", b"\x02", b"\x01", b"\x01\x92\x90\xc1", DEEP])
def test_bytes_of_another_format_are_refused(data: bytes) -> None:
    with pytest.raises(ResultUnavailableError):
        PLAIN.decode(data)


def cyclic() -> list[object]:
    value: list[object] = []
    value += [value, value]
    return value


def deep(levels: int) -> list[object]:
    value: list[object] = []
    for _ in range(levels):
        value = [value]
    return value


class Plain: ...


UNSTORABLE: list[object] = [
    *[
        cyclic(),
        {"a": cyclic()},
        deep(250),
        deep(100_000),
        MyStr("a"),
        [MyInt(1)],
        defaultdict(list),
        Plain(),
        Plain,
    ],
    *[
        lambda: 1,
        iter([]),
        (x for x in ""),
        open,
        math,
        memoryview(b""),
        ValueError("x"),
        object(),
        dt,
        {1: 2}.keys(),
    ],
]


@pytest.mark.parametrize("value", UNSTORABLE, ids=named)
def test_what_would_not_come_back_as_itself_is_refused(value: object) -> None:
    with pytest.raises(UnstorableError):
        PLAIN.encode(value)


def test_the_reason_names_types_and_never_contents() -> None:
    with pytest.raises(UnstorableError) as caught:
        PLAIN.encode({"password": [MyStr("secret")]})
    assert "MyStr" in caught.value.reason
    assert "secret" not in caught.value.reason


def test_a_value_may_be_nested_199_levels_and_hold_one_thing_twice() -> None:
    assert again(deep(199)) == deep(199)
    twice = [1]
    assert again([twice, twice]) == [[1], [1]]


def test_the_stored_value_shares_nothing_with_the_original() -> None:
    value = {"a": [1]}
    stored = PLAIN.encode(value)
    value["a"].append(2)
    first = PLAIN.decode(stored)
    first["a"].append(3)
    assert PLAIN.decode(stored) == {"a": [1]}
