"""Rules of keys that no test held until a mutant went unnoticed; see docs/explanation/mutation.md."""

import datetime as dt
import pathlib
import uuid
from typing import Any

import pydantic
import pytest

from idempo import KeyRefusedError, KeyTemplateError
from idempo.canonical import MAX_DEPTH, canonical, labelled
from idempo.keys import MAX_KEY, check_given, digest, key_given, key_source


def read(value: object) -> Any:
    return key_source("{order}", ("order",), operation="shop.pay")({"order": value})


@pytest.mark.parametrize("value", ["ab", ["A-1", 7], ("A-1",), ("A-1", 7, 8), 7, None], ids=str)
def test_a_key_of_two_values_is_given_as_a_tuple_of_two(value: object) -> None:
    with pytest.raises(KeyRefusedError, match="takes a tuple of 2 values") as refused:
        key_given(("order", "line"), value, operation="shop.pay")
    assert refused.value.operation == "shop.pay"


def test_a_key_that_a_callable_reads_may_be_given() -> None:
    assert key_given(lambda order: order, "A-1") == read("A-1")


@pytest.mark.parametrize(
    "spec", ["{order}", ("order", "{line}"), lambda order: order], ids=["field", "tuple", "callable"]
)
def test_what_is_one_value_for_each_part_can_be_given(spec: Any) -> None:
    check_given(spec)


def test_a_role_keeps_keys_of_one_operation_apart() -> None:
    key = read("A-1")
    made = {digest("shop.pay", None, key, role) for role in ("", "token", "entity")}
    assert len(made) == 3


@pytest.mark.parametrize(
    ("spec", "named"),
    [((), "an empty tuple"), (("order", 7), "tuple"), (7, "int"), (None, "NoneType")],
    ids=str,
)
def test_what_is_no_key_is_called_by_its_name(spec: Any, named: str) -> None:
    with pytest.raises(KeyTemplateError, match=f", not {named}"):
        key_source(spec, ("order",))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (dt.date(2026, 1, 2), "2026-01-02"),
        (dt.time(12, 30), "12:30:00"),
        (dt.timedelta(hours=2), "2:00:00"),
        (uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (pathlib.PurePosixPath("/a/b"), "/a/b"),
        (bytearray(b"\xff"), "ff"),
        (memoryview(b"\xff"), "ff"),
        (["a", 7], "a, 7"),
        (7, "7"),
        (-(2**2000), hex(-(2**2000))[:199] + "…"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_key_is_told_as_people_write_it(value: object, text: str) -> None:
    assert read(value).text == text


def test_a_key_of_bytes_is_shown_up_to_the_most_that_a_key_may_have() -> None:
    longest = b"x" * (MAX_KEY - 5)
    assert read(longest).text == "78" * 99 + "7…"
    with pytest.raises(KeyRefusedError, match="longer than"):
        read(longest + b"x")


def test_an_empty_part_is_refused_by_the_place_where_it_stands() -> None:
    with pytest.raises(KeyRefusedError, match=r"a part of a part of {order} is an empty str"):
        read(("A-1", ("x", "")))


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def test_a_value_may_be_nested_100_levels_deep_and_no_deeper() -> None:
    assert MAX_DEPTH == 100
    canonical([nested(99), nested(99)])
    with pytest.raises(KeyRefusedError, match="deeper than 100 levels"):
        canonical(nested(101))
    with pytest.raises(KeyRefusedError, match="deeper than 100 levels"):
        canonical([[], [], nested(100)])


def test_the_forms_of_times_and_truth_never_change() -> None:
    """Stored records are found by them."""
    assert (canonical(True), canonical(False)) == (b"t\0\0\0\x011", b"t\0\0\0\x010")
    assert canonical(dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) == b"a\0\0\0\x050.0.0"
    assert canonical(dt.datetime(1970, 1, 2, 0, 0, 3, 4, tzinfo=dt.UTC)) == b"a\0\0\0\x051.3.4"
    assert canonical(dt.time(1, 0, 0, 4, tzinfo=dt.UTC)) == b"H\0\0\0\x080.3600.4"


class Raising(dt.tzinfo):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def utcoffset(self, when: dt.datetime | None) -> dt.timedelta:
        raise self.error

    def dst(self, when: dt.datetime | None) -> None: ...

    def tzname(self, when: dt.datetime | None) -> None: ...


def test_an_interrupt_while_an_argument_is_read_passes_untouched() -> None:
    with pytest.raises(KeyboardInterrupt):
        labelled(dt.datetime(2026, 1, 2, tzinfo=Raising(KeyboardInterrupt())), "order", floats=False)


def test_an_argument_that_cannot_be_read_is_refused_without_the_words_of_its_error() -> None:
    with pytest.raises(KeyRefusedError, match=r"^order: reading it raised RuntimeError\.$"):
        labelled(dt.datetime(2026, 1, 2, tzinfo=Raising(RuntimeError("secret"))), "order", floats=False)


class Open(pydantic.BaseModel, extra="allow"):
    number: int


def test_the_fields_that_a_model_was_given_beyond_its_own_belong_to_its_form() -> None:
    one, other = (Open.model_validate({"number": 7, "line": line}) for line in (1, 2))
    assert canonical(one) != canonical(other)
    assert canonical(one) == canonical(Open.model_validate({"line": 1, "number": 7}))
    assert canonical(one) != canonical(Open(number=7))


def test_a_value_for_which_the_stack_is_too_short_is_refused() -> None:
    def down() -> bytes:
        try:
            return down()
        except RecursionError:
            return canonical(nested(90))  # from the end of the stack upwards, until it can begin

    with pytest.raises(KeyRefusedError, match="too deep for the stack that is left"):
        down()


def test_floats_that_serve_to_compare_keep_every_digit_and_no_sign_of_nothing() -> None:
    assert canonical(1e-20, floats=True) != canonical(2e-20, floats=True)
    assert canonical(-0.0, floats=True) == canonical(0.0, floats=True) == b"f\0\0\0\x080x0.0p+0"
