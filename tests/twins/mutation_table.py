"""Which tests judge the mutants of which file, fastest first."""

__all__ = ["TESTS"]

_MEMORY = "tests/contract/test_memory.py"
_SQLITE = 'tests/contract/test_unique_insert.py -k "SQLite and not Async"'
_REDIS = 'tests/contract/test_redis_cache.py -k "TestRedis and not Async"'
_COMPOSITION = "tests/test_composition.py"
_SCHEDULES = 'tests/protocol/test_schedules.py -k "not three_callers and not any_three and not 4"'
_JOINED = 'tests/protocol/test_joined_schedules.py -k "not any_two and not deadlocks"'
_INSIDE = "tests/tokens/test_orphans_inside.py"
_GAPS = "tests/twins/test_gaps.py"
_AWAY = 'tests/traps/test_redis.py -k "during_the_tries and sync"'
_KEYS = "tests/test_keys.py tests/test_keys_canonical.py tests/test_keys_fingerprints.py"
_RULES_OF_KEYS = "tests/model/test_keys.py"
_LIVING = 'tests/faults/test_stalls.py -k "lives and redis"'
_TOKENS = 'tests/tokens/test_one_time_token.py -k "{} and sync and not async"'
_VERSIONS = 'tests/versions/test_monotonic_version.py -k "{} and sync and not async"'

TESTS = {
    "idempo/protocol.py": (_MEMORY, _COMPOSITION, _INSIDE, _GAPS, _AWAY, _SCHEDULES, _LIVING),
    "idempo/joining.py": (_SQLITE, _JOINED),
    "idempo/keys.py": (_KEYS, _RULES_OF_KEYS),
    "idempo/canonical.py": (_KEYS, _RULES_OF_KEYS),
    "idempo/leases.py": (_MEMORY, _GAPS, _LIVING),
    "idempo/waiting.py": (_MEMORY, _COMPOSITION),
    "idempo/strategies/memory.py": (
        _MEMORY,
        _TOKENS.format("memory"),
        _VERSIONS.format("memory"),
        _COMPOSITION,
    ),
    "idempo/strategies/redis_cache.py": (_REDIS, _TOKENS.format("redis")),
    "idempo/scripts.py": (_REDIS, _TOKENS.format("redis"), _VERSIONS.format("redis"), _COMPOSITION),
    "idempo/sql.py": (_SQLITE, _TOKENS.format("sqlite"), _VERSIONS.format("sqlite")),
    "idempo/dialects.py": (_SQLITE, _TOKENS.format("sqlite"), _VERSIONS.format("sqlite"), _COMPOSITION),
    "idempo/sqlite.py": (_SQLITE, "tests/traps/test_sqlite.py"),
    "idempo/versioned.py": (_VERSIONS.format("memory"), "tests/versions -k memory"),
    "idempo/strategies/one_time_token.py": (_TOKENS.format("memory"), "tests/tokens -k memory"),
}
