"""Business key -> digest; arguments -> fingerprint.

The key says which calls are the same operation; the fingerprint notices when they are not. Both are read
once, before the call, from the bound arguments, and become bytes: what happens to the arguments later is no
matter.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import functools
import hashlib
import pathlib
import re
import uuid
from collections.abc import Callable, Collection
from typing import Any, Final, TypeAlias

import msgspec

from idempo.canonical import canonical, framed, labelled
from idempo.errors import KeyRefusedError, KeyTemplateError
from idempo.fingerprints import Fingerprint, differing, fingerprint_source
from idempo.specs import Arguments, Field, Template, caller, entry_of, parse

__all__ = [
    "MAX_KEY",
    "BusinessKey",
    "Fingerprint",
    "KeySource",
    "KeySpec",
    "canonical",
    "check_given",
    "differing",
    "digest",
    "fingerprint_source",
    "key_given",
    "key_source",
]

MAX_KEY: Final = 4096
"""Bytes of the canonical form."""
MAX_TEXT: Final = 200
"""Characters of the readable form."""

KeySpec: TypeAlias = str | Callable[..., object] | tuple[str, ...]


class BusinessKey(msgspec.Struct, frozen=True):
    """A business key, or a scope: `text` for people, `canonical` to identify."""

    text: str
    canonical: bytes


KeySource: TypeAlias = Callable[[Arguments], BusinessKey]


def digest(operation: str, scope: BusinessKey | None, key: BusinessKey, role: str = "") -> bytes:
    """Return the 32 bytes under which ledgers keep the record. No scope differs from every scope.

    `role` keeps other keys of the operation apart from its business key: a token, an entity.
    """
    scoped = b"-" if scope is None else framed(b"+", scope.canonical)
    whole = scoped + framed(b"k", key.canonical)
    if role:
        whole += framed(b"r", role.encode())
    hashed = _named(operation).copy()
    hashed.update(whole)
    return hashed.digest()


@functools.lru_cache
def _named(operation: str) -> hashlib.blake2b:
    return hashlib.blake2b(canonical(operation), digest_size=32, person=b"idempo-record-1")


def key_source(
    spec: KeySpec, parameters: Collection[str], *, what: str = "key", operation: str = ""
) -> KeySource:
    """Return what reads the business key (or scope: `what`) of a call from its bound arguments.

    `spec` is a template; or a tuple of parameter names and templates; or a callable, which is given those
    arguments that it has parameters for, by name. A template that is one field keeps the type of its value:
    1 and "1" are two keys. ("order_no",) and "{order_no}" are two keys as well: a tuple stays a tuple.

    Raises KeyTemplateError for what can never work; the source itself raises KeyRefusedError for a call
    whose key is empty, None, a float, too long or without a stable form.
    """
    read = _reader(spec, parameters, what=what, operation=operation)
    shown = getattr(spec, "__qualname__", spec)

    def source(arguments: Arguments) -> BusinessKey:
        try:
            key = read(arguments)
            if len(key.canonical) <= MAX_KEY:
                return key
            raise KeyRefusedError(f"It is longer than {MAX_KEY} bytes: use a number, or a digest of it.")
        except KeyRefusedError as error:
            message = f"The {what} {shown!r} of this call was refused, nothing ran. {error}"
            raise KeyRefusedError(message, operation=operation) from error.__cause__

    return source


def key_given(spec: KeySpec, value: object, *, what: str = "key", operation: str = "") -> BusinessKey:
    """Return the business key that `spec` reads from a call which has `value` there; for a tuple, one value for each.

    Raises KeyRefusedError for a value that is no key, and KeyTemplateError for a `spec` that makes one of several.
    """
    check_given(spec, what=what, operation=operation)
    if not isinstance(spec, tuple):
        return _key(value, what)
    if not isinstance(value, tuple) or len(value) != len(spec):
        raise KeyRefusedError(
            f"The {what} {spec!r} takes a tuple of {len(spec)} values.", operation=operation
        )
    return _row(b"T", [_key(part, what) for part in value], ", ")


def check_given(spec: KeySpec, *, what: str = "key", operation: str = "") -> None:
    """Raise KeyTemplateError for a `spec` that makes one text of several parts: `key_given` cannot take it apart."""
    templates = [entry for entry in spec if "{" in entry] if isinstance(spec, tuple) else [spec]
    for template in templates:
        if isinstance(template, str) and not re.fullmatch(r"\{[^{}]+\}", template):
            raise KeyTemplateError(
                f"The {what} {template!r} makes one text of several parts; write one field, a tuple or a callable.",
                operation=operation,
            )


def _reader(spec: object, parameters: Collection[str], *, what: str, operation: str) -> KeySource:
    if isinstance(spec, str):
        return _template_reader(parse(spec, parameters, what=what, operation=operation))
    if isinstance(spec, tuple) and spec and all(isinstance(entry, str) for entry in spec):
        return _row_reader([entry_of(entry, parameters, what=what, operation=operation) for entry in spec])
    if callable(spec):
        call = caller(spec, parameters, what=what, operation=operation)
        return lambda arguments: _key(call(arguments), "what it returned")
    raise KeyTemplateError(
        f"A {what} is a template such as '{{order_no}}', a callable or a tuple of parameter names,"
        f" not {'an empty tuple' if spec == () else type(spec).__qualname__}.",
        operation=operation,
    )


def _template_reader(template: Template) -> KeySource:
    first = template.parts[0]
    if len(template.parts) == 1 and isinstance(first, Field):
        field, label = first, f"{{{first.text}}}"
        return lambda arguments: _key(field.read(arguments), label)

    def read(arguments: Arguments) -> BusinessKey:
        keys = [
            BusinessKey(part, framed(b"=", part.encode("utf-8", "surrogatepass")))
            if isinstance(part, str)
            else _key(part.read(arguments), f"{{{part.text}}}")
            for part in template.parts
        ]
        return _row(b"K", keys, "")

    return read


def _row_reader(templates: list[Template]) -> KeySource:
    readers = [_template_reader(template) for template in templates]
    return lambda arguments: _row(b"T", [read(arguments) for read in readers], ", ")


def _row(tag: bytes, keys: list[BusinessKey], between: str) -> BusinessKey:
    form = tag + len(keys).to_bytes(4, "big") + b"".join([key.canonical for key in keys])
    return BusinessKey(_clipped(between.join([key.text for key in keys])), form)


def _key(value: object, label: str) -> BusinessKey:
    if type(value) is str and value:
        return BusinessKey(_clipped(value), canonical(value))
    form = labelled(value, label, floats=False)
    _refuse_nothing(value, label)
    return BusinessKey(_clipped(_readable(value)) if len(form) <= MAX_KEY else "", form)


_CONTAINERS: Final = (str, bytes, bytearray, memoryview, tuple, list, dict, set, frozenset)


def _refuse_nothing(value: object, label: str) -> None:
    if value is None or (isinstance(value, _CONTAINERS) and not value):
        named = "None" if value is None else f"an empty {type(value).__name__}"
        raise KeyRefusedError(
            f"{label} is {named}: calls without one would be taken for each other's repeats."
        )
    if isinstance(value, tuple | list):
        for part in value:
            _refuse_nothing(part, f"a part of {label}")


def _readable(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return str(value._name_)
    if isinstance(value, tuple | list):
        return ", ".join(map(_readable, value))
    if isinstance(value, bytes | bytearray | memoryview):
        return value.hex()
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, int):
        return str(value) if value.bit_length() < 1000 else hex(value)  # str() refuses thousands of digits
    if isinstance(value, str | decimal.Decimal | uuid.UUID | dt.timedelta | pathlib.PurePath):
        return str(value)
    return type(value).__qualname__


def _clipped(text: str) -> str:
    if not text.isprintable():  # controls, and surrogates that no database takes
        text = "".join([c if c.isprintable() else c.encode("unicode_escape").decode() for c in text])
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
