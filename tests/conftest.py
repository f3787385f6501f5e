"""Fixtures for the shared servers, and a last word on what was used and what was skipped."""

import os
from collections import Counter
from collections.abc import Generator
from typing import Any, NoReturn

import pytest

from tests import servers
from tests.provide import keeper, leash
from tests.servers import Server, Unavailable

_KEEPER = pytest.StashKey[keeper.Keeper]()
_USED = pytest.StashKey[set[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_USED] = set()
    if not hasattr(config, "workerinput"):
        config.stash[_KEEPER] = keeper.Keeper()
    else:
        leash.tie(os.getppid())  # a worker, and its servers with it, ends when pytest itself is killed


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["idempo_keeper"] = node.config.stash[_KEEPER].address


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    node.config.stash[_USED].update(getattr(node, "workeroutput", {}).get("idempo_used", ()))


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["idempo_used"] = sorted(session.config.stash[_USED] | servers.used)


def pytest_unconfigure(config: pytest.Config) -> None:
    if found := config.stash.get(_KEEPER, None):
        found.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if used := config.stash[_USED] | servers.used:
        terminalreporter.section("servers")
        for line in sorted(used):
            terminalreporter.line(line)
    reasons = Counter(_reason(report) for report in terminalreporter.stats.get("skipped", []))
    if reasons:
        terminalreporter.section("not run")
        for reason, number in sorted(reasons.items()):
            terminalreporter.line(f"{number} x {reason}")


def _reason(report: Any) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return str(text).removeprefix("Skipped: ")


def _shared(config: pytest.Config, kind: str) -> Server:
    if (found := config.stash.get(_KEEPER, None)) is not None:
        answer = found.ask(kind)
    else:
        answer = keeper.ask(config.workerinput["idempo_keeper"], kind)  # type: ignore[attr-defined]
    if isinstance(answer, Unavailable):
        return refuse(answer)
    config.stash[_USED].add(answer.summary)
    return answer


def refuse(reason: Unavailable) -> NoReturn:
    """A skip that is listed at the end, or a failure where the run must not do without this server."""
    if reason.kind and reason.kind in os.environ.get("IDEMPO_TEST_REQUIRE", "").split(","):
        pytest.fail(f"IDEMPO_TEST_REQUIRE names {reason.kind}: {reason}", pytrace=False)
    pytest.skip(str(reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    """A private server that cannot be had skips its test as a shared one does."""
    try:
        return (yield)
    except Unavailable as reason:
        refuse(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    try:
        return (yield)
    except Unavailable as reason:
        refuse(reason)


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Server:
    return _shared(request.config, "postgres")


@pytest.fixture(scope="session")
def mariadb(request: pytest.FixtureRequest) -> Server:
    return _shared(request.config, "mariadb")


@pytest.fixture(scope="session")
def mysql(request: pytest.FixtureRequest) -> Server:
    """MySQL itself, not MariaDB."""
    return _shared(request.config, "mysql")


@pytest.fixture(scope="session")
def redis_server(request: pytest.FixtureRequest) -> Server:
    """Redis itself, not Valkey."""
    return _shared(request.config, "redis")


@pytest.fixture(scope="session")
def valkey(request: pytest.FixtureRequest) -> Server:
    return _shared(request.config, "valkey")


@pytest.fixture(scope="session")
def redis62(request: pytest.FixtureRequest) -> Server:
    """The oldest Redis we support."""
    return _shared(request.config, "redis62")


@pytest.fixture(scope="session")
def redis_cluster(request: pytest.FixtureRequest) -> Server:
    return _shared(request.config, "valkey-cluster")
