"""What a peer is here: a way to make a function of a key and an amount run once per key."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["LEASE", "Function", "Options", "Peer", "Places", "Wrap", "by_type", "shaped"]


@dataclass(frozen=True)
class Places:
    """The URLs of the stores. `libpq` is `postgres` without the name of a driver."""

    redis: str
    postgres: str
    libpq: str


@dataclass(frozen=True)
class Function:
    """What is made safe to repeat: `body` is a coroutine function for async. Two of one name are one operation."""

    name: str
    body: Callable[[str, int], Any]
    returns: Any = int


Options = frozenset[str]
"""What idempo does by itself, asked for where a peer has it: `codec` of the return type, `fingerprint` of the amount,
`lease` of LEASE seconds."""
LEASE = 3


Wrap = Callable[[Function, Places, bool, Options], Any]
"""Makes the callable to measure; the bool is True for async."""


@dataclass(frozen=True)
class Peer:
    """One library on one store. `colours` are those it has: True for async."""

    name: str
    store: str
    wrap: Wrap
    colours: tuple[bool, ...] = (False, True)
    note: str = ""
    """What it does not do, as `behaviour.py` finds it."""
    leased: bool = True


def shaped(function: Function, asynchronous: bool) -> Any:
    """Return the function as a user writes it: named, annotated, in one colour."""

    def work(key: str, amount: int = 1) -> Any:
        return function.body(key, amount)

    async def work_async(key: str, amount: int = 1) -> Any:
        return await function.body(key, amount)

    made: Any = work_async if asynchronous else work
    made.__name__ = made.__qualname__ = function.name
    made.__annotations__["return"] = function.returns
    return made


def by_type(function: Function, for_dataclass: str, for_model: str, otherwise: str) -> str:
    """Return the one for what the function returns: a dataclass, a pydantic model, or anything else."""
    if dataclasses.is_dataclass(function.returns):
        return for_dataclass
    return for_model if hasattr(function.returns, "model_validate") else otherwise
