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
_BACK = 'tests/faults/test_clocks.py -k "(its_owner_ended or made_up or put_back) and (valkey or redis)"'
_LIVING = 'tests/faults/test_stalls.py -k "lives and redis"'
# The SQL ledger. A database that a selection names is started once for all tries, any other by each try.
_SQL_GAPS = (
    "tests/twins/test_gaps_sql.py tests/twins/test_gaps_records.py"
    ' -k "sqlite or mariadb or postgres or takes_no_writes"'
)
_JOINED_GAPS = _GAPS_IN.format("joined")
_OVERTAKEN = 'tests/twins/test_gaps.py tests/traps/test_forget.py -k "sqlite or mariadb"'
_IN_TABLES = 'tests/tokens/test_token_ledgers.py -k "{} and sync and not async"'
_PURGED = 'tests/test_cli.py -k "purge and sqlite"'
_PROGRAMS = "tests/traps/test_review.py tests/tokens/test_orphans_inside.py"
_ON_FILE = 'tests/traps/test_sqlite.py -k "sync and not async and not processes"'
_ON_FILE_JOINED = 'tests/contract/test_unique_insert.py -k "SQLiteJoined and not Async"'
_ON_POSTGRES = 'tests/contract/test_unique_insert.py -k "(TestPostgres or TestPostgresJoined) and not Async"'
_ENDED = (
    'tests/traps/test_postgres.py -k "sync and not async and (that_commits_leaves or has_lost_its_claim)"'
)
_UNDONE = 'tests/traps/test_postgres.py -k "sync and not async and (object or failed_function or flushing)"'
_RETRIED = (
    'tests/guards/test_version_check.py -k "postgres and sync and not async'
    ' and (so_many_times or in_the_callers_transaction_retries)"'
)
_GUARDED = 'tests/guards/test_version_check.py -k "{} and sync and not async and expected_version"'
_ON_MARIADB_JOINED = 'tests/contract/test_unique_insert.py -k "TestMariaDBJoined and not Async"'
_TOLD = 'tests/twins/test_gaps_mysql.py -k "mysql or mariadb"'
_ON_MYSQL = (
    'tests/contract/test_mysql.py -k "(ends_the_wait or not_waited_for or is_cancelled) and not async"'
)
_HELD = (
    'tests/guards/test_select_for_update.py -k "holds_is_in_progress and (mysql or mariadb) and not async"'
)
_TOKENS = 'tests/tokens/test_one_time_token.py -k "{} and sync and not async"'
_VERSIONS = 'tests/versions/test_monotonic_version.py -k "{} and sync and not async"'

TESTS = {
    "idempo/binding.py": ("tests/test_binding.py",),
    "idempo/sending.py": (_ON_FILE_JOINED, 'tests/test_sending.py -k "postgres or mariadb or untouched"'),
    "idempo/clocks.py": ("tests/protocol/test_store_clock.py",),
    "idempo/streams.py": ('tests/traps/test_wakes.py -k "not async and not valkey and not cluster"',),
    "idempo/rooms.py": ("tests/protocol/test_rooms.py",),
    "idempo/batches.py": (
        "tests/test_many.py",
        'tests/contract/test_batching.py -k "Memory or (TestRedis and not Async)"',
    ),
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
    "idempo/joining.py": (_ON_FILE_JOINED, _JOINED_GAPS, _SQL_GAPS, _JOINED, _PROGRAMS, _UNDONE, _RETRIED),
    "idempo/keys.py": (_KEYS, _GAPS_IN.format("keys"), _GAPS, _RULES_OF_KEYS),
    "idempo/canonical.py": (_KEYS, _GAPS_IN.format("keys"), _RULES_OF_KEYS),
    "idempo/leases.py": (_GAPS, _GAPS_IN.format("leases"), _SLOW, _MEMORY, _LIVING),
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
        _GAPS_IN.format("redis"),
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
        _BACK,
    ),
    "idempo/sql.py": (_SQLITE, _IN_TABLES.format("sqlite"), _SQL_GAPS, _JOINED_GAPS),
    "idempo/dialects.py": (
        _SQLITE,
        _SQL_GAPS,
        _JOINED_GAPS,
        _IN_TABLES.format("postgres"),
        _OVERTAKEN,
        _TOKENS.format("sqlite"),
        _IN_TABLES.format("sqlite"),
        _VERSIONS.format("sqlite"),
        _PURGED,
        _ON_FILE,
        _ON_MARIADB_JOINED,
        _GUARDED.format("mysql"),
    ),
    "idempo/postgresql.py": (_ON_POSTGRES, _SQL_GAPS, _JOINED_GAPS, _IN_TABLES.format("postgres"), _ENDED),
    "idempo/mysql.py": (_ON_MARIADB_JOINED, _SQL_GAPS, _IN_TABLES.format("mariadb"), _TOLD, _ON_MYSQL, _HELD),
    "idempo/sqlite.py": (_ON_FILE, _ON_FILE_JOINED, _SQL_GAPS, _JOINED_GAPS, _GUARDED.format("sqlite")),
    "idempo/versioned.py": (
        _VERSIONS.format("memory"),
        _GAPS_IN.format("versions"),
        "tests/versions -k memory",
        'tests/versions -k "sqlite and sync and not async"',
        'tests/tokens/test_edges.py -k "version and (memory or sqlite)"',
        'tests/versions/test_version_contract.py -k "TestVersionsJoinedSQLite"',
    ),
    "idempo/strategies/one_time_token.py": (
        _TOKENS.format("memory"),
        _GAPS_IN.format("tokens"),
        _INSIDE,
        "tests/tokens -k memory",
    ),
}
