"""The Lua scripts of the Redis ledger: one for each thing a ledger does, each over one record.

A script reads the clock of the server, compares owner and fence, and writes, atomically (Redis documentation,
"Scripting with Lua"). Times are microseconds since 1970, UTC. Retention is the expiry of the key, in milliseconds.
KEYS: the record; beside it, for those that free or complete it, the stream of those who wait (see `streams`).
"""

from __future__ import annotations

import hashlib

__all__ = [
    "CLAIM",
    "COMPLETE",
    "FILL",
    "FORGET",
    "ISSUE",
    "LOOKUP",
    "RELEASE",
    "RENEW",
    "REVOKE",
    "SHA",
    "WAKING",
]

_HEAD = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function us(number) return string.format('%.0f', number) end
"""

# Wakes those who wait; a server that does not let us is asked by them. Only for a record with their mark.
_WAKE = """
local function wake()
  redis.call('HDEL', KEYS[1], 'waiting')
  local entry = KEYS[2] and redis.pcall('XADD', KEYS[2], 'MAXLEN', '1', '*', 'e', '1')
  if type(entry) == 'string' then redis.pcall('PEXPIRE', KEYS[2], 2000) end
end
"""

_READ = """redis.call('HMGET', KEYS[1], 'state', 'owner', 'fence', 'attempt', 'fingerprint', 'lease', 'result',
  'leased', 'waiting')"""

# ARGV: owner, fingerprint, lease (us), keep (ms), fence of the orphan to take over, operation, scope, key,
#       fence of the first result to replace, "1" if the key must have been issued
CLAIM = (
    f"local r = {_READ}\n"
    + """
local state = r[1]
if not state and ARGV[10] == '1' then return {'not issued'} end
if (state == 'completed' or state == 'failed') and r[3] ~= ARGV[9] then
  return {state, r[2], r[3], r[4], r[5], redis.call('PTTL', KEYS[1]), r[7]}
end
"""
    + _HEAD
    + """
if state == 'running' then
  if r[2] == ARGV[1] then return {'claimed', us(now), r[3], r[4]} end
  local till, since = tonumber(r[6]), tonumber(r[8])
  if till > since and since > now then
    -- The clock was set back since the lease began. Nobody knows how much of it is over, so it begins anew: a living
    -- owner is not taken for dead too early, and a dead one does not hold the key until the clock has made up for it.
    till, since = now + till - since, now
    redis.call('HSET', KEYS[1], 'lease', us(till), 'leased', us(now))
  end
  local left = math.min(till - now, till - since)
  if left > 0 then
    if not r[9] then redis.pcall('HSET', KEYS[1], 'waiting', '1') end
    return {'running', us(now), r[5], us(left)}
  end
  if r[3] ~= ARGV[5] then return {'orphan', us(now), r[5], r[3], r[8], r[6]} end
end
local fence, attempt = now, 1
if state then
  fence = math.max(tonumber(r[3]) + 1, now)
  if state ~= 'completed' and state ~= 'failed' then attempt = tonumber(r[4]) + 1 end
end
-- First what needs memory: Redis refuses it only as the first write of a script, and then nothing has changed.
redis.call('HSET', KEYS[1], 'state', 'running', 'owner', ARGV[1], 'fence', us(fence), 'attempt', attempt,
  'fingerprint', ARGV[2], 'lease', us(now + ARGV[3]), 'leased', us(now), 'created', us(now),
  'operation', ARGV[6], 'scope', ARGV[7], 'key', ARGV[8])
redis.call('HDEL', KEYS[1], 'result', 'completed', 'waiting')
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return {'claimed', us(now), us(fence), attempt}
"""
)

# ARGV: owner, state, result or "", "1" if there is a result, keep (ms)
COMPLETE = (
    _HEAD
    + _WAKE
    + """
local r = redis.call('HMGET', KEYS[1], 'owner', 'state', 'waiting')
if r[1] ~= ARGV[1] then return 0 end
if r[2] == ARGV[2] then return 1 end
if r[2] ~= 'running' then return 0 end
-- First what needs no memory, so that what comes after it is not refused: the function has run.
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('HSET', KEYS[1], 'state', ARGV[2], 'completed', us(now))
if ARGV[4] == '1' then redis.call('HSET', KEYS[1], 'result', ARGV[3]) end
if r[3] then wake() end
return 1
"""
)

# The record stays, free: its count of attempts and its fence go on. ARGV: owner, "released" or "issued"
RELEASE = (
    _WAKE
    + """
local r = redis.call('HMGET', KEYS[1], 'owner', 'state', 'waiting')
if r[1] ~= ARGV[1] or (r[2] ~= 'running' and r[2] ~= ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], 'state', ARGV[2])
if r[3] then wake() end
return 1
"""
)

# A key that waits to be claimed. ARGV: keep (ms), operation, scope, key
ISSUE = (
    _HEAD
    + """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], 'state', 'issued', 'owner', '', 'fence', '0', 'attempt', '0', 'fingerprint', '',
  'lease', us(now), 'leased', us(now), 'created', us(now), 'operation', ARGV[2], 'scope', ARGV[3], 'key', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
"""
)

REVOKE = """
if redis.call('HGET', KEYS[1], 'state') ~= 'issued' then return 0 end
return redis.call('DEL', KEYS[1])
"""

# ARGV: owner, lease (us), keep (ms)
RENEW = (
    _HEAD
    + _WAKE
    + """
local r = redis.call('HMGET', KEYS[1], 'owner', 'state', 'waiting')
if r[1] ~= ARGV[1] or r[2] ~= 'running' then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('HSET', KEYS[1], 'lease', us(now + ARGV[2]), 'leased', us(now))
if r[3] and ARGV[2] == '0' then wake() end
return 1
"""
)

LOOKUP = (
    _HEAD
    + """
local r = redis.call('HMGET', KEYS[1], 'state', 'owner', 'fence', 'attempt', 'fingerprint', 'lease', 'result',
  'created', 'completed', 'operation', 'scope', 'key', 'leased')
return {us(now), redis.call('PTTL', KEYS[1]), r}
"""
)

FORGET = (
    _HEAD
    + """
local r = redis.call('HMGET', KEYS[1], 'state', 'lease', 'leased')
if not r[1] or r[1] == 'released' or r[1] == 'issued' then return 0 end
if r[1] == 'running' and tonumber(r[2]) > math.max(now, tonumber(r[3])) then return 0 end
return redis.call('DEL', KEYS[1])
"""
)

# ARGV: owner, state, result or "", "1" if there is a result, keep (ms), fence, attempt, fingerprint,
#       operation, scope, key
FILL = (
    _HEAD
    + """
local known = redis.call('HGET', KEYS[1], 'fence')
if known and tonumber(known) > tonumber(ARGV[6]) then return 0 end
redis.call('HSET', KEYS[1], 'state', ARGV[2], 'owner', ARGV[1], 'fence', ARGV[6], 'attempt', ARGV[7],
  'fingerprint', ARGV[8], 'lease', us(now), 'leased', us(now), 'created', us(now), 'completed', us(now),
  'operation', ARGV[9], 'scope', ARGV[10], 'key', ARGV[11])
if ARGV[4] == '1' then redis.call('HSET', KEYS[1], 'result', ARGV[3]) else redis.call('HDEL', KEYS[1], 'result') end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return 1
"""
)

WAKING = frozenset({COMPLETE, RELEASE, RENEW})
"""Those that have a second key: the stream of those who wait."""

SHA = {
    script: hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
    for script in (CLAIM, COMPLETE, RELEASE, RENEW, LOOKUP, FORGET, FILL, ISSUE, REVOKE)
}
"""What a server knows each script by."""
