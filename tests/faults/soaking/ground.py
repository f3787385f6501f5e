"""The servers of a soak, the ways to them, what has to be there before a key can be called, and what is found there."""

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import redis
from sqlalchemy import create_engine, insert, make_url, select
from sqlalchemy.pool import NullPool

from idempo import UniqueInsert
from idempo.steps import run
from tests.faults.compositions import COMPOSITIONS, Base, Order
from tests.faults.proxy import Proxy
from tests.faults.soaking.journal import Journal
from tests.faults.soaking.stand import WRITTEN, Place, Stand
from tests.servers import Server, start

__all__ = ["Ground", "ground"]

PLACES = (("postgres", "redis"), ("mariadb", "valkey"))


class Ground:
    """Places behind proxies, and the direct way to them."""

    def __init__(self, servers: dict[str, Server], proxies: dict[str, Proxy], elsewhere: str) -> None:
        self.servers, self.proxies = servers, proxies
        self.direct = [
            Place("+".join(pair), servers[pair[0]].url, servers[pair[1]].url, elsewhere) for pair in PLACES
        ]
        self.places = [
            Place("+".join(pair), self._through(pair[0]), self._through(pair[1]), elsewhere)
            for pair in PLACES
        ]
        self._numbers = itertools.count(1)
        for place in self.direct:
            engine = create_engine(place.database)
            Base.metadata.create_all(engine)
            WRITTEN.metadata.create_all(engine)
            UniqueInsert(engine).create_schema()
            engine.dispose()

    def _through(self, name: str) -> str:
        url = make_url(self.servers[name].url).set(port=self.proxies[name].port)
        return url.render_as_string(hide_password=False)

    def new_keys(self, number: int, odds: Random, journal: Journal) -> list[str]:
        """So many keys, of all compositions by turns: with a business row, and a token where one is asked for."""
        turn = [f"{place.name}/{composition.name}" for composition in COMPOSITIONS for place in self.direct]
        keys = [f"{turn[n % len(turn)]}/{n}" for n in itertools.islice(self._numbers, number)]
        for place in self.direct:
            mine = [key for key in keys if key.startswith(f"{place.name}/")]
            if not mine:
                continue
            stand = Stand(place, "sync", journal, odds)
            for key in mine:
                stand.issue(key)
            run(stand.close())
            rows = [{"order_no": key, "state": "new", "version": 1} for key in mine]
            with _connected(place.database) as connection:
                connection.execute(insert(Order), rows)
        odds.shuffle(keys)
        return keys

    def look(self, keys: Sequence[str], journal: Journal) -> None:
        """Note what is committed, and what the other system was told, in its order."""
        for place in self.direct:
            with _connected(place.database) as connection:
                for name, key in connection.execute(select(WRITTEN.c.run, WRITTEN.c.business_key)):
                    journal.say("row", key=key, run=name)
        client: Any = redis.Redis.from_url(self.direct[0].elsewhere)
        for key in keys:
            for line in client.lrange(f"told:{key}", 0, -1):
                name, fence, taken = json.loads(line)
                journal.say("told", key=key, run=name, fence=int(fence), taken=taken)
        client.close()


@contextmanager
def _connected(url: str) -> Iterator[Any]:
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


@contextmanager
def ground(within: Path | None = None) -> Iterator[Ground]:
    """Durable servers of our own: two databases and two Redises to break, and one Redis that is the other system."""
    with contextlib.ExitStack() as open_:
        servers = {name: open_.enter_context(start(name, within=within)) for pair in PLACES for name in pair}
        elsewhere = open_.enter_context(start("redis", within=within))
        proxies = {name: open_.enter_context(Proxy(server.port)) for name, server in servers.items()}
        yield Ground(servers, proxies, elsewhere.url)
