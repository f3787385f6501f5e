"""idempo: make an operation safe to repeat.

`@idempotent(key=...)` runs a function once per business key and gives every repeat the first result.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from idempo.decorator import idempotent
from idempo.errors import (
    ColourMismatchError,
    CompositionError,
    ConfigurationError,
    FingerprintMismatchError,
    IdempoError,
    InProgressError,
    KeyRefusedError,
    KeyTemplateError,
    LeaseLostError,
    LedgerUnavailableError,
    OutcomeUnknownError,
    ReentrantCallError,
    RefusedError,
    ResultUnavailableError,
    RowMissingError,
    StateConflictError,
    TokenSpentError,
    TokenUnknownError,
    VersionConflictError,
)
from idempo.events import Event
from idempo.records import INJECTED, MISSING, RERUN, Call, Found, Outcome, Record
from idempo.running import current
from idempo.strategies.memory import Memory

if TYPE_CHECKING:
    from idempo.strategies.local_cache import LocalCache
    from idempo.strategies.monotonic_version import MonotonicVersion
    from idempo.strategies.one_time_token import OneTimeToken
    from idempo.strategies.read_only import ReadOnly
    from idempo.strategies.redis_cache import RedisCache
    from idempo.strategies.select_for_update import SelectForUpdate
    from idempo.strategies.state_guard import StateGuard
    from idempo.strategies.unique_insert import UniqueInsert
    from idempo.strategies.version_check import VersionCheck

__all__ = [
    "INJECTED",
    "MISSING",
    "RERUN",
    "Call",
    "ColourMismatchError",
    "CompositionError",
    "ConfigurationError",
    "Event",
    "FingerprintMismatchError",
    "Found",
    "IdempoError",
    "InProgressError",
    "KeyRefusedError",
    "KeyTemplateError",
    "LeaseLostError",
    "LedgerUnavailableError",
    "LocalCache",
    "Memory",
    "MonotonicVersion",
    "OneTimeToken",
    "Outcome",
    "OutcomeUnknownError",
    "ReadOnly",
    "Record",
    "RedisCache",
    "ReentrantCallError",
    "RefusedError",
    "ResultUnavailableError",
    "RowMissingError",
    "SelectForUpdate",
    "StateConflictError",
    "StateGuard",
    "TokenSpentError",
    "TokenUnknownError",
    "UniqueInsert",
    "VersionCheck",
    "VersionConflictError",
    "current",
    "idempotent",
]

# A strategy is imported when it is first named, so that nobody pays for a database driver they do not use.
_STRATEGIES = {
    "LocalCache": "idempo.strategies.local_cache",
    "SelectForUpdate": "idempo.strategies.select_for_update",
    "VersionCheck": "idempo.strategies.version_check",
    "ReadOnly": "idempo.strategies.read_only",
    "OneTimeToken": "idempo.strategies.one_time_token",
    "MonotonicVersion": "idempo.strategies.monotonic_version",
    "RedisCache": "idempo.strategies.redis_cache",
    "StateGuard": "idempo.strategies.state_guard",
    "UniqueInsert": "idempo.strategies.unique_insert",
}


def __getattr__(name: str) -> Any:
    module = _STRATEGIES.get(name)
    if module is None:
        raise AttributeError(f"module 'idempo' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)
