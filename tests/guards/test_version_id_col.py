"""`VersionCheck` beside SQLAlchemy's own `version_id_col`: one step for each call, and one error for one conflict."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import ForeignKey, String, create_engine, delete, insert, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.pool import NullPool

from idempo import RowMissingError, StateGuard, VersionCheck, VersionConflictError
from idempo.steps import Steps
from idempo.testing import Effects
from tests.guards.support import OURS, SESSION, Declined, Shop, callers, driven, nothing, on, sync_only
from tests.guards.support_rows import versioned
from tests.traps.support import caught

servers = on("postgres", "mariadb")


class Base(DeclarativeBase):
    pass


class Page(Base):
    """SQLAlchemy counts its version at each UPDATE that it sends."""

    __tablename__ = "pages"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    title: Mapped[str] = mapped_column(String(100), default="")
    body: Mapped[str] = mapped_column(String(100), default="")
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012


class Mark(Base):
    """Another table that SQLAlchemy counts."""

    __tablename__ = "marks"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    page_id: Mapped[int] = mapped_column(ForeignKey("pages.id"))
    title: Mapped[str] = mapped_column(String(100), default="")
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012


@pytest.fixture(autouse=True)
def tables(request: pytest.FixtureRequest) -> Iterator[None]:
    """Page 1 in version 1, and mark 1 as well."""
    engine = create_engine(request.getfixturevalue("database"), poolclass=NullPool)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(Page).values(id=1, version=1))
        connection.execute(insert(Mark).values(id=1, page_id=1, version=1))
    yield
    with engine.begin() as connection:
        connection.execute(delete(Mark))
        connection.execute(delete(Page))


def guard(shop: Shop, **options: Any) -> VersionCheck:
    terms: Any = {"column": Page.version, "where": {Page.id: "{order_id}"}, "engine": shop.engine}
    return VersionCheck(**(terms | options))


def row(shop: Shop, kind: Any = Page) -> Any:
    """`(version, title)` as committed; None where there is none."""
    with shop.outside.connect() as connection:
        found = connection.execute(select(kind.version, kind.title).where(kind.id == 1)).one_or_none()
        return None if found is None else tuple(found)


def put(shop: Shop, kind: Any = Page, **columns: Any) -> None:
    with shop.outside.connect() as connection:
        connection.execute(update(kind).where(kind.id == 1).values(**columns))


# ------------------------------------------------------------------------ one step, whatever the function does


def by_orm(order_id: int, payment: str, session: Any) -> Steps[None]:
    page = yield session.get(Page, order_id)
    page.title = payment


def by_orm_flushed(order_id: int, payment: str, session: Any) -> Steps[None]:
    yield from by_orm(order_id, payment, session)
    yield session.flush()


def by_core(order_id: int, payment: str, session: Any) -> Steps[None]:
    yield session.execute(update(Page.__table__).where(Page.id == order_id).values(title=payment))  # type: ignore[arg-type]


def elsewhere(order_id: int, payment: str, session: Any) -> Steps[None]:
    mark = yield session.get(Mark, order_id)
    mark.title = payment


def not_at_all(order_id: int, payment: str, session: Any) -> Steps[None]:
    yield session.get(Page, order_id)


BODIES = {
    "ORM": by_orm,
    "flushed": by_orm_flushed,
    "Core": by_core,
    "elsewhere": elsewhere,
    "nothing": not_at_all,
}


@pytest.mark.parametrize("caller", [OURS, SESSION])
@pytest.mark.parametrize("expected", ["{version}", None])
@pytest.mark.parametrize("way", BODIES)
@sync_only
@driven
def test_one_call_is_one_step_whoever_counts(
    shop: Shop, caller: str, expected: str | None, way: str
) -> Steps[None]:
    f = versioned(shop, BODIES[way], guard(shop, expected=expected))
    for number in (1, 2):
        title = f"P-{number}" if way in ("ORM", "flushed", "Core") else ""
        for replayed in (False, True):
            outcome = yield from shop.outcome(caller, f, 1, f"P-{number}", number)
            assert outcome.replayed is replayed
            assert row(shop) == (number + 1, title)


@driven
def test_several_flushes_are_several_steps_of_sqlalchemys_and_none_of_idempos(shop: Shop) -> Steps[None]:
    """SQLAlchemy counts its UPDATEs. The next caller is told what is there."""

    def body(order_id: int, payment: str, session: Any) -> Steps[None]:
        page = yield session.get(Page, order_id)
        for title in "abc":
            page.title = title
            yield session.flush()

    f = versioned(shop, body, guard(shop))
    yield f(1, "P-1")
    assert row(shop) == (4, "c")


@pytest.mark.parametrize("caller", [OURS, SESSION])
@pytest.mark.parametrize("expected", ["{version}", None])
@driven
def test_a_function_may_delete_the_row_by_the_orm(
    shop: Shop, caller: str, expected: str | None
) -> Steps[None]:
    def body(order_id: int, payment: str, session: Any) -> Steps[str]:
        yield session.execute(delete(Mark))
        yield session.delete((yield session.get(Page, order_id)))
        return "deleted"

    f = versioned(shop, body, guard(shop, expected=expected))
    assert (yield from shop.call(caller, f, 1, "P-1", 1)) == "deleted"
    assert row(shop) is None
    assert (yield from shop.outcome(caller, f, 1, "P-1", 1)).replayed
    yield from shop.refused(caller, RowMissingError, f, 1, "P-2", 1)


@callers
@driven
def test_a_wrong_expected_version_is_refused_before_the_function(shop: Shop, caller: str) -> Steps[None]:
    effects = Effects()

    def body(order_id: int, payment: str, session: Any) -> Steps[None]:
        effects.add(payment)
        yield from by_core(order_id, payment, session)

    put(shop, version=5)
    f = versioned(shop, body, guard(shop, expected="{version}"))
    error = yield from shop.refused(caller, VersionConflictError, f, 1, "P-1", 4)
    assert (error.expected, error.found, error.ran) == (4, 5, False)
    assert (row(shop), len(effects)) == ((5, ""), 0)
    yield from shop.call(caller, f, 1, "P-1", 5)
    assert row(shop) == (6, "P-1")


@driven
def test_a_function_that_fails_counts_nothing(shop: Shop) -> Steps[None]:
    def body(order_id: int, payment: str, session: Any) -> Steps[None]:
        yield from by_orm_flushed(order_id, payment, session)
        raise Declined

    for number, expected in enumerate(["{version}", None]):
        f = versioned(shop, body, guard(shop, expected=expected), name=f"{shop.name}.{number}")

        def work(session: Any, f: Any = f) -> Steps[None]:
            page = yield session.get(Page, 1)
            yield from caught(Declined, lambda: f(1, "P-1", 1, session=session))
            yield session.refresh(page)
            assert (page.version, page.title) == (1, "")

        yield from shop.within(SESSION, work)
        yield from caught(Declined, lambda: f(1, "P-1", 1))  # noqa: B023
        assert row(shop) == (1, "")


# ------------------------------------------------------------------------ conflicts that SQLAlchemy finds


def overtaken(shop: Shop, times: int, effects: Effects, inner: Any = by_orm) -> Any:
    """A body that has read the page when somebody else changes it, in its first runs."""

    def body(order_id: int, payment: str, session: Any) -> Steps[int]:
        number = effects.add(payment)
        yield session.get(Page, order_id)
        if number <= times:
            put(shop, version=10 * number, body=f"change {number}")
        yield from inner(order_id, payment, session)
        return number

    return body


def alone(shop: Shop, caller: str, kind: type[BaseException], f: Any) -> Steps[Any]:
    """One call that must raise this. A session whose flush has failed must be rolled back: a rule of SQLAlchemy's."""
    session = None if caller == OURS else shop.sessions()
    try:
        error = yield from caught(kind, lambda: f(1, "P-1", session=session))
        if session is not None:
            yield session.rollback()
            yield from by_orm(1, "by the caller", session)
            yield session.rollback()
        return error
    finally:
        if session is not None:
            yield session.close()


@servers
@pytest.mark.parametrize("caller", [OURS, SESSION])
@pytest.mark.parametrize("way", BODIES)
@driven
def test_somebody_elses_change_meanwhile_is_one_error_whoever_finds_it(
    shop: Shop, caller: str, way: str
) -> Steps[None]:
    """SQLAlchemy's StaleDataError for the table, or idempo's own comparison."""
    effects = Effects()
    f = versioned(shop, overtaken(shop, 1, effects, BODIES[way]), guard(shop))
    error = yield from alone(shop, caller, VersionConflictError, f)
    assert (error.expected, error.ran, len(effects)) == (1, True, 1)
    assert error.found in (10, None)
    assert row(shop) == (10, "")
    assert row(shop, Mark) == (1, "")
    assert (yield f.lookup(1, "P-1")) is None
    yield from shop.call(caller, f, 1, "P-1")
    assert row(shop)[0] == 11


@servers
@pytest.mark.parametrize("way", BODIES)
@sync_only
@driven
def test_retries_go_on_where_sqlalchemy_has_found_the_conflict(shop: Shop, way: str) -> Steps[None]:
    effects = Effects()
    f = versioned(shop, overtaken(shop, 2, effects, BODIES[way]), guard(shop, retries=2))
    assert (yield f(1, "P-1")) == 3
    assert row(shop)[0] == 21
    failing = Effects()
    g = versioned(
        shop, overtaken(shop, 9, failing, BODIES[way]), guard(shop, retries=2), name=f"{shop.name}.2"
    )
    yield from caught(VersionConflictError, lambda: g(1, "P-1"))
    assert len(failing) == 3


@servers
@pytest.mark.parametrize("caller", [OURS, SESSION])
@driven
def test_the_stale_data_error_of_another_table_passes_untouched(shop: Shop, caller: str) -> Steps[None]:
    effects = Effects()

    def body(order_id: int, payment: str, session: Any) -> Steps[None]:
        effects.add(payment)
        mark = yield session.get(Mark, order_id)
        put(shop, Mark, version=7)
        mark.title = payment
        yield session.flush()

    f = versioned(shop, body, guard(shop, retries=3 if caller == OURS else 0))
    error = yield from alone(shop, caller, StaleDataError, f)
    assert type(error) is StaleDataError
    assert "marks" in str(error)
    assert (len(effects), row(shop), row(shop, Mark)) == (1, (1, ""), (7, ""))


@driven
def test_under_an_expected_version_sqlalchemys_own_check_has_nothing_to_find(shop: Shop) -> Steps[None]:
    """The row is locked before the function. An object that the caller has loaded long ago is a conflict all the
    same, and his own transaction goes on."""
    stale: list[Any] = []

    def work(session: Any) -> Steps[None]:
        page = yield session.get(Page, 1)
        stale.append(page)
        yield session.commit()
        put(shop, version=2)
        yield from caught(VersionConflictError, lambda: f(1, "P-1", 1, session=session))

    f = versioned(shop, by_orm_flushed, guard(shop, expected="{version}"))
    session = shop.sessions(expire_on_commit=False)
    try:
        yield from work(session)
        yield session.commit()
    finally:
        yield session.close()
    assert row(shop) == (2, "")


# ------------------------------------------------------------------------ the caller goes on


@pytest.mark.parametrize("expected", ["{version}", None])
@pytest.mark.parametrize("way", BODIES)
@sync_only
@driven
def test_the_callers_object_shows_the_new_version_and_can_be_changed_and_committed(
    shop: Shop, expected: str | None, way: str
) -> Steps[None]:
    f = versioned(shop, BODIES[way], guard(shop, expected=expected))

    def work(session: Any) -> Steps[None]:
        page = yield session.get(Page, 1)
        yield f(1, "P-1", 1, session=session)
        assert page.version == 2
        page.body = "by the caller"
        yield session.flush()
        assert page.version == 3
        yield f(1, "P-2", 3, session=session)
        assert page.version == 4
        page.body = "and again"

    yield from shop.within(SESSION, work)
    assert row(shop)[0] == 5


@servers
@driven
def test_after_a_conflict_the_callers_object_can_be_read_again_and_committed(shop: Shop) -> Steps[None]:
    effects = Effects()
    f = versioned(shop, overtaken(shop, 1, effects), guard(shop))

    def work(session: Any) -> Steps[None]:
        page = yield session.get(Page, 1)
        yield from caught(VersionConflictError, lambda: f(1, "P-1", session=session))
        yield session.rollback()
        yield session.refresh(page)
        assert (page.version, page.title, page.body) == (10, "", "change 1")
        page.body = "by the caller"

    session = shop.sessions()
    try:
        yield from work(session)
        yield session.commit()
    finally:
        yield session.close()
    assert row(shop) == (11, "")


@pytest.mark.parametrize("expected", ["{version}", None])
@driven
def test_what_the_caller_has_not_sent_yet_is_a_step_of_his_own(
    shop: Shop, expected: str | None
) -> Steps[None]:
    f = versioned(shop, by_orm, guard(shop, expected=expected))

    def work(session: Any) -> Steps[None]:
        page = yield session.get(Page, 1)
        page.body = "by the caller"
        yield f(1, "P-1", 2, session=session)
        assert (page.version, page.body, page.title) == (3, "by the caller", "P-1")

    yield from shop.within(SESSION, work)
    assert row(shop) == (3, "P-1")


@servers
@sync_only
@driven
def test_a_conflict_that_the_orm_finds_leaves_what_the_caller_has_written(shop: Shop) -> Steps[None]:
    """SQLAlchemy rolls all of a session back when a flush fails, but no further than to a savepoint."""

    def body(order_id: int, payment: str, session: Any) -> Steps[None]:
        page = yield session.get(Page, order_id)
        put(shop, version=7)
        page.title = payment

    f = shop.function(body, guard(shop))
    with shop.sessions() as session:
        session.get(Mark, 1).title = "the caller's"
        yield from caught(VersionConflictError, lambda: f(1, "P-1", session=session))
        session.commit()
    assert row(shop, Mark) == (2, "the caller's")
    assert row(shop) == (7, "")


@servers
@sync_only
@driven
def test_a_transition_is_seen_by_whoever_has_loaded_the_row_before(shop: Shop) -> Steps[None]:
    """SQLAlchemy compares its version at each UPDATE; a `StateGuard` counts it too."""
    using = StateGuard(Page.title, {Page.id: "{order_id}"}, {"": ["paid"]}, "paid", engine=shop.engine)
    f = shop.function(nothing, using)
    with shop.sessions() as early, shop.sessions() as session:
        page = early.get(Page, 1)
        early.commit()
        own = session.get(Page, 1)
        yield f(1, "P-1", session=session)
        assert (own.version, own.title) == (2, "paid")
        own.body = "and on"
        session.commit()
        assert row(shop) == (3, "paid")
        page.version  # noqa: B018  # read again only if it has expired
    with shop.sessions() as late:
        stale = late.get(Page, 1)
        put(shop, version=9)
        stale.body = "too late"
        with pytest.raises(StaleDataError):
            late.commit()
