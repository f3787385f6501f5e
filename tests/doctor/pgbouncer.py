"""PgBouncer itself, in front of a PostgreSQL of ours: the system's, a Debian package unpacked, or one from sid."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.provide.places import first, in_debian, in_suite, on_system
from tests.provide.processes import (
    Local,
    Unavailable,
    free_port,
    give_away,
    poll,
    server_user,
    temporary_folder,
)
from tests.servers import Server, used

_TREES = ("usr/sbin", "usr/lib")


@contextmanager
def pgbouncer(server: Server, mode: str, *, newest: bool = False, settings: str = "") -> Iterator[str]:
    """The URL of the server's database `postgres` through a PgBouncer with this `pool_mode`."""
    older = {"debian": lambda: in_debian("usr/sbin/pgbouncer", "pgbouncer")}
    newer = {"debian": lambda: in_suite("sid", "usr/sbin/pgbouncer", _TREES, "pgbouncer")}
    system = {"system": lambda: on_system("pgbouncer")}
    try:
        place = first("pgbouncer", newer if newest else {**older, **system})
    except Unavailable as reason:
        reason.kind = "pgbouncer"  # so that it is skipped, unless the run must not do without
        raise
    folder, port = temporary_folder(), free_port()
    (folder / "ini").write_text(
        f"[databases]\n* = host=127.0.0.1 port={server.port} user=postgres\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = any\npool_mode = {mode}\ndefault_pool_size = 5\n{settings}\n"
    )
    give_away(folder)
    engine = Local([*place.command, folder / "ini"], folder, user=server_user(), env=place.environment)
    url = f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
    try:
        engine.start()
        poll(lambda: psycopg.connect(url.replace("+psycopg", "")).close(), seconds=30, give_up=engine.check)
        used.add(f"pgbouncer {place.origin}")
        yield url
    finally:
        engine.stop()
