"""`assert_runs_once`: tries on a function of the user's own what goes wrong in production."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar, overload

from idempo.errors import ConfigurationError
from idempo.functions import AsyncIdempotent, Idempotent
from idempo.steps import arun, run
from idempo.testing.rounds import Rounds
from idempo.testing.watching import Watched

P = ParamSpec("P")
R = TypeVar("R")

__all__ = ["assert_runs_once"]


@overload
def assert_runs_once(
    f: AsyncIdempotent[..., Any],
    /,
    *args: Any,
    arguments: Callable[[int], Any] | None = None,
    effects: Callable[..., Any] | None = None,
    callers: int = 8,
    crashes: bool = True,
    **kwargs: Any,
) -> Coroutine[Any, Any, None]: ...
@overload
def assert_runs_once(
    f: Idempotent[..., Any],
    /,
    *args: Any,
    arguments: Callable[[int], Any] | None = None,
    effects: Callable[..., Any] | None = None,
    callers: int = 8,
    crashes: bool = True,
    **kwargs: Any,
) -> None: ...
def assert_runs_once(
    f: Any,
    /,
    *args: Any,
    arguments: Callable[[int], Any] | None = None,
    effects: Callable[..., Any] | None = None,
    callers: int = 8,
    crashes: bool = True,
    **kwargs: Any,
) -> Any:
    """Raise `AssertionError` unless the decorated function `f` runs once; awaitable where the function is.

    It is called for real, on its own ledgers, in rounds:

    1. a first call and repeats: one run, the same key and fingerprint, a replay that is equal in value and in type;
    2. `callers` calls at once, by threads or tasks, which all ask while the first one runs: one run, one result;
    3. a caller that dies before and after each of its requests, and a repeat: as many effects as `f.explain()` says,
       and the repeat of that is a replay.

    Between rounds the record is forgotten by `f.forget(...)`, and at the end. Where that does not make a call the first
    one again (a row that a guard judges, a token, a unique constraint), give `arguments`.

    Args:
        f: a function, or a method of an instance, decorated with `@idempotent`. A transaction that it joins is left
            out of its arguments: the strategy opens one for each call, so give it an engine.
        args, kwargs: the arguments of a call.
        arguments: instead of these, called with the number of a round: returns a tuple of arguments, a mapping of
            them, or the only one. It is called anew for each repeat in a round, as a client that makes its request
            once more, and has to give the same operation.
        effects: called with the arguments: how many effects there are by now, as others see it. What one call adds is
            one effect, however many it counts. Without it, runs of the function are counted.
        callers: how many call at once.
        crashes: False leaves out the third round.

    Raises:
        AssertionError: with the round, what was seen, and what to do about it.
        ConfigurationError: for a function that is not decorated, or arguments that carry a transaction.

    What the function itself raises in the very first call passes untouched.
    """
    watched = Watched(f)
    if not arguments and (given := _carriers(watched, args, kwargs)):
        raise ConfigurationError(
            f"{watched.operation.name}: leave out {', '.join(given)}: each call opens its own, so give the strategy an "
            "engine or sessionmaker"
        )
    if callers < 1:
        raise ConfigurationError(f"callers={callers} is not a number from 1 on")
    steps = Rounds(watched, (args, kwargs), arguments, effects, callers, crashes).all()
    return arun(steps) if watched.colour == "async" else run(steps)


def _carriers(watched: Watched, args: Any, kwargs: Any) -> list[str]:
    """The parameters that a strategy fills in, and that were given all the same."""
    bound = watched.identity(args, kwargs).arguments
    return [name for name in sorted(watched.operation.injects) if bound.get(name) is not None]
