"""A joined function that fails in the caller's ORM session: all of the caller's is as it was, rows and objects."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import String, delete, make_url, select, text, update
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.orm import Mapped, mapped_column

from idempo import ConfigurationError, StateGuard, UniqueInsert, VersionCheck
from idempo.contracts import Colour, Strategy
from idempo.steps import Steps
from tests.servers import Server, fresh_database
from tests.traps.support import Base, Declined, Order, Serial, Shop, create_tables, driven, shop_database

servers = pytest.mark.parametrize("place", ["sqlite", "postgres", "mariadb", "mysql"])
colours = pytest.mark.parametrize("colour", ["sync", "async"])


@pytest.fixture
def server(place: str, request: pytest.FixtureRequest) -> Server:
    server: Server = request.getfixturevalue(place)
    return server


@pytest.fixture
def url(place: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if place == "sqlite":
        at = f"sqlite:///{tmp_path_factory.mktemp('orm')}/shop.db"
        create_tables(at)
        return at
    server: Server = request.getfixturevalue(place)
    return shop_database(server)


def named(order_no: str, session: Any) -> Steps[Any]:
    yield None
    return order_no


def failing_flush(session: Any) -> Steps[None]:
    session.add(Serial(number="taken"))
    yield session.flush()


def pending_at_the_end(session: Any) -> Steps[None]:
    session.add(Serial(number="taken"))
    yield None


@servers
@colours
@pytest.mark.parametrize("fails", [failing_flush, pending_at_the_end])
def test_a_flush_that_fails_undoes_the_function_and_nothing_of_the_callers(
    url: str, colour: Colour, fails: Callable[[Any], Steps[None]]
) -> None:
    """Not an earlier call either, whose first result the caller has in its hands."""

    def test(shop: Shop) -> Steps[None]:
        def body(order_no: str, session: Any) -> Steps[Any]:
            session.add(Order(order_no=order_no))
            if order_no == "bad":
                yield from fails(session)
            return order_no

        f = shop.decorate(body)
        session = shop.sessions()
        session.add(Serial(number="taken"))
        yield session.flush()
        assert (yield f("first", session=session)) == "first"
        for _ in range(2):
            with pytest.raises(IntegrityError):
                yield f("bad", session=session)
        assert (yield f("last", session=session)) == "last"
        assert (yield f.outcome("first", session=session)).replayed
        yield session.commit()
        yield session.close()
        assert [shop.orders(one) for one in ("first", "bad", "last")] == [1, 0, 1]
        assert shop.scalar("SELECT count(*) FROM serials") == 1
        assert (yield f.outcome("first")).replayed
        assert (yield f.lookup("bad")) is None

    driven(url, colour, test)


def by_update(session: Any, order: Order) -> Steps[None]:
    yield session.execute(update(Order).where(Order.id == order.id).values(order_no="changed"))


def by_attribute(session: Any, order: Order) -> Steps[None]:
    order.order_no = "changed"
    yield session.flush()


def by_delete(session: Any, order: Order) -> Steps[None]:
    deleted = session.delete(order)
    if hasattr(deleted, "__await__"):
        yield deleted
    yield session.flush()


def by_bulk_delete(session: Any, order: Order) -> Steps[None]:
    yield session.execute(delete(Order).where(Order.id == order.id))


@servers
@colours
@pytest.mark.parametrize("change", [by_update, by_attribute, by_delete, by_bulk_delete])
def test_an_object_of_the_callers_is_as_the_row_is_after_a_failed_function(
    url: str, colour: Colour, change: Callable[[Any, Order], Steps[None]]
) -> None:
    """So what the caller writes to it afterwards is not lost, whatever it is."""

    def test(shop: Shop) -> Steps[None]:
        def body(order_no: str, session: Any) -> Steps[Any]:
            (found,) = (yield session.execute(select(Order))).scalars().all()
            yield from change(session, found)
            raise Declined(order_no)

        f = shop.decorate(body)
        session = shop.sessions()
        order = Order(order_no="new")
        session.add(order)
        yield session.flush()
        with pytest.raises(Declined):
            yield f("A-1", session=session)
        assert order in session
        yield session.refresh(order)
        assert order.order_no == "new"
        order.order_no = "changed"
        yield session.commit()
        yield session.close()
        assert (shop.orders(), shop.orders("changed")) == (1, 1)

    driven(url, colour, test)


@servers
@colours
def test_a_line_of_an_order_that_fails_leaves_the_others(url: str, colour: Colour) -> None:
    """One decorated function calls another for each line, in its own transaction, and goes on where one fails."""

    def test(shop: Shop) -> Steps[None]:
        def line(order_no: str, session: Any) -> Steps[Any]:
            session.add(Order(order_no=order_no))
            if order_no == "bad":
                yield from failing_flush(session)
            return order_no

        def whole(order_no: str, session: Any) -> Steps[Any]:
            session.add(Serial(number="taken"))
            placed = []
            for one in ("first", "bad", "last"):
                try:
                    placed.append((yield of_line(one, session=session)))
                except IntegrityError:
                    placed.append("refused")
            return placed

        of_line = shop.decorate(line, name=f"{shop.name}.line")
        f = shop.decorate(whole)
        assert (yield f("A-1")) == ["first", "refused", "last"]
        assert (yield f.outcome("A-1")).replayed
        assert [shop.orders(one) for one in ("first", "bad", "last")] == [1, 0, 1]

    driven(url, colour, test)


@servers
@colours
def test_replays_in_open_transactions_wait_for_nobody(url: str, colour: Colour) -> None:
    """Neither for another replay, nor for another transaction that writes something else."""

    def test(shop: Shop) -> Steps[None]:
        def body(order_no: str, session: Any) -> Steps[Any]:
            session.add(Order(order_no=order_no))
            yield None
            return order_no

        f = shop.decorate(body, wait=0)
        assert (yield f("A")) == "A"
        assert (yield f("B")) == "B"
        one, other, writer = shop.sessions(), shop.sessions(), shop.sessions()
        writer.add(Serial(number="open"))
        yield writer.flush()
        for session, first, second in ((one, "A", "B"), (other, "B", "A")):
            assert (yield f.outcome(first, session=session)).replayed
            assert (yield f.outcome(second, session=session)).replayed
        for session in (one, other, writer):
            yield session.commit()
            yield session.close()

    driven(url, colour, test)


@pytest.mark.parametrize("place", ["postgres", "mariadb", "mysql"])  # SQLite has one writer at a time
@colours
def test_a_function_that_failed_in_an_open_transaction_holds_up_no_other_key(
    url: str, colour: Colour
) -> None:
    def test(shop: Shop) -> Steps[None]:
        def body(order_no: str, session: Any) -> Steps[Any]:
            session.add(Order(order_no=order_no))
            yield session.flush()
            if order_no == "bad":
                raise Declined(order_no)
            return order_no

        f = shop.decorate(body)
        session = shop.sessions()
        with pytest.raises(Declined):
            yield f("bad", session=session)
        assert (yield f("elsewhere")) == "elsewhere"
        assert (yield f("here", session=session)) == "here"
        yield session.commit()
        yield session.close()
        assert shop.orders() == 2

    driven(url, colour, test)


class Moved(Base):
    """A business row that guards judge."""

    __tablename__ = "moved"
    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(String(20), default="new")
    version: Mapped[int] = mapped_column(default=1)


def state_guard() -> tuple[Strategy, str, Any]:
    return (
        StateGuard(Moved.state, {Moved.id: lambda order_no: 1}, {"new": ["paid"]}, to="paid", join="session"),
        "state",
        "new",
    )


def version_check() -> tuple[Strategy, str, Any]:
    return VersionCheck(Moved.version, {Moved.id: lambda order_no: 1}, join="session"), "version", 1


@servers
@colours
@pytest.mark.parametrize("guard", [state_guard, version_check])
@pytest.mark.parametrize("around", ["a savepoint of the caller's", "a decorated function"])
def test_what_a_guard_showed_is_read_again_when_a_savepoint_around_it_is_undone(
    url: str, colour: Colour, guard: Callable[[], tuple[Strategy, str, Any]], around: str
) -> None:
    """Otherwise SQLAlchemy would take what the caller writes then for no change."""
    strategy, attribute, before = guard()

    def test(shop: Shop) -> Steps[None]:
        def whole(order_no: str, session: Any) -> Steps[Any]:
            yield guarded(order_no, session=session)
            raise Declined(order_no)

        guarded = shop.decorate(named, using=[UniqueInsert(join="session"), strategy], name=f"{shop.name}.in")
        f = shop.decorate(whole)
        session = shop.sessions()
        row = Moved(id=1, state="new", version=1)
        session.add(row)
        yield session.flush()
        if around == "a decorated function":
            with pytest.raises(Declined):
                yield f("A-1", session=session)
        else:
            savepoint = session.begin_nested()
            if colour == "async":
                savepoint = yield savepoint
            yield guarded("A-1", session=session)
            now = {"state": "paid", "version": 2}[attribute]
            assert vars(row)[attribute] == now
            yield savepoint.rollback()
        assert attribute not in vars(row)
        yield session.refresh(row)
        assert getattr(row, attribute) == before
        yield session.rollback()
        yield session.close()

    driven(url, colour, test)


@pytest.mark.parametrize("place", ["postgres", "mariadb", "mysql"])
@colours
@pytest.mark.parametrize("how", ["leased", "joined", "the caller's session"])
def test_records_are_in_the_schema_that_the_engine_translates_to(
    url: str, server: Server, colour: Colour, how: str
) -> None:
    """So two tenants with a schema each have each their own first result."""
    north, south = (make_url(fresh_database(server)).database for _ in range(2))
    if server.kind == "postgres":  # there, those are other databases
        north, south = "north", "south"

    def test(shop: Shop) -> Steps[None]:
        with shop.outside.connect() as connection:
            for name in (north, south) if server.kind == "postgres" else ():
                connection.execute(text(f"CREATE SCHEMA {name}"))

        def body(order_no: str, session: Any) -> Steps[Any]:
            yield None
            runs.append(order_no)
            return len(runs)

        runs: list[str] = []
        for number, schema in enumerate((north, south), start=1):
            engine = shop.engine.execution_options(schema_translate_map={None: schema})
            ledger = UniqueInsert(engine, join=None if how == "leased" else "session")
            yield ledger.create_schema()
            f = shop.decorate(body, using=ledger, name="tenants")
            for replayed in (False, True):
                session = shop.sessions(bind=engine) if how == "the caller's session" else None
                outcome = yield f.outcome("A-1", session=session)
                assert (outcome.value, outcome.replayed) == (number, replayed)
                if session is not None:
                    yield session.commit()
                    yield session.close()
        with shop.outside.connect() as connection:
            for name in (north, south):
                assert connection.execute(text(f"SELECT count(*) FROM {name}.idempo_records")).scalar() == 1

    driven(url, colour, test)


@servers
@colours
def test_a_session_of_no_use_is_the_callers_to_mend_and_no_outage(url: str, colour: Colour) -> None:
    def test(shop: Shop) -> Steps[None]:
        f = shop.decorate(named)
        session = shop.sessions()
        session.add_all([Serial(number="twice"), Order(id=1, order_no="one")])
        yield session.flush()
        session.add(Order(id=1, order_no="other"))
        with pytest.raises(IntegrityError):
            yield session.flush()
        with pytest.raises(ConfigurationError, match="roll") as told:
            yield f("A-1", session=session)
        assert told.value.ran is False
        yield session.rollback()
        assert (yield f("A-1", session=session)) == "A-1"
        yield session.commit()
        yield session.close()

    driven(url, colour, test)


@pytest.mark.parametrize("place", ["postgres"])
@colours
def test_a_transaction_that_has_failed_is_the_callers_to_roll_back(url: str, colour: Colour) -> None:
    def test(shop: Shop) -> Steps[None]:
        f = shop.decorate(named)
        connection = shop.engine.connect()
        if colour == "async":
            connection = yield connection
        with pytest.raises(ProgrammingError):
            yield connection.execute(text("SELECT * FROM nothing"))
        with pytest.raises(ConfigurationError, match="failed already"):
            yield f("A-1", session=connection)
        yield connection.rollback()
        assert (yield f("A-1", session=connection)) == "A-1"
        yield connection.commit()
        yield connection.close()

    driven(url, colour, test)
