"""An `Operation`: all that is known of one decorated function, and the steps of each thing one can ask of it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, assert_never

from idempo.asking import ask
from idempo.batches import batched, each
from idempo.binding import Binder
from idempo.contracts import Colour, Inner, Layer, Terms
from idempo.errors import ConfigurationError, IdempoError, InProgressError
from idempo.guarantees import Explanation, Orphans, explain
from idempo.keys import BusinessKey, digest
from idempo.layers import Leased
from idempo.records import Call, Done, Outcome, Record, replace
from idempo.running import refuse_reentrance, running
from idempo.steps import Steps
from idempo.verdicts import first_error, first_value, value_of

__all__ = ["CarriedError", "Keying", "Operation", "function_steps"]

Arguments = Mapping[str, Any]
Given: TypeAlias = tuple[Any, ...] | Mapping[str, Any]
"""One call of many: its arguments in their order, or by name."""


class CarriedError(Exception):
    """Carries a StopIteration of the function through our generators, which may not raise it themselves."""

    def __init__(self, error: StopIteration) -> None:
        super().__init__(error)
        self.error = error


@dataclass(frozen=True, slots=True)
class Keying:
    """How a call's identity is had from its arguments."""

    operation: str
    key: Callable[[Arguments], BusinessKey]
    scope: Callable[[Arguments], BusinessKey] | None
    fingerprint: Callable[[Arguments, bytes], bytes] = field(default=lambda arguments, salt: b"")
    shown: Callable[[str], str] = field(default=lambda text: text)
    """What people may see of the key."""

    def call(self, arguments: Arguments, terms: Terms) -> Call:
        """Evaluate key, scope and fingerprint once. Raises `KeyRefusedError` where one has no stable form."""
        key = self.key(arguments)
        scope = None if self.scope is None else self.scope(arguments)
        identity = digest(self.operation, scope, key)
        return Call(
            operation=self.operation,
            scope="" if scope is None else scope.text,
            key=self.shown(key.text),
            digest=identity,
            fingerprint=self.fingerprint(arguments, identity),
            owner=os.urandom(16),
            lease=terms.lease,
            keep=terms.keep,
            arguments=arguments,
        )

    def rekeyed(self, key: Callable[[Arguments], BusinessKey], role: str, call: Call) -> Call:
        """Return the same call under another key, which has another role than the business key."""
        other = key(call.arguments)
        scope = None if self.scope is None else self.scope(call.arguments)
        identity = digest(self.operation, scope, other, role)
        fingerprint = self.fingerprint(call.arguments, identity)
        return replace(call, key=other.text, digest=identity, fingerprint=fingerprint)


@dataclass(frozen=True, slots=True)
class Operation:
    """One decorated function."""

    name: str
    function: Callable[..., Any]
    signature: inspect.Signature
    colour: Colour
    keying: Keying
    terms: Terms
    layers: tuple[Layer, ...]
    inner: Inner
    innermost: Inner
    """The function, behind no strategy."""
    injects: frozenset[str]
    binder: Binder

    @property
    def record(self) -> Layer:
        """The layer that keeps the record: the innermost that is no guard."""
        keeping = [layer for layer in self.layers if layer.part.role != "guard"]
        return (keeping or self.layers)[-1]

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Return the arguments by parameter name. A wrong call is Python's own TypeError."""
        return self.binder.bind(args, kwargs)

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return self.keying.call(self.bind(args, kwargs), self.terms)

    def done(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps[tuple[Call, Done]]:
        """Run or replay. An exception that is a result is raised here, after the ledgers have kept it."""
        call = self.call(args, kwargs)
        refuse_reentrance(call)
        done = yield from self.inner(call)
        if isinstance(done.error, StopIteration):
            raise CarriedError(done.error)  # a generator may not raise it itself
        if done.error is not None:
            raise done.error
        return call, done

    def value(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps[Any]:
        _, done = yield from self.done(args, kwargs)
        return done.value

    def outcome(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps[Outcome[Any]]:
        call, done = yield from self.done(args, kwargs)
        return Outcome(done.value, done.replayed, call.key, done.attempt)

    def many(
        self, given: Iterable[Given], bound: tuple[Any, ...] = ()
    ) -> Steps[list[Outcome[Any] | Exception]]:
        """Answer many calls; what one of them raises stands in its place."""
        asked = [_arguments(one, bound) for one in given]
        answers: dict[int, Outcome[Any] | Exception] = {}
        calls: dict[int, Call] = {}
        for index, (args, kwargs) in enumerate(asked):
            try:
                call = self.call(args, kwargs)
                refuse_reentrance(call)
                calls[index] = call
            except Exception as error:
                answers[index] = error
        batching = (
            self.layers[0].batching if len(self.layers) == 1 and isinstance(self.layers[0], Leased) else None
        )
        if batching is None:
            came = yield from each(self.inner, list(calls.values()))
        else:
            came = yield from batched(batching, list(calls.values()), self.terms, self.innermost)
        answers |= {index: _answer(call, one) for (index, call), one in zip(calls.items(), came, strict=True)}
        return [answers[index] for index in range(len(asked))]

    def lookup(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps[Record | None]:
        call = self.call(args, kwargs)
        record = yield from ask(self.record.lookup(call), call, self.terms)
        if record is None or record.payload is None:
            return record
        try:
            value, error = value_of(record.payload, call, self.terms)
        except IdempoError:
            return record
        return replace(record, value=value if error is None else error)

    def forget(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps[bool]:
        call = self.call(args, kwargs)
        record = yield from ask(self.record.lookup(call), call, self.terms)
        if record is not None and record.state == "running":
            raise InProgressError(
                "this key is running right now, and a claim is never taken from a running function; forget it later",
                operation=call.operation,
                key=call.key,
                retry_after=max(0.0, (record.lease_until or 0.0) - (record.keep_until - record.keep_left)),
            )
        forgotten = False
        # The tiers before the record, so that one that is down leaves all as it was; and after it, in case one was
        # filled meanwhile.
        tiers = [layer for layer in self.layers if layer.part.role == "tier"]
        for layer in (*tiers, *reversed(self.layers)):
            forgotten |= yield from ask(layer.forget(call), call, self.terms)
        return forgotten

    def explain(self) -> Explanation:
        on_orphan = self.terms.on_orphan
        orphans: Orphans = "probe" if callable(on_orphan) else on_orphan
        return explain(self.name, [layer.part for layer in self.layers], orphans)


def _arguments(one: Any, bound: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    match one:
        case tuple():
            return (*bound, *one), {}
        case Mapping():
            return bound, dict(one)
        case _:
            raise TypeError(
                f"many() takes each call as a tuple of its arguments, or a dict of them by name, not as "
                f"{type(one).__name__}: write (argument,)"
            )


def _answer(call: Call, came: Done | Exception) -> Outcome[Any] | Exception:
    match came:
        case CarriedError():
            return came.error
        case Exception():
            return came
        case Done(error=Exception() as error):
            return error
        case Done():
            return Outcome(came.value, came.replayed, call.key, came.attempt)
        case _:
            assert_never(came)


def function_steps(function: Callable[..., Any], binder: Binder, terms: Terms, colour: Colour) -> Inner:
    """Return the innermost steps: run the function, and make a first result of what it returns or raises."""
    plain = colour == "sync"

    def steps(call: Call) -> Steps[Done]:
        with running(call):
            try:
                value = yield binder.call(function, call.arguments)
            except terms.replay_errors as error:
                return first_error(error, call, terms)
            except StopIteration as error:
                raise CarriedError(error) from error
            if plain and hasattr(type(value), "__await__"):
                raise _not_awaited(value, call)
        return first_value(value, call, terms)

    return steps


def _not_awaited(value: Any, call: Call) -> ConfigurationError:
    """The error for a plain function that gives something to await: what it does has not been done."""
    error = ConfigurationError(
        f"the function is no coroutine function, and yet it returned something to await ({type(value).__name__}): "
        "nobody waits for it, and nothing is recorded; write async def, or functools.wraps in the decorator below",
        operation=call.operation,
        key=call.key,
    )
    if inspect.iscoroutine(value):
        value.close()  # it has not begun
    else:
        error.ran = True
    return error
