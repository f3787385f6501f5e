"""A caller that is cancelled while it claims is let go, even if the ledger hangs."""

import asyncio
from typing import Any

import pytest

from idempo import idempotent
from idempo.steps import Shielded
from idempo.strategies.memory import Memory
from idempo.testing import ledger_of


def test_a_claim_that_hangs_lets_a_cancelled_caller_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shielded.__init__, "__defaults__", (0.1, False))
    ledger: Any = ledger_of(Memory(), "async")

    async def main() -> None:
        hangs = asyncio.Event()

        def hanging(*_: Any) -> Any:
            yield hangs.wait()

        monkeypatch.setattr(type(ledger), "claim", lambda self, call, over: hanging())
        monkeypatch.setattr(type(ledger), "release", lambda self, call: hanging())

        @idempotent(key="{order}", using=Memory())
        async def f(order: str) -> str:
            return order

        call = asyncio.ensure_future(f("A-1"))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait({call}, timeout=10)
        ended = call.done()
        hangs.set()
        await asyncio.gather(call, return_exceptions=True)
        assert ended, "cancelled, and still held after 10 s with a patience of 0.1 s"

    asyncio.run(main())
