"""`SelectForUpdate`: locks a row by its key alone, judges it, and hands it to the function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapper, Session, class_mapper

from idempo.asking import NotAdmitted, answered, check_answer, check_colour
from idempo.connections import Source
from idempo.contracts import Inner, KeySpec, Layer, Site
from idempo.dialects import Dialect
from idempo.errors import CompositionError, ConfigurationError, StateConflictError
from idempo.events import tell
from idempo.guarantees import Part
from idempo.guarding import Admission, Guarding, transaction_for
from idempo.records import MISSING, Call, Done, replace
from idempo.rows import BusinessRow, is_mysql
from idempo.steps import Steps
from idempo.terms import Duration, seconds_of

__all__ = ["SelectForUpdate"]

_DAY = 86_400.0


class SelectForUpdate(Guarding):
    """Locks the row before the function runs, so that calls for the same row take turns.

    The row is locked by its key alone, and judged afterwards: a row in another state is not taken for a missing one,
    and a missing one is an error, not a call without a lock. The lock ends with the transaction, together with the
    record and the function's own writes. On SQLite, which has no row locks, the transaction is the one that writes
    (BEGIN IMMEDIATE). A repeat with the same key gets the first result without asking for the lock.

    Without a ledger in `using=` it brings a `UniqueInsert` that joins the transaction, so it needs its table.

    Args:
        target: the mapped class or table.
        where: its columns, each with a template or callable that names the row. They should be the primary key, or
            unique.
        done: judges the locked row: true if another key has done the work already. May be async under an `async def`.
        answer: the answer for a row that is done: a value, or a callable of the row; without one, `StateConflictError`.
        into: the function's parameter that takes the row: an instance of the mapped class with a session, otherwise a
            SQLAlchemy Row. Callers leave it out.
        nowait: True refuses at once where another transaction holds the row.
        timeout: seconds, or a timedelta, to wait for the lock; by default the `wait` of the decorator.
        join: the function's parameter that carries the transaction: a Session, AsyncSession, Connection or
            AsyncConnection.
        engine: the engine, sessionmaker or URL with which idempo begins a transaction where the caller passes none.

    Raises:
        ConfigurationError: for a target, a where clause or a time that cannot work.

    A call raises `RowMissingError`, `StateConflictError`, `InProgressError` when another transaction holds the row for
    too long, `KeyRefusedError` for a value that does not fit its column, and `ConfigurationError` where several rows
    match or the session is that of another database. Nothing is changed then.
    """

    def __init__(
        self,
        target: Any,
        where: Mapping[Any, KeySpec],
        *,
        done: Callable[[Any], Any] | None = None,
        answer: Any = MISSING,
        into: str | None = None,
        nowait: bool = False,
        timeout: Duration | None = None,
        join: str = "session",
        engine: Source | None = None,
    ) -> None:
        self._target = target
        self._mapper = _mapper_of(target)
        table: Any = target if self._mapper is None else self._mapper.local_table
        self._row = BusinessRow(table, where, self._mapper)
        self._done, self._answer, self._into = done, answer, into
        self._wait = 0.0 if nowait else None if timeout is None else seconds_of("timeout", timeout, most=_DAY)
        self.carried = transaction_for(join, engine)
        if nowait and timeout is not None:
            raise ConfigurationError("nowait=True waits for nothing: leave timeout= out")
        if done is not None and not callable(done):
            raise ConfigurationError(f"done= takes a callable that judges the row, not {done!r}")
        if answer is not MISSING and done is None:
            raise ConfigurationError("answer= is for a row that done= found done: give both")

    def bind(self, site: Site) -> Layer:
        check_answer("answer", self._answer, site)
        check_colour("done", self._done, site)
        if self._into is not None and self._into not in site.parameters:
            raise CompositionError(
                f"{site.operation}: into={self._into!r} names no parameter of the function; it has "
                f"{', '.join(site.parameters) or 'none'}"
            )
        if self._into == self.carried.join:
            raise CompositionError(f"{site.operation}: into= and join= name one parameter, {self._into!r}")
        part = Part("SelectForUpdate", "guard", joined=True, notes=("calls for the same row take turns",))
        wait = site.terms.wait.at_once if self._wait is None else self._wait
        return _Layer(
            site, self.carried, self._row.table, self._mapper, part,
            row=self._row, values=self._row.reader(site.parameters, site.operation), target=self._target,
            done=self._done, answer=self._answer, into=self._into, wait=wait,
        )  # fmt: skip


def _mapper_of(target: Any) -> Mapper[Any] | None:
    if isinstance(target, Table):
        return None
    try:
        mapper = class_mapper(target, configure=False)
    except SQLAlchemyError as error:
        raise ConfigurationError(
            f"SelectForUpdate takes a mapped class or a table, not {target!r:.200}"
        ) from error
    if not isinstance(mapper.local_table, Table):
        raise ConfigurationError(f"{target!r} is not mapped to a table")
    return mapper


@dataclass(frozen=True)
class _Layer(Admission):
    row: BusinessRow
    values: Callable[[Call], dict[str, Any]]
    target: Any
    done: Callable[[Any], Any] | None
    answer: Any
    into: str | None
    wait: float

    @property
    def injects(self) -> frozenset[str]:
        return frozenset({self.carried.join} | ({self.into} if self.into is not None else set()))

    def around(self, call: Call, inner: Inner) -> Steps[Done]:
        def lock(holder: Any, connection: Connection, at: Dialect) -> Any:
            values = self.values(call)
            self.row.lock(connection, at, values, self.wait)
            return self._load(holder, connection, values, call)

        row = yield from self.asked(call, lock)
        if self.done is not None and (yield self.done(row)):
            if self.answer is MISSING:
                raise self._refused(call)
            return (yield from answered(self.answer, row, call, self.terms))
        if self.into is not None:
            call = replace(call, arguments={**call.arguments, self.into: row})
        return (yield from inner(call))

    def _load(self, holder: Any, connection: Connection, values: dict[str, Any], call: Call) -> Any:
        """Read the locked row as it is now: InnoDB would show an older snapshot to a read that does not lock."""
        locked = is_mysql(connection)
        query = select(self.target).execution_options(populate_existing=True)
        query = self.row.selected(query, values, locked=locked)
        if not isinstance(holder, Session):
            return self.row.one_of(connection.execute(query).fetchmany(2), call)
        found = holder.execute(query)
        return self.row.one_of(
            found.fetchmany(2) if self.mapper is None else found.unique().scalars().fetchmany(2), call
        )

    def _refused(self, call: Call) -> NotAdmitted:
        tell(self.terms.hooks, "refused", call, "done already")
        return NotAdmitted(
            StateConflictError(
                f"the row of {self.row.table.name} is done already, by another key; give answer= to answer such a call",
                operation=call.operation,
                key=call.key,
                verdict="already",
            )
        )
