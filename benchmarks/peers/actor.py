"""One process that uses one peer, told what to do line by line; `behaviour.py` directs it.

It reads a JSON object a line and answers each with one: `call` a function, perhaps to `die` or to `hold` inside it, or
call it eight times `together`.
"""

import asyncio
import datetime
import json
import logging
import os
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pydantic

from benchmarks.peers.adapters import PEERS
from benchmarks.peers.shapes import Function, Places

MANY = 8
HELD_SECONDS = 0.3


@dataclass
class Receipt:
    number: str
    cents: int


class Order(pydantic.BaseModel):
    number: str
    cents: int


FALSY: dict[str, tuple[Any, Any]] = {
    "None": (None, None),
    "False": (bool, False),
    "0": (int, 0),
    '""': (str, ""),
    "[]": (list[int], []),
}
TYPED: dict[str, tuple[Any, Any]] = {
    "tuple": (tuple[int, int], (1, 2)),
    "dict by int": (dict[int, str], {1: "a"}),
    "Decimal": (Decimal, Decimal("1.50")),
    "datetime": (datetime.datetime, datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)),
    "dataclass": (Receipt, Receipt("A-1001", 1990)),
    "pydantic model": (Order, Order(number="A-1001", cents=1990)),
}
RETURNS: dict[str, tuple[Any, Any]] = {**FALSY, **TYPED, "text": (str, "first")}


class Actor:
    def __init__(self, peer: str, store: str, asynchronous: bool, options: list[str], places: Places) -> None:
        self.peer = next(one for one in PEERS if (one.name, one.store) == (peer, store))
        self.asynchronous, self.options, self.places = asynchronous, frozenset(options), places
        self.answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # what the peers print is not an answer
        self.functions: dict[str, Callable[..., Any]] = {}
        self.runs = Counter[str]()  # by key: a process of DBOS also goes on with what others left
        self.arrived = 0
        self.then, self.value = "", ""

    def answer(self, **what: object) -> None:
        self.answers.write(json.dumps(what) + "\n")

    def function(self, returns: str) -> Callable[..., Any]:
        if returns not in self.functions:
            body = self._body_async if self.asynchronous else self._body
            name = f"behave-{list(RETURNS).index(returns)}"
            made = Function(name, lambda key, amount: body(key, returns), RETURNS[returns][0])
            self.functions[returns] = self.peer.wrap(made, self.places, self.asynchronous, self.options)
        return self.functions[returns]

    def _begin(self, key: str, returns: str) -> Any:
        self.runs[key] += 1
        if self.then == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.then == "hold":
            self.answer(running=True)
        return self.value or RETURNS[returns][1]

    def _body(self, key: str, returns: str) -> Any:
        value = self._begin(key, returns)
        if self.then == "hold":
            sys.stdin.readline()
        if self.then == "together":
            while self.arrived < MANY:
                time.sleep(0.01)
            time.sleep(HELD_SECONDS)
        return value

    async def _body_async(self, key: str, returns: str) -> Any:
        value = self._begin(key, returns)
        if self.then == "hold":
            await asyncio.to_thread(sys.stdin.readline)
        if self.then == "together":  # all have called once this one yields
            await asyncio.sleep(HELD_SECONDS)
        return value

    async def _called(self, call: Callable[..., Any], key: str, amount: int) -> dict[str, Any]:
        try:
            if self.asynchronous:
                return {"value": repr(await call(key, amount))}
            return {"value": repr(await asyncio.to_thread(call, key, amount))}
        except Exception as error:
            return {"error": type(error).__name__, "message": str(error)[:200]}

    async def obey(self, order: dict[str, Any]) -> None:
        self.then, self.value = order.get("then", ""), order.get("value", "")
        returns, key, amount = order["returns"], order["key"], order.get("amount", 1)
        call, before = await asyncio.to_thread(self.function, returns), self.runs[key]
        if self.then != "together":
            found = [await self._called(call, key, amount)]
        else:
            self.arrived = 0

            async def one() -> dict[str, Any]:
                self.arrived += 1
                return await self._called(call, key, amount)

            found = await asyncio.gather(*(one() for _ in range(MANY)))
        self.answer(found=found, runs=self.runs[key] - before, expected=repr(RETURNS[returns][1]))

    async def live(self) -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2 * MANY))
        while line := await asyncio.to_thread(sys.stdin.readline):
            await self.obey(json.loads(line))


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    told = json.loads(sys.argv[1])
    actor = Actor(**{**told, "places": Places(**told["places"])})
    asyncio.run(actor.live())
    os._exit(0)
