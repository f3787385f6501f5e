"""What a decorated function is: a plain function of the same signature and colour, with a few more names on it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from idempo.guarantees import Explanation
from idempo.operation import CarriedError, Given, Operation
from idempo.records import Outcome, Record
from idempo.steps import Steps, arun, run

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
T = TypeVar("T")
S = TypeVar("S")

__all__ = ["AsyncIdempotent", "Idempotent", "wrap"]


class Idempotent(Protocol[P, R]):
    """A decorated function."""

    __name__: str
    __qualname__: str

    @property
    def __wrapped__(self) -> Callable[P, R]:
        """The function itself, undecorated."""
        ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function, or return its first result."""
        ...

    def outcome(self, *args: P.args, **kwargs: P.kwargs) -> Outcome[R]:
        """Call it, and return the value together with how it came about. Raises what a call raises."""
        ...

    def many(self, calls: Iterable[Given]) -> list[Outcome[R] | Exception]:
        """Answer many calls, each a tuple of arguments or a dict of them by name; in their order.

        A ledger alone is asked about all keys in one request and told all first results in one; other compositions
        are called one by one. What runs, runs in the order of the calls, and a key that stands there twice runs once.
        What a call raises stands in its place, and the others go on. Raises TypeError for a call that is neither.
        """
        ...

    def key_for(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the business key of such a call, as people read it. Raises `KeyRefusedError`."""
        ...

    def lookup(self, *args: P.args, **kwargs: P.kwargs) -> Record | None:
        """Return the record of such a call, or None. Runs nothing. Raises `LedgerUnavailableError`."""
        ...

    def forget(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Delete the record of such a call, so that the next one runs; True if there was one.

        Raises `InProgressError` while it runs, and `LedgerUnavailableError`.
        """
        ...

    def explain(self) -> Explanation:
        """Return what this composition guarantees under which fault; `str()` of it is text."""
        ...

    @overload
    def __get__(self, instance: None, owner: type) -> Idempotent[P, R]: ...
    @overload
    def __get__(self: Idempotent[Concatenate[S, Q], T], instance: S, owner: type) -> Idempotent[Q, T]: ...


class AsyncIdempotent(Protocol[P, R]):
    """A decorated coroutine function: the same names, awaitable where they ask the ledger."""

    __name__: str
    __qualname__: str

    @property
    def __wrapped__(self) -> Callable[P, Coroutine[Any, Any, R]]: ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...

    def outcome(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Outcome[R]]: ...

    def many(self, calls: Iterable[Given]) -> Coroutine[Any, Any, list[Outcome[R] | Exception]]: ...

    def key_for(self, *args: P.args, **kwargs: P.kwargs) -> str: ...

    def lookup(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Record | None]: ...

    def forget(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, bool]: ...

    def explain(self) -> Explanation: ...

    @overload
    def __get__(self, instance: None, owner: type) -> AsyncIdempotent[P, R]: ...
    @overload
    def __get__(
        self: AsyncIdempotent[Concatenate[S, Q], T], instance: S, owner: type
    ) -> AsyncIdempotent[Q, R]: ...


def wrap(operation: Operation, bound: tuple[Any, ...] = ()) -> Any:
    """Return the decorated function, with `bound` (self or cls) in front of the arguments."""
    asked = _asking(operation, bound)
    function = operation.function
    extended = cast(Any, functools.wraps(function)(asked(operation.value)))
    if bound:
        extended.__wrapped__ = functools.partial(function, *bound)
        extended.__self__ = bound[0]
        extended.__signature__ = _without_first(operation)
    extended.outcome = asked(operation.outcome)
    extended.many = asked(lambda args, kwargs: operation.many(many(*args[len(bound) :], **kwargs), bound))
    extended.lookup = asked(operation.lookup)
    extended.forget = asked(operation.forget)
    extended.key_for = lambda *args, **kwargs: operation.call((*bound, *args), kwargs).key
    extended.explain = operation.explain
    extended.__idempo__ = operation
    return extended


def many(calls: Iterable[Given]) -> Iterable[Given]:
    """The one argument of `many`: other arguments are Python's own TypeError."""
    return calls


def _without_first(operation: Operation) -> Any:
    parameters = list(operation.signature.parameters.values())[1:]
    return operation.signature.replace(parameters=parameters)


def _asking(
    operation: Operation, bound: tuple[Any, ...]
) -> Callable[[Callable[..., Steps[Any]]], Callable[..., Any]]:
    """Return what makes a callable of the operation's colour out of its steps."""

    def blocking(steps: Callable[..., Steps[Any]]) -> Callable[..., Any]:
        def ask(*args: Any, **kwargs: Any) -> Any:
            try:
                return run(steps((*bound, *args), kwargs))
            except CarriedError as carried:
                raise carried.error from None

        return ask

    def awaiting(steps: Callable[..., Steps[Any]]) -> Callable[..., Any]:
        async def ask(*args: Any, **kwargs: Any) -> Any:
            return await arun(steps((*bound, *args), kwargs))

        return ask

    return awaiting if operation.colour == "async" else blocking


class Method(Generic[P, R]):
    """A decorated method: binds itself and all its names to the instance, or the class, that it is taken from."""

    def __init__(self, operation: Operation, *, of_class: bool) -> None:
        self._operation = operation
        self._of_class = of_class
        self._unbound = wrap(operation)
        functools.update_wrapper(self, operation.function)

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        if self._of_class:
            return wrap(self._operation, (owner if owner is not None else type(instance),))
        if instance is None:
            return self._unbound
        return wrap(self._operation, (instance,))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._unbound(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._unbound, name)
