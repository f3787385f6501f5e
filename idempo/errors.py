"""Everything idempo raises: one module, one root.

Every error says, in `ran`, whether the decorated function ran: `True`, `False`, or `None` when nobody can know.
The exceptions of the decorated function itself are not here: they pass through untouched.
"""

from __future__ import annotations

from typing import Literal

__all__ = [
    "ColourMismatchError",
    "CompositionError",
    "ConfigurationError",
    "FingerprintMismatchError",
    "IdempoError",
    "InProgressError",
    "KeyRefusedError",
    "KeyTemplateError",
    "LeaseLostError",
    "LedgerUnavailableError",
    "OutcomeUnknownError",
    "ReentrantCallError",
    "RefusedError",
    "ResultUnavailableError",
    "RowMissingError",
    "StateConflictError",
    "TokenSpentError",
    "TokenUnknownError",
    "VersionConflictError",
]


class IdempoError(Exception):
    """The root of all errors of idempo.

    Attributes:
        ran: `True` if the decorated function ran to its end, `False` if it did not start, `None` if unknown.
        operation: the operation (by default the function's module and name), or "" where there is none yet.
        key: the business key as people read it, or "".
    """

    ran: bool | None = False

    def __init__(self, message: str, *, operation: str = "", key: str = "") -> None:
        where = f" [operation {operation!r}, key {key!r}]" if operation else ""
        super().__init__(message + where)
        self.operation = operation
        self.key = key

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword arguments do not survive the default, and errors travel between processes of a pool.
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(cls: type[IdempoError], args: tuple[object, ...], state: dict[str, object]) -> IdempoError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(IdempoError):
    """The decorator or a strategy was put together wrongly.

    Raised while decorating, and during a call where only the call can show it: no session and nothing to open one
    with, a connection without transactions, a probe that answers something else. `ran` is False: nothing was done.
    """


class ColourMismatchError(ConfigurationError):
    """A blocking client under an `async def`, or an async client under a plain function."""


class KeyTemplateError(ConfigurationError):
    """A key, scope or fingerprint template names something that the function does not have, or names nothing."""


class CompositionError(ConfigurationError):
    """The strategies of `using=` cannot stand together, or not in this order."""


class KeyRefusedError(IdempoError):
    """The key, scope or fingerprint of this call has no stable form, or is empty or too long. Nothing ran."""


class RefusedError(IdempoError):
    """The call was refused before the function started. Nothing ran."""


class InProgressError(RefusedError):
    """Another call with the same key is still running, and the time to wait is over.

    Attributes:
        retry_after: seconds after which a repeat makes sense, at the latest.
    """

    def __init__(self, message: str, *, operation: str = "", key: str = "", retry_after: float = 0.0) -> None:
        super().__init__(message, operation=operation, key=key)
        self.retry_after = retry_after


class FingerprintMismatchError(RefusedError):
    """The key is known, but with other arguments: same key, other order.

    Attributes:
        differing: names of the arguments that differ from the first call's.
    """

    def __init__(
        self, message: str, *, operation: str = "", key: str = "", differing: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message, operation=operation, key=key)
        self.differing = differing


class StateConflictError(RefusedError):
    """The row is in a state that this transition does not begin in.

    Attributes:
        verdict: "already": another key brought the row into the target state; "superseded": it is in a state that
            comes after the target; "illegal": no way leads from its state to the target and none from the target to it.
        state: the state that the row is in.
        target: the state that was asked for; None for a row that `SelectForUpdate` found done.
    """

    def __init__(
        self,
        message: str,
        *,
        operation: str = "",
        key: str = "",
        verdict: Literal["already", "superseded", "illegal"] = "illegal",
        state: object = None,
        target: object = None,
    ) -> None:
        super().__init__(message, operation=operation, key=key)
        self.verdict = verdict
        self.state = state
        self.target = target


class VersionConflictError(RefusedError):
    """Somebody else changed the row since the expected version was read, or a later version was applied before.

    `ran` is True where the version was read by idempo and compared after the function had run: what it wrote in the
    transaction is undone.

    Attributes:
        expected: the version that this call builds on, or brings.
        found: the version that is there.
    """

    def __init__(
        self,
        message: str,
        *,
        operation: str = "",
        key: str = "",
        expected: int | None = None,
        found: int | None = None,
    ) -> None:
        super().__init__(message, operation=operation, key=key)
        self.expected = expected
        self.found = found


class RowMissingError(RefusedError):
    """The business row that a guard should judge does not exist."""


class TokenUnknownError(RefusedError):
    """The token was never issued, or its time is over."""


class TokenSpentError(RefusedError):
    """The token was used before, and its ledger does not replay."""


class ReentrantCallError(RefusedError):
    """The function, while running, called its own operation with its own key: waiting would never end."""


class LeaseLostError(IdempoError):
    """The function ran, but its claim was no longer its own at the end: somebody else took over.

    Attributes:
        result: what this call's function returned.
        stored: the first result as the ledger has it, or `idempo.MISSING` while the other run has not ended.
    """

    ran = True

    def __init__(
        self,
        message: str,
        *,
        operation: str = "",
        key: str = "",
        result: object = None,
        stored: object = None,
    ) -> None:
        super().__init__(message, operation=operation, key=key)
        self.result = result
        self.stored = stored


class OutcomeUnknownError(IdempoError):
    """Nobody can say whether the effect happened.

    Raised for an orphan under `on_orphan="refuse"`, after one of `unknown_errors`, and when the function ran but its
    completion could not be written.

    Attributes:
        result: what the function returned, where it did; otherwise `idempo.MISSING`.
    """

    ran = None

    def __init__(self, message: str, *, operation: str = "", key: str = "", result: object = None) -> None:
        super().__init__(message, operation=operation, key=key)
        self.result = result


class ResultUnavailableError(IdempoError):
    """The function ran before, but its first result cannot be given back: it could not be stored, or not be read."""

    ran = True


class LedgerUnavailableError(IdempoError):
    """The ledger did not answer the claim, so the function did not run. `__cause__` is the driver's error."""
