"""Whether the user of a Redis may run idempo's scripts, found out without writing."""

from __future__ import annotations

from typing import Any

from redis.exceptions import MovedError, NoPermissionError, NoScriptError, ReadOnlyError, ResponseError

from idempo.doctor.findings import Finding, danger, ok, unknown, warning

__all__ = ["rights"]

# What the scripts call. The server judges each for this user and the key, and runs none of them (Redis 7.0, Valkey).
_ASK = """
if not redis.acl_check_cmd then return 'cannot tell' end
local lacking = {}
local asked = {
  {'TIME'}, {'HMGET', KEYS[1], 'state'}, {'HGET', KEYS[1], 'state'}, {'HSET', KEYS[1], 'state', 'x'},
  {'HDEL', KEYS[1], 'result'},  {'EXISTS', KEYS[1]}, {'PTTL', KEYS[1]}, {'PEXPIRE', KEYS[1], '1'}, {'DEL', KEYS[1]}}
if ARGV[1] == 'waking' then asked = {{'XADD', KEYS[1], '*', 'e', '1'}, {'XREAD', 'STREAMS', KEYS[1], '0'}} end
for _, command in ipairs(asked) do
  if not redis.acl_check_cmd(unpack(command)) then table.insert(lacking, command[1]) end
end
return table.concat(lacking, ' ')
"""
_MEND = (
    "ACL SETUSER {user} on ~{prefix}* +eval +evalsha +time +hmget +hget +hset +hdel +exists +pttl +pexpire +del +xadd "
    "+xread +ping +info"
)


def rights(client: Any, prefix: str, key: str) -> Finding:
    """Ask whether EVALSHA, EVAL and the commands inside are allowed on `key`, which this node would keep."""
    mend = _MEND.format(user=_user(client), prefix=prefix)
    try:
        client.execute_command("EVALSHA", "0" * 40, 0)
    except NoScriptError:
        pass
    except NoPermissionError as error:
        return danger("rights", f"EVALSHA is refused, so every call fails: {error}", mend)
    try:
        answer = client.execute_command("EVAL", _ASK, 1, key)
    except NoPermissionError as error:
        return danger(
            "rights",
            f"EVAL on keys {prefix}* is refused, so calls fail, at the latest after a restart of the server: {error}",
            mend,
        )
    except ReadOnlyError:
        return unknown("rights", "a replica refuses to say", "ask the primary")
    except MovedError:
        return unknown("rights", "the key that was asked about is on another node", "ask by redis+cluster://")
    except ResponseError as error:
        return unknown("rights", f"EVAL answers: {error}", mend)
    lacking = _text(answer)
    if lacking == "cannot tell":
        return _by_name(client, mend)
    if lacking:
        return danger("rights", f"inside scripts this user may not call {lacking}: calls fail", mend)
    if lacking := _text(client.execute_command("EVAL", _ASK, 1, key, "waking")):
        says = f"this user may not call {lacking}: duplicates in other processes are not woken, but ask many times"
        return warning("rights", says, mend)
    return ok("rights", f"this user may run idempo's scripts on keys {prefix}*")


def _by_name(client: Any, mend: str) -> Finding:
    """Redis 6.2 has no `acl_check_cmd`: only a user with all rights is sure."""
    try:
        user = client.acl_getuser(_user(client)) or {}
    except ResponseError:
        user = {}
    if {"allcommands", "allkeys"} <= set(user.get("flags", ())):
        return ok("rights", "this user may do everything")
    return unknown("rights", "EVAL is allowed; Redis 6.2 does not tell about the commands inside", mend)


def _user(client: Any) -> str:
    try:
        return _text(client.acl_whoami())
    except ResponseError:
        return "default"


def _text(answer: Any) -> str:
    return answer.decode() if isinstance(answer, bytes) else str(answer)
