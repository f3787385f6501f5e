"""Whether the replicas of a Redis have the same time: after a failover theirs decides about fences and leases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import redis
from redis.exceptions import RedisError

from idempo.doctor.clocks import offset
from idempo.doctor.findings import Finding, ok, unknown, warning

__all__ = ["clocks_of_nodes", "replicas_of"]

_MOST = 3
_APART = 1.0
_SECONDS = 1.0


def replicas_of(client: Any, found: Mapping[str, Any]) -> Iterator[Finding]:
    """Compare the clock of a primary with those of its replicas, at the addresses that it knows them by."""
    named = [one for name, one in sorted(found.items()) if _is_replica(name, one)]
    if found.get("role") != "master" or not named:
        return
    asks: dict[str, Callable[[], Any]] = {"primary": client.time}
    opened = []
    for one in named[:_MOST]:
        options = {
            **client.connection_pool.connection_kwargs,
            "socket_timeout": _SECONDS,
            "socket_connect_timeout": _SECONDS,
            "host": one["ip"],
            "port": int(one["port"]),
        }
        kind = client.connection_pool.connection_class
        if issubclass(kind, redis.UnixDomainSocketConnection):
            return
        replica = redis.Redis(connection_pool=redis.ConnectionPool(connection_class=kind, **options))
        opened.append(replica)
        asks[f"{one['ip']}:{one['port']}"] = replica.time
    try:
        yield _compared(asks)
    finally:
        for replica in opened:
            replica.close()
            replica.connection_pool.disconnect()


def clocks_of_nodes(cluster: Any) -> Finding:
    """Compare the clocks of the nodes of a Cluster, replicas included."""
    nodes = cluster.get_nodes()
    return _compared({node.name: cluster.get_redis_connection(node).time for node in nodes})


def _is_replica(name: str, value: Any) -> bool:
    return name.startswith("slave") and name[5:].isdigit() and isinstance(value, dict) and "ip" in value


def _compared(asks: Mapping[str, Callable[[], Any]]) -> Finding:
    measured: dict[str, tuple[float, float]] = {}
    silent = []
    for name, ask in asks.items():
        try:
            measured[name] = offset(lambda ask=ask: _seconds(ask()))  # type: ignore[misc]
        except (RedisError, OSError):
            silent.append(name)
    ahead = [one for one, _ in measured.values()]
    apart = max(ahead) - min(ahead) if ahead else 0.0
    error = sum(sorted((one for _, one in measured.values()), reverse=True)[:2])
    if apart - error > _APART:
        told = ", ".join(f"{name} {one:+.1f} s" for name, (one, _) in measured.items())
        return warning(
            "clocks of nodes",
            f"they are {apart:.1f} s apart (from ours: {told}): a failover shortens or lengthens leases by that "
            "much, and where it loses records, new fences may be lower than old ones",
            "let all nodes keep time by NTP",
        )
    if silent:
        return unknown(
            "clocks of nodes",
            f"no time from {', '.join(silent)}, at the address that the primary knows",
            "see that all nodes keep time by NTP",
        )
    return ok("clocks of nodes", f"{len(measured)} nodes are {apart:.3f} s apart")


def _seconds(answer: Any) -> float:
    seconds, micros = answer
    return int(seconds) + int(micros) / 1_000_000
