"""Keys that are issued beforehand, on every ledger that can."""

from idempo import Memory
from idempo.contracts import Strategy
from idempo.testing import IssuingContract
from tests.contract.test_redis_cache import OnServer
from tests.contract.test_unique_insert import OnDatabase, OnFile


class TestMemory(IssuingContract):
    def make(self) -> Strategy:
        return Memory()


class TestMemoryAsync(TestMemory):
    colour = "async"


class TestSQLite(OnFile, IssuingContract):
    pass


class TestSQLiteAsync(TestSQLite):
    colour = "async"


class TestPostgres(OnDatabase, IssuingContract):
    server = "postgres"


class TestPostgresAsync(TestPostgres):
    colour = "async"


class TestMariaDB(OnDatabase, IssuingContract):
    server = "mariadb"


class TestMariaDBAsync(TestMariaDB):
    colour = "async"


class TestRedis(OnServer, IssuingContract):
    server = "redis_server"


class TestRedisAsync(TestRedis):
    colour = "async"
