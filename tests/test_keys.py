"""Business keys, their sources and their digests."""

import asyncio
import dataclasses
import datetime as dt
import enum
import functools
from collections import defaultdict
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from idempo.errors import KeyRefusedError, KeyTemplateError
from idempo.keys import MAX_KEY, BusinessKey, canonical, digest, key_source

NAMES = ("tenant", "order_no", "order", "payload", "args", "kwargs")


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Order:
    id: object
    lines: tuple[Any, ...] = ()
    _hidden: int = 1

    @property
    def broken(self) -> int:
        raise RuntimeError("secret value")


def key(spec: Any, **arguments: Any) -> BusinessKey:
    return key_source(spec, NAMES, operation="shop.pay")(arguments)


def test_a_single_field_keeps_the_type_of_its_value() -> None:
    for value in (1, "1", b"1", Decimal(1), UUID(int=1), (1,), True, Colour.RED, dt.date.min):
        assert key("{order_no}", order_no=value).canonical == canonical(value)


def test_attributes_and_items_are_reached() -> None:
    order = Order(5, (Order("x"),))
    assert key("{order.id}", order=order) == key("{order_no}", order_no=5)
    assert key("{order.lines[0].id}", order=order).text == "x"
    assert key("{payload[total_amount]}", payload={"total_amount": 7}).text == "7"
    assert key("{payload[a b][1]}", payload={"a b": [1, 2]}).text == "2"
    assert key("{kwargs[name]}", kwargs={"name": "n"}).text == "n"
    assert key("{args[1]}", args=(1, 2)).text == "2"
    assert key("{payload[1]}", payload={"1": "text", 1: "number"}).text == "text"
    assert key("{payload[1]}", payload={1: "number"}).text == "number"
    assert key("{payload[_id]}", payload={"_id": "m"}).text == "m"


def test_doubled_braces_stand_for_themselves() -> None:
    assert key("{{{order_no}}}", order_no=1).text == "{1}"


@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1), st.text(min_size=1))
def test_parts_never_run_together(a: str, b: str, c: str, d: str) -> None:
    assume((a, b) != (c, d))
    for spec in ("{tenant}:{order_no}", "{tenant}{order_no}", ("tenant", "order_no")):
        assert key(spec, tenant=a, order_no=b).canonical != key(spec, tenant=c, order_no=d).canonical


def test_specs_of_different_kinds_make_different_keys() -> None:
    specs = [
        "{tenant}:{order_no}",
        "{tenant}{order_no}",
        ":{tenant}{order_no}",
        ("tenant", "order_no"),
        "{tenant}",
    ]
    keys = [key(spec, tenant="a", order_no="b").canonical for spec in specs]
    keys += [key(("tenant",), tenant="a").canonical, key("x{tenant}", tenant="a").canonical]
    assert len(set(keys)) == len(keys)


def test_a_tuple_takes_names_and_templates() -> None:
    made = key(("tenant", "{order.id}"), tenant="acme", order=Order(7))
    assert made.canonical == canonical(("acme", 7))
    assert made.text == "acme, 7"


BAD_TEMPLATES = {
    "order_no": r"write '\{order_no\}'",
    "": "no field",
    "{{order_no}}": "no field",
    "{ordre_no}": "did you mean 'order_no'.*tenant, order_no",
    "{order_no!r}": "two values",
    "{order_no:>5}": "two values",
    "{order_no!s:x}": "two values",
    "{}": "position",
    "{0}": "position",
    "{0.id}": "only parameter",
    "{order._hidden}": "private",
    "{order.id.__class__}": "private",
    "{order.}": "only parameter",
    "{order.id()}": "only parameter",
    "{order[}": "cannot be read",
    "{payload[]}": "only parameter",
    "{payload[a]b}": "only parameter",
    "{ order_no}": "only parameter",
    "{order_no": "cannot be read",
    "order_no}": "cannot be read",
}


@pytest.mark.parametrize("template", BAD_TEMPLATES)
def test_templates_that_can_never_work_are_refused_while_decorating(template: str) -> None:
    with pytest.raises(KeyTemplateError, match=BAD_TEMPLATES[template]) as caught:
        key_source(template, NAMES, operation="shop.pay")
    assert caught.value.operation == "shop.pay"


class AsyncCallable:
    async def __call__(self, order: object) -> object: ...


async def coroutine(order: object) -> object: ...


@pytest.mark.parametrize(
    "spec",
    [
        (),
        ("ordre",),
        ("order", 1),
        5,
        None,
        b"x",
        ["order"],
        coroutine,
        AsyncCallable(),
        lambda nope: 1,
        "a",
        str,
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_specs_that_can_never_work_are_refused_while_decorating(spec: Any) -> None:
    with pytest.raises(KeyTemplateError):
        key_source(spec, NAMES, operation="shop.pay")


def test_a_callable_gets_what_it_has_parameters_for() -> None:
    given_all = {**dict.fromkeys(NAMES), "tenant": "a", "order_no": "b"}
    assert key(lambda order_no: order_no, **given_all).text == "b"
    assert key(lambda order_no, /, *, tenant: (tenant, order_no), **given_all).text == "a, b"
    assert key(lambda order_no, more="m": order_no + more, **given_all).text == "bm"
    assert key(lambda tenant, **rest: (tenant, rest["order_no"]), **given_all).text == "a, b"
    assert key(functools.partial(lambda x, order_no: x + order_no, "p"), **given_all).text == "pb"
    assert key(lambda: "constant", **given_all).text == "constant"


def test_a_callable_that_fails_refuses_the_call() -> None:
    def fails(order: object) -> object:
        raise LookupError("why")

    with pytest.raises(KeyRefusedError, match=r"fails.*LookupError") as caught:
        key(fails, order=1)
    assert isinstance(caught.value.__cause__, LookupError)
    assert caught.value.ran is False


def test_a_callable_that_returns_an_awaitable_refuses_the_call() -> None:
    with pytest.raises(KeyRefusedError, match="awaitable"):
        key(lambda order: coroutine((order,)), order=1)
    loop = asyncio.new_event_loop()
    with pytest.raises(KeyRefusedError, match="awaitable"):
        key(lambda: asyncio.Future(loop=loop))
    loop.close()


EMPTY: list[Any] = [
    None,
    "",
    b"",
    bytearray(),
    memoryview(b""),
    (),
    [],
    {},
    set(),
    1.5,
    float("nan"),
    object(),
]


@pytest.mark.parametrize(
    "value",
    [*EMPTY, (None,), ("a", ""), ["a", (1.5,)], Decimal("NaN")],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("what", ["key", "scope"], ids=str)
def test_empty_and_unstable_keys_are_refused(value: Any, what: str) -> None:
    for spec in ("{order_no}", "{tenant}:{order_no}", ("tenant", "order_no"), lambda order_no: order_no):
        source = key_source(spec, NAMES, what=what, operation="shop.pay")
        with pytest.raises(KeyRefusedError, match=f"The {what} .*nothing ran") as caught:
            source({"tenant": "t", "order_no": value})
        assert caught.value.operation == "shop.pay"


def test_falsy_values_that_are_something_are_keys() -> None:
    assert key("{order_no}", order_no=0) != key("{order_no}", order_no=False)
    assert key("{order_no}", order_no=Decimal(0)).text == "0"


def test_the_refusal_names_the_field_and_types_but_no_values() -> None:
    cases: list[tuple[str, dict[str, Any], list[str]]] = [
        ("{tenant}:{order.id}", {"tenant": "t", "order": Order(None)}, ["{order.id}", "None"]),
        ("{order.idd}", {"order": Order("secret")}, ["{order.idd}", "Order", "'idd'", "AttributeError"]),
        ("{payload[no]}", {"payload": {"a": "secret"}}, ["{payload[no]}", "dict", "'no'", "KeyError"]),
        ("{payload[3]}", {"payload": ["secret"]}, ["list", "IndexError"]),
        ("{payload[x]}", {"payload": ["secret"]}, ["list", "TypeError"]),
        ("{payload[x]}", {"payload": None}, ["NoneType"]),
        ("{order.broken}", {"order": Order("secret")}, ["RuntimeError"]),
        ("{order_no}", {}, ["no argument 'order_no'"]),
    ]
    for spec, arguments, words in cases:
        with pytest.raises(KeyRefusedError) as caught:
            key(spec, **arguments)
        assert all(word in str(caught.value) for word in words)
        assert "secret" not in str(caught.value)


def test_a_missing_item_is_never_made_up() -> None:
    payload: defaultdict[str, int] = defaultdict(int)
    with pytest.raises(KeyRefusedError):
        key("{payload[no]}", payload=payload)
    assert not payload


def test_a_key_is_bounded() -> None:
    assert key("{order_no}", order_no="x" * (MAX_KEY - 5)).text == "x" * 199 + "…"
    for value in ("x" * MAX_KEY, "é" * (MAX_KEY // 2), 10**50_000, Decimal(10**50_000 + 1), [1] * 1000):
        with pytest.raises(KeyRefusedError, match="longer than"):
            key("{order_no}", order_no=value)
    assert len(key("{order_no}", order_no=10**4500).text) <= 200
    with pytest.raises(KeyRefusedError, match="longer than"):
        key("{tenant}{order_no}", tenant="x" * 3000, order_no="y" * 3000)


def test_the_text_is_fit_for_people_and_databases() -> None:
    for value, text in [
        ("a\x00b\n\ud800", "a\\x00b\\n\\ud800"),
        ("Zoë 🙂", "Zoë 🙂"),
        (b"\xff\x00", "ff00"),
        (Colour.RED, "RED"),
        (Decimal("1.50"), "1.50"),
        (dt.datetime(2024, 1, 2, tzinfo=dt.UTC), "2024-01-02T00:00:00+00:00"),
        (("a", 1, b"\x01"), "a, 1, 01"),
        (Order("secret"), "Order"),
    ]:
        assert key("{order_no}", order_no=value).text == text
        key("{order_no}", order_no=value).text.encode()


def test_the_digest_tells_operation_scope_and_key_apart() -> None:
    a, b, ab = (key("{order_no}", order_no=value) for value in ("a", "b", "ab"))
    made = [
        digest(operation, scope, business)
        for operation in ("f", "fa", "")
        for scope in (None, a, b, ab)
        for business in (a, b, ab)
    ]
    assert len(set(made)) == len(made) == 36
    assert {len(one) for one in made} == {32}
    assert digest("f", a, b) == digest("f", a, b) != digest("f", b, a)
    assert digest("f", None, a) == digest("f", None, BusinessKey("other text", a.canonical))


def test_the_digest_never_changes() -> None:
    # Stored records are found by it: another value here loses every key that is kept anywhere.
    made = digest("shop.pay", BusinessKey("", canonical("acme")), BusinessKey("", canonical(("A-1", 7))))
    assert made.hex() == "836c146ac4dd8ade48b972c757d6e2e0e0d82cdb30e2a7b5412e84ed3b84996d"
