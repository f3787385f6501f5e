"""What is looked at in a Redis or Valkey: on the one server, or on each primary of a Cluster.

Sources: Redis documentation, "Key eviction", "Redis persistence", "Redis replication", "INFO", "Redis Lua API
reference" (redis.acl_check_cmd).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from idempo.clients import Clients
from idempo.doctor.clocks import offset_finding
from idempo.doctor.findings import Finding, danger, ok, unknown
from idempo.doctor.redis_replicas import clocks_of_nodes, replicas_of
from idempo.doctor.redis_rights import rights
from idempo.doctor.redis_settings import about, eviction, memory, persistence, replication, version
from idempo.errors import LedgerUnavailableError

__all__ = ["examine_redis"]

_SECONDS = 2.0
"""For one answer. A server that hangs is given up after the first."""


def examine_redis(url: str, prefix: str) -> list[Finding]:
    Clients(url)  # refuses what is no URL of a Redis, without showing its password
    plain = url.replace("+cluster://", "://", 1)
    options: dict[str, Any] = {
        "socket_timeout": _SECONDS,
        "socket_connect_timeout": _SECONDS,
        "retry": Retry(NoBackoff(), 0),
    }
    try:
        with redis.Redis.from_url(plain, **options) as client:
            found = about(client)
            if "+cluster" in url.partition("://")[0]:
                if not found.get("cluster_enabled"):
                    return [_not_a_cluster()]
                return _cluster(plain, options, prefix)
            return list(_single(client, found, prefix))
    except (AuthenticationError, NoPermissionError) as error:
        raise LedgerUnavailableError(f"the server does not let us in: {error}") from error
    except (RedisError, OSError) as error:
        raise LedgerUnavailableError(
            f"the server does not answer: {type(error).__name__}: {error}"
        ) from error


def _single(client: Any, found: Mapping[str, Any], prefix: str) -> Iterator[Finding]:
    if "sentinel" in (found.get("redis_mode"), found.get("server_mode")):
        yield danger(
            "server",
            "this is a Sentinel, which keeps no keys: every call fails",
            "make a client with redis.sentinel.Sentinel(...).master_for(name), and give it to RedisCache",
        )
        return
    if found.get("cluster_enabled"):
        yield danger(
            "cluster",
            "this is a node of a Cluster, but the URL is that of a single server: calls whose key is on another "
            "node fail",
            "write redis+cluster:// instead of redis://, or give RedisCache a RedisCluster client",
        )
    yield from _node(client, found, prefix, f"{prefix}doctor")
    yield from replicas_of(client, found)


def _node(client: Any, found: Mapping[str, Any], prefix: str, key: str) -> Iterator[Finding]:
    yield version(found)
    yield eviction(found)
    yield memory(found)
    yield persistence(found)
    yield replication(found)
    yield rights(client, prefix, key)
    try:
        yield offset_finding(lambda: _seconds(client.time()))
    except ResponseError as error:
        yield unknown(
            "clock", f"TIME is refused: {error}", "allow this user the command TIME: idempo's scripts use it"
        )


def _seconds(answer: Any) -> float:
    seconds, micros = answer
    return int(seconds) + int(micros) / 1_000_000


def _not_a_cluster() -> Finding:
    return danger(
        "cluster",
        "the URL is that of a Cluster, but the server is none: every call fails",
        "write redis:// instead of redis+cluster://",
    )


def _cluster(url: str, options: dict[str, Any], prefix: str) -> list[Finding]:
    """The same on each primary; what all of them have in common is told once."""
    try:
        cluster: Any = redis.RedisCluster.from_url(url, **options)
    except RedisClusterException as error:
        raise LedgerUnavailableError(f"the Cluster does not answer: {error}") from error
    with cluster:
        found: dict[tuple[str, str, str], list[tuple[str, Finding]]] = {}
        primaries = cluster.get_primaries()
        for node in primaries:
            client = cluster.get_redis_connection(node)
            for finding in _node(client, about(client), prefix, _key_of(cluster, node, prefix)):
                same = finding.says if finding.check not in ("clock", "memory") else ""
                found.setdefault((finding.check, finding.level, same), []).append((node.name, finding))
        told = [_together(where, len(primaries)) for where in found.values()]
        return [*told, ok("cluster", f"{len(primaries)} primaries answer"), clocks_of_nodes(cluster)]


def _key_of(cluster: Any, node: Any, prefix: str) -> str:
    """The name of a key that this node would keep; it is not made."""
    names = (f"{prefix}{number}" for number in range(100_000))
    return next((name for name in names if cluster.get_node_from_key(name) == node), prefix)


def _together(where: list[tuple[str, Finding]], nodes: int) -> Finding:
    finding = where[0][1]
    if len(where) == nodes:
        return finding
    names = ", ".join(name for name, _ in where)
    return dataclasses.replace(finding, says=f"on {names}: {finding.says}")
