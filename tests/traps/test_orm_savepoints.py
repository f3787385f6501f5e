"""The savepoint that a claim brings along to PostgreSQL is SQLAlchemy's own, whatever is done in the transaction."""

from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError

from idempo.contracts import Colour
from idempo.steps import Steps
from tests.servers import Server
from tests.traps.support import Order, Serial, Shop, driven, shop_database

colours = pytest.mark.parametrize("colour", ["sync", "async"])


@pytest.fixture
def url(postgres: Server) -> str:
    return shop_database(postgres)


def write(session: Any, order_no: str) -> Steps[None]:
    session.add(Order(order_no=order_no))
    yield session.flush()


def fail_to_flush(session: Any) -> Steps[None]:
    session.add(Serial(number="taken"))
    with pytest.raises(IntegrityError):
        yield session.flush()


def behind_its_own_savepoint(session: Any) -> Steps[None]:
    nested = session.begin_nested()
    if hasattr(nested, "start"):
        yield nested.start()
    yield from fail_to_flush(session)
    yield nested.rollback()


@colours
@pytest.mark.parametrize("comment", ["", " /* traced */"])
def test_a_function_that_mends_its_own_failed_flush_is_recorded(
    url: str, colour: Colour, comment: str
) -> None:
    """Also where a tool writes a comment behind each statement."""

    def test(shop: Shop) -> Steps[None]:
        engine = getattr(shop.engine, "sync_engine", shop.engine)

        @event.listens_for(engine, "before_cursor_execute", retval=True)
        def _(_c: Any, _u: Any, statement: str, values: Any, _x: Any, _m: Any) -> tuple[str, Any]:
            return statement + comment, values

        def body(order_no: str, session: Any) -> Steps[Any]:
            yield from behind_its_own_savepoint(session)
            yield from write(session, order_no)
            return order_no

        f = shop.decorate(body)
        session = shop.sessions()
        session.add(Serial(number="taken"))
        yield from write(session, "the caller's")
        for order_no in ("one", "two"):
            assert not (yield f.outcome(order_no, session=session)).replayed
            assert (yield f.outcome(order_no, session=session)).replayed
        yield session.commit()
        yield session.close()
        assert [shop.orders(one) for one in ("the caller's", "one", "two")] == [1, 1, 1]

    driven(url, colour, test)


@colours
@pytest.mark.parametrize("ends", ["returns", "replays", "raises", "commits"])
def test_a_savepoint_of_the_callers_after_a_call_undoes_what_is_behind_it_and_no_more(
    url: str, colour: Colour, ends: str
) -> None:
    def test(shop: Shop) -> Steps[None]:
        def body(order_no: str, session: Any) -> Steps[Any]:
            yield from write(session, order_no)
            if ends == "commits":
                yield session.commit()
            elif ends == "raises":
                raise ValueError(order_no)
            return order_no

        f = shop.decorate(body)
        session = shop.sessions()
        for number in range(3):
            try:
                yield f(f"call {number}", session=session)
                if ends == "replays":
                    yield f(f"call {number}", session=session)
            except ValueError:
                assert ends == "raises"
            yield from write(session, f"before {number}")
            nested = session.begin_nested()
            if hasattr(nested, "start"):
                yield nested.start()
            yield from write(session, f"behind {number}")
            yield nested.rollback()
            yield from write(session, f"after {number}")
        yield session.commit()
        yield session.close()
        kept = 0 if ends == "raises" else 3
        assert sum(shop.orders(f"call {number}") for number in range(3)) == kept
        assert sum(shop.orders(f"before {number}") for number in range(3)) == 3
        assert sum(shop.orders(f"behind {number}") for number in range(3)) == 0
        assert sum(shop.orders(f"after {number}") for number in range(3)) == 3

    driven(url, colour, test)


@colours
def test_a_call_within_a_call_fails_alone(url: str, colour: Colour) -> None:
    def test(shop: Shop) -> Steps[None]:
        def inner(order_no: str, session: Any) -> Steps[Any]:
            yield from write(session, order_no)
            session.add(Serial(number="taken"))
            yield session.flush()

        nested = shop.decorate(inner, name="inner")

        def outer(order_no: str, session: Any) -> Steps[Any]:
            yield from write(session, order_no)
            with pytest.raises(IntegrityError):
                yield nested("inner", session=session)
            yield from write(session, f"{order_no}, later")
            return order_no

        f = shop.decorate(outer, name="outer")
        session = shop.sessions()
        session.add(Serial(number="taken"))
        yield session.flush()
        assert (yield f("outer", session=session)) == "outer"
        yield session.commit()
        yield session.close()
        assert [shop.orders(one) for one in ("outer", "inner", "outer, later")] == [1, 0, 1]

    driven(url, colour, test)
