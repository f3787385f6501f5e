"""What the tests of guards on versions, locks and reads share beyond `support`."""

import contextlib
import hashlib
import uuid
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, create_engine, event, insert
from sqlalchemy.orm import registry
from sqlalchemy.pool import NullPool

from idempo import SelectForUpdate, UniqueInsert, VersionCheck, idempotent
from idempo.steps import Steps, arun, run
from idempo.testing import PromiseContract
from tests.guards.support import Body, Order, Shop
from tests.servers import Server, fresh_database
from tests.traps.support import SECONDS

HERE: Any = {Order.id: "{order_id}"}


def check(shop: Shop, **options: Any) -> VersionCheck:
    """The version check of most tests. `expected="{version}"` is what most callers have seen."""
    return VersionCheck(**({"column": Order.version, "where": HERE, "engine": shop.engine} | options))


def lock(shop: Shop, **options: Any) -> SelectForUpdate:
    """The lock of most tests."""
    return SelectForUpdate(**({"target": Order, "where": HERE, "engine": shop.engine} | options))


def versioned(shop: Shop, body: Body, using: Any = None, **options: Any) -> Any:
    """Decorate `body(order_id, payment, session)`; callers say the version that they have seen."""

    def plain(order_id: int, payment: str, version: Any = None, session: Any = None) -> Any:
        return run(body(order_id, payment, session))

    async def coroutine(order_id: int, payment: str, version: Any = None, session: Any = None) -> Any:
        return await arun(body(order_id, payment, session))

    using = check(shop, expected="{version}") if using is None else using
    return _decorated(shop, plain if shop.colour == "sync" else coroutine, using, options)


def handed(shop: Shop, body: Callable[[Any, Any], Steps[Any]], using: Any = None, **options: Any) -> Any:
    """Decorate `body(row, session)`, to which the row is handed over."""

    def plain(order_id: int, payment: str, session: Any = None, row: Any = None) -> Any:
        return run(body(row, session))

    async def coroutine(order_id: int, payment: str, session: Any = None, row: Any = None) -> Any:
        return await arun(body(row, session))

    using = lock(shop, into="row") if using is None else using
    return _decorated(shop, plain if shop.colour == "sync" else coroutine, using, options)


def _decorated(shop: Shop, function: Any, using: Any, options: dict[str, Any]) -> Any:
    terms: Any = {"key": "{payment}", "using": using, "name": shop.name, "wait": SECONDS}
    if "returns" in options:
        function.__annotations__["return"] = options.pop("returns")
    return idempotent(**(terms | options))(function)


@contextlib.contextmanager
def stock_table(shop: Shop, kind: Any = Integer, **version: Any) -> Iterator[tuple[Table, Any]]:
    """A table `id, text, version` with that kind of version, and a class that is mapped to it."""
    table = Table(
        f"things_{uuid.uuid4().hex[:8]}",
        MetaData(),
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("text", String(100), nullable=False, default=""),
        Column("version", kind, **version),
    )
    mapped: Any = type("Thing", (), {})
    registry().map_imperatively(mapped, table)
    table.metadata.create_all(shop.outside)
    try:
        yield table, mapped
    finally:
        table.metadata.drop_all(shop.outside)


def without_found_rows(shop: Shop) -> Any:
    """An engine that makes MySQL count the rows that were changed, not those that matched."""
    engine, _ = shop.connect()
    sync: Engine = getattr(engine, "sync_engine", engine)

    def connecting(dialect: Any, record: Any, arguments: Any, options: dict[str, Any]) -> None:
        options["client_flag"] = (
            options.get("client_flag", 0) & ~2
        )  # CLIENT.FOUND_ROWS, which SQLAlchemy sets

    event.listen(sync, "do_connect", connecting)
    return engine


PLACES = Table("places", MetaData(), Column("id", String(64), primary_key=True), Column("version", Integer))
KEYS = ["A-1", "Order-A", "order-a", "Order-A ", "Order-Á", "Order-A\u0301", "Order-\x00A", "0", "00"]


def place_of(prefix: str, order: str) -> str:
    return hashlib.sha256(repr((prefix, order)).encode()).hexdigest()


class RowPromises(PromiseContract):
    """The contract, where each decorated function has a row of its own for each key of the contract."""

    joined = True
    server: ClassVar[str]
    url: str

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def database(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
        if cls.server == "sqlite":
            cls.url = f"sqlite:///{tmp_path_factory.mktemp('promises')}/places.db"
        else:
            server: Server = request.getfixturevalue(cls.server)
            cls.url = fresh_database(server)
        engine = create_engine(cls.url, poolclass=NullPool)
        PLACES.metadata.create_all(engine)
        UniqueInsert(engine).create_schema()

    @pytest.fixture(autouse=True)
    def shop(self) -> None:
        self.at = Shop(self.url, self.colour)

    def decorate(self, body: Callable[[str, int], Any], **options: Any) -> Any:
        self.prefix = str(uuid.uuid4())
        rows = [{"id": place_of(self.prefix, key), "version": 1} for key in KEYS]
        with self.at.outside.connect() as connection:
            connection.execute(insert(PLACES), rows)
        decorated = super().decorate(body, **options)
        self.beside = {}  # another function has other rows
        return decorated

    @property
    def where(self) -> dict[Any, Any]:
        prefix = self.prefix
        return {PLACES.c.id: lambda order: place_of(prefix, order)}

    def closing(self) -> Steps[None]:
        yield from self.at.close()
