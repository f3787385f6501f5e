"""What the soak found, step by step."""

from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.orm import Session

from idempo import INJECTED, LedgerUnavailableError, Memory, UniqueInsert, idempotent
from idempo.records import Completed, Orphan, Payload
from idempo.testing import drive, ledger_of, new_call
from idempo.versioned import Versioned
from tests.faults.proxy import Proxy
from tests.servers import Server, fresh_database


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_version_that_is_completed_before_its_orphan_is_taken_over_is_replayed(
    tmp_path: Path, kind: str
) -> None:
    strategy = Memory() if kind == "memory" else UniqueInsert(f"sqlite:///{tmp_path}/idempo.db")
    ledger = ledger_of(strategy, "sync")
    first, second = (Versioned.of(ledger, 1, too_old=False) for _ in range(2))
    owner, other = new_call(), new_call()
    drive("sync", first.claim(owner, None))
    drive("sync", first.renew(owner, 0))  # its lease is over: it was stalled
    orphan = drive("sync", second.claim(other, None))
    assert isinstance(orphan, Orphan)
    assert (
        drive("sync", first.complete(owner, Payload("completed", b"1"))) is True
    )  # its caller is told a success
    answer = drive("sync", second.claim(other, orphan.fence))
    if isinstance(strategy, UniqueInsert):
        strategy.close()
    assert isinstance(answer, Completed)


class Rejected(Exception):
    """One of `replay_errors`."""


def test_an_exception_that_is_a_result_is_not_told_as_one_where_it_was_not_recorded(postgres: Server) -> None:
    """The connection is lost at ROLLBACK TO SAVEPOINT."""
    url = fresh_database(postgres)
    runs: list[str] = []
    with Proxy(postgres.port) as proxy:
        engine = create_engine(make_url(url).set(port=proxy.port))
        ledger = UniqueInsert(engine, join="session")
        ledger.create_schema()

        @idempotent(key="{key}", using=ledger, replay_errors=(Rejected,), name="found")
        def f(key: str, session: Session = INJECTED) -> str:
            session.execute(text("SELECT 1"))
            runs.append(key)
            if len(runs) == 1:
                proxy.drop_request(b"ROLLBACK TO SAVEPOINT")
                raise Rejected(key)
            return "accepted"

        with pytest.raises(LedgerUnavailableError, match="after the function had run") as caught:
            f("A-1")
        assert proxy.fired.is_set()
        assert caught.value.ran is True
        assert f("A-1") == "accepted"
        engine.dispose()
