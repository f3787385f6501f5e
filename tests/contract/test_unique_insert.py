"""The promises, kept by `UniqueInsert` on every database, in both colours, with and without `join=`."""

from typing import Any, ClassVar

import psycopg
import pytest
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from idempo import UniqueInsert, idempotent, roundtrip
from idempo.contracts import Colour, Strategy
from idempo.steps import Steps
from idempo.testing import LedgerContract, PromiseContract
from tests.servers import Server, async_url, fresh_database


class OnDatabase:
    """Makes the strategy from a URL, as most users do."""

    colour: ClassVar[Colour] = "sync"
    joined: ClassVar[bool] = False
    server: ClassVar[str]
    url: str
    opened: list[UniqueInsert]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def database(cls, request: pytest.FixtureRequest) -> None:
        server: Server = request.getfixturevalue(cls.server)
        cls.url = fresh_database(server)
        UniqueInsert(create_engine(cls.url, poolclass=NullPool)).create_schema()

    def make(self) -> Strategy:
        strategy = UniqueInsert(self.url, join="session" if self.joined else None)
        self.opened = [*getattr(self, "opened", []), strategy]
        return strategy

    def closing(self) -> Steps[None]:
        for strategy in getattr(self, "opened", []):
            yield strategy.close()


class TestPostgres(OnDatabase, LedgerContract):
    server = "postgres"


class TestPostgresAsync(TestPostgres):
    colour = "async"


class TestPostgresJoined(OnDatabase, PromiseContract):
    server = "postgres"
    joined = True


class TestPostgresJoinedAsync(TestPostgresJoined):
    colour = "async"


class TestMariaDB(OnDatabase, LedgerContract):
    server = "mariadb"


class TestMariaDBAsync(TestMariaDB):
    colour = "async"


class TestMariaDBJoined(OnDatabase, PromiseContract):
    server = "mariadb"
    joined = True


class TestMariaDBJoinedAsync(TestMariaDBJoined):
    colour = "async"


class OnFile(OnDatabase):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def database(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.url = f"sqlite:///{tmp_path_factory.mktemp('sqlite')}/idempo.db"


class TestSQLite(OnFile, LedgerContract):
    pass


class TestSQLiteAsync(TestSQLite):
    colour = "async"


class TestSQLiteJoined(OnFile, PromiseContract):
    joined = True


class TestSQLiteJoinedAsync(TestSQLiteJoined):
    colour = "async"


class WithoutPipelines(OnDatabase):
    """libpq before 14 has none: each statement is a round trip."""

    @pytest.fixture(autouse=True)
    @classmethod
    def without(cls, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(psycopg.Pipeline, "is_supported", lambda: False)
        monkeypatch.delattr(roundtrip, "_pipelined")
        monkeypatch.delattr(roundtrip, "_pipelined_async")


class TestPostgresJoinedWithoutPipelines(WithoutPipelines, TestPostgresJoined):
    pass


class TestPostgresJoinedWithoutPipelinesAsync(WithoutPipelines, TestPostgresJoinedAsync):
    pass


class ByDriver(OnDatabase):
    """Another driver for the same database."""

    driver: ClassVar[str]

    def make(self) -> Strategy:
        backend = make_url(self.url).get_backend_name()
        url = make_url(self.url).set(drivername=f"{backend}+{self.driver}")
        self.url = url.render_as_string(hide_password=False)
        return super().make()


class TestAsyncpg(ByDriver, TestPostgresAsync):
    driver = "asyncpg"


class TestAsyncpgJoined(ByDriver, TestPostgresJoinedAsync):
    driver = "asyncpg"


class TestPsycopg2(ByDriver, TestPostgres):
    driver = "psycopg2"


class TestPsycopg2Joined(ByDriver, TestPostgresJoined):
    driver = "psycopg2"


class TestPg8000(ByDriver, TestPostgres):
    driver = "pg8000"


class TestPg8000Joined(ByDriver, TestPostgresJoined):
    driver = "pg8000"


class TestMySQLConnector(ByDriver, TestMariaDB):
    driver = "mysqlconnector"


class TestMySQLConnectorJoined(ByDriver, TestMariaDBJoined):
    driver = "mysqlconnector"


class TestGivenAsyncEngine(TestPostgresAsync):
    """An engine of the user's own, which idempo does not close."""

    def make(self) -> Strategy:
        engine = create_async_engine(async_url(self.url))
        self.engines = [*getattr(self, "engines", []), engine]
        return UniqueInsert(engine)

    def closing(self) -> Steps[None]:
        for engine in getattr(self, "engines", []):
            yield engine.dispose()


@pytest.mark.parametrize("server", ["postgres", "mariadb"])
@pytest.mark.parametrize("table", ["IdempoRecords", "order", "_x"])
def test_a_table_is_named_as_the_database_quotes_it(
    server: str, table: str, request: pytest.FixtureRequest
) -> None:
    url = fresh_database(request.getfixturevalue(server))
    for strategy in (UniqueInsert(url, table=table), UniqueInsert(url, table=table, join="session")):
        strategy.create_schema()

        def f(order: str, session: Any = None) -> int:
            return 1

        decorated = idempotent(key="{order}", using=strategy, name=f"named {strategy}")(f)
        assert decorated("A-1") == decorated("A-1") == 1
        assert strategy.purge() == 0
        strategy.close()
