"""The doctor: looks at a store for what breaks promises in production, and says how to mend it.

It only reads: no table, no key, no setting is made or changed. What it may not look at is called unknown, never ok.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta

from idempo.doctor.findings import Finding, Level, sorted_by_level
from idempo.doctor.retries import retention

__all__ = ["Finding", "Level", "examine"]

_KEEP = timedelta(days=7)  # of the decorator


def examine(
    url: str,
    *,
    table: str = "idempo_records",
    prefix: str = "idempo:",
    keep: float | timedelta = _KEEP,
    retries_over: Sequence[str] = (),
) -> list[Finding]:
    """Look at the store of `url`, and return what was found, the worst first.

    It changes nothing, and ends within about ten seconds, whether the store answers or not.

    Args:
        url: the store, as for `idempo init`.
        table: the records table of a SQL database.
        prefix: the start of the names of keys in a Redis.
        keep: the retention that the decorators use, in seconds or as a timedelta.
        retries_over: who repeats, and so for how long: names of known schedules, such as "stripe", or durations, such
            as "30d". Without any, all known schedules are compared with `keep`.

    Raises:
        ConfigurationError: for a URL, a table name or a schedule that is none.
        LedgerUnavailableError: if the store does not answer, or there is no file.
    """
    later = list(retention(keep, retries_over))
    if re.match(r"(rediss?(\+cluster)?|unix)://", url):
        from idempo.doctor.redis_checks import examine_redis

        found = examine_redis(url, prefix)
    else:
        from idempo.doctor.sql_checks import examine_sql

        found = examine_sql(url, table)
    return sorted_by_level([*found, *later])
