"""Real servers, provided as for the tests: those that the environment names, or instances of our own."""

import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from redis import Redis
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from idempo import UniqueInsert
from idempo.steps import Steps
from tests import servers
from tests.faults.proxy import Proxy
from tests.provide.processes import poll
from tests.servers import Server

__all__ = ["Stores", "Wire", "behind_proxies", "machine", "opened", "prepared"]

PACKAGES = (
    "idempo",
    "sqlalchemy",
    "redis",
    "hiredis",
    "psycopg",
    "pymysql",
    "asyncmy",
    "aiosqlite",
    "msgspec",
    "tenacity",
)


@dataclass(frozen=True)
class Stores:
    """Where the benchmarks keep things."""

    redis: str
    postgres: str
    mariadb: str
    sqlite: str
    summary: tuple[str, ...] = ()

    @property
    def libpq(self) -> str:
        """The URL of the PostgreSQL, for psycopg itself."""
        return make_url(self.postgres).set(drivername="postgresql").render_as_string(hide_password=False)


@contextmanager
def opened() -> Iterator[Stores]:
    """Start what is not there, and stop it at the end. Their disks are not waited for (`fsync` is off)."""
    with ExitStack() as stack:
        yield stack.enter_context(
            prepared(
                *(
                    stack.enter_context(servers.start_shared(kind))
                    for kind in ("redis", "postgres", "mariadb")
                )
            )
        )


@contextmanager
def prepared(redis: Server, postgres: Server, mariadb: Server) -> Iterator[Stores]:
    """Databases of our own on these servers, with the tables of idempo; they are dropped at the end."""
    found = (redis, postgres, mariadb)
    with tempfile.TemporaryDirectory(prefix="idempo-bench-") as folder:
        at_redis, at_postgres, at_mariadb = map(servers.fresh_database, found)
        stores = Stores(
            at_redis,
            at_postgres,
            at_mariadb,
            f"sqlite:///{Path(folder) / 'bench.db'}",
            tuple(f"{server.kind} {server.version}" for server in found),
        )
        try:
            for url in (stores.postgres, stores.mariadb, stores.sqlite):
                ledger = UniqueInsert(url)
                ledger.create_schema()
                ledger.close()
            yield stores
        finally:
            _flush(stores.redis)
            _drop(postgres.url, f"DROP DATABASE {make_url(stores.postgres).database} WITH (FORCE)")
            _drop(mariadb.url, f"DROP DATABASE {make_url(stores.mariadb).database}")


def _flush(url: str) -> None:
    client: Any
    with Redis.from_url(url) as client:
        client.flushdb(asynchronous=True)


def _drop(url: str, statement: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text(statement))


@dataclass(frozen=True)
class Wire:
    """What counts round trips between us and the servers."""

    proxies: tuple[Proxy, ...]

    @property
    def requests(self) -> int:
        return sum(proxy.requests for proxy in self.proxies)

    def reset(self) -> None:
        for proxy in self.proxies:
            proxy.reset_count()

    def counted(self, call: Callable[[], Any]) -> Steps[int]:
        """Return how many requests `call` makes."""
        self.reset()
        yield call()
        return self.requests


@contextmanager
def behind_proxies(stores: Stores) -> Iterator[tuple[Stores, Wire]]:
    """The same databases behind proxies that count."""
    with ExitStack() as stack:
        urls = (stores.redis, stores.postgres, stores.mariadb)
        proxies = tuple(stack.enter_context(Proxy(make_url(url).port or 0)) for url in urls)
        redis, postgres, mariadb = (
            make_url(url).set(port=proxy.port).render_as_string(hide_password=False)
            for url, proxy in zip(urls, proxies, strict=True)
        )
        try:
            yield Stores(redis, f"{postgres}?sslmode=disable", mariadb, stores.sqlite), Wire(proxies)
        finally:
            # A proxy that ends while a connection is being closed says so on the screen.
            for proxy in proxies:
                proxy.cut()
                poll(partial(_ended, proxy), seconds=10)


def _ended(proxy: Proxy) -> None:
    if proxy._writers:
        raise RuntimeError("connections of the proxy are still being closed")


def machine(stores: Stores) -> dict[str, object]:
    """What the numbers depend on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "servers": list(stores.summary),
        "packages": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
