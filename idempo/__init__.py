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
from idempo.records import MISSING, RERUN, Call, Found, Outcome, Record
from idempo.running import current
from idempo.strategies.memory import Memory

if TYPE_CHECKING:
    from idempo.strategies.redis_cache import RedisCache
    from idempo.strategies.state_guard import StateGuard
    from idempo.strategies.unique_insert import UniqueInsert

__all__ = [
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
    "Memory",
    "Outcome",
    "OutcomeUnknownError",
    "Record",
    "RedisCache",
    "ReentrantCallError",
    "RefusedError",
    "ResultUnavailableError",
    "RowMissingError",
    "StateConflictError",
    "StateGuard",
    "TokenSpentError",
    "TokenUnknownError",
    "UniqueInsert",
    "VersionConflictError",
    "current",
    "idempotent",
]

# A strategy is imported when it is first named, so that nobody pays for a database driver they do not use.
_STRATEGIES = {
    "RedisCache": "idempo.strategies.redis_cache",
    "StateGuard": "idempo.strategies.state_guard",
    "UniqueInsert": "idempo.strategies.unique_insert",
}


def __getattr__(name: str) -> Any:
    module = _STRATEGIES.get(name)
    if module is None:
        raise AttributeError(f"module 'idempo' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)
