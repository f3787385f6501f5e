"""A call is bound as Python binds it, whatever way its arguments are given in."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from idempo.binding import Binder


def plain(a: Any, b: Any = 2, *, c: Any = 3) -> Any:
    return a, b, c


def sparse(a: Any = 1, b: Any = 2, *, c: Any) -> Any:
    return a, b, c


def rest(a: Any, /, b: Any = 2, *more: Any, c: Any = 3, **named: Any) -> Any:
    return a, b, more, c, named


def bare(a: Any, b: Any) -> Any:
    return a, b


def named(a: Any, *, b: Any) -> Any:
    return a, b


def anything(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def injected(a: Any, /, session: Any, b: Any = 2, *more: Any, **rest: Any) -> Any:
    return a, session, b, more, rest


CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((1,), {}),
    ((1, 5), {}),
    ((1,), {"b": 5}),
    ((1,), {"c": 5}),
    ((), {"c": 5, "b": 6, "a": 7}),
    ((1, 2, 3, 4), {"z": 5}),
    ((), {}),
    ((1,), {"a": 1}),
    ((1, 2, 3), {}),
    ((1,), {"z": 1}),
    ((), {"b": 1}),
    ((1, 2), {}),
    ((), {"a": 1, "b": 2}),
    ((1,), {"b": 2, "z": 3}),
    ((), {"a": 1, "b": 2, "z": 3}),
    ((), {"args": 1}),
]


@pytest.mark.parametrize("function", [plain, sparse, rest, bare, named, anything, injected])
@pytest.mark.parametrize(("args", "kwargs"), CALLS)
def test_a_call_is_bound_and_made_as_inspect_does_it(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    signature = inspect.signature(function)
    binder = Binder(signature)
    try:
        function(*args, **kwargs)
    except TypeError:
        with pytest.raises(TypeError, match=r"argument|parameter"):
            binder.bind(args, kwargs)
        return
    expected = signature.bind(*args, **kwargs)
    expected.apply_defaults()
    arguments = binder.bind(args, kwargs)
    assert arguments == expected.arguments
    assert binder.call(function, arguments) == function(*args, **kwargs)


@pytest.mark.parametrize(("args", "kwargs"), [((), {"b": 1}), ((), {}), ((), {"c": 1})])
def test_what_a_strategy_fills_in_may_be_missing(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    binder = Binder(inspect.signature(plain), {"a"})
    assert binder.bind(args, kwargs) == {"b": 2, "c": 3, **kwargs}


def test_what_no_strategy_fills_in_may_not_be_missing() -> None:
    with pytest.raises(TypeError, match="missing a required"):
        Binder(inspect.signature(plain), {"c"}).bind((), {"b": 1})


def test_a_parameter_that_takes_either_is_given_by_position() -> None:
    """A function that stands behind another decorator sees its arguments as it would without this one."""
    seen: list[tuple[Any, Any]] = []

    def around(*args: Any, **kwargs: Any) -> None:
        seen.append((args, kwargs))

    binder = Binder(inspect.signature(plain))
    binder.call(around, binder.bind((1,), {"b": 5}))
    assert seen == [((1, 5), {"c": 3})]


def test_what_a_strategy_fills_in_may_be_missing_whatever_else_the_function_takes() -> None:
    bound = Binder(inspect.signature(injected), {"session"}).bind((1,), {})
    assert bound == {"a": 1, "b": 2, "more": (), "rest": {}}


def test_what_nobody_filled_in_is_missing_for_the_function_as_for_any_other_caller() -> None:
    with pytest.raises(TypeError, match=r"bare\(\) missing 1 required positional argument: 'a'"):
        Binder(inspect.signature(bare), {"a"}).call(bare, {"b": 2})
