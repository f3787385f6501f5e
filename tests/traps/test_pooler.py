"""A record in the business transaction, behind a PgBouncer that hands out connections for one transaction each."""

import uuid
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from idempo import INJECTED, UniqueInsert, idempotent
from tests.doctor.pgbouncer import pgbouncer
from tests.servers import Server

MODES = {
    # Source: PgBouncer documentation, "max_prepared_statements": without it, nothing may be prepared.
    "forgets": ({"newest": False}, {"prepare_threshold": None}),
    "follows": ({"newest": True, "settings": "max_prepared_statements = 200"}, {}),
}


@pytest.mark.parametrize("mode", MODES)
def test_claim_and_completion_pass_in_one_round_trip_each(postgres: Server, mode: str) -> None:
    options, arguments = MODES[mode]
    given: Any = options
    with pgbouncer(postgres, "transaction", **given) as url:
        engine = create_engine(url, connect_args=arguments, pool_size=1)
        table = f"pooled_{uuid.uuid4().hex}"
        ledger = UniqueInsert(engine, join="session", table=table)
        ledger.create_schema()

        @idempotent(key="{order}", using=ledger)
        def place(order: str, session: Session = INJECTED) -> int:
            number: int = session.scalar(text("SELECT 1"))
            return number

        # Often enough for the driver to have the server prepare them.
        assert [place(f"A-{number}") for number in range(20)] == [1] * 20
        with Session(engine) as session:
            assert place("A-20", session=session) == 1
            session.commit()
        assert all(place.outcome(f"A-{number}").replayed for number in range(21))
        with engine.begin() as connection:
            assert connection.scalar(text(f"SELECT count(*) FROM {table} WHERE state = 'completed'")) == 21
            connection.execute(text(f"DROP TABLE {table}"))
        engine.dispose()
