"""What the settings of a Redis or Valkey mean for the records in it: plain functions of what the server tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redis.exceptions import NoPermissionError, ResponseError

from idempo.doctor.findings import Finding, danger, ok, unknown, warning

__all__ = ["about", "eviction", "memory", "persistence", "replication", "version"]

_ASKED = (
    "maxmemory-policy",
    "maxmemory",
    "appendfsync",
    "no-appendfsync-on-rewrite",
    "save",
    "min-replicas-to-write",
    "min-replicas-max-lag",
)
_ALONE = "of RedisCache alone; in front of a SQL ledger it costs speed only"
_INNER = "or put a SQL ledger inside: using=[RedisCache(...), UniqueInsert(...)]"
_FULL = 0.9


def about(client: Any) -> dict[str, Any]:
    """What INFO and CONFIG GET tell, as far as they are allowed. A managed service often forbids the second."""
    try:
        found = dict(client.info())
    except NoPermissionError:  # idempo itself does without
        found = {}
    for name in _ASKED:
        try:
            found |= client.config_get(name)
        except ResponseError:  # NOPERM, or a command that the service has renamed away
            break
    if "maxmemory_policy" in found:
        found.setdefault("maxmemory-policy", found["maxmemory_policy"])
    return found


def version(found: Mapping[str, Any]) -> Finding:
    text = str(found.get("valkey_version") or found.get("redis_version") or "")
    name = "Valkey" if found.get("valkey_version") else "Redis"
    parts = text.split(".")
    if len(parts) < 2 or not (parts[0].isdigit() and parts[1].isdigit()):
        return unknown(
            "version", "the server does not tell its version", "see that it is Redis 6.2 or newer, or Valkey"
        )
    if name == "Redis" and (int(parts[0]), int(parts[1])) < (6, 2):
        return danger(
            "version", f"Redis {text} is older than 6.2, which idempo is tested with", "update the server"
        )
    return ok("version", f"{name} {text}")


def eviction(found: Mapping[str, Any]) -> Finding:
    policy, limit = found.get("maxmemory-policy"), int(found.get("maxmemory") or 0)
    mend = f"CONFIG SET maxmemory-policy noeviction, in the configuration file too; {_INNER}"
    if policy is None:
        return unknown(
            "eviction", "the server does not tell its maxmemory-policy", "see that it is noeviction"
        )
    if policy == "noeviction":
        return ok("eviction", "maxmemory-policy is noeviction: a full server refuses, it does not forget")
    if limit:
        return danger(
            "eviction",
            f"maxmemory-policy is {policy}: a full server drops claims and first results, and their operations run "
            f"again. It breaks Single claim and One result {_ALONE}",
            mend,
        )
    return warning(
        "eviction",
        f"maxmemory-policy is {policy}; without maxmemory nothing is evicted, but the first limit changes that",
        mend,
    )


def memory(found: Mapping[str, Any]) -> Finding:
    limit, used = int(found.get("maxmemory") or 0), int(found.get("used_memory") or 0)
    if "used_memory" not in found:
        return unknown(
            "memory", "the server does not tell its memory", "see that it has room for the records"
        )
    if not limit:
        return ok("memory", f"{used >> 20} MiB are used, and there is no maxmemory")
    if used < _FULL * limit:
        return ok("memory", f"{used >> 20} of {limit >> 20} MiB are used")
    return warning(
        "memory",
        f"{used >> 20} of {limit >> 20} MiB are used: a full server refuses claims, and completions too, after which "
        "outcomes are unknown",
        "raise maxmemory, or shorten keep=",
    )


def persistence(found: Mapping[str, Any]) -> Finding:
    if "aof_enabled" not in found:
        return unknown(
            "persistence", "the server does not tell how it persists", "see that appendonly is yes"
        )
    mend = f"CONFIG SET appendonly yes and appendfsync always, in the configuration file too; {_INNER}"
    lost = f"breaks Single claim and One result {_ALONE}"
    if not int(found["aof_enabled"]):
        if found.get("save"):
            return danger(
                "persistence",
                f"only snapshots are written (save {found['save']}): a server that crashes forgets all claims and "
                f"first results since the last one. It {lost}",
                mend,
            )
        if "save" in found:
            return danger(
                "persistence",
                f"nothing is written to the disk: a restart forgets all records. It {lost}",
                mend,
            )
        return danger(
            "persistence", f"appendonly is off: a crash forgets what was acknowledged. It {lost}", mend
        )
    match found.get("appendfsync"):
        case "always":
            if found.get("no-appendfsync-on-rewrite") == "yes":
                return warning(
                    "persistence",
                    "appendfsync is always, but no-appendfsync-on-rewrite is yes: while the file is rewritten, a "
                    "crash of the machine loses what was acknowledged",
                    "CONFIG SET no-appendfsync-on-rewrite no",
                )
            return ok(
                "persistence", "each write is on the disk before it is acknowledged (appendfsync always)"
            )
        case "everysec":
            return warning(
                "persistence",
                "appendfsync is everysec: a crash of the machine loses the claims and first results of the last 1 "
                f"to 2 seconds, and their operations run again. It {lost}",
                f"CONFIG SET appendfsync always; {_INNER}",
            )
        case "no":
            return danger(
                "persistence",
                "appendfsync is no: a crash of the machine loses whatever the kernel had not written yet, often "
                f"half a minute. It {lost}",
                f"CONFIG SET appendfsync always; {_INNER}",
            )
        case _:
            return unknown(
                "persistence",
                "appendonly is on, but CONFIG GET is refused, so appendfsync is not known",
                "see that it is always; everysec loses up to 2 seconds in a crash of the machine",
            )


def replication(found: Mapping[str, Any]) -> Finding:
    if "role" not in found:
        return unknown(
            "replication",
            "the server does not tell its role",
            "see that it is a primary, and how it replicates",
        )
    if found["role"] == "slave":
        return danger(
            "replication",
            "this is a replica: it refuses writes, so every call fails; a writable one would forget them",
            "give the URL of the primary, or a client of Sentinel's master_for()",
        )
    replicas = int(found.get("connected_slaves") or 0)
    wanted = found.get("min-replicas-to-write")
    if wanted is None:
        if not replicas:
            return ok("replication", "no replica is connected")
        return unknown(
            "replication",
            f"{replicas} replicas are connected, but CONFIG GET is refused, so min-replicas-to-write is not known",
            f"see that it is 1 or more; a failover still loses the writes of the last moment, {_INNER}",
        )
    if not int(wanted) and not replicas:
        return ok(
            "replication",
            "no replica is connected, and none is asked for: there is no failover to lose writes",
        )
    if not int(wanted):
        return danger(
            "replication",
            f"{replicas} replica{'s are' if replicas > 1 else ' is'} connected, but min-replicas-to-write is 0: a "
            "primary that is cut off goes on acknowledging claims, and a failover forgets them. It breaks Single "
            f"claim and One result {_ALONE}",
            "CONFIG SET min-replicas-to-write 1 and min-replicas-max-lag 10, in the configuration file too; "
            f"{_INNER}",
        )
    if replicas < int(wanted):
        return warning(
            "replication",
            f"{replicas} of the {wanted} replicas that min-replicas-to-write asks for are connected: every call is "
            "refused",
            "bring the replicas back, or lower min-replicas-to-write",
        )
    return warning(
        "replication",
        f"replication is asynchronous: a failover can forget up to {found.get('min-replicas-max-lag', '?')} seconds "
        f"of acknowledged claims, and then Single claim and One result do not hold {_ALONE}",
        f"a SQL ledger inside keeps them: {_INNER.removeprefix('or ')}",
    )
