"""Payment callbacks as JSON lines, from a file that nobody vouches for: bad lines are told by number and skipped."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from typing import Any, BinaryIO

__all__ = ["Callback", "Feed", "MalformedError", "money", "parse", "plain", "read"]

MAX_LINE = 64 * 1024
MAX_TEXT = 200
_AMOUNT = re.compile(r"[0-9]{1,15}(\.[0-9]{1,6})?")


class MalformedError(ValueError):
    """A line that is no payment callback."""


@dataclass(frozen=True, slots=True)
class Callback:
    """One delivery of a payment callback."""

    line: int
    payment_no: str
    event_id: str
    amount: Decimal


@dataclass(slots=True)
class Feed:
    """What was read. Blank lines are not counted."""

    callbacks: list[Callback] = field(default_factory=list)
    malformed: int = 0

    @property
    def received(self) -> int:
        return len(self.callbacks) + self.malformed


def read(stream: BinaryIO, tell: Callable[[int, str], None]) -> Feed:
    """Read all lines, and `tell` the number of each bad one with what is wrong with it."""
    feed = Feed()
    for number, read_line in enumerate(_lines(stream), start=1):
        line = read_line.removeprefix(b"\xef\xbb\xbf") if number == 1 else read_line
        if not line.strip():
            continue
        try:
            feed.callbacks.append(parse(number, line))
        except MalformedError as error:
            feed.malformed += 1
            tell(number, str(error))
    return feed


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines, without holding more than the beginning of one that is too long."""
    while line := stream.readline(MAX_LINE + 1):
        rest = line
        while len(rest) > MAX_LINE and not rest.endswith(b"\n"):
            rest = stream.readline(MAX_LINE + 1)
        yield line


def parse(number: int, line: bytes) -> Callback:
    """Make a callback of one line. Raises `MalformedError` with what is wrong with it."""
    if len(line) > MAX_LINE:
        raise MalformedError(f"longer than {MAX_LINE} bytes")
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_object)
    except MalformedError:
        raise
    except UnicodeDecodeError:
        raise MalformedError("not UTF-8") from None
    except (ValueError, RecursionError):
        raise MalformedError("not JSON") from None
    if not isinstance(value, dict):
        raise MalformedError("not a JSON object")
    payment_no, event_id = _text(value, "payment_no"), _text(value, "event_id")
    status, amount = _text(value, "status"), _text(value, "amount")
    if status != "paid":
        raise MalformedError('its status is not "paid", so there is nothing to post')
    if not _AMOUNT.fullmatch(amount):
        raise MalformedError("amount is no decimal number like 12.34")
    if not (exact := money(amount)):
        raise MalformedError("amount is zero")
    return Callback(number, payment_no, event_id, exact)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise MalformedError("names a field twice")
    return value


def _text(value: dict[str, Any], name: str) -> str:
    if name not in value:
        raise MalformedError(f"has no {name}")
    found = value[name]
    if not isinstance(found, str):
        raise MalformedError(f"{name} is not a string")
    if not found.strip():
        raise MalformedError(f"{name} is empty")
    if len(found) > MAX_TEXT:
        raise MalformedError(f"{name} is longer than {MAX_TEXT} characters")
    if not found.isprintable():  # control characters and half surrogate pairs, which not every store takes
        raise MalformedError(f"{name} has characters that cannot be printed")
    return found


def money(amount: object) -> Decimal:
    """The one form of an amount: at least two decimal places, and no more zeros than that. Never rounds."""
    with localcontext(prec=60):
        exact = Decimal(str(amount))
        if not exact.is_finite():
            return exact
        short = exact.normalize()
        return short if int(short.as_tuple().exponent) < -2 else short.quantize(Decimal("0.01"))


def plain(amount: Decimal, *, grouped: bool = False) -> str:
    """An amount as text, never in scientific notation."""
    return f"{amount:,f}" if grouped else f"{amount:f}"
