"""All schedules of callers whose record joins the business transaction, on a database of three dictionaries."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from idempo import LedgerUnavailableError, OutcomeUnknownError, idempotent
from idempo.contracts import Inner, Site, Terms
from idempo.guarantees import Part
from idempo.joining import joined
from idempo.records import Answer, Call, Claimed, Completed, Done, Payload, Record
from idempo.steps import Steps
from idempo.testing import Blocked, Caller, Failed, Fault, Step, World, explore

FAULTS: tuple[Fault, ...] = ("lost request", "lost reply", "crash", "deadlock")


class Deadlock(Exception):
    """The database undoes this transaction for the sake of another."""


@dataclass(eq=False)
class Database:
    """What is committed, and which transaction holds which key."""

    world: World
    committed: dict[bytes, Completed] = field(default_factory=dict)
    holders: dict[bytes, "Unit"] = field(default_factory=dict)

    def undo(self, unit: "Unit") -> None:
        unit.writes.clear()
        for digest in [digest for digest, holder in self.holders.items() if holder is unit]:
            del self.holders[digest]
            self.world.changes += 1

    def crash(self, caller: int) -> None:
        for unit in [unit for unit in self.holders.values() if unit.caller == caller]:
            self.undo(unit)


@dataclass(eq=False)
class Unit:
    """One transaction."""

    database: Database
    caller: int
    given: Mapping[str, Any]
    writes: list[tuple[int, int]] = field(default_factory=list)
    owned: bool = True
    committing: bool = False

    @property
    def arguments(self) -> Mapping[str, Any]:
        return {**self.given, "session": self}

    def enter(self) -> Steps[None]:
        yield from ()

    def claim(self, call: Call, over: int | None, wait: float) -> Steps[Answer]:
        fault = yield Step("claim")
        self._before(fault)
        while self.database.holders.get(call.digest, self) is not self:
            yield Blocked()
        known = self.database.committed.get(call.digest)
        if known is not None:
            self._after(fault)
            return known
        self.database.holders[call.digest] = self
        self._after(fault)
        return Claimed(fence=1, attempt=1)

    def complete(self, call: Call, payload: Payload) -> Steps[bool]:
        fault = yield Step("complete and commit")
        self.committing = True
        self._before(fault)
        assert self.database.holders[call.digest] is self
        self.database.committed[call.digest] = Completed(payload, b"", 1, 1, 99.0, call.owner)
        self.database.world.effects.extend(self.writes)
        self.database.undo(self)
        self._after(fault)
        return True

    def _before(self, fault: Fault) -> None:
        if fault == "deadlock":
            self.database.undo(self)
            raise Deadlock
        if fault == "lost request":
            self.database.undo(self)
            raise ConnectionError("the request was lost, and the connection with it")

    def _after(self, fault: Fault) -> None:
        if fault == "lost reply":
            self.database.undo(self)
            raise ConnectionError("the reply was lost, and the connection with it")

    def undo_writes(self) -> Steps[bool]:
        yield from ()
        return True

    def close(self) -> Steps[None]:
        self.database.undo(self)
        yield from ()

    def again(self, error: BaseException) -> bool:
        return isinstance(error, Deadlock)

    def ambiguous(self, error: BaseException) -> bool:
        return self.committing and isinstance(error, ConnectionError)


@dataclass
class Joining:
    """The strategy: its ledger, and its layer."""

    database: Database
    injects: frozenset[str] = frozenset({"session"})
    part: Part = field(default_factory=lambda: Part("Joining", "record", joined=True))
    terms: Terms | None = None
    reads_are_steps: bool = True

    def bind(self, site: Site) -> "Joining":
        self.terms = site.terms
        return self

    def around(self, call: Call, inner: Inner) -> Steps[Done]:
        assert self.terms is not None
        return (yield from joined(self, call, self.terms, inner))

    def open(self, call: Call) -> Steps[Any]:
        if self.reads_are_steps:
            known = yield from self.recall(call)
        else:
            known = self.database.committed.get(call.digest)
        return known or Unit(self.database, call.arguments["number"], call.arguments)

    def recall(self, call: Call) -> Steps[Completed | None]:
        fault = yield Step("recall")
        if fault:
            raise ConnectionError("the read was lost")
        return self.database.committed.get(call.digest)

    def lookup(self, call: Call) -> Steps[Record | None]:
        yield from ()
        return None

    def forget(self, call: Call) -> Steps[bool]:
        yield from ()
        return False


@dataclass
class Setting:
    callers: int
    first_fails: bool = False
    reads_are_steps: bool = True

    def __call__(self, world: World) -> list[Caller]:
        database = Database(world)
        world.on_crash = database.crash
        runs = itertools.count()

        def body(order: str, number: int, session: Any = None) -> int:
            session.writes.append((number, 1))
            if self.first_fails and next(runs) == 0:
                raise Failed
            return number

        using = Joining(database, reads_are_steps=self.reads_are_steps)
        decorated: Any = idempotent(
            key="{order}", using=using, name="schedules", fingerprint=None, wait=3600
        )(body)
        return [Caller.of(number, decorated, "A-1", number) for number in range(self.callers)]


def check_exactly_once(world: World, callers: list[Caller]) -> None:
    assert len(world.effects) <= 1, f"committed {len(world.effects)} times"
    effects = [number for number, _ in world.effects]
    for caller in callers:
        assert caller.ended
        if caller.ended == "value":
            assert effects == [caller.value.value], "a value, but another effect, or none"
        if isinstance(caller.error, LedgerUnavailableError):
            assert caller.number not in effects, "said not to have run, and yet it is committed"
        if isinstance(caller.error, OutcomeUnknownError):
            assert any(f"{caller.number} lost" in line for line in world.trace), "unknown without a reason"
        if caller.error is not None:
            assert isinstance(caller.error, LedgerUnavailableError | OutcomeUnknownError | Failed)


def check_all_get_it(world: World, callers: list[Caller]) -> None:
    check_exactly_once(world, callers)
    assert len(world.effects) == 1
    assert all(caller.ended == "value" for caller in callers)


@pytest.mark.parametrize("callers", [1, 2, 3])
def test_without_faults_it_commits_once_and_all_get_the_first_result(callers: int) -> None:
    assert explore(Setting(callers), check_all_get_it, faults=0) >= callers


def test_if_the_first_run_fails_another_commits_and_nothing_of_the_first_stays() -> None:
    def check(world: World, callers: list[Caller]) -> None:
        check_exactly_once(world, callers)
        assert len(world.effects) == 1
        assert [type(caller.error) for caller in callers if caller.error] == [Failed]

    assert explore(Setting(3, first_fails=True), check, faults=0) > 10


def test_deadlocks_alone_are_never_seen_by_anybody() -> None:
    assert explore(Setting(2), check_all_get_it, faults=2, kinds=("deadlock",)) > 50


def test_two_callers_commit_at_most_once_through_any_two_faults() -> None:
    assert explore(Setting(2), check_exactly_once, faults=2, kinds=FAULTS) > 5_000


def test_three_callers_commit_at_most_once_through_any_fault() -> None:
    assert explore(Setting(3, reads_are_steps=False), check_exactly_once, faults=1, kinds=FAULTS) > 1_000


def test_a_unit_that_commits_before_its_record_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong twin: the business writes are committed, then the record, in two steps."""

    def complete(self: Unit, call: Call, payload: Payload) -> Steps[bool]:
        self.database.world.effects.extend(self.writes)
        self.writes.clear()
        return (yield from right(self, call, payload))

    right = Unit.complete
    monkeypatch.setattr(Unit, "complete", complete)
    with pytest.raises(AssertionError):
        explore(Setting(2), check_exactly_once, faults=1, kinds=FAULTS)
