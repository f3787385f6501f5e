"""Many records, quickly: each store multiplies a record that idempo itself has written."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis import Redis
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from idempo import RedisCache, UniqueInsert, idempotent

__all__ = ["database_size", "empty_databases", "fill_database", "fill_redis"]

STEP = 1_000_000

_DIGEST = {"postgresql": "sha256(convert_to('f' || n, 'UTF8'))", "mysql": "UNHEX(SHA2(CONCAT('f', n), 256))"}
_NUMBERS = {
    "postgresql": "generate_series({first}, {last}) AS n",
    "mysql": "(SELECT seq AS n FROM seq_{first}_to_{last}) AS numbers",
}
_REDIS = """
local record = redis.call('HGETALL', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
for n = ARGV[1], ARGV[2] do
  local name = 'idempo:' .. redis.sha1hex(n) .. string.sub(redis.sha1hex(-n), 1, 24)
  redis.call('HSET', name, unpack(record))
  redis.call('PEXPIRE', name, left)
end
"""


def fill_database(url: str, table: str, count: int, *, over: bool = False) -> None:
    """Make the records table `table` with `count` records; `over` says that their retention is."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    ledger = UniqueInsert(engine, table=table)
    ledger.create_schema()
    with engine.connect() as connection:
        if connection.execute(text(f"SELECT 1 FROM {table} LIMIT 1")).scalar() is None:
            idempotent(key="{key}", using=ledger, name=f"bench.{table}")(_once)("template")
        dialect = engine.dialect.name
        columns = list(ledger.metadata.tables[table].columns.keys())
        changed = {"digest": _DIGEST[dialect], "keep_until": "created_at - n" if over else "keep_until"}
        values = ", ".join(changed.get(name, f"t.{name}") for name in columns)
        for first in range(1, count, STEP):
            last = min(count - 1, first + STEP - 1)
            numbers = _NUMBERS[dialect].format(first=first, last=last)
            # In the order of digests, the first column: the pages of the table are then filled in turn.
            statement = (
                f"INSERT INTO {table} ({', '.join(columns)}) SELECT {values} "
                f"FROM (SELECT * FROM {table} LIMIT 1) AS t CROSS JOIN {numbers} ORDER BY 1"
            )
            connection.execute(text(statement))
        connection.execute(
            text(f"VACUUM ANALYZE {table}" if dialect == "postgresql" else f"ANALYZE TABLE {table}")
        )


def database_size(connection: Connection, table: str) -> int:
    """Bytes of the table and its indexes."""
    if connection.dialect.name == "postgresql":
        return int(
            connection.execute(text("SELECT pg_total_relation_size(:name)"), {"name": table}).scalar_one()
        )
    connection.execute(text(f"ANALYZE TABLE {table}"))
    query = (
        "SELECT data_length + index_length FROM information_schema.tables "
        "WHERE table_schema = DATABASE() AND table_name = :name"
    )
    return int(connection.execute(text(query), {"name": table}).scalar_one())


@contextmanager
def empty_databases(url: str, count: int) -> Iterator[list[str]]:
    """So many numbers of a Redis that hold nothing; they are empty again afterwards."""
    client: Any
    with Redis.from_url(url) as client:
        numbers = range(int(client.config_get("databases")["databases"]))
    every = [
        make_url(url).set(database=str(number)).render_as_string(hide_password=False) for number in numbers
    ]
    found: list[str] = []
    for one in every:
        with Redis.from_url(one) as client:
            if len(found) < count and client.dbsize() == 0 and one != url:
                found.append(one)
    try:
        yield found
    finally:
        for one in found:
            with Redis.from_url(one) as client:
                client.flushdb(asynchronous=True)  # millions of keys would outlast the time-out


def fill_redis(url: str, count: int) -> float:
    """Put `count` records into an empty Redis database; return the bytes that each takes."""
    cache = RedisCache(url)
    idempotent(key="{key}", using=cache, name="bench.filled")(_once)("template")
    cache.close()
    client: Any
    with Redis.from_url(url, socket_timeout=600) as client:
        (template,) = client.keys("*")
        before = client.info("memory")["used_memory"]
        for first in range(1, count, 10_000):
            client.eval(_REDIS, 1, template, first, min(count - 1, first + 9_999))
        return float(client.info("memory")["used_memory"] - before) / max(1, count - 1)


def _once(key: str) -> int:
    return 1
