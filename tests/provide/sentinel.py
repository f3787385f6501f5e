"""A primary, its replica, and three sentinels that promote the replica when the primary is gone.

    with Sentinels("valkey") as group:
        group.first.kill()           # nothing follows from it yet
        group.elect(group.second)    # returns when it is the primary

Sources: Redis documentation, "High availability with Redis Sentinel"; `sentinel.conf` for the lines of a configuration.
"""

import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import redis

from tests.provide.places import Place
from tests.provide.processes import Local, free_port, poll, temporary_folder
from tests.provide.recipes import _place_of, _redis_command

NAME = "shop"
SECONDS = 60
_CALM = 60_000  # milliseconds: a primary that is silent, or a replica that follows a proxy, is let alone
_AWAKE = {"down-after-milliseconds": 300, "failover-timeout": 1000}


@dataclass(frozen=True)
class Node:
    """One server of the pair, and a client of it that nobody else uses."""

    port: int
    engine: Local
    client: Any

    def start(self) -> None:
        self.engine.start()
        poll(self.client.ping, seconds=SECONDS, give_up=self.engine.check)

    def kill(self) -> None:
        self.engine.kill()

    def role(self) -> str:
        return str(self.client.info("replication")["role"])

    def expect(self, role: str) -> None:
        if (found := self.role()) != role:
            raise TimeoutError(f"{self.port} is {found}")

    def follow(self, port: int) -> None:
        """Become a replica of the server at `port`; returns when it has all that is there."""
        self.client.replicaof("127.0.0.1", port)
        poll(self._expect_linked, seconds=SECONDS, give_up=self.engine.check)

    def _expect_linked(self) -> None:
        about = self.client.info("replication")
        if about["role"] != "slave" or about["master_link_status"] != "up":
            raise TimeoutError(f"not in step with its primary: {about}")


class Pair:
    """A primary and a replica that follows it, on disks of their own."""

    def __init__(
        self, kind: str, *, through: Callable[[int], int] = lambda port: port, options: Sequence[str] = ()
    ) -> None:
        """`through` gives the port at which the replica finds the primary at the given one: a proxy's."""
        self.place = _place_of(kind, None)
        self.folder = temporary_folder()
        self.nodes: list[Node] = []
        try:
            self.first, self.second = self._node(options), self._node(options)
            for node in self.nodes:
                node.start()
            self.second.follow(through(self.first.port))
        except BaseException:
            self.stop()
            raise

    def _node(self, options: Sequence[str]) -> Node:
        port = free_port()
        home = self.folder / str(port)
        home.mkdir()
        command = _redis_command(self.place.program, home, port, True)
        command += ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1", *options]
        client = redis.Redis(port=port, socket_timeout=5)
        node = Node(port, Local(command, home, env=self.place.environment), client)
        self.nodes.append(node)
        return node

    def replicated(self) -> None:
        """Return when the replica has all that the primary has acknowledged."""
        poll(self._expect_replicated, seconds=SECONDS)

    def _expect_replicated(self) -> None:
        about = [node.client.info("replication") for node in self.nodes]
        offsets = {one["role"]: one["master_repl_offset"] for one in about}
        if offsets["slave"] < offsets["master"]:
            raise TimeoutError(f"the replica is behind: {offsets}")

    def wait_for_replicas(self, number: int) -> None:
        """Return when the first server counts so many replicas, as `min-replicas-to-write` does."""
        poll(lambda: self._expect_replicas(number), seconds=SECONDS)

    def _expect_replicas(self, number: int) -> None:
        found = self.first.client.info("replication")["min_slaves_good_slaves"]
        if found != number:
            raise TimeoutError(f"{found} replicas instead of {number}")

    def stop(self) -> None:
        for node in self.nodes:
            node.client.close()
            node.engine.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


class Sentinels(Pair):
    """The pair under the eyes of three sentinels, who know each other from the start."""

    def __init__(self, kind: str, *, through: Callable[[int], int] = lambda port: port) -> None:
        self.ports: list[int] = []
        self._watchers: list[Local] = []
        self._clients: list[Any] = []
        super().__init__(kind, through=through)
        try:
            self._watch()
        except BaseException:
            self.stop()
            raise

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """What `redis.sentinel.Sentinel` is given."""
        return [("127.0.0.1", port) for port in self.ports]

    def _watch(self) -> None:
        self.ports = [free_port() for _ in range(3)]
        names = [secrets.token_hex(20) for _ in self.ports]
        known = list(zip(self.ports, names, strict=True))
        for port, name in known:
            home = self.folder / str(port)
            home.mkdir()
            file = home / "sentinel.conf"
            others = [one for one in known if one[1] != name]
            file.write_text(_configuration(home, port, name, self.first.port, self.second.port, others))
            self._watchers.append(
                Local(_sentinel_command(self.place, file), home, env=self.place.environment)
            )
            self._clients.append(redis.Redis(port=port, socket_timeout=5))
        for watcher in self._watchers:
            watcher.start()
        for watcher, client in zip(self._watchers, self._clients, strict=True):
            poll(lambda client=client: _expect_ready(client), seconds=SECONDS, give_up=watcher.check)  # type: ignore[misc]

    def elect(self, node: Node) -> None:
        """Let the sentinels see that the primary is gone; return when this one is the primary, as they all say."""
        self._set(_AWAKE)
        self.named(node)
        self._set(dict.fromkeys(_AWAKE, _CALM))

    def hand_over(self, node: Node) -> None:
        """A failover while the primary is well, as for its maintenance; returns when this one is the primary.

        The old one is told at once. Left to the sentinels, it takes writes for ten more seconds, and then loses them.
        """
        (other,) = (one for one in self.nodes if one is not node)
        poll(lambda: self._clients[0].execute_command("SENTINEL FAILOVER", NAME), seconds=SECONDS)
        poll(lambda: node.expect("master"), seconds=SECONDS)
        other.follow(node.port)
        self.named(node)

    def named(self, node: Node) -> None:
        """Return when this one is the primary, and every sentinel says so."""
        poll(lambda: self._expect_primary(node), seconds=SECONDS)

    def _set(self, options: Mapping[str, int]) -> None:
        for client in self._clients:
            for option, milliseconds in options.items():
                client.execute_command("SENTINEL SET", NAME, option, milliseconds)

    def _expect_primary(self, node: Node) -> None:
        told = [
            int(client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", NAME)[1])
            for client in self._clients
        ]
        if node.role() != "master" or set(told) != {node.port}:
            raise TimeoutError(f"{node.port} is {node.role()}, and the sentinels name {told}")

    def stop(self) -> None:
        for client in self._clients:
            client.close()
        for watcher in self._watchers:
            watcher.stop()
        super().stop()


def _configuration(
    home: Path, port: int, name: str, primary: int, replica: int, others: Sequence[tuple[int, str]]
) -> str:
    lines = [
        f"port {port}",
        "bind 127.0.0.1",
        f"dir {home}",
        f"sentinel myid {name}",
        f"sentinel monitor {NAME} 127.0.0.1 {primary} 2",
        *(f"sentinel {option} {NAME} {_CALM}" for option in _AWAKE),
        f"sentinel known-replica {NAME} 127.0.0.1 {replica}",
        *(f"sentinel known-sentinel {NAME} 127.0.0.1 {at} {who}" for at, who in others),
    ]
    return "\n".join(lines) + "\n"


def _sentinel_command(place: Place, file: Path) -> list[str | Path]:
    return [*place.command, file, "--sentinel"]


def _expect_ready(client: Any) -> None:
    """This sentinel reaches the primary, the replica and the other sentinels."""
    primary = client.sentinel_master(NAME)
    (replica,) = client.sentinel_slaves(NAME)
    others = client.sentinel_sentinels(NAME)
    flags = [one["flags"] for one in (primary, replica, *others)]
    if flags != ["master", "slave", "sentinel", "sentinel"] or replica["master-link-status"] != "ok":
        raise TimeoutError(f"not ready: {flags}")
