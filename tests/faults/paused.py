"""A database that stops in the middle of a call, and goes on: where it stops is a request on the wire."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import insert, make_url

from idempo import INJECTED, UniqueInsert, idempotent
from idempo.contracts import Colour
from idempo.steps import Steps, arun, run
from idempo.testing import Effects, drive
from tests.faults.proxy import Moment, Proxy
from tests.guards.support import Payment, create_tables
from tests.guards.support import Shop as Orders
from tests.servers import Server, fresh_database
from tests.traps.support import until

__all__ = ["Place", "Shop", "driven"]


class Place:
    """A database of ours, and the way to it, on which it can be stopped before it has the request with a number."""

    def __init__(self, server: Server, proxy: Proxy) -> None:
        self._server, self._proxy = server, proxy
        self.database = fresh_database(server)
        create_tables(self.database)
        self.url = make_url(self.database).set(port=proxy.port).render_as_string(hide_password=False)
        self.stopped = threading.Event()
        self._left: int | None = None
        proxy.watch = self._passing

    def stop_at(self, number: int) -> None:
        """Stop the server just before it gets this request, counted from now."""
        self.stopped.clear()
        self._left = number

    def stop(self) -> None:
        self._server.pause()
        self.stopped.set()

    def go_on(self) -> None:
        self._left = None
        self._server.resume()

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """However it ends, the server goes on."""
        try:
            yield
        finally:
            self.go_on()

    @property
    def asked(self) -> int:
        """How often it has been asked for something: a connection, or an answer."""
        return self._proxy.connections + self._proxy.requests

    @property
    def backend(self) -> str:
        return make_url(self.url).get_backend_name()

    @property
    def connections(self) -> int:
        return self._proxy.connections

    def _passing(self, moment: Moment) -> bool:
        if moment == "request" and self._left is not None:
            self._left -= 1
            if self._left == 0:
                self._left = None
                self.stop()
        return False


class Shop:
    """A function under each kind of record, with engines that idempo makes from one URL, and what it has done."""

    def __init__(self, place: Place, colour: Colour, query: str = "", **terms: Any) -> None:
        self.place = place
        self.colour: Colour = colour
        self.orders = Orders(place.database, colour)
        self.orders.empty()
        self.runs, self.told = Effects(), Effects()
        self.records = {
            "leased": UniqueInsert(place.url + query),
            "joined": UniqueInsert(place.url + query, join="session"),
        }
        self._terms: dict[str, Any] = {"key": "{order}", "wait": 30} | terms
        self._orders = 0

    def function(self, kind: str, last: Callable[[], Any] = lambda: None, **terms: Any) -> Any:
        """Decorate a function that pays an order, notes that it ran, and does `last` in its last line."""

        def body(order: int, session: Any) -> Steps[int]:
            if session is not None:
                yield session.execute(insert(Payment).values(order_id=order, no=kind))
            self.runs.add(str(order))
            yield last()
            return order * 10 + self.ran(order)

        def plain(order: int) -> int:
            return run(body(order, None))

        def plain_joined(order: int, session: Any = INJECTED) -> int:
            return run(body(order, session))

        async def coroutine(order: int) -> int:
            return await arun(body(order, None))

        async def coroutine_joined(order: int, session: Any = INJECTED) -> int:
            return await arun(body(order, session))

        functions: dict[Any, Any] = {
            ("sync", "leased"): plain,
            ("sync", "joined"): plain_joined,
            ("async", "leased"): coroutine,
            ("async", "joined"): coroutine_joined,
        }
        named: Any = {"using": self.records[kind], "name": f"{self.orders.name}.{kind}"}
        return idempotent(**(named | self._terms | terms))(functions[self.colour, kind])

    def new(self) -> int:
        """The number of another order."""
        self._orders += 1
        return self._orders

    def ran(self, order: int) -> int:
        return self.runs.of(str(order))

    def effects(self, kind: str, order: int) -> int:
        """What has come of it: committed payments, or else runs."""
        return self.orders.payments(order) if kind == "joined" else self.ran(order)

    def until_asked(self, before: int) -> Steps[None]:
        """Wait until somebody has asked the database more than so often."""
        yield from until(lambda: self.place.asked > before, "a request to the database")

    def close(self) -> Steps[None]:
        for records in self.records.values():
            yield records.close()
        yield from self.orders.close()


def driven(
    place: Place, colour: Colour, test: Callable[[Shop], Steps[None]], query: str = "", **terms: Any
) -> None:
    """Take the steps of a test in a shop of a colour; however they end, the database goes on."""

    def whole() -> Steps[None]:
        shop = Shop(place, colour, query, **terms)
        try:
            with place.going_on():
                yield from test(shop)
        finally:
            yield from shop.close()

    drive(colour, whole())
