"""Forgetting beside a living owner."""

from typing import Any

import pytest

from idempo import UniqueInsert
from idempo.dialects import Dialect
from idempo.records import InProgress
from idempo.testing import drive, ledger_of, new_call
from tests.servers import Server, fresh_database


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
def test_a_claim_that_is_renewed_while_it_is_being_forgotten_stays(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    server: Server = request.getfixturevalue(kind)
    url = fresh_database(server)
    one, other = UniqueInsert(url), UniqueInsert(url)
    one.create_schema()
    owners, forgetting = ledger_of(one, "sync"), ledger_of(other, "sync")
    call = new_call()
    drive("sync", owners.claim(call, None))
    drive("sync", owners.renew(call, 0))  # the lease ends: an orphan, as far as anybody can see
    read = Dialect.read

    def read_and_be_overtaken(self: Dialect, connection: Any, digest: bytes) -> Any:
        monkeypatch.setattr(Dialect, "read", read)
        row = read(self, connection, digest)
        assert drive("sync", owners.renew(call, 30.0))  # the heartbeat comes late, and the store says yes
        return row

    monkeypatch.setattr(Dialect, "read", read_and_be_overtaken)
    forgotten = drive("sync", forgetting.forget(call.digest))
    answer = drive("sync", forgetting.claim(new_call(), None))
    one.close()
    other.close()
    assert (forgotten, type(answer)) == (False, InProgress)
