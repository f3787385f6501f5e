"""Arguments -> fingerprint: a short digest for each argument, to notice the same key with other arguments."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Collection, Iterable, Sequence
from types import EllipsisType
from typing import Final, TypeAlias

import msgspec

from idempo.canonical import framed, labelled
from idempo.errors import ConfigurationError, KeyRefusedError
from idempo.specs import Arguments, Field, Template, caller, entry_of

__all__ = ["Fingerprint", "differing", "fingerprint_source", "with_key"]

Fingerprint: TypeAlias = Callable[[Arguments, bytes], bytes]
"""Bound arguments and the digest of the record, as salt -> the fingerprint."""

VERSION: Final = b"\x01"
_KEY: Final = "business key"  # no name of a parameter
_encode = msgspec.msgpack.Encoder().encode
_parts = msgspec.msgpack.Decoder(list[tuple[str, bytes]]).decode


def fingerprint_source(
    spec: EllipsisType | str | Callable[..., object] | Sequence[str] | None,
    parameters: Collection[str],
    *,
    exclude: Collection[str] = (),
    operation: str = "",
) -> Fingerprint:
    """Return what makes the fingerprint of a call: a short digest for each argument.

    `spec`: `...` for all parameters but `exclude`; parameter names or templates; a callable, whose value
    counts as one argument; None for no fingerprint at all.

    The digests are salted with the digest of the record, so equal arguments under different keys do not look
    equal. That hides nothing from somebody who has both: a secret with few possible values can be guessed, so
    leave it out.
    """
    if spec is None:
        return lambda arguments, salt: b""
    if not (spec is ... or callable(spec) or isinstance(spec, Sequence)):
        raise ConfigurationError(
            f"{operation}: fingerprint= takes names of parameters, templates, a callable or None, not {spec!r}"
        )
    readers = _fingerprint_readers(spec, parameters, exclude, operation)
    names = sorted(readers)
    if not names:
        return lambda arguments, salt: b""
    rows = [(name, readers[name], framed(b"n", name.encode("utf-8", "surrogatepass"))) for name in names]

    def fingerprint(arguments: Arguments, salt: bytes) -> bytes:
        parts: list[tuple[str, bytes]] = []
        try:
            for name, read, named in rows:
                form = labelled(read(arguments), name, floats=True)
                parts.append((name, _short(salt + named + form)))
        except KeyRefusedError as error:
            raise KeyRefusedError(
                f"The fingerprint of this call was refused, nothing ran. {error} Name the arguments that"
                " matter, fingerprint=('order_no', '{payload[amount]}'), or switch it off, fingerprint=None.",
                operation=operation,
            ) from error.__cause__
        return VERSION + _encode(parts)

    return fingerprint


_blank: Final = hashlib.blake2b(digest_size=8, person=b"idempo-argument")


def _short(form: bytes) -> bytes:
    hashed = _blank.copy()  # a copy costs less than a new one with its parameters
    hashed.update(form)
    return hashed.digest()


def _fingerprint_readers(
    spec: EllipsisType | str | Callable[..., object] | Sequence[str],
    parameters: Collection[str],
    exclude: Collection[str],
    operation: str,
) -> dict[str, Callable[[Arguments], object]]:
    if callable(spec):
        return {"fingerprint": caller(spec, parameters, what="fingerprint", operation=operation)}
    if spec is ...:
        entries: Iterable[str] = [name for name in parameters if name not in exclude]
    else:
        entries = [spec] if isinstance(spec, str) else spec
    readers: dict[str, Callable[[Arguments], object]] = {}
    for entry in entries:
        template = entry_of(entry, parameters, what="fingerprint", operation=operation)
        first = template.parts[0]
        if len(template.parts) == 1 and isinstance(first, Field):
            readers[first.text] = first.read if first.steps else operator.itemgetter(first.parameter)
        else:
            readers[template.text] = _joined(template)
    return readers


def _joined(template: Template) -> Callable[[Arguments], object]:
    return lambda arguments: tuple(
        part if isinstance(part, str) else part.read(arguments) for part in template.parts
    )


def differing(stored: bytes, given: bytes) -> tuple[str, ...]:
    """Return the names of the arguments that both fingerprints know and whose digests differ.

    Nothing differs where one of them is empty or of another version. Two that share no name agree on nothing:
    then all names are returned.
    """
    if stored == given or not stored or not given or stored[:1] != given[:1]:
        return ()
    if given[:1] != VERSION:
        return ()
    now = dict(_parts(memoryview(given)[1:]))
    try:
        before = dict(_parts(memoryview(stored)[1:]))
    except msgspec.MsgspecError:  # damaged: no evidence that they agree
        return tuple(now)
    shared = [name for name in now if name in before]
    if not shared:
        return tuple(sorted({*now, *before}))
    names = tuple(name for name in shared if now[name] != before[name])
    return tuple(name for name in names if name != _KEY) or names  # the argument says it better


def with_key(fingerprint: bytes, digest: bytes, salt: bytes) -> bytes:
    """Return the fingerprint with the digest of a business key in it: what was used for one is good for no other."""
    parts = _parts(memoryview(fingerprint)[1:]) if fingerprint else []
    return VERSION + _encode([*parts, (_KEY, _short(salt + framed(b"k", digest)))])
