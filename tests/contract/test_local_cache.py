"""The promises, kept by `LocalCache` in front of a record; and its own: bounded, and never longer than the record."""

import functools
import os
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from idempo import (
    CompositionError,
    ConfigurationError,
    Event,
    FingerprintMismatchError,
    Memory,
    ResultUnavailableError,
    UniqueInsert,
    idempotent,
)
from idempo.assembly import operation_of
from idempo.contracts import Inner, Layer, Site
from idempo.guarantees import Part
from idempo.records import Call, Done, Payload, Record
from idempo.steps import Steps, arun, run
from idempo.strategies import local_cache
from idempo.strategies.local_cache import LocalCache
from idempo.testing import Effects, Gate, PromiseContract, driven
from tests.traps.support import output


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Between:
    """Stands between the cache and the record: notes who asked the record, and may hold the answer back."""

    part = Part("Between", "tier")
    injects: frozenset[str] = frozenset()

    def __init__(self, after: Callable[[], Any] = lambda: None) -> None:
        self.asked: list[str] = []
        self.after = after

    def bind(self, site: Site) -> Layer:
        return self

    def around(self, call: Call, inner: Inner) -> Steps[Done]:
        self.asked.append(call.key)
        done = yield from inner(call)
        yield self.after()
        return done

    def lookup(self, call: Call) -> Steps[Record | None]:
        yield from ()
        return None

    def forget(self, call: Call) -> Steps[bool]:
        yield from ()
        return False

    def of(self, call: Callable[[], Any]) -> list[str]:
        """Call, and return the keys for which the record was asked meanwhile."""
        before = len(self.asked)
        call()
        return self.asked[before:]


class Text:
    """A codec whose bytes can be counted."""

    def encode(self, value: Any) -> bytes:
        return str(value).encode()

    def decode(self, data: bytes) -> str:
        return data.decode()


class Number:
    """A codec of results of many sizes."""

    def encode(self, value: Any) -> bytes:
        return str(value).encode().rjust(value % 20)

    def decode(self, data: bytes) -> int:
        return int(data)


def decorated(body: Callable[..., Any], *using: Any, **options: Any) -> Any:
    def f(order: str, amount: int = 1) -> Any:
        return body(order)

    terms: Any = {"key": "{order}", "name": f"local.{uuid.uuid4()}", "lease": 10, "keep": 3600} | options
    return idempotent(using=list(using), **terms)(f)


def entries_of(cache: LocalCache) -> Any:
    return cache._entries


def assert_counted(cache: LocalCache) -> None:
    """The bytes that are counted are those that are there."""
    entries = entries_of(cache)
    assert entries._bytes == sum(len(entry.payload.data) for entry in entries._by_digest.values())


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/shop.db"


# ------------------------------------------------------------------------------------ the promises


class TestLocalCache(PromiseContract):
    def make(self) -> Any:
        return [LocalCache(), Memory()]

    @driven
    def test_what_was_asked_before_a_forget_is_not_kept_after_it(self) -> Steps[None]:
        """The record is asked and answers; it is forgotten; then the answer arrives at the cache."""
        effects, record, name = Effects(), Memory(), f"contract.{uuid.uuid4()}"
        inside, gate = Gate(self.colour), Gate(self.colour)

        def hold() -> Any:
            inside.open()
            return gate.wait()

        def body(order: str, amount: int) -> int:
            return effects.add(order)

        yield self.decorate(body, using=record, name=name)("A-1")
        between = Between(hold)
        f = self.decorate(body, using=[LocalCache(), between, record], name=name)

        def forgetting() -> Steps[bool]:
            yield inside.wait()
            forgotten: bool = yield f.forget("A-1")
            gate.open()
            return forgotten

        def second() -> Any:
            return run(forgetting()) if self.colour == "sync" else arun(forgetting())

        assert (yield from self.together([lambda: f("A-1"), second])) == [1, True]
        assert (yield f("A-1")) == 2

    @driven
    def test_a_forget_of_the_past_does_not_keep_later_answers_out(self) -> Steps[None]:
        effects, between = Effects(), Between()
        f = self.decorate(lambda order, amount: effects.add(order), using=[LocalCache(), between, Memory()])
        yield f("A-1")
        yield f.forget("A-1")
        assert [(yield f("A-1")), (yield f("A-1"))] == [2, 2]
        assert len(between.asked) == 2


class TestLocalCacheAsync(TestLocalCache):
    colour = "async"


class TestInFrontOfADatabase(PromiseContract):
    opened: UniqueInsert | None = None

    @pytest.fixture(autouse=True)
    def file(self, url: str) -> None:
        self.url = url

    def make(self) -> Any:
        if self.opened is None:
            self.opened = UniqueInsert(self.url, join="session" if self.joined else None)
        return [LocalCache(), self.opened]

    def closing(self) -> Steps[None]:
        if self.opened is not None:
            yield self.opened.close()


class TestInFrontOfADatabaseAsync(TestInFrontOfADatabase):
    colour = "async"


class TestInFrontOfAJoinedRecord(TestInFrontOfADatabase):
    joined = True


class TestInFrontOfAJoinedRecordAsync(TestInFrontOfAJoinedRecord):
    colour = "async"


# ------------------------------------------------------------------------------------ what is replayed


def test_a_repeat_is_answered_without_asking_the_record() -> None:
    effects, between, events = Effects(), Between(), list[Event]()
    f = decorated(effects.add, LocalCache(), between, Memory(), hooks=[events.append])
    assert f("A-1") == 1
    outcome = f.outcome("A-1")
    assert (outcome.value, outcome.replayed, outcome.attempt) == (1, True, 1)
    assert between.asked == ["A-1"]
    assert [event.kind for event in events] == ["claimed", "completed", "replayed"]


def test_a_replay_of_the_record_is_kept_too(url: str) -> None:
    effects, between, record, name = Effects(), Between(), UniqueInsert(url), "local.replayed"
    decorated(effects.add, record, name=name)("A-1")
    f = decorated(effects.add, LocalCache(), between, record, name=name)
    assert between.of(lambda: f("A-1")) == ["A-1"]
    assert between.of(lambda: f("A-1")) == []
    assert len(effects) == 1
    record.close()


def test_an_exception_that_is_a_result_is_raised_again_from_here() -> None:
    between = Between()

    def body(order: str) -> None:
        raise LookupError("no such account", order)

    f = decorated(body, LocalCache(), between, Memory(), replay_errors=[LookupError])
    raised = []
    for _ in range(3):
        with pytest.raises(LookupError) as caught:
            f("A-1")
        raised.append(caught.value)
    assert {error.args for error in raised} == {("no such account", "A-1")}
    assert len({id(error) for error in raised}) == 3
    assert between.asked == ["A-1"]


def test_each_replay_is_an_object_of_its_own() -> None:
    between = Between()
    f = decorated(lambda order: {"items": [1]}, LocalCache(), between, Memory())
    for _ in range(3):
        result = f("A-1")
        assert result == {"items": [1]}
        result["items"].append(2)
    assert between.asked == ["A-1"]


def test_other_arguments_are_refused_by_name_and_change_nothing() -> None:
    effects, between = Effects(), Between()
    f = decorated(effects.add, LocalCache(), between, Memory())
    f("A-1", 1)
    with pytest.raises(FingerprintMismatchError) as refused:
        f("A-1", 2)
    assert refused.value.differing == ("amount",)
    assert refused.value.ran is False
    assert between.of(lambda: f("A-1", 1)) == []
    assert len(effects) == 1


def test_the_record_decides_about_arguments_that_it_does_not_know(url: str) -> None:
    """It was made by an older version of the function, without the parameter `note`."""
    record, cache = UniqueInsert(url), LocalCache()
    decorated(lambda order: "first", record, name="local.versions")("A-1")

    def newer(order: str, amount: int = 1, note: str = "") -> str:
        return "never"

    alone: Any = [record]
    for using in (alone, [cache, *alone]):
        f: Any = idempotent(key="{order}", using=using, name="local.versions")(newer)
        assert [f("A-1", note="x"), f("A-1", note="y")] == ["first", "first"]
    assert_counted(cache)
    record.close()


def test_the_record_decides_where_a_caller_of_the_same_name_checks_no_arguments() -> None:
    cache, record, name = LocalCache(), Memory(), "local.unchecked"
    loose = decorated(lambda order: 1, cache, record, name=name, fingerprint=None)
    strict = decorated(lambda order: 1, cache, record, name=name)
    strict("A-1", 1)
    assert loose("A-1", 2) == 1
    with pytest.raises(FingerprintMismatchError):
        strict("A-1", 2)


# ------------------------------------------------------------------------------------ what is kept


def test_no_more_entries_than_size_and_the_least_recently_used_goes_first() -> None:
    between = Between()
    f = decorated(str.lower, LocalCache(size=2), between, Memory())
    assert between.of(lambda: (f("A"), f("B"))) == ["A", "B"]
    assert between.of(lambda: f("A")) == []  # used again: now B is the older one
    f("C")
    assert between.of(lambda: (f("A"), f("C"))) == []
    assert between.of(lambda: f("B")) == ["B"]


def test_no_more_bytes_than_max_bytes_and_the_least_recently_used_goes_first() -> None:
    cache, between = LocalCache(max_bytes=10), Between()
    f = decorated(lambda order: order[0] * int(order[1:]), cache, between, Memory(), codec=Text())
    assert between.of(lambda: (f("a5"), f("b5"))) == ["a5", "b5"]
    assert between.of(lambda: (f("a5"), f("b5"))) == []
    f("c1")
    assert between.of(lambda: (f("b5"), f("c1"))) == []
    assert between.of(lambda: f("a5")) == ["a5"]
    f("d10")
    assert between.of(lambda: f("d10")) == []
    assert between.of(lambda: (f("a5"), f("b5"), f("c1"))) == ["a5", "b5", "c1"]
    assert_counted(cache)


def test_a_result_larger_than_all_bytes_is_not_kept_and_pushes_nothing_out() -> None:
    cache, between = LocalCache(max_bytes=10), Between()
    f = decorated(lambda order: order[0] * int(order[1:]), cache, between, Memory(), codec=Text())
    assert between.of(lambda: (f("a5"), f("b11"))) == ["a5", "b11"]
    assert between.of(lambda: (f("a5"), f("b11"))) == ["b11"]
    assert_counted(cache)


def test_a_result_that_could_not_be_stored_is_not_kept() -> None:
    cache, between = LocalCache(), Between()
    f = decorated(lambda order: object(), cache, between, Memory())
    f("A-1")
    for _ in range(2):
        with pytest.raises(ResultUnavailableError):
            f("A-1")
    assert len(between.asked) == 3
    assert not entries_of(cache)._by_digest


def test_the_functions_own_failure_is_not_kept() -> None:
    effects = Effects()

    def body(order: str) -> int:
        if effects.add(order) == 1:
            raise ValueError("declined")
        return len(effects)

    f = decorated(body, LocalCache(), Memory())
    with pytest.raises(ValueError, match="declined"):
        f("A-1")
    assert [f("A-1"), f("A-1")] == [2, 2]


@pytest.fixture
def shop(url: str) -> Iterator[Any]:
    engine = create_engine(url)
    yield engine
    engine.dispose()


def test_nothing_is_kept_of_a_transaction_that_could_still_roll_back(shop: Any) -> None:
    effects, cache = Effects(), LocalCache()

    @idempotent(key="{order}", using=[cache, UniqueInsert(join="session")], name="local.joined")
    def f(order: str, session: Session) -> int:
        return effects.add(order)

    with Session(shop) as session:
        assert [f("A-1", session), f("A-1", session)] == [1, 1]
        session.rollback()
    with Session(shop) as session, session.begin():
        assert f("A-1", session) == 2
    assert not entries_of(cache)._by_digest
    with Session(shop) as session:
        assert f("A-1", session) == 2  # committed: now it may be kept
    assert len(entries_of(cache)._by_digest) == 1


def test_the_callers_objects_are_not_held() -> None:
    class Order:
        id = "A-1"

    def f(order: Order) -> int:
        return 1

    cache = LocalCache()
    decorate: Any = idempotent(key="{order.id}", using=[cache, Memory()], fingerprint=None, name="local.held")
    called = decorate(f)
    order = Order()
    called(order)
    assert len(entries_of(cache)._by_digest) == 1
    seen = weakref.ref(order)
    del order
    assert seen() is None


# ------------------------------------------------------------------------------------ for how long


def test_an_entry_is_used_for_fresh_seconds_at_most() -> None:
    """So a forget in another process, which reaches the record only, is seen after that long at the latest."""
    clock, effects, between, record, name = Clock(), Effects(), Between(), Memory(), "local.fresh"
    elsewhere = decorated(effects.add, record, name=name)
    for fresh in (60, 60.0, timedelta(minutes=1)):
        f = decorated(effects.add, LocalCache(fresh=fresh, clock=clock), between, record, name=name)
        first = f("A-1")
        assert elsewhere.forget("A-1")
        clock.now += 59.9
        assert between.of(lambda: f("A-1")) == []  # noqa: B023
        clock.now += 0.1
        assert f("A-1") == first + 1


def test_the_time_counts_from_before_the_record_was_asked() -> None:
    clock = Clock()

    def answer_late() -> None:
        clock.now += 20

    between = Between(answer_late)
    f = decorated(str.lower, LocalCache(fresh=60, clock=clock), between, Memory())
    f("A-1")
    clock.now += 39.9
    assert between.of(lambda: f("A-1")) == []
    clock.now += 0.1
    assert between.of(lambda: f("A-1")) == ["A-1"]


def test_an_answer_that_took_longer_than_its_time_is_not_kept() -> None:
    clock = Clock()
    cache, between = LocalCache(fresh=60, clock=clock), Between()

    def body(order: str) -> int:
        clock.now += 60
        return 1

    f = decorated(body, cache, between, Memory())
    f("A-1")
    assert not entries_of(cache)._by_digest
    assert between.of(lambda: f("A-1")) == ["A-1"]
    assert between.of(lambda: f("A-1")) == []


def test_an_entry_never_outlives_the_record_behind_it() -> None:
    clock, effects = Clock(), Effects()
    cache, between, record = LocalCache(clock=clock), Between(), Memory(clock=clock)
    f = decorated(effects.add, cache, between, record, keep=50)
    assert f("A-1") == 1
    clock.now += 49.9
    assert between.of(lambda: f("A-1")) == []
    clock.now += 0.1
    assert f("A-1") == 2


def test_an_entry_from_a_replay_never_outlives_the_record_behind_it() -> None:
    clock, effects, between = Clock(), Effects(), Between()
    record = Memory(clock=clock)
    options: dict[str, Any] = {"keep": 50, "name": "local.outlives"}
    decorated(effects.add, record, **options)("A-1")
    clock.now += 40
    f = decorated(effects.add, LocalCache(clock=clock), between, record, **options)
    assert f("A-1") == 1
    clock.now += 9.9
    assert between.of(lambda: f("A-1")) == []
    clock.now += 0.1
    assert f("A-1") == 2


def test_two_of_them_are_no_fresher_than_one() -> None:
    clock, between = Clock(), Between()
    outer, inner = LocalCache(fresh=60, clock=clock), LocalCache(fresh=60, clock=clock)
    record, name = Memory(), "local.two"
    decorated(str.lower, inner, between, record, name=name)("A-1")
    clock.now += 50
    f = decorated(str.lower, outer, inner, between, record, name=name)
    assert between.of(lambda: f("A-1")) == []  # kept outside now, too
    clock.now += 10
    assert between.of(lambda: f("A-1")) == ["A-1"]


ACTS = st.sampled_from(["call A", "call B", "call C", "forget A", "forget B", "wait 7", "wait 31"])


@given(st.lists(ACTS, max_size=40))
def test_whatever_happens_the_answers_are_those_of_the_record_alone(acts: list[str]) -> None:
    clock = Clock()
    cache = LocalCache(size=2, fresh=60, clock=clock)
    numbers = Effects(), Effects()
    alone = decorated(numbers[0].add, Memory(clock=clock), keep=20)
    tiered = decorated(numbers[1].add, cache, Memory(clock=clock), keep=20)
    for act, what in (text.split() for text in acts):
        match act:
            case "wait":
                clock.now += int(what)
            case "forget":
                assert alone.forget(what) == tiered.forget(what)
            case _:
                assert alone.outcome(what) == tiered.outcome(what)
        assert len(entries_of(cache)._by_digest) <= 2
        assert_counted(cache)


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="no such clock on this system")
def test_the_clock_counts_a_suspended_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= local_cache.seconds() <= time.clock_gettime(time.CLOCK_BOOTTIME)
    suspended = {time.CLOCK_BOOTTIME: 10_000.0}  # this clock has gone on, others have not
    monkeypatch.setattr(time, "clock_gettime", suspended.get)
    assert local_cache.seconds() == 10_000.0


# ------------------------------------------------------------------------------------ forget


def test_forget_says_whether_there_was_an_entry() -> None:
    clock = Clock()
    f = decorated(str.lower, LocalCache(fresh=60, clock=clock), Memory())
    operation = operation_of(f)
    layer, call = operation.layers[0], operation.call(("A-1",), {})
    assert run(layer.forget(call)) is False
    f("A-1")
    assert run(layer.forget(call)) is True
    assert run(layer.forget(call)) is False
    f("A-1")
    clock.now += 60
    assert run(layer.forget(call)) is False


def test_what_is_kept_is_no_record() -> None:
    f = decorated(str.lower, LocalCache(), Memory())
    f("A-1")
    operation = operation_of(f)
    assert run(operation.layers[0].lookup(operation.call(("A-1",), {}))) is None
    assert f.lookup("A-1").value == "a-1"


# ------------------------------------------------------------------------------------ threads and forks


@pytest.fixture
def hasty_switches() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def in_threads(*works: Callable[[], Any]) -> None:
    """Do these at once; nothing may be raised."""
    failures: list[BaseException] = []

    def work(one: Callable[[], Any]) -> None:
        try:
            one()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(one,)) for one in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.usefixtures("hasty_switches")
def test_threads_that_call_and_forget_at_once_never_see_what_they_forgot() -> None:
    effects, cache = Effects(), LocalCache(size=3, max_bytes=40)
    shared = [f"K-{index}" for index in range(5)]
    f = decorated(effects.add, cache, Memory(), wait=60, codec=Number())

    def work(index: int) -> None:
        mine = f"mine-{index}"
        for turn in range(50):
            f(shared[(index + turn) % len(shared)])
            before = f(mine)
            assert f(mine) == before
            assert f.forget(mine)
            assert before < f(mine)

    in_threads(*(functools.partial(work, index) for index in range(8)))
    assert all(effects.of(key) == 1 for key in shared)
    assert len(entries_of(cache)._by_digest) <= 3
    assert_counted(cache)


@pytest.mark.usefixtures("hasty_switches")
def test_threads_that_keep_and_forget_the_same_keys_at_once_leave_no_disorder() -> None:
    cache, clock = LocalCache(size=2), Clock()
    entries = entries_of(cache)

    def work(index: int) -> None:
        for turn in range(1000):
            digest = bytes([(index + turn) % 4]) * 32
            payload = Payload("completed", b"x" * ((7 * index + turn) % 20))
            made = local_cache._Entry(payload, len(payload.data or b""), b"", 1, 1, clock.now + turn % 3)
            entries.keep(digest, made, entries.forgets(digest))
            entries.find(digest, clock.now)
            if turn % 5 == 0:
                entries.forget(digest, clock.now)

    in_threads(*(functools.partial(work, index) for index in range(8)))
    assert len(entries._by_digest) <= 2
    assert_counted(cache)


_FORK = """
import os, signal, sys, threading
from idempo import Memory, idempotent
from idempo.strategies.local_cache import LocalCache

cache = LocalCache(size=2)
f = idempotent(key="{order_no}", using=[cache, Memory()], name="fork")(lambda order_no: order_no.lower())
f("A"), f("B")
held, done = threading.Event(), threading.Event()

def hold():
    entries = cache._entries
    with entries._one_at_a_time:
        entries._bytes += 1_000_000  # half way through a change
        held.set()
        done.wait()
        entries._bytes -= 1_000_000

thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = os.fork()
if child == 0:
    signal.alarm(20)  # the end of a child that waits for a thread which is not there
    try:
        for order_no in "AABBCCAA":
            assert f(order_no) == order_no.lower()
        assert f.forget("A")
        entries = cache._entries
        assert len(entries._by_digest) <= 2
        assert entries._bytes == sum(len(entry.payload.data) for entry in entries._by_digest.values())
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
done.set()
thread.join()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert [f("A"), f("B"), f("C")] == ["a", "b", "c"]
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_forked_while_a_thread_holds_the_lock_goes_on() -> None:
    output(_FORK)


# ------------------------------------------------------------------------------------ where it may stand


def test_it_stands_only_in_front_of_a_record() -> None:
    def f(order: str) -> None: ...

    for using in (LocalCache(), [Memory(), LocalCache()]):
        with pytest.raises(CompositionError, match="only stands in front of a ledger that keeps the record"):
            idempotent(key="{order}", using=using)(f)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"size": 0}, "size=0 is not a whole number"),
        ({"size": True}, "size=True is not"),
        ({"size": 10.0}, "size=10.0 is not"),
        ({"max_bytes": 0}, "max_bytes=0 is not a whole number"),
        ({"max_bytes": None}, "max_bytes=None is not"),
        ({"fresh": 0}, "fresh=0 is not between"),
        ({"fresh": -1.0}, "fresh=-1.0 is not between"),
        ({"fresh": float("nan")}, "fresh=nan is not between"),
        ({"fresh": float("inf")}, "fresh=inf is not between"),
        ({"fresh": timedelta(0)}, "is not between"),
        ({"fresh": "60"}, "fresh= takes seconds or a timedelta, not '60'"),
        ({"fresh": True}, "fresh= takes seconds or a timedelta, not True"),
    ],
)
def test_bad_values_are_refused_with_the_reason(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        LocalCache(**options)


def test_explain_tells_what_it_does_and_how_late_it_sees_a_forget() -> None:
    explained = decorated(str.lower, LocalCache(fresh=5), Memory(), name="local.explained").explain()
    note = "LocalCache sees a forget in another process after at most 5 seconds"
    assert explained.parts[0] == Part("LocalCache", "tier", notes=(note,))
    assert explained.foreign_effects == "at least once"
    assert "  LocalCache: replays in front of the record; losing it costs speed" in str(explained)
    assert f"  - {note}" in str(explained)
