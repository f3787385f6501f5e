"""One table of results in one colour: its subjects, what they need before, and what is closed after them."""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.floors import ByHand
from benchmarks.method import Measured, Plan, Subject, fresh_keys, interleave, interleave_here
from benchmarks.stores import Stores, Wire, behind_proxies
from idempo import RedisCache, idempotent
from idempo.contracts import Colour
from idempo.steps import Steps, arun, run
from tests.servers import async_url

__all__ = ["COLOURS", "Making", "Section", "measured", "titled"]

COLOURS: tuple[Colour, ...] = ("sync", "async")
WORDS = ("first run", "replay")
WARM = 12
"""Calls until the drivers have prepared their statements."""

_names = itertools.count(1)


def titled(title: str, colour: Colour) -> str:
    return title if colour == "sync" else f"{title}, async"


class Section:
    """What is measured side by side. Made anew for each event loop."""

    def __init__(self, stores: Stores, colour: Colour) -> None:
        self.stores = stores
        self.colour: Colour = colour
        self.subjects: list[Subject] = []
        self._before: list[Callable[[], Steps[None]]] = []
        self._after: list[Callable[[], Any]] = []
        self._engines: dict[str, Any] = {}

    def engine(self, url: str, size: int = 5) -> Any:
        """An engine of the section's colour, the same one for the same URL."""
        if url not in self._engines:
            if self.colour == "sync":
                made: Any = create_engine(url, pool_size=size)
            else:
                made = create_async_engine(async_url(url), pool_size=size)
            self._engines[url] = self.closing(made, made.dispose)
        return self._engines[url]

    def cache(self) -> RedisCache:
        """A ledger on the Redis, with a client of its own."""
        made = RedisCache(self.stores.redis)
        self.closing(made, made.close)
        return made

    def closing(self, made: Any, close: Callable[[], Any]) -> Any:
        """Note what closes `made`, and return it."""
        self._after.append(close)
        return made

    def decorated(self, *using: Any, body: Callable[..., Any] | None = None, **options: Any) -> Any:
        """A function behind these strategies: one that does nothing, or `body`."""
        options = {"key": "{key}", "name": f"bench.{next(_names)}", **options}
        return idempotent(using=list(using), **options)(body or self.nothing)

    @property
    def nothing(self) -> Callable[..., Any]:
        return once if self.colour == "sync" else once_async

    def both(
        self,
        name: str,
        first: Callable[[Any], Any],
        replay: Callable[[Any], Any] | None = None,
        floor: str = "",
        targets: tuple[float | None, float | None] = (None, None),
        *,
        keys: Callable[[], Any] | None = None,
        known: int = 1,
        note: str = "",
    ) -> None:
        """The first run and the replay of one thing; its floor has the same two words, or is one subject for both.

        `known` keys are replayed in turn, and run for the first time before anything is measured.
        """
        fresh = keys or fresh_keys()
        ran: list[Any] = []

        def prime() -> Steps[None]:
            for _ in range(known):
                key = yield fresh()
                yield first(key)
                ran.append(key)

        self._before.append(prime)
        turn = itertools.count()
        sources: tuple[Callable[[], Any], ...] = (fresh, lambda: ran[next(turn) % known])
        for word, call, key, target in zip(WORDS, (first, replay or first), sources, targets, strict=True):
            single = not floor or any(subject.name == floor for subject in self.subjects)
            against = floor if single else f"{floor}: {word}"
            self.subjects.append(Subject(f"{name}: {word}", call, key, against, target, note))

    def by_hand(self, name: str, hand: ByHand, floor: str = "", known: int = 1) -> str:
        """A floor, or what is compared with one. Returns its name."""
        self.closing(hand, hand.close)
        self.both(name, hand.first, hand.replay, floor, known=known)
        return name

    def prepared(self) -> Steps[None]:
        for prime in self._before:
            yield from prime()

    def closed(self) -> Steps[None]:
        for close in reversed(self._after):
            yield close()

    def time(self, plan: Plan) -> list[Measured]:
        """Measure the subjects, and close everything."""
        if self.colour == "async":
            return asyncio.run(self._time(plan))
        try:
            run(self.prepared())
            return interleave(self.subjects, plan)
        finally:
            run(self.closed())

    async def _time(self, plan: Plan) -> list[Measured]:
        try:
            await arun(self.prepared())
            return await interleave_here(self.subjects, plan)
        finally:
            await arun(self.closed())

    def count(self, wire: Wire) -> dict[str, int]:
        """Count the round trips of each subject, and close everything."""

        def steps() -> Steps[dict[str, int]]:
            try:
                yield from self.prepared()
                found = {}
                for subject in self.subjects:
                    for _ in range(WARM):
                        key = yield subject.key()
                        yield subject.call(key)
                    key = yield subject.key()
                    found[subject.name] = yield from wire.counted(lambda: subject.call(key))  # noqa: B023
                return found
            finally:
                yield from self.closed()

        return run(steps()) if self.colour == "sync" else asyncio.run(arun(steps()))


Making: TypeAlias = Callable[[Section], None]
"""Puts the subjects into a section."""


def measured(
    make: Making, stores: Stores, colour: Colour, plan: Plan, *, trips: bool = True
) -> list[Measured]:
    """Make a section and time it; make it once more behind proxies and count its round trips."""
    section = Section(stores, colour)
    make(section)
    rows = section.time(plan)
    if not trips:
        return rows
    with behind_proxies(stores) as (seen, wire):
        section = Section(seen, colour)
        make(section)
        found = section.count(wire)
    return [replace(row, requests=found[row.name]) for row in rows]


def once(key: Any) -> int:
    return 1


async def once_async(key: Any) -> int:
    return 1
