"""The demo on Redis or Valkey: no transaction spans idempo's record and the ledger, so other means are needed.

A worker that is killed while it runs leaves an orphan, and a repeat runs the function once more: at least once. The
ledger therefore takes a posting under `downstream_key`, which is the same in every run of one payment, and takes it
once: so does a payment provider with its idempotency key. Together the effect is exactly once.
"""

from __future__ import annotations

import json
from decimal import Decimal

from idempo.decorator import idempotent
from idempo.demo.callbacks import plain
from idempo.demo.postings import KEEP, LEDGER, OPERATION, Entry, Post, Posting, amount_of
from idempo.inspection import redis_client
from idempo.running import current
from idempo.strategies.redis_cache import RedisCache

__all__ = ["RedisPostings", "open_postings"]

_RUNS = "{" + LEDGER + "}:runs"  # in the same slot of a cluster
_LEASE = 2.0  # after so many seconds a repeat takes over from a killed worker

# KEYS: the ledger, the count of runs. ARGV: key of the posting, entry, run of the demo. Answers the entry that stands.
_POST = """
redis.call('HINCRBY', KEYS[2], ARGV[3], 1)
redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2])
return redis.call('HGET', KEYS[1], ARGV[1])
"""


class RedisPostings:
    """The hash `idempo_demo_ledger`, and a function that posts to it."""

    def __init__(self, url: str) -> None:
        self._cache = RedisCache(url)
        self._client = redis_client(url)

    def prepare(self) -> None:
        self._client.ping()

    def handler(self, run: str) -> Post:
        @idempotent(
            key="{payment_no}",
            fingerprint="amount",  # the event id is another one in each delivery, and does not matter
            using=self._cache,
            name=OPERATION,
            keep=KEEP,
            lease=_LEASE,
            wait=30,
        )
        def post_payment(payment_no: str, event_id: str, amount: Decimal) -> Posting:
            entry = json.dumps(
                {"payment_no": payment_no, "event_id": event_id, "amount": plain(amount), "run": run}
            )
            once = current().downstream_key("ledger")
            posted = _entry(self._client.eval(_POST, 2, LEDGER, _RUNS, once, entry, run))
            return Posting(posted.payment_no, posted.event_id, posted.amount)

        return post_payment.outcome

    def entries(self) -> list[Entry]:
        return [_entry(stored) for _, stored in self._client.hscan_iter(LEDGER, count=1000)]

    def times_run(self, run: str) -> int | None:
        return int(self._client.hget(_RUNS, run) or 0)

    def close(self) -> None:
        self._cache.close()
        self._client.close()


def _entry(stored: bytes) -> Entry:
    """An entry as it stands. What cannot be read is an entry that agrees with nothing."""
    try:
        value = json.loads(stored)
        text = [str(value[name]) for name in ("payment_no", "event_id", "run")]
        return Entry(text[0], text[1], amount_of(value["amount"]), text[2])
    except (ValueError, TypeError, KeyError):
        return Entry(stored.decode("utf-8", "replace")[:80], "", Decimal("NaN"), "")


open_postings = RedisPostings
