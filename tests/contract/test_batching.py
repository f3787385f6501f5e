"""Many calls in one request, on every ledger."""

import pytest

from idempo import Memory
from idempo.contracts import Strategy
from idempo.testing import BatchingContract
from tests.contract.test_redis_cache import OnServer
from tests.contract.test_unique_insert import OnDatabase, OnFile
from tests.servers import Server


class TestMemory(BatchingContract):
    def make(self) -> Strategy:
        return Memory()


class TestMemoryAsync(TestMemory):
    colour = "async"


class TestSQLite(OnFile, BatchingContract):
    pass


class TestSQLiteAsync(TestSQLite):
    colour = "async"


class TestPostgres(OnDatabase, BatchingContract):
    server = "postgres"


class TestPostgresAsync(TestPostgres):
    colour = "async"


class TestMariaDB(OnDatabase, BatchingContract):
    server = "mariadb"


class TestMariaDBAsync(TestMariaDB):
    colour = "async"


class TestMySQL(OnDatabase, BatchingContract):
    server = "mysql"


class TestMySQLAsync(TestMySQL):
    colour = "async"


class TestRedis(OnServer, BatchingContract):
    server = "redis_server"


class TestRedisAsync(TestRedis):
    colour = "async"


class TestCluster(OnServer, BatchingContract):
    server = "redis_cluster"

    @pytest.fixture(autouse=True)
    def found(self, redis_cluster: Server) -> None:
        self.url = redis_cluster.url.replace("redis://", "redis+cluster://")


class TestClusterAsync(TestCluster):
    colour = "async"
