"""Redis and Valkey wake the duplicates in other processes: nobody has to ask again and again.

A ledger made for itself stands for another process: duplicates wait together only within one ledger.
"""

import os
from collections import Counter
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from idempo import Event, OutcomeUnknownError, RedisCache, current
from idempo.contracts import Colour
from idempo.records import Call
from idempo.rooms import Waiting
from idempo.steps import Steps
from idempo.strategies.redis_cache import RedisLedger
from idempo.streams import Seats, stream_of
from idempo.testing import Gate, drive
from tests.faults.stalled import Unsure, leased
from tests.servers import Server, fresh_database
from tests.traps.support import Running, calling, until

LONG = 120.0
SILENT = f"?socket_timeout={2 * LONG}"
colours = pytest.mark.parametrize("colour", ["sync", "async"])


@pytest.fixture(params=["redis_server", "redis62", "valkey", "redis_cluster"])
def url(request: pytest.FixtureRequest) -> str:
    server: Server = request.getfixturevalue(request.param)
    if request.param == "redis_cluster":
        return server.url.replace("redis://", "redis+cluster://") + SILENT
    return fresh_database(server) + SILENT


@pytest.fixture
def own_url(redis_server: Server) -> str:
    return fresh_database(redis_server) + SILENT


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How many claims each ledger has sent."""
    counted: Counter[int] = Counter()
    claim = RedisLedger.claim

    def counting(self: RedisLedger, call: Call, over: int | None) -> Steps[Any]:
        counted[id(self.clients)] += 1
        return claim(self, call, over)

    monkeypatch.setattr(RedisLedger, "claim", counting)
    return counted


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is not woken waits for longer than the test."""
    monkeypatch.setattr("idempo.streams._SECONDS", LONG)


class Scene:
    """An owner inside its function, and a duplicate in another process that has asked once."""

    def __init__(self, url: str, colour: Colour, asked: Counter[int], key: str, **terms: Any) -> None:
        self.colour: Colour = colour
        self.asked, self.key = asked, key
        self.inside, self.gate = Gate(colour), Gate(colour)
        self.failure: Exception | None = None
        self.waited = 0
        self.mine, self.others = RedisCache(url), RedisCache(url, **terms)
        self.f = leased(self.mine, colour, "woken", self._body, lease=LONG, wait=LONG)
        self.g = leased(self.others, colour, "woken", self._second, lease=LONG, wait=LONG, hooks=[self._hook])
        self.owner = Running(colour, [calling(lambda: self.f(key))])

    def _body(self, key: str) -> Steps[str]:
        self.inside.open()
        yield self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return "first"

    def _second(self, key: str) -> Steps[str]:
        yield from ()
        return f"second {current().attempt}"

    def _hook(self, event: Event) -> None:
        self.waited += event.kind == "waited"

    def duplicate(self) -> Steps[Running]:
        yield self.inside.wait()
        running = Running(self.colour, [calling(lambda: self.g(self.key))])
        yield from until(lambda: self.waited == 1, "the duplicate waits")
        return running

    def claims(self) -> int:
        return self.asked[id(self.others._clients)]

    def close(self) -> Steps[None]:
        yield self.mine.close()
        yield self.others.close()


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    name: str = request.node.name
    return name


@colours
@pytest.mark.usefixtures("patient")
def test_a_duplicate_in_another_process_is_woken_by_the_first_result(
    url: str, colour: Colour, asked: Counter[int], key: str
) -> None:
    def test() -> Steps[None]:
        scene = Scene(url, colour, asked, key)
        duplicate = yield from scene.duplicate()
        scene.gate.open()
        assert (yield from duplicate.results()) == ["first"]
        assert (yield from scene.owner.results()) == ["first"]
        assert scene.claims() == 2
        yield from scene.close()

    drive(colour, test())


@colours
@pytest.mark.usefixtures("patient")
def test_a_duplicate_in_another_process_is_woken_by_a_failure_and_runs(
    url: str, colour: Colour, asked: Counter[int], key: str
) -> None:
    def test() -> Steps[None]:
        scene = Scene(url, colour, asked, key)
        duplicate = yield from scene.duplicate()
        scene.failure = ZeroDivisionError()
        scene.gate.open()
        assert (yield from duplicate.results()) == ["second 2"]
        assert isinstance((yield from scene.owner.results())[0], ZeroDivisionError)
        assert scene.claims() == 2
        yield from scene.close()

    drive(colour, test())


@pytest.mark.usefixtures("patient")
def test_a_duplicate_in_another_process_is_woken_by_an_owner_that_gives_up(
    own_url: str, asked: Counter[int], key: str
) -> None:
    def test() -> Steps[None]:
        scene = Scene(own_url, "sync", asked, key)
        duplicate = yield from scene.duplicate()
        scene.failure = Unsure()
        scene.gate.open()
        assert (yield from duplicate.results()) == ["second 2"]
        assert isinstance((yield from scene.owner.results())[0], OutcomeUnknownError)
        assert scene.claims() == 3  # told of an orphan, it takes over
        yield from scene.close()

    drive("sync", test())


def test_nothing_is_left_where_nobody_waits(own_url: str, key: str) -> None:
    """And where somebody does, a stream that is gone after two seconds."""
    asked: Counter[int] = Counter()

    def test() -> Steps[None]:
        with redis.Redis.from_url(own_url) as client:
            scene = Scene(own_url, "sync", asked, key)
            scene.g("alone")
            assert [name for name in client.scan_iter() if client.type(name) == b"stream"] == []
            duplicate = yield from scene.duplicate()
            scene.gate.open()
            yield from duplicate.results()
            yield from scene.owner.results()
            assert all(0 < client.pttl(name) <= 2000 for name in client.keys(b"*w{*"))
            assert not any(client.hexists(name, "waiting") for name in client.keys("idempo:[0-9a-f]*"))
            yield from scene.close()

    drive("sync", test())


def test_who_is_woken_for_nothing_pauses_the_next_time(
    own_url: str, asked: Counter[int], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hint that is there all the time, because a clock was set back, makes nobody ask without end."""
    pauses: list[float] = []
    blocking = Waiting.blocking

    def counted(self: Any) -> None:
        pauses.append(self.seconds)
        blocking(self)

    monkeypatch.setattr(Waiting, "blocking", counted)

    def test() -> Steps[None]:
        with redis.Redis.from_url(own_url) as client:
            scene = Scene(own_url, "sync", asked, key)
            yield scene.inside.wait()
            record: Any
            (record,) = client.keys("idempo:[0-9a-f]*")
            stream = stream_of(b"idempo:", record)
            assert stream is not None
            client.xadd(stream, {"e": "1"}, id="9999999999999-0")
            duplicate = yield from scene.duplicate()
            yield from until(lambda: scene.claims() > 10, "the duplicate has asked several times")
            asks, paused = scene.claims(), len(pauses)
            scene.gate.open()
            assert (yield from duplicate.results()) == ["first"]
            assert paused >= asks // 2 - 1
            yield from scene.owner.results()
            yield from scene.close()

    drive("sync", test())


@colours
def test_a_user_without_rights_to_the_stream_asks_and_learns(
    own_url: str,
    redis_server: Server,
    colour: Colour,
    asked: Counter[int],
    key: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[float] = []
    take = Seats.take

    def taking(self: Seats, client: Any) -> float:
        taken.extend(filter(None, [seconds := take(self, client)]))
        return seconds

    monkeypatch.setattr(Seats, "take", taking)
    with redis.Redis.from_url(redis_server.url) as admin:
        rules = ["~idempo:*", "+@all", "-xread", "-xadd"]
        admin.execute_command("ACL", "SETUSER", "deaf", "reset", "on", ">hush-hush", *rules)

    def test() -> Steps[None]:
        scene = Scene(own_url.replace("redis://", "redis://deaf:hush-hush@"), colour, asked, key)
        duplicate = yield from scene.duplicate()
        yield from until(lambda: scene.claims() > 4, "the duplicate asks again")
        assert len(taken) == 1  # it has tried to listen once
        scene.gate.open()
        assert (yield from duplicate.results()) == ["first"]
        assert (yield from scene.owner.results()) == ["first"]
        yield from scene.close()

    try:
        drive(colour, test())
    finally:
        with redis.Redis.from_url(redis_server.url) as admin:
            admin.acl_deluser("deaf")


class Client:
    """As much of a client as says how many connections it may have, and for how long one may be silent."""

    def __init__(self, most: int | None, timeout: float | None) -> None:
        self.connection_pool: Any = None if most is None else type("Pool", (), {"max_connections": most})
        self._kwargs = {"socket_timeout": timeout}

    def get_connection_kwargs(self) -> dict[str, Any]:
        return self._kwargs


@pytest.mark.parametrize(
    ("most", "timeout", "seconds"),
    [(100, None, 0.25), (100, 5.0, 0.25), (100, 0.3, 0.15), (10, None, 0.0), (None, None, 0.25)],
)
def test_a_small_pool_is_not_used_for_waiting_nor_a_connection_for_longer_than_it_may_be_silent(
    most: int | None, timeout: float | None, seconds: float
) -> None:
    assert Seats().take(Client(most, timeout)) == seconds


def test_the_only_connection_of_a_client_is_not_used_for_waiting(own_url: str) -> None:
    with redis.Redis.from_url(own_url, single_connection_client=True) as client:
        assert Seats().take(client) == 0
    with redis.Redis.from_url(own_url) as client:
        assert Seats().take(client) > 0


def test_places_are_free_in_a_forked_child() -> None:
    seats, client = Seats(), Client(100, None)
    while seats.take(client):
        pass
    child = os.fork()
    if not child:
        os._exit(0 if seats.take(client) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_client_that_does_not_say_is_not_used_for_waiting() -> None:
    assert Seats().take(object()) == 0


def test_few_wait_at_once_and_a_place_that_is_left_is_free() -> None:
    seats, client = Seats(), Client(100, None)
    taken = [seats.take(client) for _ in range(9)]
    assert (sum(map(bool, taken)), taken[-1]) == (8, 0)
    seats.leave()
    assert seats.take(client) > 0


@given(st.text("ab:{}", max_size=8))
def test_a_stream_is_under_the_same_prefix_and_in_the_same_slot_as_its_record(prefix: str) -> None:
    start = prefix.encode()
    name = start + b"0123456789abcdef"
    stream = stream_of(start, name)
    if stream is not None:
        assert stream.startswith(start)
        assert stream != name
        assert key_slot(stream) == key_slot(name)


@pytest.mark.parametrize("prefix", [b"idempo:", b"", b"{shop}:", b"a{shop}"])
def test_usual_prefixes_have_streams(prefix: bytes) -> None:
    assert stream_of(prefix, prefix + b"0123") is not None
