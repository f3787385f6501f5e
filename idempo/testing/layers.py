"""Layers with a tap between them and their ledgers, where the record joins a transaction too.

What a database does by itself when a connection is gone, to undo its transaction, is done here in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, TypeVar, cast

from idempo.contracts import JoinedLedger, Layer, Unit
from idempo.records import Answer, Call, Completed, NotIssued, Payload
from idempo.steps import Steps
from idempo.testing.tapping import Crashed, LostError, Tap, Tapped

T = TypeVar("T")

__all__ = ["tapped"]


def tapped(layer: Layer, tap: Tap) -> Layer | None:
    """The same layer, with a tap between it and its ledger. None where it has no ledger."""
    inside = getattr(layer, "layer", None)
    if inside is not None and (found := tapped(inside, tap)) is not None:
        return cast(Layer, replace(cast(Any, layer), layer=found))
    ledger = getattr(layer, "ledger", None)
    if ledger is None or not is_dataclass(cast(Any, layer)):
        return None
    watched: Any = TappedJoined(ledger, tap, layer.injects) if layer.part.joined else Tapped(ledger, tap)
    return cast(Layer, replace(cast(Any, layer), ledger=watched))


@dataclass(frozen=True, eq=False)
class TappedJoined:
    """A ledger in the business transaction."""

    ledger: JoinedLedger
    tap: Tap
    injects: frozenset[str]

    def open(self, call: Call) -> Steps[Unit | Completed | NotIssued]:
        opened: list[Unit | Completed | NotIssued] = []
        try:
            yield from self.tap.request("open", call, _kept(self.ledger.open(call), opened))
        except (Crashed, LostError) as gone:
            for one in opened:
                if not isinstance(one, Completed | NotIssued):
                    yield from _drop(one, self.injects)
            if isinstance(gone, Crashed):
                yield from _undo(call.arguments, self.injects)
            raise
        [answer] = opened
        if isinstance(answer, Completed | NotIssued):
            return answer
        return TappedUnit(answer, self.tap, call, self.injects)

    def recall(self, call: Call) -> Steps[Completed | None]:
        return (yield from self.tap.request("recall", call, self.ledger.recall(call)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ledger, name)


@dataclass(eq=False)
class TappedUnit:
    """One transaction. Its connection is gone with the caller, and with a message that is lost."""

    unit: Unit
    tap: Tap
    call: Call
    injects: frozenset[str]
    gone: bool = False

    @property
    def owned(self) -> bool:
        return self.unit.owned

    @property
    def arguments(self) -> Mapping[str, Any]:
        return self.unit.arguments

    def _request(self, name: str, steps: Steps[T]) -> Steps[T]:
        try:
            return (yield from self.tap.request(name, self.call, steps))
        except (Crashed, LostError):
            self.gone = True
            raise

    def enter(self) -> Steps[None]:
        if not self.owned:  # nothing is sent in a transaction that was just begun
            yield from self._request("enter", self.unit.enter())

    def claim(self, call: Call, over: int | None, wait: float) -> Steps[Answer]:
        return (yield from self._request("claim", self.unit.claim(call, over, wait)))

    def complete(self, call: Call, payload: Payload) -> Steps[bool]:
        return (yield from self._request("complete", self.unit.complete(call, payload)))

    def undo_writes(self) -> Steps[bool]:
        return (yield from self._request("undo", self.unit.undo_writes()))

    def abandon(self, call: Call) -> Steps[None]:
        return (yield from self._request("abandon", self.unit.abandon(call)))

    def close(self) -> Steps[None]:
        """The end of the transaction, which the database brings about by itself if the caller does not."""
        if not (self.gone or self.tap.is_dead(self.call)):
            try:
                yield from self._request("close", self.unit.close())
            except LostError:
                pass  # nobody waits for that answer
            except Crashed:
                yield from _drop(self.unit, self.injects)
                raise
            else:
                return
        yield from _drop(self.unit, self.injects)

    def again(self, error: BaseException) -> bool:
        return not isinstance(error, LostError) and self.unit.again(error)

    def ambiguous(self, error: BaseException) -> bool:
        return self.owned if isinstance(error, LostError) else self.unit.ambiguous(error)


def _nothing() -> Steps[None]:
    yield from ()


def _kept(steps: Steps[T], answers: list[T]) -> Steps[None]:
    """Take the steps, and keep their answer for whoever does not live to see it."""
    answers.append((yield from steps))


def _drop(unit: Unit, injects: frozenset[str]) -> Steps[None]:
    """What the database does when the connection of a transaction is gone: it undoes it, the caller's writes too."""
    yield from unit.close()
    if not unit.owned:
        yield from _undo(unit.arguments, injects)


def _undo(arguments: Mapping[str, Any], injects: frozenset[str]) -> Steps[None]:
    """Undo the transaction of the caller's own."""
    for name in injects:
        undo = getattr(arguments.get(name), "rollback", None)
        if undo is not None:
            yield undo()
