"""The promises, kept by `RedisCache` on Redis old and new, Valkey and a Cluster, in both colours."""

from typing import Any, ClassVar

import pytest
import redis

from idempo import RedisCache
from idempo.contracts import Strategy
from idempo.steps import Steps
from idempo.testing import LedgerContract
from tests.servers import Server


class OnServer:
    server: ClassVar[str]
    url: str
    opened: list[RedisCache]

    @pytest.fixture(autouse=True)
    def found(self, request: pytest.FixtureRequest) -> None:
        server: Server = request.getfixturevalue(self.server)
        self.url = server.url

    def make(self) -> Strategy:
        strategy = RedisCache(self.url)
        self.opened = [*getattr(self, "opened", []), strategy]
        return strategy

    def closing(self) -> Steps[None]:
        for strategy in getattr(self, "opened", []):
            yield strategy.close()


class TestRedis(OnServer, LedgerContract):
    server = "redis_server"


class TestRedisAsync(TestRedis):
    colour = "async"


class TestRedis62(OnServer, LedgerContract):
    server = "redis62"


class TestValkey(OnServer, LedgerContract):
    server = "valkey"


class TestValkeyAsync(TestValkey):
    colour = "async"


class TestCluster(OnServer, LedgerContract):
    server = "redis_cluster"

    @pytest.fixture(autouse=True)
    def found(self, request: pytest.FixtureRequest) -> None:
        server: Server = request.getfixturevalue(self.server)
        self.url = server.url.replace("redis://", "redis+cluster://")


class TestClusterAsync(TestCluster):
    colour = "async"


class TestDecodingClient(TestRedis):
    """A client of the user's own that decodes responses: results are bytes all the same."""

    def make(self) -> Strategy:
        self.client: Any = redis.Redis.from_url(self.url, decode_responses=True)
        return RedisCache(self.client)

    def closing(self) -> Steps[None]:
        if hasattr(self, "client"):
            self.client.close()
        yield from ()
