"""The promises, kept by `StateGuard` alone: what a repeat gets does not depend on what became of the row."""

import hashlib
import uuid
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from sqlalchemy import Column, MetaData, String, Table, create_engine, insert
from sqlalchemy.pool import NullPool

from idempo import StateConflictError, StateGuard, UniqueInsert
from idempo.contracts import Strategy
from idempo.steps import Steps
from idempo.testing import Effects, PromiseContract, driven
from tests.guards.support import Shop
from tests.servers import Server, fresh_database

LIVES = Table("lives", MetaData(), Column("id", String(64), primary_key=True), Column("state", String(10)))
KEYS = ["A-1", "Order-A", "order-a", "Order-A ", "Order-Á", "Order-A\u0301", "Order-\x00A", "0", "00"]
AMOUNTS = [1, 2, 7]


def row_of(prefix: str, order: str, amount: int) -> str:
    return hashlib.sha256(repr((prefix, order, amount)).encode()).hexdigest()


class Guarded(PromiseContract):
    """Each decorated function has a row of its own for each key and amount of the contract, pending at first."""

    joined = True
    server: ClassVar[str]
    url: str

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def database(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
        if cls.server == "sqlite":
            cls.url = f"sqlite:///{tmp_path_factory.mktemp('promises')}/lives.db"
        else:
            server: Server = request.getfixturevalue(cls.server)
            cls.url = fresh_database(server)
        engine = create_engine(cls.url, poolclass=NullPool)
        LIVES.metadata.create_all(engine)
        UniqueInsert(engine).create_schema()

    @pytest.fixture(autouse=True)
    def shop(self) -> None:
        self.at = Shop(self.url, self.colour)

    def decorate(self, body: Callable[[str, int], Any], **options: Any) -> Any:
        self.prefix = str(uuid.uuid4())
        rows = [
            {"id": row_of(self.prefix, key, amount), "state": "pending"} for key in KEYS for amount in AMOUNTS
        ]
        with self.at.outside.connect() as connection:
            connection.execute(insert(LIVES), rows)
        decorated = super().decorate(body, **options)
        self.beside = {}  # another function has other rows
        return decorated

    def make(self) -> Strategy:
        prefix = self.prefix
        where: Any = {LIVES.c.id: lambda order, amount: row_of(prefix, order, amount)}
        return StateGuard(LIVES.c.state, where, {"pending": ["done"]}, "done", engine=self.at.engine)

    def closing(self) -> Steps[None]:
        yield from self.at.close()

    @driven
    def test_lookup_finds_the_record_and_forget_lets_it_run_again(self) -> Steps[None]:
        """Only as far as the row admits it, which does not forget: that is what the guard is for."""
        effects = Effects()
        f = self.decorate(lambda order, amount: effects.add(order))
        yield f("A-1")
        record = yield f.lookup("A-1")
        assert (record.state, record.key, record.value, record.attempt) == ("completed", "A-1", 1, 1)
        assert (yield f.forget("A-1")) is True
        assert (yield f.lookup("A-1")) is None
        error = yield from self.caught(StateConflictError, lambda: f("A-1"))
        assert error.verdict == "already"
        assert len(effects) == 1


class TestPostgres(Guarded):
    server = "postgres"


class TestPostgresAsync(TestPostgres):
    colour = "async"


class TestMariaDB(Guarded):
    server = "mariadb"


class TestMariaDBAsync(TestMariaDB):
    colour = "async"


class TestSQLite(Guarded):
    server = "sqlite"


class TestSQLiteAsync(TestSQLite):
    colour = "async"
