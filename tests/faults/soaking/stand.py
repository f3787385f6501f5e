"""What the soak calls: each composition at each place, in one colour, with a function of uncertain length and end.

Its value is the name of its run, so that the values of two runs differ. Where it is given a session it writes a row
with that name; otherwise it tells another system, which notes the fence too.
"""

import itertools
import os
import random
import signal
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import redis
import redis.asyncio
from sqlalchemy import Column, MetaData, String, Table, create_engine, insert
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from idempo import current, idempotent
from idempo.contracts import Colour
from idempo.events import Event
from idempo.records import Call
from idempo.steps import Pause, Steps
from tests.faults.compositions import COMPOSITIONS, Composition, Open
from tests.faults.soaking.bodies import Declined, Rejected, body, described, judged
from tests.faults.soaking.history import Promise
from tests.faults.soaking.journal import Journal
from tests.servers import async_url

__all__ = ["LEASE", "PROMISES", "WRITTEN", "Place", "Stand"]

LEASE = 1.2
WAIT = 4.0
KEEP = 86_400.0
SETTLED = 60.0
"""Seconds for which those wait who come when all faults are over."""

WRITTEN = Table(
    "written",
    MetaData(),
    Column("run", String(60), primary_key=True),
    Column("business_key", String(100), nullable=False),
)

PROMISES = {
    one.name: Promise(
        joined=one.joined,
        on_orphan=one.on_orphan,
        lease=LEASE,
        tiers="+" in one.name,
        callers=one.callers,
        servers=one.servers,
    )
    for one in COMPOSITIONS
}

# KEYS: what was told, and the row that a fence guards. ARGV: run, fence
TELL = """
local taken = tonumber(ARGV[2]) > tonumber(redis.call('HGET', KEYS[2], 'fence') or '0')
if taken then redis.call('HSET', KEYS[2], 'run', ARGV[1], 'fence', ARGV[2]) end
redis.call('RPUSH', KEYS[1], cjson.encode({ARGV[1], ARGV[2], taken}))
return taken and 1 or 0
"""


@dataclass(frozen=True)
class Place:
    """A database and a Redis."""

    name: str
    database: str
    redis: str
    elsewhere: str


_calling: ContextVar[tuple[str, str]] = ContextVar("calling", default=("", ""))
"""The key and the name of the call."""


class Stand:
    """One place in one colour: its clients, and a function for each composition."""

    def __init__(
        self,
        place: Place,
        colour: Colour,
        journal: Journal,
        odds: random.Random,
        *,
        twin: str = "",
        quiet: bool = False,
    ) -> None:
        self._journal, self._odds, self._twin, self._quiet = journal, odds, twin, quiet
        sync = colour == "sync"
        kind: Any = redis.Redis if sync else redis.asyncio.Redis
        make: Any = create_engine if sync else create_async_engine
        self._session: Any = Session if sync else AsyncSession
        self._engine = make(place.database if sync else async_url(place.database))
        self._redis = kind.from_url(place.redis)
        self._elsewhere = kind.from_url(place.elsewhere, socket_timeout=None)
        self._tokens: list[str] = []
        self._colour: Colour = colour
        self._strategies: dict[str, list[Any]] = {}
        self._numbers = itertools.count(1)
        self._owners: dict[tuple[str, int], tuple[str, str]] = {}
        self._functions: dict[tuple[str, bool], Any] = {}
        for composition in COMPOSITIONS:
            self._strategies[composition.name] = composition.using(
                Open(self._engine, self._redis, self._tokens)
            )
            for settling in (False, True):
                self._functions[composition.name, settling] = self._decorated(composition, settling)

    def _decorated(self, composition: Composition, settling: bool) -> Any:
        orphan: Any = composition.on_orphan
        if orphan == "probe":
            orphan = self._probe if self._colour == "sync" else self._aprobe
        return idempotent(
            key="{order_no}",
            using=self._strategies[composition.name],
            name=f"soak.{composition.name}",
            on_orphan=orphan,
            lease=LEASE,
            keep=KEEP,
            wait=SETTLED if settling else WAIT,
            replay_errors=(Rejected,),
            hooks=(self._heard,),
        )(body(self._work, self._colour, composition.joined))

    def _heard(self, event: Event) -> None:
        # A heartbeat belongs to no caller; and of a token, the event does not tell the key.
        key, call = self._owners.get((event.operation, event.fence), _calling.get())
        if key:
            self._journal.say(event.kind, key=key, call=call, fence=event.fence, detail=event.detail)

    def issue(self, key: str) -> None:
        """Issue the token for a key, where its composition asks for one."""
        name = key.split("/")[1]
        strategies = self._strategies[name]
        if hasattr(strategies[0], "issue"):
            self._tokens.append(key)
            strategies[0].issue(operation=f"soak.{name}")

    def close(self) -> Steps[None]:
        yield self._engine.dispose()
        for client in (self._redis, self._elsewhere):
            yield client.close() if self._colour == "sync" else client.aclose()

    # ------------------------------------------------------------------------------------------ one call

    def call(self, key: str, call: str, *, settling: bool = False) -> Steps[None]:
        """Call the function of the key's composition, and write down what came of it."""
        _calling.set((key, call))
        self._journal.say(
            "invoke", key=key, call=call, pid=os.getpid(), colour=self._colour, settling=settling
        )
        try:
            outcome = yield from self._answer(key, settling)
        except Rejected as error:
            self._journal.say("return", key=key, call=call, value=f"error:{error}", replayed=None)
        except Exception as error:
            self._journal.say("raise", key=key, call=call, **described(error))
        else:
            more = {"value": outcome.value["run"], "replayed": outcome.replayed, "attempt": outcome.attempt}
            self._journal.say("return", key=key, call=call, **more)

    def _answer(self, key: str, settling: bool) -> Steps[Any]:
        name = key.split("/")[1]
        function = self._functions[name, settling]
        if not PROMISES[name].callers:
            return (yield function.outcome(key, key, 1))
        session = self._session(self._engine)
        try:
            try:
                outcome = yield function.outcome(key, key, 1, session=session)
            except Rejected:
                yield session.commit()
                raise
            yield session.commit()
        finally:
            yield session.close()
        return outcome

    # ------------------------------------------------------------------------------------------ the function

    def _work(self, key: str, session: Any) -> Steps[dict[str, str]]:
        (_, call), mine = _calling.get(), current()
        self._owners[mine.operation, mine.fence] = key, call
        name = f"{call}.{next(self._numbers)}"
        note: dict[str, Any] = {"key": key, "call": call, "run": name}
        asked = None if mine.deadline is None else mine.deadline - LEASE
        self._journal.say("begin", **note, fence=mine.fence, asked=asked)
        how = "failed"
        try:
            before, after = self._length(), self._length()
            yield Pause(before)
            if self._happens(0.1):
                how = "declined"
                raise Declined(name)
            self._die_perhaps()
            if session is not None:
                yield from self._write(session, name, key)
            else:
                taken = yield self._elsewhere.eval(TELL, 2, f"told:{key}", f"guarded:{key}", name, mine.fence)
                self._journal.say("effect", **note, taken=bool(taken))
            self._die_perhaps()
            yield Pause(after)
            if session is not None and self._happens(0.05):
                how = "declined"
                raise Declined(name)
            how = "error" if self._happens(0.05) else "value"
        finally:
            self._journal.say("end", **note, how=how)
        if how == "error":
            raise Rejected(name)
        return {"run": name}

    def _write(self, session: Any, name: str, key: str) -> Steps[None]:
        if self._twin == "not-joined":
            session = self._session(self._engine)
        yield session.execute(insert(WRITTEN).values(run=name, business_key=key))
        if self._twin == "not-joined":
            yield session.commit()
            yield session.close()

    def _length(self) -> float:
        """Half of how long the function takes: mostly nothing, at times up to three leases in all."""
        odds = self._odds.random()
        if self._quiet or odds < 0.4:
            return 0.0
        if odds < 0.75:
            return self._odds.uniform(0.0, 0.15)
        return self._odds.uniform(0.0, 0.5 if odds < 0.92 else 1.5) * LEASE

    def _happens(self, odds: float) -> bool:
        return not self._quiet and self._odds.random() < odds

    def _die_perhaps(self) -> None:
        if self._happens(0.015):
            self._journal.say("fault", kind="kill", target=str(os.getpid()), by="itself")
            os.kill(os.getpid(), signal.SIGKILL)

    def _probe(self, call: Call) -> Any:
        return judged(self._elsewhere.lindex(f"told:{call.arguments['order_no']}", 0))

    async def _aprobe(self, call: Call) -> Any:
        return judged(await self._elsewhere.lindex(f"told:{call.arguments['order_no']}", 0))
