"""Servers in containers, where a Docker engine answers."""

import functools
import os
import socket
from dataclasses import dataclass
from typing import Any

from tests.provide.processes import Unavailable


@dataclass(frozen=True)
class Image:
    """What testcontainers needs to know."""

    name: str
    port: int
    environment: tuple[tuple[str, str], ...] = ()
    command: str = ""


@functools.cache
def available() -> bool:
    """Whether a Docker engine answers. Without one this fails at once."""
    if os.environ.get("IDEMPO_TEST_DOCKER") == "0":
        return False
    if not _somebody_listens(os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"):
        return False
    try:
        import docker

        client = docker.from_env()
        client.ping()
        client.close()
    except Exception:  # not installed, or no engine: it has many ways to say so
        return False
    return True


def _somebody_listens(address: str) -> bool:
    """Asked first, because docker-py forgets to close a socket that did not connect."""
    scheme, _, rest = address.partition("://")
    try:
        if scheme == "unix":
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(rest)
        elif scheme == "tcp":
            host, _, port = rest.partition(":")
            socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError):
        return False
    return True


class Container:
    """One server in a container. Its port is fixed, so that it is the same after a restart."""

    def __init__(self, image: Image, port: int) -> None:
        from testcontainers.core.container import DockerContainer

        container: type[Any] = DockerContainer  # its types do not know a port with an address
        self._container = container(image.name)
        # Not with_bind_ports: it takes no address, and the port would be open to the network.
        self._container.ports[f"{image.port}/tcp"] = ("127.0.0.1", port)
        for name, value in image.environment:
            self._container.with_env(name, value)
        if image.command:
            self._container.with_command(image.command)
        self._created = False

    @property
    def _docker(self) -> Any:
        return self._container.get_wrapped_container()

    def start(self) -> None:
        if self._created:
            self._docker.start()
        else:
            self._container.start()
            self._created = True

    def kill(self) -> None:
        self._docker.kill()

    def pause(self) -> None:
        self._docker.pause()

    def resume(self) -> None:
        self._docker.unpause()

    def stop(self) -> None:
        if self._created:
            self._container.stop()

    def check(self) -> None:
        self._docker.reload()
        if self._docker.status in ("exited", "dead"):
            raise Unavailable(
                f"the container has ended: {self._docker.logs(tail=5).decode(errors='replace')}"
            )
