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
_GAPS_IN = "tests/twins/test_gaps_{}.py"
_AWAY = 'tests/traps/test_redis.py -k "during_the_tries and sync"'
_KEYS = "tests/test_keys.py tests/test_keys_canonical.py tests/test_keys_fingerprints.py"
_RULES_OF_KEYS = "tests/model/test_keys.py"
_ANSWERS = 'tests/model/test_ledgers.py -k "redis_server-sync"'
_ASKED = 'tests/tokens/test_token_ledgers.py -k "{}-sync"'
_SPENT = 'tests/tokens/test_edges.py -k "spent_whatever and postgres"'
_SLOW = 'tests/traps/test_python.py -k "thread_before or (Memory and (renewal or slow))"'
_FORK = 'tests/traps/test_python.py -k "before_a_fork and redis_server"'
_LIVING = 'tests/faults/test_stalls.py -k "lives and redis"'
_TOKENS = 'tests/tokens/test_one_time_token.py -k "{} and sync and not async"'
_VERSIONS = 'tests/versions/test_monotonic_version.py -k "{} and sync and not async"'

TESTS = {
    "idempo/protocol.py": (
        _MEMORY,
        _GAPS_IN.format("protocol"),
        _GAPS,
        _COMPOSITION,
        _INSIDE,
        _TOKENS.format("memory"),
        _AWAY,
        _SCHEDULES,
        _SLOW,
        _LIVING,
        _SPENT,
    ),
    "idempo/joining.py": (_SQLITE, _JOINED),
    "idempo/keys.py": (_KEYS, _GAPS_IN.format("keys"), _GAPS, _RULES_OF_KEYS),
    "idempo/canonical.py": (_KEYS, _GAPS_IN.format("keys"), _RULES_OF_KEYS),
    "idempo/leases.py": (_GAPS, _GAPS_IN.format("leases"), _SLOW, _MEMORY, _LIVING, _FORK),
    "idempo/waiting.py": (_GAPS_IN.format("waiting"), "tests/traps/test_config.py", _MEMORY, _COMPOSITION),
    "idempo/strategies/memory.py": (
        _ASKED.format("memory"),
        _MEMORY,
        _GAPS_IN.format("ledgers"),
        _GAPS,
        _ANSWERS,
        _TOKENS.format("memory"),
        _VERSIONS.format("memory"),
        _COMPOSITION,
    ),
    "idempo/strategies/redis_cache.py": (
        _ASKED.format("redis"),
        _REDIS,
        _GAPS_IN.format("ledgers"),
        _ANSWERS,
        _TOKENS.format("redis"),
        _COMPOSITION,
        'tests/traps/test_redis.py -k "forgotten and sync"',
    ),
    "idempo/scripts.py": (
        _ASKED.format("redis"),
        _REDIS,
        _GAPS_IN.format("ledgers"),
        _ANSWERS,
        _TOKENS.format("redis"),
        _VERSIONS.format("redis"),
        _GAPS,
        _COMPOSITION,
    ),
    "idempo/sql.py": (_SQLITE, _TOKENS.format("sqlite"), _VERSIONS.format("sqlite")),
    "idempo/dialects.py": (_SQLITE, _TOKENS.format("sqlite"), _VERSIONS.format("sqlite"), _COMPOSITION),
    "idempo/sqlite.py": (_SQLITE, "tests/traps/test_sqlite.py"),
    "idempo/versioned.py": (_VERSIONS.format("memory"), "tests/versions -k memory"),
    "idempo/strategies/one_time_token.py": (_TOKENS.format("memory"), "tests/tokens -k memory"),
}
