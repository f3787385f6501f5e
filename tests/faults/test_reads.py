"""`ReadOnly` under the same faults: kill -9 at every request, and the loss of every request and every reply."""

from typing import Any

import pytest
from sqlalchemy.exc import SQLAlchemyError

from idempo import IdempoError
from idempo.records import Outcome
from tests.faults.compositions import Composition, Stores
from tests.faults.conftest import READING, Case
from tests.faults.shop import Books, Shop
from tests.faults.test_crashes import kill_at
from tests.faults.victims import Victim
from tests.faults.wire import Wire, points


def check_read(shop: Shop, books: Books, order_no: str, where: str) -> None:
    """Nothing was written, and a repeat reads."""
    assert (books.row(order_no), books.entries(order_no), books.told(order_no)) == (("new", 1), 0, 0), where
    for _ in range(2):
        outcome = shop.call(order_no)
        assert (outcome.value, outcome.replayed) == ({"order_no": order_no, "number": 1}, False), where


@pytest.mark.parametrize("case", READING, ids=str, indirect=True)
def test_after_a_kill_at_any_request_of_a_read_nothing_was_written_and_the_repeat_reads(
    composition: Composition, case: Case, stores: Stores, wired: Stores, wire: Wire, books: Books, shop: Shop
) -> None:
    walked = []
    on_file = case.database == "sqlite"
    books.order("warm")
    for point in points():
        books.order(order_no := f"A-{point}")
        victim = Victim(composition.name, case.colour, wired, "warm")
        if not kill_at(point, victim, order_no, wire, on_file=on_file):
            if point.moment == "request":
                break
            continue
        walked.append(str(point))
        check_read(shop, books, order_no, f"killed {point}")
        shop.write(order_no)  # nothing is locked, and nothing is forbidden
        assert books.entries(order_no) == 1
    assert len(walked) >= 2, f"a read is one request at least: {walked}"


@pytest.mark.parametrize(
    "case", [case for case in READING if case.database != "sqlite"], ids=str, indirect=True
)
def test_after_a_lost_request_or_reply_of_a_read_its_pool_can_be_read_from_and_written_to(
    case: Case, stores: Stores, wired: Stores, wire: Wire, books: Books
) -> None:
    caller = Shop(case.composition, case.colour, wired)
    walked = []
    books.order("warm")
    for point in points():
        books.order(order_no := f"A-{point}")
        caller.call("warm")
        wire.at(point)
        answer: Any
        try:
            answer = caller.call(order_no)
        except (IdempoError, SQLAlchemyError) as error:
            answer = error
        wire.disarm()
        if not wire.reached:
            assert isinstance(answer, Outcome)
            if point.moment == "request":
                break
            continue
        walked.append(f"{point} {type(answer).__name__}")
        check_read(caller, books, order_no, walked[-1])
        assert caller.connections_in_use == 0, f"{walked[-1]}: its pool has lost a connection"
        caller.write(order_no)
        assert books.entries(order_no) == 1, walked[-1]
    caller.close()
    assert len(walked) >= 2, f"a read is one request at least: {walked}"
