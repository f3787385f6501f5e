"""A records table on each kind of database, and what happens to it meanwhile."""

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.pool import NullPool

from idempo import UniqueInsert
from idempo.dialects import Dialect
from idempo.records import Answer, Call, Claimed, Payload, Record
from idempo.steps import Steps, run
from idempo.testing import ledger_of
from tests.servers import fresh_database

FIRST = Payload("completed", b"first")


class Table:
    """A records table, as a ledger and as anybody else sees it."""

    def __init__(self, url: str) -> None:
        self._strategy = UniqueInsert(url)
        self._strategy.create_schema()
        self._outside = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self.ledger: Any = ledger_of(self._strategy, "sync")

    def ask(self, call: Call, over: int | None = None) -> Answer:
        answer: Answer = run(self.ledger.claim(call, over))
        return answer

    def claim(self, call: Call, over: int | None = None) -> Call:
        answer = self.ask(call, over)
        assert isinstance(answer, Claimed), answer
        return replace(call, fence=answer.fence, attempt=answer.attempt)

    def complete(self, call: Call, payload: Payload = FIRST) -> None:
        assert run(self.ledger.complete(call, payload))

    def done(self, steps: Steps[Any]) -> None:
        assert run(steps)

    def look(self, call: Call) -> Record | None:
        record: Record | None = run(self.ledger.lookup(call.digest))
        return record

    def record(self, call: Call) -> Record:
        record = self.look(call)
        assert record is not None
        return record

    def change(self, call: Call, assignments: str) -> None:
        """Change the row from outside, as a clock that jumps or time that passes would have it."""
        with self._outside.connect() as connection:
            sql = f"UPDATE idempo_records SET {assignments} WHERE digest = :digest"
            assert connection.execute(text(sql), {"digest": call.digest}).rowcount == 1

    def result(self, call: Call) -> bytes | None:
        """What the column says, whatever the state."""
        with self._outside.connect() as connection:
            sql = "SELECT result FROM idempo_records WHERE digest = :digest"
            found = connection.scalar(text(sql), {"digest": call.digest})
            return None if found is None else bytes(found)

    def columns(self) -> list[Any]:
        return list(inspect(self._outside).get_columns("idempo_records"))

    def indexes(self) -> list[Any]:
        return list(inspect(self._outside).get_indexes("idempo_records"))

    def close(self) -> None:
        self._strategy.close()
        self._outside.dispose()


@pytest.fixture(scope="module", params=["sqlite", "mariadb", "postgres"])
def table(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('gaps')}/records.db"
    else:
        url = fresh_database(request.getfixturevalue(request.param))
    table = Table(url)
    yield table
    table.close()


@pytest.fixture
def key() -> str:
    return secrets.token_hex(8)


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let something happen between the next times that a row is read and what is then done with it."""
    read = Dialect.read

    def arrange(happens: Callable[[], object], *, times: int = 1) -> None:
        left = times

        def read_and_be_overtaken(self: Dialect, connection: Any, digest: bytes, *columns: str) -> Any:
            nonlocal left
            row = read(self, connection, digest, *columns)
            left -= 1
            monkeypatch.setattr(Dialect, "read", read)
            happens()
            if left:
                monkeypatch.setattr(Dialect, "read", read_and_be_overtaken)
            return row

        monkeypatch.setattr(Dialect, "read", read_and_be_overtaken)

    return arrange
