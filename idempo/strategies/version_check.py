"""`VersionCheck`: compare-and-set on an integer version, so that nobody overwrites what he has not seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from idempo.asking import NotAdmitted, RunAgain
from idempo.columns import Named, column_of
from idempo.connections import Source, on
from idempo.contracts import Inner, KeySpec, Layer, Site
from idempo.dialects import Dialect
from idempo.errors import ConfigurationError, RowMissingError, VersionConflictError
from idempo.guarantees import Part
from idempo.guarding import Admission, Guarding, transaction_for
from idempo.loaded import Loaded
from idempo.records import Call, Done
from idempo.rows import BusinessRow, is_mysql, unchanged
from idempo.steps import Steps
from idempo.units import transaction_of
from idempo.versions import version_reader
from idempo.waiting import WaitPolicy, retry_policy

__all__ = ["VersionCheck"]


class VersionCheck(Guarding):
    """Lets the function change a row only from the version that it builds on, and counts that version up by one.

    With `expected`, the version that the caller has seen, it is compared and set before the function runs. Without, it
    is read before and compared and set after: if somebody else changed the row meanwhile, what the function wrote is
    undone, and it runs again, up to `retries` times, each in a fresh transaction; so these need a transaction of
    idempo's, not of the caller's. Row, record and the function's own writes change together or not at all. A repeat
    with the same key gets the first result, and never a conflict with itself.

    Where the column is the `version_id_col` of SQLAlchemy's mapper, the row is locked before and the ORM counts, or
    else idempo does: one step for each call.

    Without a ledger in `using=` it brings a `UniqueInsert` that joins the transaction, so it needs its table.

    Args:
        column: the mapped attribute or column with the version: an integer, never a time stamp.
        where: columns of the same table, each with a template or callable that names the row.
        expected: a template or callable for the version that the call builds on.
        retries: how many times the function may run again after a conflict; only without `expected`.
        join: the function's parameter that carries the transaction: a Session, AsyncSession, Connection or
            AsyncConnection.
        engine: the engine, sessionmaker or URL with which idempo begins a transaction where the caller passes none.

    Raises:
        ConfigurationError: for a column that is no integer, or arguments that do not go together.

    A call raises `VersionConflictError`, `RowMissingError` where there is no such row, `KeyRefusedError` for a value
    that does not fit, `InProgressError` when another transaction holds the row for longer than `wait`, and
    `ConfigurationError` where several rows match or the session is that of another database. Nothing is changed then.
    """

    def __init__(
        self,
        column: Any,
        where: Mapping[Any, KeySpec],
        *,
        expected: KeySpec | None = None,
        retries: int = 0,
        join: str = "session",
        engine: Source | None = None,
    ) -> None:
        self._named = column_of(column, "VersionCheck")
        self._row = BusinessRow(self._named.table, where, self._named.mapper)
        self._expected = expected
        policy = retry_policy(retries)
        self._retries = policy if retries else None
        self.carried = transaction_for(join, engine)
        if not _is_integer(self._named):
            raise ConfigurationError(
                f"{self._named} is a {self._named.column.type!r}; a version is an integer that counts the changes. "
                "Two changes can have one time stamp"
            )
        if expected is not None and self._retries is not None:
            raise ConfigurationError(
                "retries= is for a version that idempo reads itself; the expected= one does not change by running again"
            )

    def bind(self, site: Site) -> Layer:
        mapper = self._named.mapper
        counted = mapper is not None and mapper.version_id_col is self._named.column
        expected = None if self._expected is None else version_reader(self._expected, site, "expected")
        note = (
            "refuses a version that is not the expected one, before the function runs"
            if expected is not None
            else "finds a conflict after the function has run: what it wrote is undone, but not what it did elsewhere"
        )
        part = Part("VersionCheck", "guard", joined=True, notes=(note,))
        values = self._row.reader(site.parameters, site.operation)
        return _Layer(
            site, self.carried, self._row.table, mapper, part,
            row=self._row, named=self._named, values=values, expected=expected, counted=counted, retries=self._retries,
        )  # fmt: skip


def _is_integer(named: Named) -> bool:
    try:
        kind = named.column.type.python_type
    except NotImplementedError:
        return False
    return issubclass(kind, int) and not issubclass(kind, bool)


@dataclass(frozen=True)
class _Layer(Admission):
    row: BusinessRow
    named: Named
    values: Callable[[Call], dict[str, Any]]
    expected: Callable[[Call], int] | None
    counted: bool
    """True if the ORM counts this version by itself."""
    retries: WaitPolicy | None

    def around(self, call: Call, inner: Inner) -> Steps[Done]:
        def read(*_: Any) -> tuple[dict[str, Any], int | None]:
            return self.values(call), None if self.expected is None else self.expected(call)

        values, expected = yield from self.asked(call, read)
        if expected is not None and not self.counted:
            return (yield from self._set_before(call, inner, values, expected))
        return (yield from self._set_after(call, inner, values, expected))

    def _set_before(self, call: Call, inner: Inner, values: dict[str, Any], expected: int) -> Steps[Done]:
        def take(holder: Any, connection: Connection, at: Dialect) -> Loaded:
            if not (self.row.certain and self._count_up(connection, at, values, expected)):
                self._lock(connection, at, values, call, expected)
                if not self._count_up(connection, at, values, expected):
                    raise unchanged(self.named, call)
            loaded = Loaded(holder, self.mapper, self.row, values)
            loaded.renew(self.named.attribute, [expected, expected + 1], locked=is_mysql(connection))
            loaded.assign(self.named.attribute, expected + 1)
            return loaded

        loaded = yield from self.asked(call, take)
        return (yield from loaded.during(inner(call)))

    def _set_after(
        self, call: Call, inner: Inner, values: dict[str, Any], expected: int | None
    ) -> Steps[Done]:
        marks: list[Any] = []
        transactions: list[Any] = []

        def look(holder: Any, connection: Connection, at: Dialect) -> tuple[int, Loaded]:
            loaded = Loaded(holder, self.mapper, self.row, values)
            if expected is not None:
                self._lock(connection, at, values, call, expected)
            version = self._read(connection, values, call, locked=expected is not None)
            loaded.renew(
                self.named.attribute, [version], locked=expected is not None and is_mysql(connection)
            )
            loaded.watch()
            transactions.append(transaction_of(holder))
            if self.counted and isinstance(holder, Session):
                marks.append(holder.begin_nested())  # a conflict that the ORM finds undoes no more than this
            return version, loaded

        def send(holder: Any) -> None:
            if isinstance(holder, Session):
                holder.flush()  # what it raises is the function's error

        def compare(holder: Any, connection: Connection, at: Dialect) -> None:
            if transaction_of(holder) is not transactions[0]:
                return  # the function has ended the transaction by itself, and the claim with it
            for mark in marks:
                if mark.is_active:
                    mark.commit()
            if self._count_up(connection, at, values, version):
                loaded.assign(self.named.attribute, version + 1)
            elif not (
                self.counted and loaded.written
            ):  # else the ORM has compared, and counted or deleted, by itself
                raise self._conflict(call, version, self._found(connection, at, values, call), ran=True)

        version, loaded = yield from self.asked(call, look)
        try:
            done = yield from loaded.during(inner(call))
            if done.error is None:
                yield on(self.carried.given(call, self.site.colour), send)
                yield from self.asked(call, compare, ran=True)
        except NotAdmitted as refused:
            loaded.undo()
            raise self._again(refused.otherwise) from refused.otherwise
        except StaleDataError as error:
            if not (self.counted and f"'{self.row.table.name}'" in str(error)):
                raise  # of another table
            raise self._again(self._conflict(call, version, None, ran=True)) from error
        finally:
            loaded.let_go()
        return done

    def _again(self, error: Exception) -> Exception:
        """What is raised for a conflict after the function: it runs again where that was asked for."""
        if self.retries is None or not isinstance(error, VersionConflictError):
            return NotAdmitted(error)
        return RunAgain(error, started=True, policy=self.retries)

    def _count_up(self, connection: Connection, at: Dialect, values: dict[str, Any], version: int) -> bool:
        wait = self.terms.wait.at_once
        column = self.named.column
        return self.row.compare_and_set(connection, at, values, column, [version], version + 1, wait) == 1

    def _lock(
        self, connection: Connection, at: Dialect, values: dict[str, Any], call: Call, expected: int
    ) -> None:
        self.row.lock(connection, at, values, self.terms.wait.at_once)
        found = self._read(connection, values, call, locked=True)
        if found != expected:
            raise self._conflict(call, expected, found, ran=False)

    def _read(self, connection: Connection, values: dict[str, Any], call: Call, *, locked: bool) -> int:
        found = self.row.read(connection, values, [self.named.column], call, locked=locked)[0]
        if not isinstance(found, int):
            raise ConfigurationError(
                f"{self.named} is {found!r} in this row: a version is a whole number and never null",
                operation=call.operation,
                key=call.key,
            )
        return found

    def _found(self, connection: Connection, at: Dialect, values: dict[str, Any], call: Call) -> int | None:
        self.row.lock(connection, at, values, self.terms.wait.at_once)
        try:
            return self._read(connection, values, call, locked=True)
        except RowMissingError:
            return None

    def _conflict(self, call: Call, expected: int, found: int | None, *, ran: bool) -> VersionConflictError:
        there = (
            "somebody has changed or deleted the row (a function that deletes it itself needs expected=)"
            if found is None
            else f"somebody else has taken it to {found}"
        )
        error = VersionConflictError(
            f"{self.named} should be {expected}, but {there}. Read the row again and decide anew; "
            + ("what the function wrote is undone" if ran else "the function did not run"),
            operation=call.operation,
            key=call.key,
            expected=expected,
            found=found,
        )
        error.ran = ran
        return error
