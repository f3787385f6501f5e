"""Every bad input is a typed error while decorating, or before anything runs, and says what to do."""

import asyncio
import functools
import math
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import StaticPool

from idempo import (
    ColourMismatchError,
    CompositionError,
    ConfigurationError,
    KeyRefusedError,
    KeyTemplateError,
    LedgerUnavailableError,
    Memory,
    RedisCache,
    UniqueInsert,
    idempotent,
)
from idempo.contracts import Colour
from idempo.steps import Steps
from idempo.testing import Effects, drive
from idempo.urls import checked, module_of, options_for
from tests.traps.support import caught

URL = "postgresql+psycopg://nobody@127.0.0.1:1/none"


def plain(order_no: str, amount: int = 1) -> int:
    return amount


async def coroutine(order_no: str, amount: int = 1) -> int:
    return amount


def with_session(order_no: str, session: Session | None = None) -> str:
    return order_no


async def with_async_session(order_no: str, session: AsyncSession | None = None) -> str:
    return order_no


async def with_sync_session(order_no: str, session: Session | None = None) -> str:
    return order_no


async def with_sync_connection(order_no: str, session: "Connection") -> str:
    return order_no


def with_wrong_session(order_no: str, session: AsyncSession) -> str:
    return order_no


def with_wrong_connection(order_no: str, session: AsyncConnection | None) -> str:
    return order_no


def returns_a_socket(order_no: str) -> socket.socket:
    raise NotImplementedError


def returns_an_iterator(order_no: str) -> Iterator[int]:
    raise NotImplementedError


def generator(order_no: str) -> Iterator[int]:
    yield 1


async def async_generator(order_no: str) -> AsyncIterator[int]:
    yield 1


async def async_probe(call: Any) -> Any:
    raise NotImplementedError


async def async_key(order_no: str) -> str:
    return order_no


def decorate(function: Any = plain, **terms: Any) -> Any:
    settings: dict[str, Any] = {"key": "{order_no}", "using": Memory()} | terms
    return idempotent(**settings)(function)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return create_engine(URL)


@pytest.fixture(scope="module")
def async_engine() -> AsyncEngine:
    return create_async_engine(URL)


# ------------------------------------------------------------------------ names and templates


@pytest.mark.parametrize(
    "terms",
    [
        {"key": "{order_nr}"},
        {"scope": "{order_nr}"},
        {"fingerprint": ("order_nr",)},
        {"fingerprint": "{order_nr}"},
        {"key": ("order_nr",)},
        {"key": lambda order_nr: order_nr},
        {"scope": lambda order_nr: order_nr},
        {"fingerprint": lambda order_nr: order_nr},
        {"using": [RedisCache("redis://localhost", key="{order_nr}"), Memory()]},
        {"using": Memory(key="{order_nr}")},
        {"using": UniqueInsert(URL, key="{order_nr}")},
    ],
)
def test_an_unknown_name_is_told_with_the_nearest_that_there_is(terms: dict[str, Any]) -> None:
    with pytest.raises(KeyTemplateError, match=r"order_nr.*did you mean 'order_no'"):
        decorate(**terms)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("order_no", r"write '\{order_no\}'"),
        ("fixed", "all calls would share it"),
        ("", "all calls would share it"),
        ("{}", "name the parameter"),
        ("{0}", "name the parameter"),
        ("{order_no", "cannot be read"),
        ("{order_no!r}", r"write \{order_no\}"),
        ("{amount:05}", r"write \{amount\}"),
        ("{order_no._private}", "underscore"),
        ((), "empty tuple"),
        (None, "a template such as"),
        (7, "a template such as"),
        (async_key, "is async"),
    ],
)
def test_a_key_that_can_never_work_is_refused(key: Any, says: str) -> None:
    with pytest.raises(KeyTemplateError, match=says):
        decorate(key=key)


@pytest.mark.parametrize("order_no", ["x" * 5000, "", None, 1.5, float("nan"), object(), [], ("A", None)])
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_key_without_a_stable_form_or_over_4_kib_runs_nothing(order_no: Any, colour: Colour) -> None:
    effects = Effects()

    def body(order_no: Any) -> int:
        return effects.add("ran")

    async def abody(order_no: Any) -> int:
        return effects.add("ran")

    def test() -> Steps[None]:
        f = decorate(body if colour == "sync" else abody)
        error = yield from caught(KeyRefusedError, lambda: f(order_no))
        assert error.ran is False
        assert len(str(error)) < 1000
        with pytest.raises(KeyRefusedError):
            f.key_for(order_no)

    drive(colour, test())
    assert len(effects) == 0


# ------------------------------------------------------------------------ colours


def test_a_client_of_the_other_colour_is_refused_while_decorating(
    engine: Engine, async_engine: AsyncEngine
) -> None:
    blocking, awaiting = redis.Redis(), redis.asyncio.Redis()
    mixed: list[tuple[Any, Any, str]] = [
        (plain, RedisCache(awaiting), "redis.Redis"),
        (coroutine, RedisCache(blocking), "redis.asyncio.Redis"),
        (plain, UniqueInsert(async_engine), "create_engine"),
        (coroutine, UniqueInsert(engine), "create_async_engine"),
        (coroutine, UniqueInsert(sessionmaker(engine)), "create_async_engine"),
        (with_async_session, UniqueInsert(engine, join="session"), "create_async_engine"),
        (with_session, UniqueInsert(async_engine, join="session"), "create_engine"),
        (with_sync_session, UniqueInsert(join="session"), "Session"),
        (with_sync_connection, UniqueInsert(join="session"), "Connection"),
        (with_wrong_session, UniqueInsert(join="session"), "AsyncSession"),
        (with_wrong_connection, UniqueInsert(join="session"), "AsyncConnection"),
    ]
    for function, strategy, says in mixed:
        with pytest.raises(ColourMismatchError, match=says):
            decorate(function, using=strategy)


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_session_of_the_other_colour_is_refused_before_anything_runs(
    colour: Colour, engine: Engine, async_engine: AsyncEngine
) -> None:
    effects = Effects()

    def body(order_no: str, session: Any = None) -> int:
        return effects.add(order_no)

    async def abody(order_no: str, session: Any = None) -> int:
        return effects.add(order_no)

    def test() -> Steps[None]:
        f = decorate(body if colour == "sync" else abody, using=UniqueInsert(join="session"))
        wrong = AsyncSession(async_engine) if colour == "sync" else Session(engine)
        for given in (wrong, "a string", engine):
            error = yield from caught(ConfigurationError, functools.partial(f, "A-1", session=given))
            assert "Session" in str(error)
            assert error.ran is False

    drive(colour, test())
    assert len(effects) == 0


def test_an_async_probe_needs_an_async_function() -> None:
    with pytest.raises(ConfigurationError, match="async on_orphan probe needs an async function"):
        decorate(plain, on_orphan=async_probe)
    decorate(coroutine, on_orphan=async_probe)


# ------------------------------------------------------------------------ terms

_TERMS: list[tuple[dict[str, Any], str]] = [
    ({"keep": 10, "lease": 30}, "is below lease=.*keep it at least"),
    ({"keep": timedelta(seconds=1)}, "is below lease=.*keep it at least"),
    ({"keep": 0}, "keep"),
    ({"keep": -1}, "keep"),
    ({"keep": math.inf}, "keep"),
    ({"keep": "7d"}, "seconds or a timedelta"),
    ({"keep": None}, "seconds or a timedelta"),
    ({"lease": 0}, "lease"),
    ({"lease": -1}, "lease"),
    ({"lease": math.nan}, "lease"),
    ({"lease": math.inf}, "lease"),
    ({"lease": True}, "seconds or a timedelta"),
    ({"lease": timedelta(0)}, "lease"),
    ({"lease": "30"}, "seconds or a timedelta"),
    ({"wait": -1}, "every wait has a limit"),
    ({"wait": math.inf}, "every wait has a limit"),
    ({"wait": math.nan}, "every wait has a limit"),
    ({"wait": True}, "seconds, a timedelta or a tenacity"),
    ({"wait": "10"}, "seconds, a timedelta or a tenacity"),
    ({"wait": None}, "seconds, a timedelta or a tenacity"),
    ({"on_orphan": "retry"}, '"rerun", "refuse" or a probe'),
    ({"on_orphan": None}, '"rerun", "refuse" or a probe'),
    ({"replay_errors": [int]}, "subclasses of Exception"),
    ({"replay_errors": ["ValueError"]}, "subclasses of Exception"),
    ({"replay_errors": [ValueError()]}, "subclasses of Exception"),
    ({"replay_errors": [KeyboardInterrupt]}, "subclasses of Exception"),
    ({"replay_errors": BaseException}, "subclasses of Exception"),
    ({"replay_errors": 7}, "subclasses of Exception"),
    ({"unknown_errors": [int]}, "subclasses of Exception"),
    ({"replay_errors": [OSError], "unknown_errors": [OSError]}, "both"),
    ({"hooks": [7]}, "callables of one Event"),
    ({"hooks": ["print"]}, "callables of one Event"),
    ({"hooks": print}, "callables of one Event"),
    ({"codec": object()}, "encode"),
    ({"max_result": 0}, "number of bytes"),
    ({"max_result": "1MiB"}, "number of bytes"),
    ({"name": ""}, "1 to 255"),
    ({"name": "n" * 256}, "1 to 255"),
    ({"name": 7}, "name"),
    ({"fingerprint": 7}, "fingerprint"),
    ({"using": []}, "leave it out for the embedded default"),
    ({"using": "redis://localhost"}, "takes strategies such as"),
    ({"using": [Memory]}, "takes strategies|such as"),
    ({"using": [Memory(), None]}, "takes strategies such as"),
    ({"using": object()}, "takes strategies such as"),
]


@pytest.mark.parametrize(("terms", "says"), _TERMS)
def test_terms_that_make_no_sense_are_refused_while_decorating(terms: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        decorate(**terms)


@pytest.mark.parametrize(
    "function",
    [returns_a_socket, returns_an_iterator],
    ids=lambda one: one.__name__,
)
def test_a_result_type_that_cannot_be_stored_is_refused_while_decorating(function: Any) -> None:
    with pytest.raises(ConfigurationError) as error:
        decorate(function)
    assert function.__name__ in str(error.value)


@pytest.mark.parametrize("function", [generator, async_generator], ids=lambda one: one.__name__)
def test_generators_are_refused(function: Any) -> None:
    with pytest.raises(ConfigurationError, match="return a list instead"):
        decorate(function)


@pytest.mark.parametrize("function", [7, int, property(plain), None])
def test_what_is_no_function_is_refused(function: Any) -> None:
    with pytest.raises(ConfigurationError):
        decorate(function)


# ------------------------------------------------------------------------ strategies


def test_one_strategy_object_stands_in_one_place() -> None:
    once = Memory()
    with pytest.raises(CompositionError, match="twice"):
        decorate(using=[once, once])


def test_join_must_name_a_parameter(engine: Engine) -> None:
    with pytest.raises(CompositionError, match=r"join='db' names no parameter.*order_no, session"):
        decorate(with_session, using=UniqueInsert(engine, join="db"))


def test_a_joined_record_stands_last_and_under_the_decorators_key(engine: Engine) -> None:
    with pytest.raises(CompositionError, match="stands last"):
        decorate(with_session, using=[UniqueInsert(engine, join="session"), Memory()])
    with pytest.raises(CompositionError, match="stands last"):
        decorate(with_session, using=UniqueInsert(engine, join="session", key="{order_no}"))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (UniqueInsert, "URL, an engine or a sessionmaker, or join="),
        (
            lambda: UniqueInsert("oracle://localhost/x"),
            "no database that idempo knows|URL of a known database",
        ),
        (lambda: UniqueInsert("nosuch://localhost/x"), "URL of a known database"),
        (lambda: UniqueInsert("localhost"), "URL of a known database"),
        (lambda: UniqueInsert(""), "URL of a known database"),
        (lambda: UniqueInsert("sqlite://"), "use Memory"),
        (lambda: UniqueInsert("sqlite:///:memory:"), "use Memory"),
        (lambda: UniqueInsert("sqlite:///file::memory:?uri=true"), "use Memory"),
        (lambda: UniqueInsert(create_engine("sqlite://"), join="session"), "use Memory"),
        (lambda: UniqueInsert(sessionmaker(create_engine("sqlite://", poolclass=StaticPool))), "use Memory"),
        (lambda: UniqueInsert(create_async_engine("sqlite+aiosqlite:///:memory:")), "use Memory"),
        (lambda: UniqueInsert(7), "a URL, an engine or a sessionmaker"),  # type: ignore[arg-type]
        (lambda: UniqueInsert(sessionmaker()), "bind="),
        (lambda: UniqueInsert(URL, table="records; DROP TABLE orders"), "letters, digits and underscores"),
        (lambda: UniqueInsert(URL, table=""), "letters, digits and underscores"),
        (lambda: UniqueInsert(URL).purge(batch=0), "between 1 and"),
        (lambda: UniqueInsert(join="session").create_schema(), "an engine or a URL too"),
        (lambda: RedisCache("localhost:6379"), "redis://"),
        (lambda: RedisCache("http://localhost"), "redis://"),
        (lambda: RedisCache(""), "RedisCache takes a URL or a client"),
        (lambda: RedisCache(None), "RedisCache takes a URL or a client"),
    ],
)
def test_a_strategy_that_can_never_work_is_refused(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        make()


def test_a_password_in_a_url_that_is_refused_is_not_told() -> None:
    for url in ("nosuch://me:secret@localhost/x", "http://me:secret@localhost"):
        for strategy in (UniqueInsert, RedisCache):
            with pytest.raises(ConfigurationError) as error:
                strategy(url)
            assert "secret" not in str(error.value)


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_no_session_and_no_engine_runs_nothing(colour: Colour) -> None:
    def test() -> Steps[None]:
        function = with_session if colour == "sync" else with_async_session
        f = decorate(function, using=UniqueInsert(join="session"))
        error = yield from caught(ConfigurationError, lambda: f("A-1"))
        assert "passed no session" in str(error)
        assert error.ran is False

    drive(colour, test())


def test_a_wrong_call_is_pythons_own_error() -> None:
    f = decorate()
    for call in (f, f.outcome, functools.partial(f, "A-1", 1, 2), functools.partial(f, "A-1", price=2)):
        with pytest.raises(TypeError):
            call()


# ------------------------------------------------------------------------ drivers that idempo does not bring


@pytest.mark.parametrize("name", ["postgresql+pg8000", "mysql+mysqlconnector", "postgresql+asyncpg"])
def test_a_driver_with_options_of_other_names_is_given_none(name: str) -> None:
    url = checked(f"{name}://nobody@127.0.0.1/none")
    assert "connect_args" not in options_for(url, "async" if "asyncpg" in name else "sync")


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("mysql+mysqlconnector", "mysql"),
        ("mysql+mysqldb", "MySQLdb"),
        ("postgresql+psycopg2", "psycopg2"),
        ("sqlite+pysqlite", "sqlite3"),
    ],
)
def test_a_driver_is_looked_for_by_the_name_of_its_package(name: str, module: str) -> None:
    assert module_of(name) == module


# ------------------------------------------------------------------------ stores that are not there


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def unreachable(kind: str, colour: Colour) -> Any:
    port = closed_port()
    match kind:
        case "redis":
            client: Any = redis.Redis if colour == "sync" else redis.asyncio.Redis
            retry: Any = Retry if colour == "sync" else AsyncRetry
            return RedisCache(client(port=port, retry=retry(NoBackoff(), 1)))
        case "redis url":
            return RedisCache(f"redis://127.0.0.1:{port}")
        case "postgres":
            return UniqueInsert(f"postgresql+psycopg://nobody@127.0.0.1:{port}/none")
        case "asyncpg":
            return UniqueInsert(f"postgresql+asyncpg://nobody@127.0.0.1:{port}/none")
        case _:
            return UniqueInsert(f"mysql+pymysql://nobody@127.0.0.1:{port}/none")


@pytest.mark.parametrize(
    ("kind", "colour"),
    [
        *[
            (kind, colour)
            for kind in ("redis", "redis url", "postgres", "mariadb")
            for colour in ("sync", "async")
        ],
        ("asyncpg", "async"),
    ],
)
def test_a_store_that_is_not_there_runs_nothing(kind: str, colour: Colour) -> None:
    effects = Effects()

    def body(order_no: str) -> int:
        return effects.add(order_no)

    async def abody(order_no: str) -> int:
        return effects.add(order_no)

    def test() -> Steps[None]:
        strategy = unreachable(kind, colour)
        f = decorate(body if colour == "sync" else abody, using=strategy)
        error = yield from caught(LedgerUnavailableError, lambda: f("A-1"))
        assert (error.ran, error.key) == (False, "A-1")
        assert error.__cause__ is not None
        assert "repeat the call" in str(error)
        closing = strategy.close()
        if colour == "async" and closing is not None:
            yield closing

    drive(colour, test())
    assert len(effects) == 0


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
def test_a_database_that_is_not_there_runs_no_joined_function(kind: str, colour: Colour) -> None:
    """With an engine of idempo's, and with a session of the caller's own."""
    driver = {"postgres": "postgresql+psycopg", "mariadb": "mysql+pymysql"}[kind]
    if colour == "async":
        driver = driver.replace("pymysql", "asyncmy")
    effects = Effects()

    def body(order_no: str, session: Any = None) -> int:
        return effects.add(order_no)

    async def abody(order_no: str, session: Any = None) -> int:
        return effects.add(order_no)

    def test() -> Steps[None]:
        url = f"{driver}://nobody@127.0.0.1:{closed_port()}/none"
        engine: Any = create_engine(url) if colour == "sync" else create_async_engine(url)
        session: Any = Session(engine) if colour == "sync" else AsyncSession(engine)
        f = decorate(body if colour == "sync" else abody, using=UniqueInsert(engine, join="session"))
        for given in ({}, {"session": session}):
            error = yield from caught(LedgerUnavailableError, functools.partial(f, "A-1", **given))
            assert error.ran is False
            assert isinstance(error.__cause__, DBAPIError)
        yield session.close()
        yield engine.dispose()

    drive(colour, test())
    assert len(effects) == 0


def test_an_environment_variable_that_names_no_store_is_refused_while_decorating(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IDEMPO_URL", "http://localhost")
    with pytest.raises(ConfigurationError):
        idempotent(key="{order_no}")(plain)


def test_a_url_serves_both_colours(tmp_path: Path) -> None:
    using = UniqueInsert(f"sqlite:///{tmp_path}/idempo.db")
    f, g = decorate(plain, using=using, name="f"), decorate(coroutine, using=using, name="g")

    async def both() -> tuple[int, int]:
        found = f("A-1", 1), await g("A-1", 2)
        await using.close()
        return found

    assert asyncio.run(both()) == (1, 2)


def test_a_url_with_an_async_driver_is_closed_at_once_where_no_loop_runs(tmp_path: Path) -> None:
    using = UniqueInsert(f"sqlite+aiosqlite:///{tmp_path}/idempo.db")
    assert decorate(plain, using=using)("A-1") == 1
    closed = using.close()
    if asyncio.iscoroutine(closed):
        closed.close()
        pytest.fail("there is nobody to await it")
