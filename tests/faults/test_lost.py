"""Each request of a call, or the reply to it, is lost once; then the call is repeated.

The requests are walked on the wire, as in `test_crashes`. The function's message to the other system is not among them:
what becomes of that one is the function's own affair.
"""

from dataclasses import replace
from typing import Any

import pytest
import redis.asyncio.retry
import redis.retry
from redis.backoff import NoBackoff
from sqlalchemy.exc import DBAPIError

from idempo import IdempoError, LedgerUnavailableError, OutcomeUnknownError
from idempo.records import Outcome
from tests.faults.compositions import COMPOSITIONS, Composition, Stores
from tests.faults.conftest import CASES, ON_CLUSTER, Case
from tests.faults.shop import Books, Shop
from tests.faults.wire import Wire, points

ASYNC_MARIADB = [
    Case(composition, "mariadb", "valkey", "async")
    for composition in COMPOSITIONS
    if "database" in composition.servers  # its driver has more requests to lose than the others
]
ON_THE_WIRE = [case for case in CASES if case.database != "sqlite" or "redis" in case.composition.servers]
SENT_ONCE = [
    replace(case, sends_again=False)
    for case in CASES
    if "redis" in case.composition.servers and case.database == "postgres"
]


@pytest.mark.parametrize("case", ON_THE_WIRE + ON_CLUSTER + ASYNC_MARIADB + SENT_ONCE, ids=str, indirect=True)
def test_after_a_lost_request_or_reply_there_is_one_effect_and_one_result(
    case: Case, stores: Stores, wired: Stores, wire: Wire, books: Books, shop: Shop
) -> None:
    composition = case.composition
    kind: Any = redis.retry if case.colour == "sync" else redis.asyncio.retry
    client = {} if case.sends_again else {"retry": kind.Retry(NoBackoff(), 0)}
    caller = Shop(composition, case.colour, replace(wired, elsewhere=stores.elsewhere), **client)

    def ready(order_no: str) -> str:
        books.order(order_no)
        shop.issue(order_no)
        return order_no

    walked = []
    caller.connect()
    for point in points():
        caller.call(ready(f"warm-{point}"))
        order_no = ready(f"A-{point}")
        wire.at(point)
        answer = answer_of(caller, order_no)
        wire.disarm()
        if not wire.reached:
            assert isinstance(answer, Outcome)
            if point.moment == "request":
                break
            continue  # a goodbye, which has no reply
        walked.append(f"{point} {answer if isinstance(answer, Outcome) else type(answer).__name__}")
        check_answer(composition, books, order_no, answer, walked[-1])
        books.end_leases()
        check_repeat(composition, shop, books, order_no, answer, walked[-1])
        assert caller.connections_in_use == 0, f"{walked[-1]}: its pool has lost a connection"
    caller.close()
    assert len(walked) >= 4, f"claim and completion are two requests at least: {walked}"


def answer_of(caller: Shop, order_no: str) -> Outcome[Any] | Exception:
    try:
        return caller.call(order_no)
    except (IdempoError, DBAPIError, OSError) as error:
        return error


def check_answer(
    composition: Composition, books: Books, order_no: str, answer: Outcome[Any] | Exception, where: str
) -> None:
    told = books.told(order_no)
    match answer:
        case Outcome():
            assert (answer.value, told) == ({"order_no": order_no, "number": 1}, 1), where
        case IdempoError(ran=False):
            assert told == 0, where
        case IdempoError(ran=None):
            pass
        case LedgerUnavailableError(ran=True):
            # A guard that asks once more at the end; what the function wrote is undone.
            assert (composition.joined, told) == (True, 1), where
            assert "after the function had run" in str(answer), where
        case _:
            # The caller's own transaction, or the function's own statement in it.
            assert composition.joined, f"{where}: {answer!r}"
            assert isinstance(answer, DBAPIError), f"{where}: {answer!r}"


def check_repeat(
    composition: Composition,
    shop: Shop,
    books: Books,
    order_no: str,
    answer: Outcome[Any] | Exception,
    where: str,
) -> None:
    before = books.told(order_no)
    try:
        first = shop.call(order_no)
    except OutcomeUnknownError:
        assert composition.on_orphan == "refuse", where
        assert not isinstance(answer, Outcome), where
        assert books.told(order_no) == before <= 1, where
        return
    if isinstance(answer, Outcome):
        assert (first.value, first.replayed) == (answer.value, True), where
    assert books.told(order_no) == before + (not first.replayed), where
    again = shop.call(order_no)
    assert (again.value, again.replayed) == (first.value, True), where
    if composition.joined:
        assert books.entries(order_no) == 1, where
