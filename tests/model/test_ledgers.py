"""Each ledger beside `Memory` as its model: the same requests, in any order and by any owner, get the same answers."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from msgspec.structs import replace

from idempo import RedisCache, UniqueInsert
from idempo.contracts import Colour
from idempo.records import MISSING, Above, Call, Done, Issued, Payload
from idempo.testing import ledger_of, new_call
from tests.model.support import InRedis, InSQL, Model, Pairs, Store, examples, schema, seen
from tests.servers import Server, fresh_database

KEYS = ("A", "B")
LONG, LONGER = 3600.0, 7200.0
PAYLOADS = [
    Payload("completed", b"first"),
    Payload("completed", b""),
    Payload("completed", None),
    Payload("failed", b"error"),
]
DEMANDS = st.sampled_from([None, None, Issued("replay"), Issued("refuse"), "above"])
PICK = st.sampled_from([0, 1, 1, 2, 3])
_numbers = itertools.count()


class SameAnswers(RuleBasedStateMachine):
    """Every request goes to both ledgers; after each, the record is looked up in both."""

    calls: Bundle[Call] = Bundle("calls")

    def __init__(self, store: Store, met: set[object]) -> None:
        super().__init__()
        self.store = store
        self.met = met
        self.model = Model()
        number = next(_numbers)
        self.digests = {key: f"{os.getpid()} {number} {key}".encode().rjust(32) for key in KEYS}
        self.fences = {digest: Pairs() for digest in self.digests.values()}
        self.payloads: dict[tuple[bytes, bytes], Payload] = {}
        self.owners: dict[bytes, bytes] = {}
        self.ended: set[bytes] = set()

    def both(self, digest: bytes, request: Callable[[Any, int], Any]) -> Any:
        """Send a request to the model (0) and to the ledger (1) and compare; return the model's answer."""
        expected = self.model.ask(request(self.model.ledger, 0))
        given = self.store.ask(request(self.store.ledger, 1))
        self.same(digest, expected, given)
        said = seen(expected)[0]
        self.met.add(said[0] if isinstance(said, tuple) else said)
        return expected

    def same(self, digest: bytes, expected: Any, given: Any) -> None:
        (one, one_fence), (other, other_fence) = seen(expected), seen(given)
        assert other == one
        assert (one_fence is None) == (other_fence is None)
        if one_fence is not None and other_fence is not None:
            assert self.fences[digest].agree(one_fence, other_fence), (self.fences, one_fence, other_fence)

    def look(self, digest: bytes) -> None:
        self.both(digest, lambda ledger, _: ledger.lookup(digest))

    # ---- rules

    @initialize(target=calls)
    def never_issued(self) -> Call:
        call = new_call("A", digest=self.digests["A"], lease=LONG, keep=2 * LONG)
        self.ask(call, 0, Issued("replay"), 0)
        return call

    @rule(
        target=calls, key=st.sampled_from(KEYS), fingerprint=st.sampled_from([b"", b"\x01\x90", b"\x01\xff"])
    )
    def call(self, key: str, fingerprint: bytes) -> Call:
        return new_call(key, digest=self.digests[key], fingerprint=fingerprint, lease=LONG, keep=2 * LONG)

    @rule(call=calls, over=PICK, demand=DEMANDS, above=PICK)
    def claim(self, call: Call, over: int, demand: Any, above: int) -> None:
        self.ask(call, over, demand, above)

    @rule(call=calls, over=st.sampled_from([1, 1, 2]))
    def ask_for_an_orphan(self, call: Call, over: int) -> None:
        """What one request after the other comes to seldom enough: a lease ends, and somebody knows the fence."""
        self.ask(replace(call, owner=b"another owner ..."[:16]), 0, None, 0)
        self.model.end_lease(call.digest)
        self.store.end_lease(call.digest)
        self.ask(call, over, None, 0)

    def ask(self, call: Call, over: int, demand: Any, above: int) -> None:
        taken, replaced = self.fences[call.digest].pick(over), self.fences[call.digest].pick(above)
        if self.owners.get(call.digest) == call.owner:
            taken = (
                None  # PostgreSQL lets an owner take over itself, by its own fence; no caller asks for that
            )

        def request(ledger: Any, side: int) -> Any:
            wanted = demand
            if demand == "above":
                wanted = Above(replaced[side]) if replaced else None
            return ledger.claim(replace(call, demand=wanted), taken[side] if taken else None)

        before = self.model.ask(self.model.ledger.lookup(call.digest))
        answer = self.both(call.digest, request)
        if seen(answer)[0][0] == "claimed":
            if before is not None and before.state == "orphan" and seen(answer)[1] != before.fence:
                self.met.add("took over")
            self.owners[call.digest] = call.owner
            self.ended.discard(call.digest)
            self.payloads.pop((call.digest, call.owner), None)
        self.look(call.digest)

    @rule(call=calls, payload=st.sampled_from(PAYLOADS))
    def complete(self, call: Call, payload: Payload) -> None:
        if call.digest in self.ended:
            return  # see `retention_ends`
        # An owner completes once, or repeats itself. With another result ledgers differ: SQL takes it, others do not.
        payload = self.payloads.setdefault((call.digest, call.owner), payload)
        if not self.both(call.digest, lambda ledger, _: ledger.complete(call, payload)):
            self.payloads.pop((call.digest, call.owner), None)
        self.look(call.digest)

    @rule(call=calls, demand=st.sampled_from([None, None, Issued("replay")]))
    def release(self, call: Call, demand: Any) -> None:
        if call.digest in self.ended:
            return  # see `retention_ends`
        mine = replace(call, demand=demand)
        self.both(call.digest, lambda ledger, _: ledger.release(mine))
        self.look(call.digest)

    @rule(call=calls, lease=st.sampled_from([0.0, LONG, LONGER]))
    def renew(self, call: Call, lease: float) -> None:
        if call.digest in self.ended:
            return  # see `retention_ends`
        self.both(call.digest, lambda ledger, _: ledger.renew(call, lease))
        self.look(call.digest)

    @rule(key=st.sampled_from(KEYS))
    def forget(self, key: str) -> None:
        digest = self.digests[key]
        self.both(digest, lambda ledger, _: ledger.forget(digest))
        self.look(digest)

    @rule(call=calls)
    def issue(self, call: Call) -> None:
        token = replace(call, fingerprint=b"")  # as `OneTimeToken.issue` makes them
        if self.both(call.digest, lambda ledger, _: ledger.issue(token)):
            self.ended.discard(call.digest)
        self.look(call.digest)

    @rule(key=st.sampled_from(KEYS))
    def revoke(self, key: str) -> None:
        digest = self.digests[key]
        self.both(digest, lambda ledger, _: ledger.revoke(digest))
        self.look(digest)

    @rule(call=calls, payload=st.sampled_from(PAYLOADS), fence=st.sampled_from([1, 1, 2]))
    def fill(self, call: Call, payload: Payload, fence: int) -> None:
        pair = self.fences[call.digest].pick(fence)
        if pair is None:
            return

        def request(ledger: Any, side: int) -> Any:
            return ledger.fill(call, Done(MISSING, None, payload, True, 1, pair[side], LONG, True))

        self.both(call.digest, request)
        record = self.model.ask(self.model.ledger.lookup(call.digest))
        if record is not None and record.payload is not None:
            self.ended.discard(call.digest)
            self.payloads[call.digest, call.owner] = record.payload
        self.look(call.digest)

    @rule(key=st.sampled_from(KEYS))
    def lease_ends(self, key: str) -> None:
        self.model.end_lease(self.digests[key])
        self.store.end_lease(self.digests[key])
        self.look(self.digests[key])

    @rule(key=st.sampled_from(KEYS))
    def clock_is_set_back(self, key: str) -> None:
        self.model.set_clock_back(self.digests[key])
        self.store.set_clock_back(self.digests[key])
        self.look(self.digests[key])

    @rule(key=st.sampled_from(KEYS))
    def retention_ends(self, key: str) -> None:
        """From here on an owner's own requests are not compared until the key is had anew.

        `Memory` and Redis have no record any more; SQL ledgers have the row until it is purged or taken, and let its
        last owner go on with it.
        """
        digest = self.digests[key]
        self.model.end_retention(digest)
        self.store.end_retention(digest)
        self.ended.add(digest)
        self.look(digest)


EVERY_ANSWER = {
    "claimed",
    "completed",
    "in progress",
    "orphan",
    "not issued",
    "record",
    "took over",
    True,
    False,
}


def check(store: Store, number: int) -> None:
    met: set[object] = set()

    class Here(SameAnswers):
        def __init__(self) -> None:
            super().__init__(store, met)

    try:
        run_state_machine_as_test(Here, settings=settings(examples(number), stateful_step_count=30))
    finally:
        store.close()
    assert met >= EVERY_ANSWER  # the requests did come to something


def in_sql(url: str, colour: Colour = "sync") -> Store:
    strategy = UniqueInsert(url)
    return InSQL(url, strategy, ledger_of(strategy, colour), colour)  # type: ignore[arg-type]


def in_redis(url: str, colour: Colour = "sync") -> Store:
    strategy = RedisCache(url)
    return InRedis(url, strategy, ledger_of(strategy, colour), colour)  # type: ignore[arg-type]


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    server: Server = request.getfixturevalue(request.param)
    made = fresh_database(server)
    if not made.startswith("redis"):
        schema(made)
    return made


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_sqlite_file_answers_as_memory_does(tmp_path: Path, colour: Colour) -> None:
    made = f"sqlite:///{tmp_path}/idempo.db"
    schema(made)
    check(in_sql(made, colour), 50 if colour == "sync" else 20)


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize("url", ["postgres", "mariadb", "mysql"], indirect=True)
def test_a_database_answers_as_memory_does(url: str, colour: Colour) -> None:
    check(in_sql(url, colour), 25)


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize("url", ["redis_server", "redis62", "valkey"], indirect=True)
def test_redis_answers_as_memory_does(url: str, colour: Colour) -> None:
    check(in_redis(url, colour), 60)
