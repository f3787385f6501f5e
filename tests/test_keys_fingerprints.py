"""Fingerprints notice the same key with other arguments, and say which."""

import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempo.errors import KeyRefusedError, KeyTemplateError
from idempo.keys import differing, fingerprint_source

NAMES = ("self", "order_no", "amount", "payload")
SALT = bytes(32)
CALL: dict[str, Any] = {
    "self": object(),
    "order_no": "A-1",
    "amount": Decimal("19.90"),
    "payload": {"a": 1.5},
}


def made(
    spec: Any = ..., *, salt: bytes = SALT, exclude: tuple[str, ...] = ("self",), **changes: Any
) -> bytes:
    return fingerprint_source(spec, NAMES, exclude=exclude, operation="shop.pay")({**CALL, **changes}, salt)


def test_equal_arguments_agree() -> None:
    assert made() == made(self=object(), amount=Decimal("19.9"), payload={"a": 1.5})
    assert differing(made(), made()) == ()
    assert made(payload=math.nan) == made(payload=-math.nan)
    assert made(payload=0.0) == made(payload=-0.0)


def test_the_arguments_that_differ_are_named() -> None:
    assert differing(made(), made(amount=Decimal("29.90"))) == ("amount",)
    assert differing(made(), made(amount=None, payload=[])) == ("amount", "payload")
    assert differing(made(), made(amount="19.90")) == ("amount",)


def test_names_and_templates_choose_what_counts() -> None:
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (("amount",), {"amount": 1}, "amount"),
        (["{amount}"], {"amount": 1}, "amount"),
        ("amount", {"amount": 1}, "amount"),
        (("{payload[a]}", "amount"), {"payload": {"a": 2}}, "payload[a]"),
        (("{order_no}/{amount}",), {"amount": 1}, "{order_no}/{amount}"),
        (lambda amount: amount, {"amount": 1}, "fingerprint"),
    ]
    for spec, changed, name in cases:
        assert differing(made(spec), made(spec, **changed)) == (name,)
        assert made(spec) == made(spec, self=1)
    assert made(("{payload[a]}",)) == made(("{payload[a]}",), payload={"a": 1.5, "sent_at": 5})


def test_a_fingerprint_that_is_switched_off_or_has_nothing_to_say_agrees_with_all() -> None:
    assert made(None) == made(()) == made(exclude=NAMES) == b""
    assert differing(b"", made()) == differing(made(), b"") == ()


def test_a_new_parameter_does_not_make_old_records_differ() -> None:
    assert differing(made(("order_no",)), made(("order_no", "amount"))) == ()
    assert differing(made(("order_no",)), made(("order_no", "amount"), order_no="B")) == ("order_no",)


def test_fingerprints_without_a_common_name_do_not_agree() -> None:
    assert differing(made(("order_no",)), made(("amount",))) == ("amount", "order_no")


def test_another_version_is_not_compared_and_damage_is_no_agreement() -> None:
    assert differing(b"\x09" + made()[1:], made()) == ()
    assert differing(b"\x09a", b"\x09b") == ()
    assert differing(made()[:-3], made()) == ("amount", "order_no", "payload")


@given(st.binary())
def test_damaged_fingerprints_raise_nothing(data: bytes) -> None:
    for stored in (data, b"\x01" + data):
        assert isinstance(differing(stored, made()), tuple)


def test_the_salt_hides_that_arguments_are_equal() -> None:
    one, other = made(("amount",)), made(("amount",), salt=bytes(31) + b"\x01")
    assert one != other
    assert one[-8:] != other[-8:]
    same = made(("order_no", "amount"), order_no=1, amount=1)
    assert same[-8:] not in same[:-8]


def test_an_argument_without_a_stable_form_is_named_with_its_type_and_the_ways_out() -> None:
    for spec in (..., ("payload", "order_no"), ("{payload[x]}",)):
        with pytest.raises(
            KeyRefusedError, match=r"payload.*object.*fingerprint=\(.*fingerprint=None"
        ) as caught:
            made(spec, payload=object() if spec != ("{payload[x]}",) else {"x": object()})
        assert caught.value.operation == "shop.pay"
        assert caught.value.ran is False


@pytest.mark.parametrize("spec", [("amuont",), "amuont", ("{nope}",), ("{amount!r}",), lambda nope: 1])
def test_what_can_never_work_is_refused_while_decorating(spec: Any) -> None:
    with pytest.raises(KeyTemplateError, match="fingerprint"):
        made(spec)


def test_the_fingerprint_never_changes() -> None:
    # Stored records hold it: another value here makes every repeat of an old call a mismatch.
    assert made(("amount",)).hex() == "019192a6616d6f756e74c4084131202887a44c8a"
