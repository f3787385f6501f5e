"""`StateGuard`: one conditional UPDATE decides whether a row may go from one state to another."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, assert_never

import sqlalchemy
from sqlalchemy import Connection

from idempo.asking import answered, check_answer
from idempo.columns import Named, column_of, fits
from idempo.connections import Source
from idempo.contracts import Inner, KeySpec, Layer, Site
from idempo.dialects import Dialect
from idempo.errors import CompositionError, ConfigurationError, StateConflictError
from idempo.flows import Flow, FlowSource, flow_of
from idempo.guarantees import Part
from idempo.guarding import Admission, Guarding, transaction_for
from idempo.loaded import Loaded
from idempo.records import MISSING, Call, Done
from idempo.rows import BusinessRow, is_mysql, unchanged
from idempo.steps import Steps

__all__ = ["StateGuard"]

Verdict: TypeAlias = Literal["apply", "already", "superseded", "illegal"]


class StateGuard(Guarding):
    """Lets the function run when its row can go into the state `to`, and takes it there, in the same transaction.

    The row goes there together with the record and the function's own writes, or not at all: if the function raises,
    the transition is undone. A repeat with the same key gets the first result. For another key there are four cases:

    - the row is in a state that leads to `to`: it goes there, and the function runs;
    - it is in the state `to` already: `already` is the answer, or `StateConflictError`;
    - it is in a state that comes after `to`: `superseded` is the answer, or `StateConflictError`;
    - any other state: `StateConflictError`, such as for a payment that comes late for a cancelled order.

    Without a ledger in `using=` it brings a `UniqueInsert` that joins the transaction, so it needs its table.

    Args:
        column: the mapped attribute or column that holds the state.
        where: columns of the same table, each with a template or callable that names the row: `{Order.id:
            "{order_id}"}`. They should be the primary key, or unique.
        flow: each state with those it leads to, as a mapping, or a machine of `python-statemachine` or `transitions`.
        to: the state that this function brings about.
        already: the answer when another key brought the row there: a value, or a callable of the state.
        superseded: the answer when the row is in a later state: a value, or a callable of the state.
        join: the function's parameter that carries the transaction: a Session, AsyncSession, Connection or
            AsyncConnection.
        engine: the engine, sessionmaker or URL with which idempo begins a transaction where the caller passes none.

    Raises:
        ConfigurationError: for a column, a flow or a state that cannot work.

    A call raises `StateConflictError`, `RowMissingError` where there is no such row, `KeyRefusedError` for a value that
    does not fit its column, `InProgressError` when another transaction holds the row for longer than `wait`, and
    `ConfigurationError` where several rows match or the session is that of another database. Nothing is changed then.
    """

    def __init__(
        self,
        column: Any,
        where: Mapping[Any, KeySpec],
        flow: FlowSource,
        to: Any,
        *,
        already: Any = MISSING,
        superseded: Any = MISSING,
        join: str = "session",
        engine: Source | None = None,
    ) -> None:
        self._named = column_of(column, "StateGuard")
        self._row = BusinessRow(self._named.table, where, self._named.mapper)
        self._flow = flow_of(flow, self._state)
        self._to = self._state(to)
        self._sources = self._flow.sources(self._to)
        self._already, self._superseded = already, superseded
        self.carried = transaction_for(join, engine)
        if self._to not in self._flow:
            raise ConfigurationError(f"to={to!r} is no state of the flow: {_listed(self._flow.edges)}")
        if not self._sources:
            raise ConfigurationError(f"to={to!r} cannot be reached: no state of the flow leads to it")

    def bind(self, site: Site) -> Layer:
        if not site.named and self._to in self._flow.reachable(self._to):
            raise CompositionError(
                f"{site.operation}: the flow leads from {self._to!r} back to {self._to!r}, so the state alone cannot "
                f"tell a late repeat from a new transition; put a ledger in front, UniqueInsert(join="
                f"{self.carried.join!r}), and keep= for as long as repeats may come"
            )
        check_answer("already", self._already, site)
        check_answer("superseded", self._superseded, site)
        values = self._row.reader(site.parameters, site.operation)
        part = Part(
            "StateGuard", "guard", joined=True, notes=(f"admits {_listed(self._sources)} to {self._to!r}",)
        )
        return _Layer(
            site, self.carried, self._row.table, self._named.mapper, part,
            row=self._row, named=self._named, counted=_version_of(self._named), values=values, flow=self._flow,
            to=self._to, sources=self._sources,
            already=self._already, superseded=self._superseded,
        )  # fmt: skip

    def _state(self, given: Any) -> Any:
        """What the column holds for a state as the user names it. Raises `ConfigurationError` where it cannot."""
        kind = self._named.column.type
        if isinstance(kind, sqlalchemy.Enum):
            state = _member(kind, given)
            if state is MISSING:
                raise ConfigurationError(
                    f"{given!r} is no state of {self._named}, which knows {_listed(kind.enums)}"
                )
            return state
        own = isinstance(kind, sqlalchemy.TypeDecorator)  # knows itself what to make of a member
        state = given.value if isinstance(given, enum.Enum) and not own else given
        if state is None or not fits(state, self._named.column):
            raise ConfigurationError(f"{given!r} is no state of {self._named}, a column of {kind!r}")
        return state


@dataclass(frozen=True)
class _Layer(Admission):
    row: BusinessRow
    named: Any
    counted: Named | None
    values: Any
    flow: Flow
    to: Any
    sources: tuple[Any, ...]
    already: Any
    superseded: Any

    def around(self, call: Call, inner: Inner) -> Steps[Done]:
        verdict, state, loaded = yield from self.asked(
            call, lambda holder, connection, at: self._judge(holder, connection, at, self.values(call), call)
        )
        match verdict:
            case "apply":
                return (yield from loaded.during(inner(call)))
            case "already":
                return (yield from answered(self.already, state, call, self.terms))
            case "superseded":
                return (yield from answered(self.superseded, state, call, self.terms))
            case _:
                assert_never(verdict)

    def _judge(
        self, holder: Any, connection: Connection, at: Dialect, values: dict[str, Any], call: Call
    ) -> tuple[Literal["apply", "already", "superseded"], Any, Loaded]:
        loaded = Loaded(holder, self.mapper, self.row, values)
        state = self._move(connection, at, values, call)
        match self._verdict(state):
            case "apply":
                loaded.renew(self.named.attribute, [*self.sources, self.to], locked=is_mysql(connection))
                loaded.assign(self.named.attribute, self.to)
                if self.counted is not None:
                    loaded.count_up(self.counted.attribute)
                return "apply", self.to, loaded
            case "already" if self.already is not MISSING:
                return "already", state, loaded
            case "superseded" if self.superseded is not MISSING:
                return "superseded", state, loaded
            case verdict:
                raise self._conflict(verdict, state, call)

    def _move(self, connection: Connection, at: Dialect, values: dict[str, Any], call: Call) -> Any:
        """Take the row to the state, if it is in one that leads there; return the state it was found in.

        The UPDATE decides. Where it matched nothing, the row is locked by its key alone and judged.
        """
        wait = self.terms.wait.at_once
        column = self.named.column
        if self.row.certain and self._update(connection, at, values, wait) == 1:
            return self.sources[0]
        self.row.lock(connection, at, values, wait)
        state = self.row.read(connection, values, [column], call, locked=True)[0]
        if state not in self.sources:
            return state
        # Ours now: nobody can change it any more. MySQL may count nothing where a state leads to itself.
        if self._update(connection, at, values, wait) != 1 and state != self.to:
            raise unchanged(self.named, call)
        return state

    def _update(self, connection: Connection, at: Dialect, values: dict[str, Any], wait: float) -> int:
        counted = None if self.counted is None else self.counted.column
        return self.row.compare_and_set(
            connection, at, values, self.named.column, self.sources, self.to, wait, counted
        )

    def _verdict(self, state: Any) -> Verdict:
        if state in self.sources:
            return "apply"
        if state == self.to:
            return "already"
        return "superseded" if state in self.flow.reachable(self.to) else "illegal"

    def _conflict(self, verdict: Verdict, state: Any, call: Call) -> StateConflictError:
        why = {
            "already": "another key brought it there; give already= to answer such a call",
            "superseded": "it has gone on from there; give superseded= to answer such a call",
            "illegal": "no way leads there from its state"
            if state in self.flow
            else "its state is not in the flow",
        }
        return StateConflictError(
            f"{self.named} is {state!r} and cannot become {self.to!r}: {why[verdict]}",
            operation=call.operation,
            key=call.key,
            verdict=verdict,  # type: ignore[arg-type]
            state=state,
            target=self.to,
        )


def _version_of(named: Named) -> Named | None:
    """The version that SQLAlchemy compares in its own UPDATEs of this row: ours must be seen by them."""
    mapper = named.mapper
    if mapper is None or mapper.version_id_col is None or mapper.version_id_generator is False:
        return None
    column: Any = mapper.version_id_col
    if column.table is not named.column.table or column.type.python_type is not int:
        return None
    return Named(column, mapper.get_property_by_column(column).key, mapper)


def _member(kind: sqlalchemy.Enum, given: Any) -> Any:
    """The member, or the text, that an Enum column gives for a state; MISSING for one it does not know."""
    members: list[Any] = list(kind.enums)
    if kind.enum_class is not None:
        every = list(kind.enum_class.__members__.values())
        members = every if len(every) == len(kind.enums) else list(kind.enum_class)  # without aliases
    named = dict(zip(kind.enums, members, strict=True))
    return next((one for one in members if one == given), named.get(given, MISSING))


def _listed(states: Any) -> str:
    return ", ".join(repr(state) for state in states)
