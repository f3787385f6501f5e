"""Databases that are stopped (SIGSTOP) at the claim, in the function, at the completion; and go on.

The requests of a call are walked on the wire, as in `test_crashes`: at each of them the server is stopped once.
"""

import asyncio
import gc
import itertools
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from idempo.contracts import Colour
from idempo.records import Outcome
from idempo.steps import Shielded, Steps, arun
from tests.faults.paused import Place, Shop, driven
from tests.faults.proxy import Proxy
from tests.servers import start
from tests.traps.support import Running, until


@pytest.fixture(autouse=True)
def what_a_cancellation_left_open_disturbs_no_other_test() -> Generator[None]:
    """SQLAlchemy lets go of an async connection whose conversation was broken off without closing it."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


AFTERWARDS = 0.5  # a lease that is over when the server goes on
BOUNDED = {"postgresql": "?connect_timeout=2", "mysql": "?read_timeout=2"}  # seconds, as URLs name them

colours = pytest.mark.parametrize("colour", ["sync", "async"])
kinds = pytest.mark.parametrize("kind", ["leased", "joined"])


@pytest.fixture(scope="module", params=["postgres", "mariadb"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with start(request.param) as server, Proxy(server.port) as proxy:
        yield Place(server, proxy)


# ------------------------------------------------------------------------ the caller waits


@dataclass
class Called:
    """One call, going on meanwhile, and a duplicate of it; and what came first."""

    shop: Shop
    function: Any
    order: int
    came: list[str] = field(default_factory=list)

    def begin(self, who: str) -> Running:
        def steps() -> Steps[Any]:
            outcome = yield self.function.outcome(self.order)
            self.came.append(who)
            return outcome

        return Running(self.shop.colour, [steps])


def check_duplicates(shop: Shop, kind: str, function: Any, where: str) -> Steps[bool]:
    """Call until the server is stopped, and a duplicate; let it go on, and see what came of both.

    False: the call has ended, and the server was not stopped.
    """
    place, called = shop.place, Called(shop, function, shop.new())
    first = called.begin("first")
    yield from until(lambda: place.stopped.is_set() or bool(called.came), where)
    if not place.stopped.is_set():
        return False
    before = place.asked
    second = called.begin("second")
    yield from shop.until_asked(before)
    called.came.append("it goes on")
    place.go_on()
    answers = [*(yield from first.results()), *(yield from second.results())]
    assert called.came[0] == "it goes on", where
    assert {answer.value for answer in answers} == {called.order * 10 + 1}, where
    assert sorted(answer.replayed for answer in answers) == [False, True], where
    assert (shop.ran(called.order), shop.effects(kind, called.order)) == (1, 1), where
    assert (yield function.outcome(called.order)).replayed, where
    return True


@kinds
@colours
def test_a_call_waits_for_a_stopped_database_and_its_duplicate_gets_the_one_result(
    place: Place, colour: Colour, kind: str
) -> None:
    """Whichever of its requests it is that the database does not answer for a while."""

    def test(shop: Shop) -> Steps[None]:
        f = shop.function(kind)
        yield f(shop.new())  # connected
        walked = 0
        for number in itertools.count(1):
            place.stop_at(number)
            if not (yield from check_duplicates(shop, kind, f, f"stopped at {number}")):
                break
            walked = number
        assert walked >= 2, "claim and completion are two requests at least"

    driven(place, colour, test)


@kinds
@colours
def test_a_database_that_is_stopped_while_the_function_runs_gets_the_completion_when_it_goes_on(
    place: Place, colour: Colour, kind: str
) -> None:
    def test(shop: Shop) -> Steps[None]:
        place.stopped.clear()
        assert (yield from check_duplicates(shop, kind, shop.function(kind, place.stop), "in the function"))

    driven(place, colour, test)


# ------------------------------------------------------------------------ an async caller is cancelled


def cancelled(shop: Shop, function: Any, order: int) -> Steps[None]:
    """Call; as soon as the server is stopped, the caller's time is over."""

    async def calling() -> None:
        async with asyncio.timeout(None) as limit:
            call = asyncio.ensure_future(function(order))
            await arun(until(lambda: shop.place.stopped.is_set() or call.done(), "the server is stopped"))
            assert not call.done()
            limit.reschedule(asyncio.get_running_loop().time())
            await call

    try:
        yield calling()
    except TimeoutError:
        return
    raise AssertionError("the caller was not cancelled")


@kinds
def test_an_async_call_is_cancelled_while_a_stopped_database_has_its_claim(place: Place, kind: str) -> None:
    """The database may find the claim when it goes on: then it is one of an owner that has gone, for a lease.

    What bounds it: psycopg asks the server twice, for five seconds each, to let go; then the claim is given back, for
    as long as a connection, or an answer, is waited for.
    """

    def test(shop: Shop) -> Steps[None]:
        f, order = shop.function(kind), shop.new()
        yield f(shop.new())
        place.stop_at(1)
        yield from cancelled(shop, f, order)
        assert shop.ran(order) == 0
        place.go_on()  # and not before: the caller has gone
        outcome = yield f.outcome(order)
        assert (outcome.value, outcome.replayed) == (order * 10 + 1, False)
        assert (yield f.outcome(order)).replayed
        assert (shop.ran(order), shop.effects(kind, order)) == (1, 1)

    driven(place, "async", test, BOUNDED[place.backend], lease=AFTERWARDS)


def test_an_async_call_is_cancelled_while_a_stopped_database_has_its_completion(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written when the database goes on, and a repeat replays."""
    # It is held up for a moment here, and not for half a minute.
    monkeypatch.setattr(Shielded.__init__, "__defaults__", (0.1, False))

    def test(shop: Shop) -> Steps[None]:
        f, order = shop.function("leased", place.stop), shop.new()
        place.stopped.clear()
        yield from cancelled(shop, f, order)
        place.go_on()
        outcome = yield f.outcome(order)
        assert (outcome.value, outcome.attempt, outcome.replayed) == (order * 10 + 1, 1, True)
        assert shop.ran(order) == 1

    driven(place, "async", test)


def test_a_cancelled_commit_is_waited_for_and_the_repeat_has_the_one_effect(place: Place) -> None:
    """A connection cannot do two things at once: the transaction comes to its end before the caller hears of it."""

    def test(shop: Shop) -> Steps[None]:
        f, order = shop.function("joined", place.stop), shop.new()
        place.stopped.clear()
        caller = asyncio.ensure_future(f(order))
        yield from until(place.stopped.is_set, "the server is stopped")
        caller.cancel()
        yield asyncio.wait({caller}, timeout=0.1)
        assert not caller.done()
        place.go_on()
        (ended,) = yield asyncio.gather(caller, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError)
        assert (yield f.outcome(order)) == Outcome(order * 10 + 1, True, str(order), 1)
        assert (shop.ran(order), shop.orders.payments(order)) == (1, 1)

    driven(place, "async", test)
