"""Real servers for the tests, and how to break them.

    with start("postgres") as server:   # a private instance, stopped at the end
        server.kill()                   # SIGKILL, backends too
        server.start()                  # again, on the same data and port

Shared instances come from the fixtures in conftest.py. Nothing in here imports idempo.
"""

import dataclasses
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import redis
from sqlalchemy import URL, create_engine, make_url, text
from sqlalchemy.pool import NullPool

from tests.provide import containers
from tests.provide.clocks import Clock
from tests.provide.processes import Engine, Local, Unavailable, free_port, poll, temporary_folder
from tests.provide.recipes import RECIPES

__all__ = [
    "KINDS",
    "Clock",
    "Server",
    "Unavailable",
    "async_url",
    "fresh_database",
    "start",
    "start_shared",
    "used",
]

KINDS = tuple(RECIPES)
READY_SECONDS = 30

_not_docker: dict[str, str] = {}  # why this kind is not asked of Docker again
used: set[str] = set()  # what this process started, for the summary at the end of the run


@dataclass(frozen=True)
class Server:
    kind: str
    version: str
    origin: str
    port: int
    url: str
    async_url: str
    engine: Engine | None = field(default=None, repr=False, compare=False)

    @property
    def summary(self) -> str:
        return f"{self.kind} {self.version}, {self.origin}"

    def kill(self) -> None:
        """SIGKILL, to a database's backends too."""
        self._ours().kill()

    def start(self) -> None:
        """Start again on the same data and port; returns when it answers."""
        self._ours().start()
        _ready(self.kind, self.url, self._ours())

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._ours().pause()

    def resume(self) -> None:
        self._ours().resume()

    def stop(self) -> None:
        """End it and throw its data away. A server that is not ours is left alone."""
        if self.engine is not None:
            self.engine.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def shared(self) -> "Server":
        """The same server for those who may use it but not break it."""
        return dataclasses.replace(self, engine=None)

    def _ours(self) -> Engine:
        if self.engine is None:
            raise RuntimeError(f'this one is shared; start("{self.kind}") gives one that may be broken')
        return self.engine


def start(
    kind: str,
    *,
    places: Sequence[str] | None = None,
    clock: Clock | None = None,
    within: Path | None = None,
) -> Server:
    """A private instance: from Docker if there is one, else from a program of this machine.

    `places` names where to look for the program instead: "system", "wheel", "debian". A program of this machine can
    live under a `clock` that is moved, and have its data `within` a folder of the test's.
    """
    with _named(kind):
        return _start(kind, durable=True, places=places, clock=clock, within=within)


def start_shared(kind: str) -> Server:
    """For the keeper: what the environment names, or an instance that is fast rather than durable."""
    variable = RECIPES[kind].variable
    with _named(kind):
        if url := os.environ.get(variable):
            try:
                return _server(kind, url, f"the URL in {variable}", None)
            except Exception as error:  # a driver's own error, whichever it is
                raise Unavailable(f"the server of {variable} does not answer: {error}") from error
        return _start(kind, durable=False, places=None)


@contextmanager
def _named(kind: str) -> Iterator[None]:
    try:
        yield
    except Unavailable as reason:
        reason.kind = kind
        raise


def _start(
    kind: str,
    *,
    durable: bool,
    places: Sequence[str] | None,
    clock: Clock | None = None,
    within: Path | None = None,
) -> Server:
    recipe = RECIPES[kind]
    local = places is not None or clock is not None or within is not None
    if recipe.image and not local and kind not in _not_docker and containers.available():
        port = free_port()
        try:
            return _launch(
                kind, port, containers.Container(recipe.image, port), f"Docker image {recipe.image.name}"
            )
        except Exception as error:  # whatever docker and requests raise: no Docker, then
            _not_docker[kind] = f" (not Docker: {str(error)[:200]})"
    note = "" if places else _not_docker.get(kind, "")
    folder, port = temporary_folder(within), free_port()
    try:
        engine, origin = recipe.local(folder, port, durable, places)
        if clock is not None:
            if not isinstance(engine, Local):
                raise Unavailable(f"{kind} is more than one process")
            engine.run_under(clock.command)
        return _launch(kind, port, engine, origin + note)
    except Unavailable as reason:
        shutil.rmtree(folder, ignore_errors=True)
        raise Unavailable(f"{reason}{note}") from None


def _launch(kind: str, port: int, engine: Engine, origin: str) -> Server:
    try:
        engine.start()
        url = RECIPES[kind].url.format(port=port)
        _ready(kind, url, engine)
        return _server(kind, url, origin, engine)
    except BaseException:
        engine.stop()
        raise


def _ready(kind: str, url: str, engine: Engine) -> None:
    poll(lambda: RECIPES[kind].version(url), seconds=READY_SECONDS, give_up=engine.check)


def _server(kind: str, url: str, origin: str, engine: Engine | None) -> Server:
    recipe = RECIPES[kind]
    server = Server(kind, recipe.version(url), origin, make_url(url).port or 0, url, async_url(url), engine)
    used.add(server.summary)
    return server


def fresh_database(server: Server) -> str:
    """The URL of a new, empty database on a server: of a SQL database, or a number on a Redis."""
    if server.url.startswith("redis"):
        return _fresh_number(server)
    name = f"t_{secrets.token_hex(8)}"
    engine = create_engine(server.url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    return _driven(make_url(server.url).set(database=name), "sync")


def async_url(url: str) -> str:
    """The URL of the same database for async clients; redis-py serves both colours."""
    return url if url.startswith("redis") else _driven(make_url(url), "async")


# The first is the usual one.
_DRIVERS: dict[str, dict[str, tuple[str, ...]]] = {
    "sync": {"postgresql": ("psycopg", "psycopg2", "pg8000"), "mysql": ("pymysql", "mysqlconnector")},
    "async": {"postgresql": ("psycopg", "asyncpg"), "mysql": ("asyncmy",), "sqlite": ("aiosqlite",)},
}


def _driven(url: URL, colour: str) -> str:
    """The URL with the usual driver, or the one that `IDEMPO_TEST_DRIVERS` names: `psycopg2,mysqlconnector`."""
    able = _DRIVERS[colour][url.get_backend_name()]
    wanted = os.environ.get("IDEMPO_TEST_DRIVERS", "").split(",")
    driver = next((one for one in able if one in wanted), able[0])
    if driver in ("asyncpg", "pg8000") and "sslmode" in url.query:  # they have another word for it, or none
        told = {"ssl": url.query["sslmode"]} if driver == "asyncpg" else {}
        url = url.difference_update_query(["sslmode"]).update_query_dict(told)
    return url.set(drivername=f"{url.get_backend_name()}+{driver}").render_as_string(hide_password=False)


def _fresh_number(server: Server) -> str:
    if server.kind == "valkey-cluster":
        raise ValueError("a cluster has one database only; use keys of your own")
    client: Any
    with redis.Redis.from_url(server.url) as client:
        last = int(client.config_get("databases")["databases"]) - 1
        number = int(client.incr("idempo:test:numbers")) % last or last
    url = make_url(server.url).set(database=str(number)).render_as_string(hide_password=False)
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url
