"""The promises, kept by `MonotonicVersion`: of all calls with one version of one entity, one runs."""

from collections.abc import Callable
from typing import Any

from idempo import Memory, MonotonicVersion
from idempo.contracts import Ledger, Strategy
from idempo.testing import LedgerContract, PromiseContract
from idempo.versioned import Versioned
from tests.contract.test_redis_cache import OnServer
from tests.contract.test_unique_insert import OnDatabase, OnFile


class OneVersion(PromiseContract):
    """Each key is an entity, and each call brings its first version."""

    def decorate(self, body: Callable[[str, int], Any], **options: Any) -> Any:
        ledger = options.pop("using", None) or self.make()
        using = MonotonicVersion(ledger, entity=options.get("key", "{order}"), version=lambda: 1)
        decorated = super().decorate(body, using=using, **options)
        self.beside = {"using": ledger}
        return decorated


class OneVersionLeased(OneVersion, LedgerContract):
    def ledger(self) -> Ledger:
        return Versioned.of(super().ledger(), 1, too_old=False)

    # It is never a tier: it claims wherever it stands.
    test_fill_keeps_what_another_ledger_has_recorded = None  # type: ignore[assignment]
    # They exchange the ledger inside the layer.
    test_a_caller_that_is_cancelled_while_claiming_leaves_no_claim_behind = None  # type: ignore[assignment]
    test_fail_closed = None  # type: ignore[assignment]


class TestVersionsInMemory(OneVersionLeased):
    def make(self) -> Strategy:
        return Memory()


class TestVersionsInMemoryAsync(TestVersionsInMemory):
    colour = "async"


class TestVersionsInRedis(OnServer, OneVersionLeased):
    server = "redis_server"


class InPostgres(OnDatabase, OneVersionLeased):
    server = "postgres"


class TestVersionsInPostgres(InPostgres):
    colour = "async"


class TestVersionsInMariaDB(OnDatabase, OneVersionLeased):
    server = "mariadb"


class TestVersionsJoined(OnDatabase, OneVersion):
    server = "postgres"
    joined = True


class JoinedInMariaDB(OnDatabase, OneVersion):
    server = "mariadb"
    joined = True


class TestVersionsJoinedMariaDB(JoinedInMariaDB):
    colour = "async"


class TestVersionsJoinedSQLite(OnFile, OneVersion):
    joined = True
