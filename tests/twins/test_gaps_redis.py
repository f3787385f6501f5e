"""The Redis ledger: rules that no test held until a mutant went unnoticed (docs/explanation/mutation.md)."""

import secrets
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.exceptions import MaxConnectionsError, ResponseError

from idempo import RedisCache
from idempo.contracts import Colour
from idempo.records import Claimed
from idempo.steps import Pause, Steps, run
from idempo.testing import drive, ledger_of, new_call
from tests.servers import Server

CLIENTS: dict[Colour, Any] = {"sync": redis.Redis, "async": redis.asyncio.Redis}
colours = pytest.mark.parametrize("colour", CLIENTS)


def _at_each_pause(steps: Steps[Any], do: Callable[[], Any]) -> Steps[Any]:
    """Take the steps, with something else to wait for instead of each pause."""
    go_on: Callable[[Any], Any] = steps.send
    answer: Any = None
    while True:
        try:
            asked = go_on(answer)
        except StopIteration as stop:
            return stop.value
        try:
            answer, go_on = (yield do() if isinstance(asked, Pause) else asked), steps.send
        except BaseException as error:
            answer, go_on = error, steps.throw


@colours
def test_a_client_whose_connections_are_all_in_use_is_asked_again_after_a_pause(
    redis_server: Server, colour: Colour
) -> None:
    client = CLIENTS[colour].from_url(redis_server.url, max_connections=1)
    pool = client.connection_pool

    def steps() -> Steps[Any]:
        held = yield pool.get_connection()
        claim = ledger_of(RedisCache(client), colour).claim(new_call(secrets.token_hex(8)), None)
        answer = yield from _at_each_pause(claim, lambda: pool.release(held))
        yield pool.disconnect()
        return answer

    assert isinstance(drive(colour, steps()), Claimed)


@colours
def test_a_client_whose_connections_stay_in_use_is_given_up(
    redis_server: Server, colour: Colour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monotonic, hours = time.monotonic, list[int]()
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 3600 * len(hours))
    client = CLIENTS[colour].from_url(redis_server.url, max_connections=1)
    pool = client.connection_pool

    def steps() -> Steps[Any]:
        held = yield pool.get_connection()
        claim = ledger_of(RedisCache(client), colour).claim(new_call(), None)
        with pytest.raises(MaxConnectionsError):
            yield from _at_each_pause(claim, lambda: hours.append(len(hours)))
        yield pool.release(held)
        yield pool.disconnect()

    drive(colour, steps())


@colours
def test_a_request_that_fails_is_not_sent_a_second_time(
    redis_server: Server, colour: Colour, monkeypatch: pytest.MonkeyPatch
) -> None:
    client: Any = CLIENTS[colour].from_url(redis_server.url)
    send, sent = client.execute_command, list[str]()

    def noting(*words: Any, **options: Any) -> Any:
        sent.append(words[0])
        return send(*words, **options)

    monkeypatch.setattr(client, "execute_command", noting)
    call = new_call(secrets.token_hex(8))

    def steps() -> Steps[Any]:
        ledger = ledger_of(RedisCache(client), colour)
        yield from ledger.claim(new_call(secrets.token_hex(8)), None)  # the script is known from now on
        yield client.set(f"idempo:{call.digest.hex()}", "no record")
        sent.clear()
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            yield from ledger.claim(call, None)
        noted = list(sent)
        yield client.delete(f"idempo:{call.digest.hex()}")
        yield client.connection_pool.disconnect()
        return noted

    assert drive(colour, steps()) == ["EVALSHA"]


def test_a_lease_that_its_owner_ended_is_shown_as_over_though_the_clock_went_back(
    redis_server: Server,
) -> None:
    client = redis.Redis.from_url(redis_server.url)
    ledger: Any = ledger_of(RedisCache(client), "sync")
    call = new_call(secrets.token_hex(8))
    run(ledger.claim(call, None))
    run(ledger.renew(call, 0.0))
    hour = 3600 * 1_000_000
    for field in ("lease", "leased"):  # as a clock that went back by an hour since then leaves them
        client.hincrby(f"idempo:{call.digest.hex()}", field, hour)
    assert run(ledger.lookup(call.digest)).state == "orphan"
    client.close()
