"""A shop of each composition, on each set of servers, in each colour."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import redis

from idempo.contracts import Colour
from tests.faults.compositions import CLUSTER, COMPOSITIONS, READS, Composition, Stores
from tests.faults.shop import Books, Shop
from tests.faults.wire import Wire
from tests.servers import Server, fresh_database

PLACES: tuple[tuple[str, str, Colour], ...] = (
    ("postgres", "redis_server", "sync"),
    ("postgres", "redis_server", "async"),
    ("mariadb", "valkey", "sync"),
    ("mysql", "valkey", "sync"),
    ("sqlite", "redis62", "sync"),
)


@dataclass(frozen=True)
class Case:
    """A composition on servers: a database and a Redis, by the names of their fixtures."""

    composition: Composition
    database: str
    cache: str
    colour: Colour
    sends_again: bool = True
    """redis-py sends a request again by itself, unless it is told not to; SQL drivers never do."""

    def __str__(self) -> str:
        once = "" if self.sends_again else "-sends-once"
        return f"{self.composition.name}-{self.database}-{self.cache}-{self.colour}{once}"


CASES = [Case(composition, *place) for composition in COMPOSITIONS for place in PLACES]
COLOURS: tuple[Colour, Colour] = ("sync", "async")
ON_CLUSTER = [Case(CLUSTER, "sqlite", "redis_cluster", colour) for colour in COLOURS]
READING = [
    Case(composition, *place)
    for composition in READS
    for place in PLACES
    if place[0] != "mysql"  # which does as MariaDB does
    if not (composition.callers and place[0] == "mariadb")  # which cannot, once a transaction has begun
]


@pytest.fixture(params=CASES + ON_CLUSTER, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture
def composition(case: Case) -> Composition:
    return case.composition


@pytest.fixture
def colour(case: Case) -> Colour:
    return case.colour


@pytest.fixture
def servers(case: Case, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Stores, list[int]]:
    """Fresh stores, and the ports of their servers. Those that the composition does not use are the nearest."""
    one: Server = request.getfixturevalue("redis_server")
    elsewhere, ports = fresh_database(one), [one.port]
    url = f"sqlite:///{tmp_path}/shop.db"
    if case.database != "sqlite" and "database" in case.composition.servers:
        server: Server = request.getfixturevalue(case.database)
        url = fresh_database(server) + ("?ssl_disabled=true" if case.database == "mysql" else "")
        ports.append(server.port)
    in_front: Server = request.getfixturevalue(case.cache) if "redis" in case.composition.servers else one
    if case.composition is CLUSTER:
        url = in_front.url.replace("redis://", "redis+cluster://")
        prefix = f"faults:{uuid.uuid4()}:"
        return Stores(f"sqlite:///{tmp_path}/shop.db", url, elsewhere, prefix), [
            *ports,
            *node_ports(in_front),
        ]
    return Stores(url, fresh_database(in_front), elsewhere), [*ports, in_front.port]


def node_ports(cluster: Server) -> list[int]:
    client: Any
    with redis.Redis.from_url(cluster.url) as client:
        return [int(master[1]) for _, _, master, *_ in client.execute_command("CLUSTER SLOTS")]


@pytest.fixture
def stores(servers: tuple[Stores, list[int]]) -> Stores:
    return servers[0]


@pytest.fixture
def wire(servers: tuple[Stores, list[int]]) -> Iterator[Wire]:
    with Wire(*servers[1]) as wire:
        yield wire


@pytest.fixture
def wired(stores: Stores, wire: Wire) -> Stores:
    """The same stores by way of the wire. A SQLite file has none."""
    database = stores.database if stores.database.startswith("sqlite") else wire.through(stores.database)
    return replace(
        stores,
        database=database,
        redis=wire.through(stores.redis),
        elsewhere=wire.through(stores.elsewhere),
        ways=wire.ways,
    )


@pytest.fixture
def books(stores: Stores) -> Iterator[Books]:
    books = Books(stores)
    books.create()
    yield books
    books.close()


@pytest.fixture
def shop(composition: Composition, colour: Colour, stores: Stores, books: Books) -> Iterator[Shop]:
    """Its calls take the direct way."""
    shop = Shop(composition, colour, stores)
    yield shop
    shop.close()
