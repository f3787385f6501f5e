"""A shop on each database, in both colours."""

import pytest
from sqlalchemy import text

from tests.guards.support import COLOURS, MATRIX, Shop, create_tables
from tests.servers import fresh_database

_made = pytest.StashKey[dict[str, str]]()


@pytest.fixture(params=MATRIX)
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a database with all tables, made once in each process."""
    urls = request.config.stash.setdefault(_made, {})
    kind: str = request.param
    if kind not in urls:
        if kind == "sqlite":
            urls[kind] = f"sqlite:///{tmp_path_factory.mktemp('guards')}/shop.db"
        else:
            urls[kind] = fresh_database(request.getfixturevalue(kind))
        create_tables(urls[kind])
    return urls[kind]


@pytest.fixture(params=COLOURS)
def shop(request: pytest.FixtureRequest, database: str) -> Shop:
    """No orders, no records."""
    shop = Shop(database, request.param)
    shop.empty()
    with shop.outside.connect() as connection:
        connection.execute(text("DELETE FROM idempo_records"))
    return shop
