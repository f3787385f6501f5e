"""kill -9 before, between and after every request that a call makes; then the repeat.

The requests are walked on the wire until the call has ended before the next one: none is picked by hand, and one
that is added in future is covered from its first day.
"""

import os
import signal
from dataclasses import dataclass

import pytest

from idempo import OutcomeUnknownError
from idempo.contracts import Colour
from tests.faults.compositions import Composition, Stores
from tests.faults.shop import Books, Shop
from tests.faults.victims import Victim
from tests.faults.wire import Point, Wire, points

COUNTS = {
    "exactly once": {1},
    "exactly once by the probe": {1},
    "at least once": {1, 2},
    "at most once": {0, 1},
}
"""How many effects `explain()` admits; each of them has to come about at some point."""


@dataclass(frozen=True)
class Killed:
    """What is left when the process is gone, before anybody repeats the call."""

    state: str
    """Of the record: absent, running, completed."""
    told: int


def kill_at(point: Point, victim: Victim, order_no: str, wire: Wire, *, on_file: bool) -> bool:
    """Let it call; True if it died at that point, False if its call has fewer requests."""
    wire.at(point, lambda: os.kill(victim.pid, signal.SIGKILL))
    answer = victim.call(order_no, die_at=point if on_file else None)
    wire.disarm()
    victim.end()
    if answer is not None:
        assert not wire.reached, f"it lives, and says {answer}"
        assert answer == {"order_no": order_no, "number": 1}
    return answer is None


def test_after_a_kill_at_any_request_the_repeat_is_what_explain_says(
    composition: Composition,
    colour: Colour,
    stores: Stores,
    wired: Stores,
    wire: Wire,
    books: Books,
    shop: Shop,
) -> None:
    def ready(order_no: str) -> str:
        books.order(order_no)
        shop.issue(order_no)
        return order_no

    told, entries, walked = set(), set(), []
    # A SQLite file has no wire of its own: the victim counts its requests, and those on the wire, too.
    on_file = stores.database.startswith("sqlite") and "database" in composition.servers
    for ways in [(False,), (False, True)][on_file]:
        for point in points():
            name = f"{point}{'-on-file' if ways else ''}"
            victim = Victim(composition.name, colour, wired, ready(f"warm-{name}"))
            order_no = ready(f"A-{name}")
            if not kill_at(point, victim, order_no, wire, on_file=ways):
                if point.moment == "request":
                    break
                continue  # a goodbye, which has no reply
            walked.append(name)
            where = f"killed {name}"
            left = Killed(getattr(shop.lookup(order_no), "state", "absent"), books.told(order_no))
            books.end_leases()
            check_repeat(composition, shop, books, order_no, left, where)
            told.add(books.told(order_no))
            entries.add(books.entries(order_no))
    assert len(walked) >= 6, f"claim, effect and completion are three requests at least: {walked}"
    explained = shop.f.explain()
    assert told == COUNTS[explained.foreign_effects], f"{walked}"
    if composition.joined:
        assert entries == COUNTS[explained.joined_effects] == {1}


def check_repeat(
    composition: Composition, shop: Shop, books: Books, order_no: str, left: Killed, where: str
) -> None:
    orphaned = left.state == "running" and not composition.joined
    if orphaned and composition.on_orphan == "refuse":
        for _ in range(2):
            refused(shop, order_no, where)
        assert books.told(order_no) == left.told, where
        return
    first = shop.call(order_no)
    found = orphaned and composition.on_orphan == "probe" and left.told == 1
    runs = 0 if left.state == "completed" or found else 1
    assert books.told(order_no) == left.told + runs, where
    assert first.value == {"order_no": order_no, "number": left.told + runs}, where
    assert first.replayed == (left.state == "completed"), where
    again = shop.call(order_no)
    assert (again.value, again.replayed) == (first.value, True), where
    if composition.joined:
        assert books.entries(order_no) == 1, where


def refused(shop: Shop, order_no: str, where: str) -> None:
    with pytest.raises(OutcomeUnknownError) as caught:
        shop.call(order_no)
    assert caught.value.ran is None, where
