"""Where the tools are tried: each place makes a ledger, on a store of its own, in a colour."""

from typing import Any, ClassVar

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, func, insert, select
from sqlalchemy.pool import NullPool

from idempo import Memory, RedisCache, UniqueInsert
from idempo.contracts import Colour, Strategy
from idempo.steps import Steps
from tests.servers import fresh_database

__all__ = ["Books", "OnMemory", "OnPostgres", "OnRedis", "OnSQLite"]

entries = Table(
    "entries",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("order_no", String(100)),
)


class Books:
    """The rows that functions under test write, as others see them. Nothing keeps two of one order apart."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine(url, poolclass=NullPool)

    def create(self) -> None:
        entries.metadata.create_all(self.engine)
        UniqueInsert(self.engine).create_schema()

    def write(self, order_no: str) -> None:
        """In a transaction of its own."""
        with self.engine.begin() as connection:
            connection.execute(self.entry(order_no))

    def entry(self, order_no: str) -> Any:
        """The statement that writes a row."""
        return insert(entries).values(order_no=order_no)

    def count(self, order_no: str) -> int:
        with self.engine.connect() as connection:
            count = select(func.count()).select_from(entries).where(entries.c.order_no == order_no)
            return int(connection.execute(count).scalar_one())


class Place:
    """What the suites ask of a place."""

    colour: ClassVar[Colour] = "sync"
    opened: list[Any]

    def make(self) -> Strategy:
        raise NotImplementedError

    def closing(self) -> Steps[None]:
        for strategy in getattr(self, "opened", []):
            yield strategy.close()

    def closed_later(self, strategy: Any) -> Any:
        self.opened = [*getattr(self, "opened", []), strategy]
        return strategy


class OnMemory(Place):
    def make(self) -> Strategy:
        return Memory()


class OnRedis(Place):
    url: str

    @pytest.fixture(autouse=True)
    def found(self, request: pytest.FixtureRequest) -> None:
        self.url = fresh_database(request.getfixturevalue("redis_server"))

    def make(self) -> Strategy:
        strategy: Strategy = self.closed_later(RedisCache(self.url))
        return strategy


class OnSQL(Place):
    books: ClassVar[Books]
    url: ClassVar[str]

    def make(self) -> Strategy:
        strategy: Strategy = self.closed_later(UniqueInsert(self.url))
        return strategy

    def make_joined(self) -> Strategy:
        strategy: Strategy = self.closed_later(UniqueInsert(self.url, join="session"))
        return strategy


class OnPostgres(OnSQL):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def database(cls, request: pytest.FixtureRequest) -> None:
        cls.url = fresh_database(request.getfixturevalue("postgres"))
        cls.books = Books(cls.url)
        cls.books.create()


class OnSQLite(OnSQL):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def database(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.url = f"sqlite:///{tmp_path_factory.mktemp('sqlite')}/shop.db"
        cls.books = Books(cls.url)
        cls.books.create()
