"""Bound calls and sent statements, where no test held a rule until a mutant went unnoticed."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from idempo.binding import Binder
from idempo.sending import by_the_driver, first


def bare(a: Any, b: Any) -> Any:
    return a, b


def named(a: Any, *, b: Any) -> Any:
    return a, b


def anything(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def injected(a: Any, /, session: Any, b: Any = 2, *more: Any, **rest: Any) -> Any:
    return a, session, b, more, rest


@pytest.mark.parametrize("function", [bare, named, anything, injected])
@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((1, 2), {}),
        ((1,), {"b": 2}),
        ((), {"a": 1, "b": 2}),
        ((1,), {}),
        ((), {"b": 2}),
        ((), {}),
        ((1,), {"b": 2, "z": 3}),
        ((), {"a": 1, "b": 2, "z": 3}),
        ((), {"args": 1}),
        ((1, 2, 3, 4), {"z": 5}),
    ],
)
def test_a_call_is_bound_and_made_as_python_does_it(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    signature = inspect.signature(function)
    binder = Binder(signature)
    try:
        expected = signature.bind(*args, **kwargs)
    except TypeError as error:
        with pytest.raises(TypeError, match=str(error)):
            binder.bind(args, kwargs)
        return
    expected.apply_defaults()
    arguments = binder.bind(args, kwargs)
    assert arguments == expected.arguments
    assert binder.call(function, arguments) == function(*args, **kwargs)


def test_what_a_strategy_fills_in_may_be_missing_whatever_else_the_function_takes() -> None:
    bound = Binder(inspect.signature(injected), {"session"}).bind((1,), {})
    assert bound == {"a": 1, "b": 2, "more": (), "rest": {}}


def test_what_nobody_filled_in_is_missing_for_the_function_as_for_any_other_caller() -> None:
    with pytest.raises(TypeError, match=r"bare\(\) missing 1 required positional argument: 'a'"):
        Binder(inspect.signature(bare), {"a"}).call(bare, {"b": 2})


def test_an_error_that_is_not_the_databases_passes_untouched(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/any.db", poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        with pytest.raises(OverflowError):  # the driver's: a number that has more than 64 bits
            by_the_driver(connection, text("SELECT :number"), {"number": 1 << 64}, first)
        assert by_the_driver(connection, text("SELECT :number"), {"number": 1}, first) == (1,)
