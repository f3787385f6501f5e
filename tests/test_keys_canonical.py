"""The canonical form: equal values agree, all others differ, and what has no stable form is refused."""

import dataclasses
import datetime as dt
import enum
import itertools
import math
import subprocess
import sys
import types
from collections import Counter, OrderedDict, defaultdict
from decimal import Decimal, localcontext
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from idempo.errors import KeyRefusedError
from idempo.keys import canonical


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Hue(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    y: int


@dataclasses.dataclass(frozen=True)
class Order:
    id: object
    seen: float = dataclasses.field(default=0.5, compare=False)


@dataclasses.dataclass(frozen=True)
class Other:
    id: object


@attrs.frozen
class Slotted:
    id: object
    seen: float = attrs.field(default=0.5, eq=False)


class Struct(msgspec.Struct):
    id: object


UTC = dt.UTC
EPOCH = dt.datetime(1970, 1, 1, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")
DAY = dt.datetime(2024, 7, 1, 12)
EQUAL: list[list[Any]] = [
    [Decimal("1.0"), Decimal("1.00"), Decimal("1"), Decimal("0.1E1")],
    [Decimal("100"), Decimal("1E2"), Decimal("1.0E+2")],
    [Decimal(0), Decimal("-0.00"), Decimal("0E5")],
    [Decimal("Infinity"), Decimal("Inf")],
    [b"a", bytearray(b"a"), memoryview(b"a")],
    [DAY.replace(tzinfo=UTC), DAY.replace(hour=14, tzinfo=BERLIN), DAY.replace(tzinfo=ZoneInfo("UTC"))],
    [dt.time(12, tzinfo=UTC), dt.time(14, tzinfo=dt.timezone(dt.timedelta(hours=2)))],
    [dt.datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1), dt.datetime(2024, 10, 27, 1, 30, tzinfo=UTC)],
    [dt.datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN), dt.datetime(2024, 10, 27, 0, 30, tzinfo=UTC)],
    [DAY, DAY.replace(fold=1)],
    [
        {"a": 1, "b": 2},
        {"b": 2, "a": 1},
        OrderedDict(b=2, a=1),
        defaultdict(int, a=1, b=2),
        Counter(a=1, b=2),
    ],
    [{1: 2}, types.MappingProxyType({1: 2})],
    [{1, 2, "a"}, frozenset(["a", 2, 1])],
    [Order(1, 1.0), Order(1, 2.0)],
    [Slotted(1, 1.0), Slotted(1, 2.0)],
    [Right.READ | Right.WRITE, Right.WRITE | Right.READ],
    [PureWindowsPath("A\\b"), PureWindowsPath("a/B")],
]
DIFFERENT: list[Any] = [
    *[
        None,
        True,
        False,
        0,
        1,
        -1,
        10,
        2**64,
        "",
        "1",
        "a",
        "True",
        "None",
        "\ud800",
        "\udfff",
        "?",
        b"",
        b"1",
        b"a",
    ],
    *[
        Decimal(0),
        Decimal(1),
        Decimal("-1"),
        Decimal(10),
        Decimal("0.1"),
        Decimal("Infinity"),
        Decimal("-Infinity"),
    ],
    *[
        UUID(int=1),
        UUID(int=1).bytes,
        str(UUID(int=1)),
        DAY,
        DAY.replace(tzinfo=UTC),
        DAY.date(),
        DAY.isoformat(),
    ],
    *[
        DAY.time(),
        DAY.time().replace(tzinfo=UTC),
        dt.timedelta(1),
        dt.timedelta(-1),
        dt.timedelta(microseconds=1),
    ],
    *[
        dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(hours=14))),
        dt.datetime.max.replace(tzinfo=UTC),
    ],
    *[Colour.RED, Colour.BLUE, Hue.RED, Level.LOW, Right.READ, Right.READ | Right.WRITE, "RED", "red"],
    *[
        (),
        [],
        {},
        set(),
        (1,),
        [1],
        {1},
        {1: 1},
        (1, 2),
        (2, 1),
        ((1,), 2),
        (1, (2,)),
        ("1", 2),
        (12,),
        ("a", "b"),
    ],
    *[("ab",), ("a", "b", ""), ("", "a", "b"), [[]], [[], []], {1: {2: 3}}, {"a": 1}, {"a": "1"}, {"1": "a"}],
    *[
        (True, 1),
        (1, True),
        [None],
        [[None]],
        {None: None},
        {"a": {}},
        {"a": []},
        {("a", "b"): 1},
        {"a": ("b", 1)},
    ],
    *[Point(1, 2), Order(1), Order("1"), Other(1), Slotted(1), Struct(1), Order(Other(1)), Order((1,))],
    *[PurePosixPath("a"), PureWindowsPath("a"), PurePosixPath("A"), {"id": 1}],
]


@pytest.mark.parametrize("values", EQUAL, ids=lambda values: type(values[0]).__name__)
def test_values_of_one_type_that_python_calls_equal_have_one_form(values: list[Any]) -> None:
    assert len({canonical(value) for value in values}) == 1
    assert len({canonical([value, "x"]) for value in values}) == 1


def test_no_two_different_values_share_a_form() -> None:
    for one, other in itertools.combinations(DIFFERENT, 2):
        assert canonical(one) != canonical(other), (one, other)
        assert canonical((one, other)) != canonical((other, one))


def test_no_form_begins_with_another_one() -> None:
    for one, other in itertools.permutations(map(canonical, DIFFERENT), 2):
        assert not one.startswith(other)


def test_floats_serve_to_compare_only() -> None:
    for value in (1.5, math.nan, [1.5], {"a": 0.0}, Order(1.0)):
        with pytest.raises(KeyRefusedError, match="Decimal"):
            canonical(value)
    assert canonical(0.0, floats=True) == canonical(-0.0, floats=True)
    assert canonical(math.nan, floats=True) == canonical(-math.nan, floats=True)
    assert (
        len({canonical(v, floats=True) for v in (1, 1.0, True, "1.0", 1.5, math.inf, -math.inf, 5e-324)}) == 8
    )


class MyStr(str): ...


class Plain: ...


def cyclic() -> list[Any]:
    value: list[Any] = []
    value += [value, value]
    return value


def deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(5000):
        value = [value]
    return value


REFUSED: list[Any] = [
    *[Plain(), Plain, object(), MyStr("a"), lambda: 1, iter([]), (x for x in ""), open, sys, ValueError("x")],
    *[
        Decimal("NaN"),
        Decimal("sNaN"),
        cyclic(),
        deep(),
        [Plain()],
        {"a": Plain()},
        Order(Plain()),
        {1: 2}.keys(),
        1j,
    ],
]


@pytest.mark.parametrize("value", REFUSED, ids=lambda value: type(value).__name__)
def test_what_has_no_stable_form_is_refused(value: Any) -> None:
    for floats in (False, True):
        with pytest.raises(KeyRefusedError) as caught:
            canonical(value, floats=floats)
        assert " at 0x" not in str(caught.value)


def test_the_refusal_names_the_type() -> None:
    with pytest.raises(KeyRefusedError, match=r"test_keys_canonical\.Plain"):
        canonical([Plain()])


def test_the_form_does_not_depend_on_the_decimal_context() -> None:
    value = Decimal("12345678901234567890123456789012345678.900")
    with localcontext() as context:
        context.prec = 3
        narrow = canonical(value)
    assert narrow == canonical(value) != canonical(Decimal("1.23E37"))


def test_the_form_is_the_same_in_another_process_with_other_hashes() -> None:
    script = (
        "from decimal import Decimal; from idempo.keys import canonical;"
        "print(canonical([{'b', 'a', 1, None}, {'x': 1, 'y': (Decimal('1.0'), b'z')}]).hex())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", script], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(seen) == 1


def test_later_changes_of_the_value_change_nothing() -> None:
    value = {"a": [1]}
    before = canonical(value)
    value["a"].append(2)
    assert before == canonical({"a": [1]}) != canonical(value)


zones = st.none() | st.timezones()
hashable = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.text(st.characters(), max_size=4), st.binary(max_size=4),
        st.decimals(allow_nan=False), st.dates(), st.timedeltas(), st.datetimes(timezones=zones),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3)),
    max_leaves=6,
)  # fmt: skip
values = st.recursive(
    hashable,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(hashable, inner, max_size=3), st.builds(Order, inner)
    ),
    max_leaves=10,
)


def alike(one: Any, other: Any) -> Any:
    """Say whether Python calls two values equal and their types agree, all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, frozenset):
        return len(one) == len(other) and all(any(alike(a, b) for b in other) for a in one)
    if isinstance(one, dict):
        return len(one) == len(other) and all(any(alike(a, b) for b in other.items()) for a in one.items())
    if isinstance(one, Order):
        return alike(one.id, other.id)
    if isinstance(one, dt.datetime) and one.tzinfo and other.tzinfo:
        # In UTC: within one zone Python compares the clock and overlooks the fold.
        return one - EPOCH == other - EPOCH
    return bool(one == other)


@given(values, values)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_forms_agree_exactly_where_values_do(one: Any, other: Any) -> None:
    assert (canonical(one) == canonical(other)) == alike(one, other)


@given(values)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_the_form_of_a_copy_is_the_same(value: Any) -> None:
    copied = (
        dict(reversed(value.items()))
        if isinstance(value, dict)
        else msgspec.structs.replace(Struct(value)).id
    )
    assert canonical(copied) == canonical(value)


def test_no_text_can_pretend_that_one_part_ends_and_the_next_begins() -> None:
    """All short tuples of texts that are made of what forms are made of."""
    words = ["".join(letters) for size in range(3) for letters in itertools.product("s\0\1", repeat=size)]
    keys = [parts for size in (1, 2, 3) for parts in itertools.product(words, repeat=size)]
    assert len({canonical(parts) for parts in keys}) == len(keys)
