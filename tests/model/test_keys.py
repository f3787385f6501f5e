"""No two different calls share a record, equal ones do; and a fingerprint names what differs, and nothing else."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from idempo.errors import KeyRefusedError
from idempo.keys import BusinessKey, canonical, differing, digest, fingerprint_source, key_source
from tests.model.support import examples

NAMES = ("tenant", "order", "amount", "payload")
SALT = bytes(32)

# Few letters, and those that forms are tagged with, so that parts without their lengths would run together.
short = st.text("as+kr:{}", max_size=4)
filled = st.text("as+kr:{}", min_size=1, max_size=4)
parts = st.one_of(
    filled, st.integers(-3, 300), st.booleans(), st.binary(min_size=1, max_size=2), st.dates(), st.uuids(),
    st.decimals(allow_nan=False, allow_infinity=False, places=1, min_value=-2, max_value=2),
    st.tuples(filled, st.integers(0, 2)), st.lists(filled, min_size=1, max_size=2),
)  # fmt: skip


def key(spec: Any, **arguments: Any) -> BusinessKey:
    return key_source(spec, NAMES, operation="shop.pay")(arguments)


def identity(value: Any) -> Any:
    """What makes a value of a key another one: its type, and what Python calls equal within that type."""
    if isinstance(value, tuple | list):
        return type(value), tuple(identity(part) for part in value)
    return type(value), value


owners = st.tuples(short, st.none() | parts, parts, short)  # operation, scope, key, role


def record(owner: tuple[str, Any, Any, str]) -> bytes:
    operation, scope, business, role = owner
    scoped = None if scope is None else key("{tenant}", tenant=scope)
    return digest(operation, scoped, key("{order}", order=business), role)


@examples(400)
@given(owners, owners)
def test_two_calls_share_a_record_exactly_where_operation_scope_key_and_role_agree(
    one: tuple[str, Any, Any, str], other: tuple[str, Any, Any, str]
) -> None:
    agree = all(identity(a) == identity(b) for a, b in zip(one, other, strict=True))
    assert (record(one) == record(other)) == agree
    assert record(one) == record(one)


@examples(300)
@given(st.lists(filled, min_size=4, max_size=4), st.integers(0, 2), st.integers(1, 3))
def test_text_that_moves_from_one_part_to_the_next_makes_another_record(
    whole: list[str], at: int, moved: int
) -> None:
    moving, rest = whole[at][-moved:], whole[at][:-moved]
    assume(rest or at == 0)
    shifted = [*whole]
    shifted[at], shifted[at + 1] = rest, moving + whole[at + 1]
    operation, scope, business, role = whole
    assert record((operation, scope, business, role)) != record(tuple(shifted))  # type: ignore[arg-type]


@examples(200)
@given(parts, parts, parts, parts)
@example("a", "b:c", "a:b", "c")
@example(1, "1", "1", 1)
def test_templates_and_tuples_of_two_fields_agree_exactly_where_both_fields_do(
    a: Any, b: Any, c: Any, d: Any
) -> None:
    agree = (identity(a), identity(b)) == (identity(c), identity(d))
    for spec in ("{tenant}:{order}", "{tenant}{order}", "{{{tenant}}}{order}", ("tenant", "order")):
        one, other = key(spec, tenant=a, order=b), key(spec, tenant=c, order=d)
        assert (one.canonical == other.canonical) == agree


@examples(200)
@given(filled, filled)
def test_text_of_a_template_is_never_taken_for_text_of_a_field(literal: str, value: str) -> None:
    written = literal.replace("{", "{{").replace("}", "}}")
    templated = key(written + "{order}", order=value)
    assert templated.text == literal + value
    assert templated.canonical != key("{order}", order=literal + value).canonical
    assert templated.canonical != key("{tenant}{order}", tenant=literal, order=value).canonical


@examples(200)
@given(st.dictionaries(filled, parts, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_the_order_of_a_dict_is_no_part_of_a_key(value: dict[str, Any], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert key("{payload}", payload=dict(items)) == key("{payload}", payload=value)


@examples(200)
@given(
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9),
    st.integers(1, 20),
)
def test_a_decimal_is_the_same_key_however_many_zeros_it_has(value: Decimal, zeros: int) -> None:
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    longer = Decimal((sign, (*digits, *(0,) * zeros), exponent - zeros))
    assert longer == value
    assert key("{order}", order=longer).canonical == key("{order}", order=value).canonical
    assert key("{order}", order=str(value)).canonical != key("{order}", order=value).canonical


@examples(200)
@given(
    st.datetimes(dt.datetime(1900, 1, 2), dt.datetime(2100, 1, 1)),
    st.sampled_from(["Europe/Berlin", "America/New_York", "Asia/Kathmandu", "UTC"]),
)
def test_a_moment_is_one_key_in_every_zone_and_never_that_of_a_naive_time(
    naive: dt.datetime, zone: str
) -> None:
    moment = naive.replace(tzinfo=dt.UTC)
    there = moment.astimezone(ZoneInfo(zone))
    assert key("{order}", order=moment).canonical == key("{order}", order=there).canonical
    for other in (naive, naive.isoformat(), naive.date()):
        assert key("{order}", order=other).canonical != key("{order}", order=moment).canonical


@examples(150)
@given(st.integers(0, 2**128 - 1))
def test_an_identifier_in_another_type_is_another_key(number: int) -> None:
    one = UUID(int=number)
    forms = [one, str(one), one.hex, one.bytes, number, (one,), [one]]
    assert len({key("{order}", order=form).canonical for form in forms}) == len(forms)


REFUSED = st.one_of(
    st.none(), st.floats(), st.just(""), st.just(b""), st.just(()), st.builds(list), st.builds(dict),
    st.just(Decimal("NaN")), st.builds(object), st.complex_numbers(), st.tuples(filled, st.none()),
    st.lists(st.floats(), min_size=1, max_size=2), st.dictionaries(filled, st.floats(), min_size=1, max_size=2),
)  # fmt: skip


@examples(200)
@given(REFUSED, st.sampled_from(["{order}", "{tenant}/{order}", ("tenant", "order"), lambda order: order]))
def test_what_is_no_identity_is_refused_by_every_kind_of_key(value: Any, spec: Any) -> None:
    with pytest.raises(KeyRefusedError) as caught:
        key(spec, tenant="a", order=value)
    assert caught.value.ran is False


# ---- fingerprints

values = st.one_of(parts, st.none(), st.floats(), st.dictionaries(filled, parts, max_size=2))
arguments = st.fixed_dictionaries(dict.fromkeys(NAMES, values))


def printed(given: dict[str, Any], spec: Any = ..., exclude: tuple[str, ...] = ()) -> bytes:
    return fingerprint_source(spec, NAMES, exclude=exclude)(given, SALT)


def form(value: Any) -> bytes:
    return canonical(value, floats=True)


@examples(200)
@given(arguments, arguments, st.sets(st.sampled_from(NAMES)))
def test_exactly_the_arguments_that_were_changed_are_named(
    call: dict[str, Any], other: dict[str, Any], changed: set[str]
) -> None:
    given_now = {name: other[name] if name in changed else call[name] for name in NAMES}
    expected = {name for name in changed if form(call[name]) != form(other[name])}
    assert set(differing(printed(call), printed(given_now))) == expected
    assert (printed(call) == printed(given_now)) == (not expected)


@examples(200)
@given(
    arguments,
    arguments,
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True),
    st.sampled_from(["names", "templates", "excluded"]),
)
def test_only_the_arguments_that_are_named_matter(
    call: dict[str, Any], other: dict[str, Any], named: list[str], how: str
) -> None:
    spec: Any = {
        "names": tuple(named),
        "templates": tuple(f"{{{name}}}" for name in named),
        "excluded": ...,
    }[how]
    exclude = tuple(set(NAMES) - set(named)) if how == "excluded" else ()
    expected = {name for name in named if form(call[name]) != form(other[name])}
    one, two = printed(call, spec, exclude), printed(other, spec, exclude)
    assert set(differing(one, two)) == expected


@examples(150)
@given(values, values, st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_a_field_inside_an_argument_counts_and_the_rest_of_it_does_not(
    one: Any, two: Any, salt: bytes, other_salt: bytes
) -> None:
    source = fingerprint_source(("{payload[total]}",), NAMES)
    first = source({"payload": {"total": one, "sent_at": 1}}, salt)
    assert source({"payload": {"sent_at": 2, "total": one}}, salt) == first
    again = source({"payload": {"total": two, "sent_at": 1}}, salt)
    assert differing(first, again) == (() if form(one) == form(two) else ("payload[total]",))
    # Equal arguments under two keys do not look equal.
    assert (source({"payload": {"total": one}}, other_salt) == first) == (salt == other_salt)
