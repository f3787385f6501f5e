"""What the tests of the doctor share."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from idempo.doctor import Finding, Level, examine
from idempo.inspection import inspect

LONG = 1e9  # seconds: longer than anybody repeats


def initialised(url: str) -> str:
    store = inspect(url)
    try:
        store.create()
    finally:
        store.close()
    return url


def execute(url: str, *statements: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def examined(url: str, **options: Any) -> list[Finding]:
    """What the doctor says of a store that keeps results long enough."""
    return examine(url, **{"keep": LONG, **options})


def about(check: str, found: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.check == check]


def level(check: str, url: str) -> Level:
    """The worst that is said of one thing."""
    found = about(check, examined(url))
    assert found, f"nothing is said of {check}"
    return found[0].level


def bad(found: Iterable[Finding]) -> list[Finding]:
    """All that is not as it should be."""
    return [finding for finding in found if finding.level != "ok"]
