"""A MariaDB or MySQL primary is made read-only while it runs, as by an orchestrator that promotes another server.

MySQL manual, "read_only": accounts without a right of their own to go on writing get error 1290. Connections stay open.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from idempo import Event, LedgerUnavailableError, OutcomeUnknownError, UniqueInsert
from idempo.contracts import Colour
from idempo.steps import Steps
from idempo.testing import Effects, drive
from tests.faults.answers import tried
from tests.servers import Server, start
from tests.traps.support import Shop, decorated, place, shop_database

ORDINARY = "clerk"  # without the right to write on a read-only server


@dataclass(frozen=True)
class Primary:
    """A server that an orchestrator may demote, and a database of its own for whoever calls."""

    server: Server
    url: str
    colour: Colour

    def demote(self, demoted: bool) -> None:
        engine = create_engine(self.server.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"SET GLOBAL read_only = {int(demoted)}"))


@pytest.fixture(scope="module", params=[("mariadb", "sync"), ("mysql", "async")], ids="-".join)
def primary(request: pytest.FixtureRequest) -> Iterator[Primary]:
    kind, colour = request.param
    with start(kind) as server:
        url = shop_database(server)
        engine = create_engine(server.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE USER {ORDINARY}@'127.0.0.1'"))
            rights = "SELECT, INSERT, UPDATE, DELETE"
            connection.execute(
                text(f"GRANT {rights} ON {make_url(url).database}.* TO {ORDINARY}@'127.0.0.1'")
            )
        ours = make_url(url).set(username=ORDINARY).render_as_string(hide_password=False)
        yield Primary(server, ours, colour)


class Caller:
    """Functions of one colour, leased and joined, over pooled connections."""

    def __init__(self, primary: Primary) -> None:
        self.shop = Shop(primary.url, primary.colour, pool_size=1, max_overflow=0)
        self.ledger = UniqueInsert(primary.url)
        self.effects = Effects()
        self._colour: Colour = primary.colour

    def leased(self, last: Callable[[], None] = lambda: None, **terms: Any) -> Any:
        def body(key: str) -> Steps[int]:
            self.effects.add(key)
            last()
            yield from ()
            return self.effects.of(key)

        return decorated(body, self._colour, **({"using": self.ledger, "wait": 0, "name": "leased"} | terms))

    def joined(self, last: Callable[[], None] = lambda: None) -> Any:
        def body(key: str, session: Any) -> Steps[int]:
            yield from place(key, session)
            self.effects.add(key)
            last()
            return self.effects.of(key)

        return self.shop.decorate(body)

    def close(self) -> Steps[None]:
        yield self.shop.close()
        yield self.ledger.close()


def driven(primary: Primary, test: Callable[[Caller], Steps[None]]) -> None:
    def whole() -> Steps[None]:
        caller = Caller(primary)
        try:
            yield from test(caller)
        finally:
            primary.demote(False)
            yield from caller.close()

    drive(primary.colour, whole())


@pytest.mark.parametrize("name", ["leased", "joined"])
def test_a_primary_that_was_made_read_only_takes_no_claim_over_an_open_connection(
    primary: Primary, name: str
) -> None:
    def test(caller: Caller) -> Steps[None]:
        f = getattr(caller, name)()
        yield f(f"{name} known")
        primary.demote(True)
        error = yield from tried(lambda: f(f"{name} new"))
        assert type(error) is LedgerUnavailableError, error
        assert error.ran is False
        assert "read-only" in str(error.__cause__)
        assert caller.effects.of(f"{name} new") == 0
        primary.demote(False)
        assert (yield f.outcome(f"{name} new")).attempt == 1
        assert (yield f.outcome(f"{name} known")).replayed

    driven(primary, test)


def test_a_completion_on_a_read_only_primary_is_tried_again_until_it_takes_writes(primary: Primary) -> None:
    def test(caller: Caller) -> Steps[None]:
        refused = Effects()

        def hook(event: Event) -> None:
            if event.detail.startswith("completion") and refused.add(event.detail) == 2:
                primary.demote(False)

        f = caller.leased(functools.partial(primary.demote, True), hooks=[hook])
        assert (yield f("completes")) == 1
        assert len(refused) == 2
        assert (yield f.outcome("completes")).replayed

    driven(primary, test)


def test_a_completion_on_a_primary_that_stays_read_only_makes_the_outcome_unknown(primary: Primary) -> None:
    def test(caller: Caller) -> Steps[None]:
        f = caller.leased(functools.partial(primary.demote, True), lease=0.5)
        error = yield from tried(lambda: f("stays"))
        assert type(error) is OutcomeUnknownError, error
        assert (error.ran, error.result) == (None, 1)

    driven(primary, test)


def test_a_transaction_that_meets_a_read_only_primary_fails_as_a_whole_and_its_repeat_has_the_one_effect(
    primary: Primary,
) -> None:
    def test(caller: Caller) -> Steps[None]:
        f = caller.joined(functools.partial(primary.demote, True))
        error = yield from tried(lambda: f("inside"))
        assert isinstance(error, LedgerUnavailableError), error
        assert error.ran is True
        assert isinstance(error.__cause__, DBAPIError)
        assert "read-only" in str(error.__cause__)
        primary.demote(False)
        assert caller.shop.orders("inside") == 0
        again = caller.joined()
        assert (yield again("inside")) == 2
        assert (yield again.outcome("inside")).replayed
        assert caller.shop.orders("inside") == 1

    driven(primary, test)
