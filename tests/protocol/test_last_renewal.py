"""A call in an event loop leaves no renewal behind: the end of the loop would break its conversation off."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from idempo import Memory, idempotent
from idempo.steps import Steps
from idempo.testing import ledger_of

LONG = 60.0


class Renewal:
    """The first renewal of a lease in memory takes until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go, self.over = asyncio.Event(), asyncio.Event(), False
        kind: Any = type(ledger_of(Memory(), "async"))
        renew: Callable[..., Steps[bool]] = kind.renew

        def slow(ledger: Any, call: Any, lease: float) -> Steps[bool]:
            self.begun.set()
            yield self.go.wait()
            alive = yield from renew(ledger, call, lease)
            self.over = True
            return alive

        monkeypatch.setattr(kind, "renew", slow)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idempo.leases._LAST", LONG)


async def ended(call: asyncio.Future[Any], renewal: Renewal) -> BaseException | None:
    """What the call raises, once its renewal has been let go; it has not ended before."""
    await renewal.begun.wait()
    for _ in range(50):
        await asyncio.sleep(0)
        assert not call.done()
    renewal.go.set()
    await asyncio.wait({call})
    assert renewal.over
    assert asyncio.all_tasks() == {asyncio.current_task()}
    return asyncio.CancelledError() if call.cancelled() else call.exception()


@pytest.mark.parametrize("error", [None, ValueError("no stock")], ids=["returns", "raises"])
def test_a_call_waits_for_its_renewal_under_way(monkeypatch: pytest.MonkeyPatch, error: Any) -> None:
    async def main() -> None:
        renewal = Renewal(monkeypatch)

        @idempotent(key="{order}", using=Memory(), lease=0.03)
        async def place(order: str) -> None:
            await renewal.begun.wait()
            if error is not None:
                raise error

        assert await ended(asyncio.ensure_future(place("A-1")), renewal) is error

    asyncio.run(main())


def test_a_batch_waits_for_its_renewals_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        renewal = Renewal(monkeypatch)

        @idempotent(key="{order}", using=Memory(), lease=0.03)
        async def place(order: str) -> None:
            await renewal.begun.wait()

        batch = asyncio.ensure_future(place.many([("A-1",), ("A-2",)]))
        assert await ended(batch, renewal) is None

    asyncio.run(main())


def test_a_call_that_is_cancelled_waits_for_its_renewal_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        renewal = Renewal(monkeypatch)

        @idempotent(key="{order}", using=Memory(), lease=0.03)
        async def place(order: str) -> None:
            await asyncio.Event().wait()

        call = asyncio.ensure_future(place("A-1"))
        await renewal.begun.wait()
        call.cancel()
        assert isinstance(await ended(call, renewal), asyncio.CancelledError)

    asyncio.run(main())


def test_a_call_does_not_wait_for_long_for_a_store_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idempo.leases._LAST", 0.01)

    async def main() -> None:
        renewal = Renewal(monkeypatch)

        @idempotent(key="{order}", using=Memory(), lease=0.03)
        async def place(order: str) -> str:
            await renewal.begun.wait()
            return order

        assert await place("A-1") == "A-1"
        assert not renewal.over
        renewal.go.set()

    asyncio.run(main())
