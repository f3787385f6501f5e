"""Exceptions that are results come back as the exception they were, and nothing else becomes one."""

import dataclasses
import pickle
import sys
import types
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempo.codec import UnstorableError, decode_error, encode_error
from idempo.errors import InProgressError, ResultUnavailableError
from tests.test_codec import nested, same

RAN: list[str] = []


class Declined(Exception):
    def __init__(self, code: int, *, reason: str) -> None:
        RAN.append("init")
        super().__init__(f"declined: {reason}")
        self.code = code
        self.amount = Decimal("1.00")
        self._token = "secret"
        self.client = object()


class Worse(Declined): ...


class Renewed(Exception):
    def __new__(cls, a: int, b: int) -> "Renewed":
        RAN.append("new")
        return super().__new__(cls, a)


class Slotted(Exception):
    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        self.code = code


@dataclasses.dataclass(frozen=True)
class Fault(Exception):
    code: int


class Lost(OSError):
    def __init__(self, where: str) -> None:
        super().__init__(5, "lost", where)
        self.where = where


class Reduced(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError


class Closed(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("__"):
            raise TypeError(name)
        super().__setattr__(name, value)


def again(error: BaseException, *allowed: type[BaseException]) -> Any:
    return decode_error(encode_error(error), allowed or (type(error),))


ERRORS: list[BaseException] = [
    *[
        ValueError(),
        ValueError("a", 1, None),
        KeyError("k"),
        FileNotFoundError(2, "no", "file"),
        OSError("x"),
    ],
    *[
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        StopIteration(3),
        SystemExit(4),
        TimeoutError(),
    ],
    *[
        Declined(1, reason="x"),
        Worse(2, reason="y"),
        Renewed(1, 2),
        Slotted(7),
        Fault(3),
        Lost("here"),
        Reduced("r"),
    ],
    *[
        InProgressError("wait", operation="o", retry_after=2.0),
        ValueError({"a": (Decimal("1.0"),)}),
        Closed("c"),
    ],
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_class_args_and_text_come_back_and_no_code_of_the_class_runs(error: BaseException) -> None:
    RAN.clear()
    back = again(error)
    assert type(back) is type(error)
    assert same(back.args, error.args)
    assert str(back) == str(error)
    assert back.__traceback__ is None
    assert not RAN


def test_what_builtin_errors_know_comes_back() -> None:
    missing, bad, stop = (again(ERRORS[at]) for at in (3, 5, 6))
    assert (missing.errno, missing.strerror, missing.filename) == (2, "no", "file")
    assert (bad.object, bad.end, bad.reason) == (b"\xff", 1, "bad")
    assert stop.value == 3
    lost = again(Lost("here"))
    assert (lost.errno, lost.filename, lost.where) == (5, "here", "here")


def test_public_attributes_come_back_and_the_others_are_left_out() -> None:
    back = again(Declined(7, reason="x"), Exception)
    assert (back.code, same(back.amount, Decimal("1.00"))) == (7, True)
    assert not hasattr(back, "_token")
    assert not hasattr(back, "client")
    assert again(Slotted(7)).code == 7
    assert again(Fault(7)).code == 7


def test_neither_secrets_nor_causes_nor_pickles_are_stored() -> None:
    error = Declined(1, reason="x")
    error.__cause__ = error.__context__ = ValueError("confidential")
    stored = encode_error(error)
    assert b"secret" not in stored
    assert b"confidential" not in stored
    with pytest.raises(Exception):  # noqa: B017, PT011
        pickle.loads(stored)
    assert again(error).__cause__ is None


def test_notes_come_back() -> None:
    error = ValueError("x")
    error.add_note("one")
    error.__notes__.append(object())  # type: ignore[arg-type]
    assert again(error).__notes__ == ["one"]


def test_arguments_that_cannot_be_stored_are_refused() -> None:
    for error in (ValueError(object()), ExceptionGroup("x", [ValueError("secret")])):
        with pytest.raises(UnstorableError) as caught:
            encode_error(error)
        assert "secret" not in caught.value.reason


def test_only_allowed_exceptions_are_made() -> None:
    for allowed in ((), (KeyError,), (Worse,)):
        with pytest.raises(ResultUnavailableError, match=r"tests\.test_codec_errors\.Declined"):
            decode_error(encode_error(Declined(1, reason="x")), allowed)
    assert type(again(Worse(1, reason="x"), Declined)) is Worse
    assert type(again(TimeoutError(), Exception)) is TimeoutError


def moved(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    made = types.ModuleType(name)
    exec("class Unique91(Exception): pass\nclass Error(Exception): pass", made.__dict__)
    monkeypatch.setitem(sys.modules, name, made)
    return made


def test_a_class_that_has_moved_is_found_by_its_name_if_there_is_one_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = moved("old_shop", monkeypatch), moved("new_shop", monkeypatch)
    stored = encode_error(old.Unique91("x"))
    assert type(decode_error(stored, (new.Unique91,))) is new.Unique91
    assert type(decode_error(stored, (new.Unique91, old.Unique91))) is old.Unique91
    assert type(decode_error(stored, (Exception,))) is old.Unique91
    third = moved("third_shop", monkeypatch)
    del old
    with pytest.raises(ResultUnavailableError):
        decode_error(stored.replace(b"old_shop", b"odd_shop"), (new.Unique91, third.Unique91))


@given(st.binary(), st.lists(nested, max_size=5))
def test_strange_bytes_are_a_result_that_is_unavailable(data: bytes, parts: list[object]) -> None:
    for stored in (data, b"\x01" + data):
        with pytest.raises(ResultUnavailableError):
            decode_error(stored, (Exception,))
    from idempo.codec import codec_for

    with pytest.raises(ResultUnavailableError):
        decode_error(codec_for().encode(parts), (Exception,))
