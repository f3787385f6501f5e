"""The duplicates of one key in one process wait together: one asks for all, and whoever learns something tells."""

import asyncio
import os
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from idempo import InProgressError, Memory, idempotent, rooms, verdicts
from idempo.contracts import Colour
from idempo.records import Answer, Call, Payload
from idempo.steps import Steps, run
from idempo.testing import Gate

SECONDS = 60
COLOURS: tuple[Colour, ...] = ("sync", "async")


@pytest.fixture(autouse=True)
def nobody_asks_for_want_of_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "_NET", 1000.0)


class Counting(Memory):
    """Counts the claims of each caller, and lets wait for as many."""

    def __init__(self) -> None:
        super().__init__()
        self.claims: Counter[bytes] = Counter()
        self._counted = threading.Condition()

    def claim(self, call: Call, over: int | None) -> Steps[Answer]:
        answer = yield from super().claim(call, over)
        with self._counted:
            self.claims[call.owner] += 1
            self._counted.notify_all()
        return answer

    def wait_until(self, fact: Callable[[], bool]) -> None:
        with self._counted:
            assert self._counted.wait_for(fact, SECONDS)


def placing(ledger: Memory, colour: Colour, gate: Gate | None = None, **options: Any) -> Any:
    def plain(order: str) -> str:
        if gate is not None:
            gate.wait()
        return order.lower()

    async def coroutine(order: str) -> str:
        if gate is not None:
            await gate.wait()
        return order.lower()

    terms: dict[str, Any] = {"using": ledger, "name": uuid.uuid4().hex, "wait": SECONDS} | options
    return idempotent(key="{order}", **terms)(plain if colour == "sync" else coroutine)


def all_at_once(colour: Colour, calls: list[Callable[[], Any]], then: Callable[[], None]) -> list[Any]:
    """Make calls that wait, do something beside them, and return what they came to."""
    came: list[Any] = [None] * len(calls)

    def one(index: int) -> None:
        try:
            came[index] = calls[index]()
        except Exception as error:
            came[index] = error

    async def tasks() -> list[Any]:
        waiting = [asyncio.ensure_future(call()) for call in calls]
        await asyncio.to_thread(then)
        return await asyncio.gather(*waiting, return_exceptions=True)

    if colour == "async":
        return asyncio.run(tasks())
    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    then()
    for thread in threads:
        thread.join(SECONDS)
    return came


@pytest.mark.parametrize("colour", COLOURS)
def test_of_those_who_wait_for_another_process_one_asks_for_all(colour: Colour) -> None:
    ledger = Counting()
    f = placing(ledger, colour)
    elsewhere = f.__idempo__.call(("A",), {})
    run(ledger.claim(elsewhere, None))

    def complete_there() -> None:
        ledger.wait_until(lambda: len(ledger.claims) == 9 and max(ledger.claims.values()) > 5)
        run(ledger.complete(elsewhere, Payload("completed", f.__idempo__.terms.codec.encode("there"))))

    came = all_at_once(colour, [lambda: f.outcome("A")] * 8, complete_there)
    assert [(one.value, one.replayed) for one in came] == [("there", True)] * 8
    asked = sorted(ledger.claims.values())
    assert asked[:-1] == [1] * 8, "only one of them asked again"


@pytest.mark.parametrize("colour", COLOURS)
def test_those_who_wait_for_a_call_of_this_process_are_told_by_it(colour: Colour) -> None:
    ledger, gate = Counting(), Gate(colour)
    f = placing(ledger, colour, gate)

    def let_go() -> None:
        ledger.wait_until(lambda: len(ledger.claims) == 8)
        ledger.wait_until(lambda: max(ledger.claims.values()) > 3)
        gate.open()

    came = all_at_once(colour, [lambda: f.outcome("A")] * 8, let_go)
    assert sorted(one.replayed for one in came) == [False] + [True] * 7
    assert {one.value for one in came} == {"a"}
    assert sorted(ledger.claims.values())[:-1] == [1] * 7


@pytest.mark.parametrize("colour", COLOURS)
def test_where_the_one_who_asks_gives_up_the_next_one_asks(colour: Colour) -> None:
    ledger = Counting()
    name = uuid.uuid4().hex
    hurried, patient = placing(ledger, colour, wait=0.3, name=name), placing(ledger, colour, name=name)
    elsewhere = patient.__idempo__.call(("A",), {})
    run(ledger.claim(elsewhere, None))
    given_up = threading.Event()

    def first() -> Any:
        try:
            return hurried("A")
        finally:
            given_up.set()

    async def first_async() -> Any:
        try:
            return await hurried("A")
        finally:
            given_up.set()

    def complete_there() -> None:
        assert given_up.wait(SECONDS)
        ledger.wait_until(lambda: max(ledger.claims.values()) > 2)
        run(ledger.complete(elsewhere, Payload("completed", patient.__idempo__.terms.codec.encode("there"))))

    leading: Any = first if colour == "sync" else first_async
    came = all_at_once(colour, [leading, lambda: patient("A"), lambda: patient("A")], complete_there)
    assert isinstance(came[0], InProgressError)
    assert came[1:] == ["there", "there"]


@pytest.mark.parametrize("colour", COLOURS)
def test_after_a_failure_in_this_process_one_of_those_who_wait_runs(colour: Colour) -> None:
    ledger, gate = Counting(), Gate(colour)
    ran: list[int] = []

    def body() -> int:
        ran.append(len(ran))
        if len(ran) == 1:
            raise ValueError("the first one")
        return ran[-1]

    def plain(order: str) -> int:
        gate.wait()
        return body()

    async def coroutine(order: str) -> int:
        await gate.wait()
        return body()

    f: Any = idempotent(key="{order}", using=ledger, name=uuid.uuid4().hex, wait=SECONDS)(
        plain if colour == "sync" else coroutine
    )

    def let_go() -> None:
        ledger.wait_until(lambda: len(ledger.claims) == 6)
        gate.open()

    came = all_at_once(colour, [lambda: f("A")] * 6, let_go)
    assert sorted(str(one) for one in came) == ["1"] * 5 + ["the first one"]
    assert ran == [0, 1]


def test_nobody_is_left_in_a_room() -> None:
    ledger, gate = Counting(), Gate("sync")
    f = placing(ledger, "sync", gate)

    def let_go() -> None:
        ledger.wait_until(lambda: len(ledger.claims) == 4)
        gate.open()

    all_at_once("sync", [lambda: f("A")] * 4, let_go)
    assert rooms._rooms.of == {}


def test_one_who_is_woken_before_sleeping_does_not_sleep() -> None:
    ledger = Memory()
    ticket = rooms.enter(ledger, b"A")
    ticket.wake()
    rooms.Waiting(1000.0, ticket).blocking()
    ticket.leave()


def test_news_in_a_loop_that_has_ended_disturb_nobody() -> None:
    ledger = Memory()
    ticket = rooms.enter(ledger, b"A")

    async def main() -> None:
        task = asyncio.ensure_future(rooms.Waiting(1000.0, ticket).awaiting())
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(main())
    rooms.tell(ledger, b"A", None)
    ticket.leave()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_rooms_of_its_own() -> None:
    ledger = Memory()
    ticket = rooms.enter(ledger, b"A")
    with rooms._rooms.lock:
        child = os.fork()
        if child == 0:
            held = threading.Thread(target=lambda: rooms.enter(ledger, b"A").leave(), daemon=True)
            held.start()
            held.join(10)
            ticket.leave()  # of a task that goes on in the child, too
            os._exit(1 if held.is_alive() or rooms._rooms.of else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    ticket.leave()
