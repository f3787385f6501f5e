"""Real servers, provided as for the tests: those that the environment names, or instances of our own."""

import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import make_url

from tests import servers

__all__ = ["Stores", "machine", "opened"]

PACKAGES = (
    "idempo",
    "sqlalchemy",
    "redis",
    "hiredis",
    "psycopg",
    "pymysql",
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
    summary: tuple[str, ...]

    @property
    def libpq(self) -> str:
        """The URL of the PostgreSQL, for psycopg itself."""
        return make_url(self.postgres).set(drivername="postgresql").render_as_string(hide_password=False)


@contextmanager
def opened() -> Iterator[Stores]:
    """Start what is not there, and stop it at the end. Their disks are not waited for (`fsync` is off)."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="idempo-bench-")))
        redis, postgres, mariadb = (
            stack.enter_context(servers.start_shared(kind)) for kind in ("redis", "postgres", "mariadb")
        )
        yield Stores(
            redis.url,
            postgres.url,
            mariadb.url,
            f"sqlite:///{folder / 'bench.db'}",
            tuple(server.summary for server in (redis, postgres, mariadb)),
        )


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
