"""A Valkey Cluster of three masters."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.provide.processes import Local, free_port, poll

SLOTS = ((0, 5460), (5461, 10922), (10923, 16383))


class Cluster:
    """Three servers that are treated as one. They find each other once, at the first start."""

    def __init__(self, folder: Path, port: int, command: Callable[[Path, int], Sequence[str | Path]]) -> None:
        self._folder = folder
        self._ports = [port, free_port(), free_port()]
        self._buses = [free_port() for _ in self._ports]
        self._joined = False
        self.nodes = []
        for member, bus in zip(self._ports, self._buses, strict=True):
            home = folder / str(member)
            home.mkdir()
            options = [
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                str(bus),
                "--cluster-node-timeout",
                "1000",
            ]
            self.nodes.append(Local([*command(home, member), *options], home))

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        if not self._joined:
            self._join()
            self._joined = True

    def _join(self) -> None:
        import redis

        clients: list[Any] = [redis.Redis(port=port, socket_timeout=2) for port in self._ports]
        for client, node, (low, high) in zip(clients, self.nodes, SLOTS, strict=True):
            poll(client.ping, seconds=10, give_up=node.check)
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", low, high)
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", self._ports[0], self._buses[0])
        for client in clients:
            poll(lambda client=client: expect_ok(client), seconds=20)  # type: ignore[misc]
            client.close()

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    def pause(self) -> None:
        for node in self.nodes:
            node.pause()

    def resume(self) -> None:
        for node in self.nodes:
            node.resume()

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def check(self) -> None:
        for node in self.nodes:
            node.check()


def expect_ok(client: Any) -> None:
    """All slots are served and this node knows all three masters."""
    about = client.execute_command("CLUSTER INFO")
    text = about if isinstance(about, dict) else dict(line.split(":") for line in about.decode().split())
    if text["cluster_state"] != "ok" or int(text["cluster_size"]) < len(SLOTS):
        raise ConnectionError(f"cluster_state is {text['cluster_state']}")
