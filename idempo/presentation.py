"""How records, results, times and URLs are told to people: on one line each, and without passwords."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from idempo.codec import codec_for
from idempo.errors import ConfigurationError
from idempo.records import Record

__all__ = ["cell", "described", "print_table", "result_of", "without_password"]


def described(record: Record, with_result: bool) -> dict[str, Any]:
    """What is told of a record, by name. Its result only on demand: it may be nobody else's business."""
    now = record.keep_until - record.keep_left
    claimed = record.state in ("running", "orphan") and record.lease_until is not None
    told = {
        "operation": record.operation,
        "scope": record.scope,
        "key": record.key,
        "state": record.state,
        "attempt": record.attempt,
        "fence": record.fence,
        "created": _time(record.created_at),
        "completed": None if record.completed_at is None else _time(record.completed_at),
        "lease_left": max(0.0, round((record.lease_until or now) - now, 3)) if claimed else None,
        "keep_until": _time(record.keep_until),
        "keep_left": round(record.keep_left, 3),
        "digest": record.digest.hex(),
    }
    return {**told, "result": result_of(record)} if with_result else told


def _time(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError) as error:
        raise ConfigurationError(f"the store has a time that is none: {seconds}") from error


def cell(value: object) -> str:
    """A value on one line: nothing that a terminal would take for a command."""
    text = "-" if value is None else str(value)
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def without_password(text: str) -> str:
    """A URL, or a text with URLs in it, as it may be shown."""
    hidden = re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", text)
    return re.sub(r"(?i)([?&](?:password|passwd|pwd|sslpassword)=)[^&\s]*", r"\1***", hidden)


def print_table(records: Sequence[Record], with_result: bool) -> None:
    """Print one line for each record; on a terminal too narrow for that, folded into columns."""
    names = ["operation", "scope", "key", "state", "attempt", "created", "keep_left"]
    if with_result:
        names.append("result")
    shown = Table(box=None, pad_edge=False)
    for name in names:
        shown.add_column(name.replace("_", " "), overflow="fold")
    for record in records:
        values = described(record, with_result)
        shown.add_row(*(Text(cell(values[name])) for name in names))
    width = None if sys.stdout.isatty() else 10_000
    Console(highlight=False, width=width).print(shown)


def result_of(record: Record) -> str | None:
    """The stored first result as Python writes it, where it can be read without the function's own types.

    None: there is none, for it runs still or it could not be stored.
    """
    if record.payload is None or record.payload.data is None:
        return None
    try:
        value = codec_for().decode(record.payload.data)
        if record.payload.state == "failed":
            module, name, arguments, *_ = value
            return f"raised {module}.{name}{tuple(arguments)!r}"
        return repr(value)
    except Exception as error:
        return f"({len(record.payload.data)} bytes that cannot be read here: {type(error).__name__})"
