"""The ledger where `using=` names none: what `IDEMPO_URL` says, or a SQLite file in the working directory."""

from __future__ import annotations

import functools
import os

from idempo.contracts import Strategy

__all__ = ["embedded", "from_url"]


def embedded() -> Strategy:
    """Return the ledger that `IDEMPO_URL` names, or `idempo.db` in the working directory of now."""
    return from_url(os.environ.get("IDEMPO_URL") or f"sqlite:///{os.path.abspath('idempo.db')}")


@functools.cache
def from_url(url: str) -> Strategy:
    """Return the ledger for a URL: `redis://`, `rediss://`, `sqlite://`, `postgresql+psycopg://`, `mysql+pymysql://`.

    One object for all functions with the same URL, so that they share its connections.
    """
    scheme = url.partition("://")[0].partition("+")[0]
    if scheme in ("redis", "rediss", "unix"):
        from idempo.strategies.redis_cache import RedisCache

        return RedisCache(url)
    from idempo.strategies.unique_insert import UniqueInsert

    return UniqueInsert(url)
