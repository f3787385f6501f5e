# ruff: noqa: E501  (code is quoted as it stands)
"""The twins: for each rule that matters, the same library with that one rule left out, and the tests that notice."""

from dataclasses import dataclass

__all__ = ["TWINS", "Twin"]


@dataclass(frozen=True)
class Twin:
    """`right` is replaced by `wrong` in a file of the library. It occurs there once."""

    rule: str
    file: str
    right: str
    wrong: str
    noticed_by: str
    """What pytest is asked for: a test, and after a blank what `-k` selects of it."""


def _sql(rule: str, right: str, wrong: str, test: str, where: str = "SQLite", file: str = "dialects") -> Twin:
    return Twin(rule, f"{file}.py", right, wrong, f"contract/test_unique_insert.py::Test{where}::{test}")


def _lua(rule: str, right: str, wrong: str, test: str) -> Twin:
    return Twin(rule, "scripts.py", right, wrong, f"contract/test_redis_cache.py::TestRedis::{test}")


def _memory(rule: str, right: str, wrong: str, test: str) -> Twin:
    return Twin(rule, "strategies/memory.py", right, wrong, f"contract/test_memory.py::TestMemory::{test}")


def _protocol(rule: str, right: str, wrong: str, test: str) -> Twin:
    return Twin(rule, "protocol.py", right, wrong, test)


CONTRACT = "contract/test_memory.py::TestMemory::"
STALE = "test_stale_owners_are_powerless"
FENCE = "test_each_takeover_has_a_larger_fence"
ORPHAN = "test_an_orphan_is_taken_over_by_its_own_fence_only"
DELETED = "test_a_claim_is_never_deleted_by_others"
AGAIN = "test_a_request_sent_again_by_the_driver_answers_as_before"
SCHEDULES = "protocol/test_schedules.py"
JOINED = "protocol/test_joined_schedules.py"

IN_LUA = """local r = redis.call('HMGET', KEYS[1], 'owner', 'state', 'waiting')
if r[1] ~= ARGV[1] """

TWINS = (
    # ---- the ledger's own rules, in each of the three
    _memory("owners are compared", "row.owner == call.owner and row.keep", "row.keep", STALE),
    _memory("each takeover has a larger fence", "self._fence += 1", "self._fence = 1", FENCE),
    _memory(
        "an orphan is taken by its fence", "case _ if row.fence != over:", "case _ if over is None:", ORPHAN
    ),
    _memory(
        "nobody forgets a running claim",
        "if row.payload is None and row.lease_left(now) > 0:\n                return False",
        "pass",
        DELETED,
    ),
    _memory(
        "a request sent again is recognised", "case _Row(owner=call.owner):", "case _Row(owner=b'-'):", AGAIN
    ),
    _sql(
        "completion compares the owner",
        "= :digest AND owner = :owner AND state IN",
        "= :digest AND state IN",
        STALE,
    ),
    _sql(
        "release compares the owner",
        'SET state = :free WHERE digest = :digest AND owner = :owner "',
        'SET state = :free WHERE digest = :digest "',
        STALE,
    ),
    _sql(
        "renewal compares the owner",
        ":keep WHERE digest = :digest AND owner = :owner AND state = 'running'",
        ":keep WHERE digest = :digest AND state = 'running'",
        STALE,
    ),
    _sql("each takeover has a larger fence", "fence=max(row.fence + 1, row.now)", "fence=1", FENCE),
    _sql(
        "an orphan is taken by its fence",
        "r.lease_until <= r.leased_at) AND r.fence = :over) ",
        "r.lease_until <= r.leased_at)) ",
        ORPHAN,
        "Postgres",
    ),
    Twin(
        "nobody forgets a claim that was renewed",
        "dialects.py",
        "AND (state <> 'running' OR lease_until <= {clock} OR lease_until <= leased_at)",
        "",
        "traps/test_forget.py postgres",
    ),
    Twin(
        "the store's clock decides about leases",
        "dialects.py",
        '.replace("{clock}", self.clock)',
        '.replace("{clock}", str(int(__import__("time").time() * 1_000_000)))',
        "faults/test_clocks.py::test_an_application_clock_that_jumps_changes_nothing postgres and sync",
    ),
    Twin(
        "a clock that is put forward ends no lease before its time",
        "clocks.py",
        "        jumped = sum(jump.by for jump in self._jumps if since <= jump.before)",
        "        jumped = 0",
        "faults/test_clocks.py::test_a_server_clock_put_forward_lets_nobody_take_over_from_the_living postgres and sync",
    ),
    _lua(
        "completion compares the owner",
        IN_LUA + "then return 0 end\nif r[2] == ARGV[2]",
        "local r = redis.call('HMGET', KEYS[1], 'owner', 'state', 'waiting')\nif r[2] == ARGV[2]",
        STALE,
    ),
    _lua(
        "release compares the owner",
        IN_LUA + "or (r[2] ~=",
        "local r = redis.call('HMGET', KEYS[1], 'owner', 'state', 'waiting')\nif (r[2] ~=",
        STALE,
    ),
    _lua(
        "renewal compares the owner",
        IN_LUA + "or r[2] ~= 'running'",
        "local r = redis.call('HMGET', KEYS[1], 'owner', 'state', 'waiting')\nif r[2] ~= 'running'",
        STALE,
    ),
    _lua("each takeover has a larger fence", "math.max(tonumber(r[3]) + 1, now)", "1", FENCE),
    _lua(
        "an orphan is taken by its fence",
        "if r[3] ~= ARGV[5] then return",
        "if ARGV[5] == '-1' then return",
        ORPHAN,
    ),
    _lua(
        "a request sent again is recognised",
        "if r[2] == ARGV[1] then return {'claimed', us(now), r[3], r[4]} end",
        "",
        AGAIN,
    ),
    _lua(
        "a lease is honoured",
        "  if left > 0 then\n    if not r[9]",
        "  if left > 0 then r[6] = r[8] end\n  if false then\n    if not r[9]",
        "test_single_claim",
    ),
    _lua(
        "nobody forgets a running claim",
        "if r[1] == 'running' and tonumber(r[2]) > math.max(now, tonumber(r[3])) then return 0 end",
        "",
        DELETED,
    ),
    Twin(
        "without memory nothing is claimed",
        "scripts.py",
        "-- First what needs memory: Redis refuses it only as the first write of a script, and then nothing has changed.",
        "redis.call('DEL', KEYS[1])",
        "faults/test_servers_gone.py::test_a_claim_that_redis_has_no_memory_for_runs_nothing redis",
    ),
    # ---- the protocol of a claim under a lease
    _protocol(
        "an owner that lost its claim is told",
        "    if not kept:\n        raise lost(call, terms, done.value, (yield",
        "    if False:\n        raise lost(call, terms, done.value, (yield",
        SCHEDULES,
    ),
    _protocol(
        "cancellation is not failure",
        "    except Exception as error:\n        # Cancellation",
        "    except BaseException as error:\n        # Cancellation",
        CONTRACT + "test_cancellation_is_not_failure",
    ),
    _protocol(
        "a failed run frees its key",
        "        yield Shielded(lambda: attempt(ledger.release(call), call, terms))\n        tell",
        "        tell",
        SCHEDULES + "::test_if_the_first_run_fails_exactly_one_waiter_runs",
    ),
    _protocol(
        "an unknown outcome is no failure",
        "    except terms.unknown_errors as error:\n        yield from attempt(ledger.renew(call, 0), call, terms)",
        "    except terms.unknown_errors as error:\n        yield from attempt(ledger.release(call), call, terms)",
        CONTRACT + "test_under_refuse_an_orphan_is_never_run_again_until_it_is_forgotten",
    ),
    _protocol(
        "under refuse no orphan runs again",
        'if terms.on_orphan == "refuse":',
        "if False:",
        SCHEDULES + "::test_under_refuse_it_runs_at_most_once_through_any_three_faults",
    ),
    _protocol(
        "arguments are compared while it runs",
        "case InProgress(fingerprint, lease_left):\n                    check_arguments(fingerprint, call, terms)",
        "case InProgress(fingerprint, lease_left):",
        CONTRACT + "test_other_arguments_are_refused_while_the_first_run_goes_on",
    ),
    _protocol(
        "a completion is tried again while the ledger is away",
        "seconds = patience.next_pause(call.lease)\n            if seconds is None:",
        "seconds = None\n            if seconds is None:",
        "traps/test_redis.py::test_a_server_that_comes_back_during_the_tries_gets_the_completion sync",
    ),
    _protocol(
        "a probe is asked about an orphan",
        "(yield from _probe(ledger, call, terms)) if orphan else None",
        "None",
        CONTRACT + "test_a_probe_that_finds_the_effect_makes_it_the_first_result",
    ),
    _protocol(
        "only what is committed is kept outside",
        "    if done.durable and left > 0:",
        "    if left > 0:",
        "test_composition.py",
    ),
    Twin(
        "if the store cannot decide, nothing runs",
        "asking.py",
        "        raise unavailable(call, terms, error) from error",
        '        return __import__("idempo.records", fromlist=["records"]).Claimed(1, 1)',
        SCHEDULES + "::test_two_callers_keep_the_promises_through_any_three_faults",
    ),
    Twin(
        "leases of the living are renewed",
        "leases.py",
        "            if run(beat.renew()) and not beat.stopped:",
        "            if False and run(beat.renew()):",
        "faults/test_stalls.py slow_owner_that_lives and redis and sync",
    ),
    Twin(
        "other arguments under one key are refused",
        "verdicts.py",
        "    check_arguments(answer.fingerprint, call, terms)\n",
        "",
        CONTRACT + "test_other_arguments_under_one_key_are_refused_by_name",
    ),
    # ---- the record in the business transaction
    Twin(
        "record and writes commit together",
        "joined_dialects.py",
        "        kept = self.complete(connection, call, payload)\n        if kept:\n            commit()\n        return kept",
        "        commit()\n        return self.complete(connection, call, payload)",
        "faults/test_crashes.py joined-mariadb",
    ),
    Twin(
        "a lost commit is asked for",
        "joining.py",
        "if first is None or first.owner != call.owner:",
        "if False:",
        "faults/test_lost.py joined-mariadb and sync and not redis and not token and not version",
    ),
    Twin(
        "an unknown commit is asked for, not failed",
        "joining.py",
        "        if not unit.ambiguous(error):\n            raise",
        "        raise",
        JOINED,
    ),
    Twin(
        "a deadlock starts the whole over",
        "joining.py",
        "        if unit.again(error):\n            raise RunAgain(error, started=True) from error\n        raise\n    payload",
        "        raise\n    payload",
        "traps/test_mysql.py::test_a_deadlock_among_the_functions_own_statements_runs_the_whole_once_more sync",
    ),
    Twin(
        "a purge takes only what is over",
        "dialects.py",
        "(SELECT digest FROM {table} WHERE keep_until <= {clock} ORDER BY keep_until LIMIT :batch)",
        "(SELECT digest FROM {table} ORDER BY keep_until LIMIT :batch)",
        "test_cli.py::test_purge_takes_what_is_over_and_nothing_else sqlite",
    ),
    Twin(
        "forget takes one record",
        "dialects.py",
        "DELETE FROM {table} WHERE digest = :digest AND fence = :seen AND state = :state ",
        "DELETE FROM {table} WHERE :digest = :digest AND :seen = :seen AND state = :state ",
        "contract/test_unique_insert.py::TestSQLite::test_forget_takes_no_other_record",
    ),
    # ---- guards, tokens, versions
    Twin(
        "a state is set only where it may be left",
        "rows.py",
        'AND ({olds})"',
        'AND ({olds} OR 1 = 1)"',
        "guards/test_state_guard.py::test_a_row_in_any_other_state_is_refused_with_all_there_is_to_know sqlite and sync",
    ),
    Twin(
        "versions are compared when they are set",
        "strategies/version_check.py",
        "column, [version], version + 1, wait) == 1",
        "column, [version, version + 1, version + 2], version + 1, wait) == 1",
        "guards/test_version_check.py::test_from_another_version_nothing_runs_and_the_error_says_what_is_there sync",
    ),
    Twin(
        "a row is locked before it is judged",
        "rows.py",
        '" FOR UPDATE NOWAIT" if nowait else " FOR UPDATE"',
        '""',
        "guards/test_select_for_update.py::test_a_row_that_another_transaction_holds_is_in_progress_after_the_time_to_wait",
    ),
    Twin(
        "only an issued token can be spent",
        "sql.py",
        "return NotIssued() if isinstance(call.demand, Issued) and not self.known else None",
        "return None",
        "tokens/test_one_time_token.py::test_an_unknown_token_runs_nothing_and_writes_nothing mariadb and sync",
    ),
    Twin(
        "a token is spent once",
        "scripts.py",
        "redis.call('HSET', KEYS[1], 'state', ARGV[2], 'completed', us(now))",
        "redis.call('HSET', KEYS[1], 'state', 'issued', 'completed', us(now))",
        "tokens/test_one_time_token.py::test_under_refuse_a_used_token_is_an_error_with_whatever_arguments redis and sync",
    ),
    Twin(
        "a lower version never runs",
        "versioned.py",
        "elif applied.version >= self.version:",
        "elif applied.version == self.version:",
        "versions/test_monotonic_version.py::test_a_lower_version_is_superseded_and_changes_nothing redis and sync",
    ),
    # ---- keys
    Twin(
        "parts of a key have lengths",
        "canonical.py",
        'return tag + len(content).to_bytes(4, "big") + content',
        "return tag + content",
        "test_keys_canonical.py",
    ),
    Twin(
        "operations do not share keys",
        "keys.py",
        "hashed = _named(operation).copy()",
        'hashed = _named("").copy()',
        CONTRACT + "test_another_function_has_other_keys",
    ),
    Twin(
        "scopes do not share keys",
        "keys.py",
        'whole = scoped + framed(b"k", key.canonical)',
        'whole = b"-" + framed(b"k", key.canonical)',
        CONTRACT + "test_another_scope_has_other_keys",
    ),
    Twin(
        "keys are bytes, not collated text",
        "keys.py",
        'framed(b"k", key.canonical)',
        'framed(b"k", key.canonical.lower())',
        CONTRACT + "test_keys_that_a_collation_would_confuse_are_different",
    ),
)
