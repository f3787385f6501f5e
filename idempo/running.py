"""Which calls are running here and now: what `current()` answers, and how a call that waits for itself is found."""

from __future__ import annotations

from contextvars import ContextVar, Token

from idempo.errors import IdempoError, ReentrantCallError
from idempo.records import Call

__all__ = ["current", "refuse_reentrance", "running"]


class _Running:
    """A mutable mark, because a task started by the function inherits the context and may outlive the call."""

    __slots__ = ("alive", "call")

    def __init__(self, call: Call) -> None:
        self.call = call
        self.alive = True


_stack: ContextVar[tuple[_Running, ...]] = ContextVar("idempo_running", default=())


def current() -> Call:
    """Return the `Call` of the decorated function that runs in this context, the innermost if they are nested.

    Raises `IdempoError` outside of one.
    """
    for mark in reversed(_stack.get()):
        if mark.alive:
            return mark.call
    raise IdempoError("idempo.current() was called outside of a running @idempotent function")


class running:  # a context manager, used like a function
    """Mark `call` as running in this context."""

    __slots__ = ("_mark", "_token")

    def __init__(self, call: Call) -> None:
        self._mark = _Running(call)

    def __enter__(self) -> None:
        self._token: Token[tuple[_Running, ...]] = _stack.set((*_stack.get(), self._mark))

    def __exit__(self, *error: object) -> None:
        self._mark.alive = False
        _stack.reset(self._token)


def refuse_reentrance(call: Call) -> None:
    """Raise `ReentrantCallError` if this context is inside a call of the same key: waiting would never end."""
    for mark in _stack.get():
        if mark.alive and mark.call.digest == call.digest:
            raise ReentrantCallError(
                "this key is being run by a call further up the stack, so waiting for it would never end; call the "
                "undecorated function (f.__wrapped__), or use another key",
                operation=call.operation,
                key=call.key,
            )
