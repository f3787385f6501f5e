"""Measures the peers beside idempo and the floors, in the environment of the peers: `run.py REQUEST RESULT`.

Both are JSON files. This is a process of its own, so that nothing of the peers is ever installed beside idempo; idempo
and the floors are measured again in it, interleaved with them.
"""

import asyncio
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import floors
from benchmarks.method import Measured, Plan, Subject, fresh_keys, interleave, interleave_async
from benchmarks.peers import to_json, unmeasured
from benchmarks.peers.adapters import PEERS
from benchmarks.peers.shapes import Function, Peer, Places

TITLES = {"memory": "in this process", "redis": "Redis", "postgres": "PostgreSQL"}
WORDS = ("first run", "replay")
KNOWN = fresh_keys()()


def measured(places: Places, plan: Plan) -> dict[str, list[Measured]]:
    """Return the tables by title."""
    return {
        f"peers, {title}{', async' * asynchronous}": table(store, asynchronous, places, plan)
        for store, title in TITLES.items()
        for asynchronous in (False, True)
    }


def table(store: str, asynchronous: bool, places: Places, plan: Plan) -> list[Measured]:
    """Measure those that have this store in this colour. One that cannot run is a row that says why."""
    subjects, absent = _floors(store, places, asynchronous), []
    floor = subjects[0].name.partition(":")[0] if subjects else ""
    for peer in PEERS:
        if peer.store == store and asynchronous in peer.colours:
            try:
                subjects += _subjects(peer, places, asynchronous, floor)
            except Exception as error:
                absent.append(unmeasured(peer.name, f"{type(error).__name__}: {error}"))
    return (interleave_async if asynchronous else interleave)(subjects, plan) + absent


def _floors(store: str, places: Places, asynchronous: bool) -> list[Subject]:
    match store, asynchronous:
        case "redis", _:
            name, first_known = "SET NX and SET by redis-py", floors.redis_by_hand(places.redis).first
            hand = (floors.redis_by_hand_async if asynchronous else floors.redis_by_hand)(places.redis)
        case "postgres", _:
            name, first_known = "two statements by psycopg", floors.postgres_by_hand(places.libpq).first
            hand = (floors.postgres_by_hand_async if asynchronous else floors.postgres_by_hand)(places.libpq)
        case _:
            return []
    known = f"{KNOWN}-{asynchronous}"
    first_known(known)
    return _both(name, hand.first, hand.replay, known)


def _subjects(peer: Peer, places: Places, asynchronous: bool, floor: str) -> list[Subject]:
    def once(key: str, amount: int) -> int:
        return 1

    async def once_async(key: str, amount: int) -> int:
        return 1

    function = Function("bench", once_async if asynchronous else once)
    _try(peer, places, asynchronous)
    call = peer.wrap(function, places, asynchronous, frozenset())
    return _both(peer.name, call, call, f"{KNOWN}-{asynchronous}", floor, peer.note)


def _try(peer: Peer, places: Places, asynchronous: bool) -> None:
    """What cannot run once and replay once is not measured. In a client of its own, for its loop ends here."""
    runs = []

    def body(key: str, amount: int) -> int:
        runs.append(key)
        return len(runs)

    async def body_async(key: str, amount: int) -> int:
        return body(key, amount)

    call = peer.wrap(
        Function("trial", body_async if asynchronous else body), places, asynchronous, frozenset()
    )

    async def twice() -> list[Any]:
        return [await call(f"{KNOWN}-trial"), await call(f"{KNOWN}-trial")]

    key = f"{KNOWN}-trial-{asynchronous}"
    answers = asyncio.run(twice()) if asynchronous else [call(key), call(key)]
    if answers != [1, 1]:
        raise RuntimeError(f"it gave {answers}")


def _both(
    name: str,
    first: Callable[[str], Any],
    replay: Callable[[str], Any],
    known: str,
    floor: str = "",
    note: str = "",
) -> list[Subject]:
    keys: tuple[Callable[[], str], ...] = (fresh_keys(), lambda: known)
    return [
        Subject(f"{name}: {word}", call, key, f"{floor}: {word}" if floor else "", note=note)
        for word, call, key in zip(WORDS, (first, replay), keys, strict=True)
    ]


def main(request: Path, result: Path) -> None:
    logging.disable(logging.CRITICAL)  # what they write for people
    asked = json.loads(request.read_text())
    result.write_text(to_json(measured(Places(**asked["places"]), Plan(**asked["plan"]))))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
