"""The objects of an ORM session that show a row which a guard changes below the ORM."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Mapper, Session, SessionTransaction
from sqlalchemy.orm.attributes import set_committed_value

from idempo.records import Done
from idempo.rows import BusinessRow
from idempo.steps import Steps

__all__ = ["Loaded"]


_below: weakref.WeakKeyDictionary[Session, list[tuple[Any, str]]] = weakref.WeakKeyDictionary()
"""What guards have shown of rows in the open transactions of sessions."""


class Loaded:
    """What a session has loaded of the row: told what the database says now, and told back when that is undone.

    Where it is undone later, with a savepoint around the call, it is read again: SQLAlchemy does not know of a change
    that is made below it.
    """

    def __init__(
        self, holder: Any, mapper: Mapper[Any] | None, row: BusinessRow, values: Mapping[str, Any]
    ) -> None:
        self._before: list[tuple[tuple[Any, str], Any]] = []
        self._session = holder if isinstance(holder, Session) and mapper is not None else None
        self._class: Any = None if mapper is None else mapper.class_
        self._shown: list[tuple[str, Any]] = []
        if self._session is not None and mapper is not None:
            keys = [mapper.get_property_by_column(named.column).key for named in row.where]
            self._shown = [(key, values[f"w_{number}"]) for number, key in enumerate(keys)]
        self._fresh: set[int] = set()
        self.written = False
        """True once the ORM has written or deleted the row, since `watch`."""

    def assign(self, attribute: str, value: Any) -> None:
        """Show `value`, as if it had been read from the database just now."""
        for one in [] if self._session is None else self._session.identity_map.values():
            if self._shows(one) and attribute in vars(one):
                self._show(one, attribute, value)

    def renew(self, attribute: str, values: Collection[Any], *, locked: bool) -> None:
        """Read again the objects that show none of `values`: they are from before somebody else's change.

        `locked` reads the row as it is now, where the snapshot of the transaction is older.
        """
        session = self._session
        for one in [] if session is None else list(session.identity_map.values()):
            if self._shows(one) and vars(one).get(attribute) not in values and session is not None:
                session.refresh(one, with_for_update=True if locked else None)
                self._fresh.add(id(one))

    def count_up(self, attribute: str) -> None:
        """Show a version one higher, where the row was not read again since."""
        for one in [] if self._session is None else self._session.identity_map.values():
            if self._shows(one) and isinstance(vars(one).get(attribute), int) and id(one) not in self._fresh:
                self._show(one, attribute, vars(one)[attribute] + 1)

    def _shows(self, one: Any) -> bool:
        return isinstance(one, self._class) and all(vars(one).get(key) == value for key, value in self._shown)

    def watch(self) -> None:
        """Note from now on whether the ORM writes the row."""
        if self._session is not None:
            event.listen(self._session, "after_flush", self._note)

    def _note(self, session: Session, _: Any) -> None:
        changed = [one for one in session.dirty if session.is_modified(one, include_collections=False)]
        self.written |= any(self._shows(one) for one in [*changed, *session.deleted])

    def let_go(self) -> None:
        """Stop watching. Once is enough."""
        if self._session is not None and event.contains(self._session, "after_flush", self._note):
            event.remove(self._session, "after_flush", self._note)

    def during(self, steps: Steps[Done]) -> Steps[Done]:
        """Take the steps of the function, and show again what was shown before if they fail."""
        try:
            done = yield from steps
        except BaseException:
            self.undo()
            raise
        if done.error is not None:
            self.undo()
        return done

    def undo(self) -> None:
        """Show again what was shown before. What is undone now need not be read again."""
        self.let_go()
        for (one, attribute), value in reversed(self._before):
            if attribute in vars(one):
                set_committed_value(one, attribute, value)
        if self._session is not None and self._before:
            undone = {id(shown) for shown, _ in self._before}
            _below[self._session][:] = [one for one in _below[self._session] if id(one) not in undone]
        self._before.clear()

    def _show(self, one: Any, attribute: str, value: Any) -> None:
        session = self._session
        if session is None:
            return
        if session not in _below:
            _below[session] = []
            event.listen(session, "after_soft_rollback", _read_again)
            event.listen(session, "after_transaction_end", _forget)
        shown = one, attribute
        _below[session].append(shown)
        self._before.append((shown, vars(one)[attribute]))
        set_committed_value(one, attribute, value)


def _read_again(session: Session, _: Any) -> None:
    """Something was undone, and perhaps what a guard has done: what it showed is read again when it is asked for."""
    for one, attribute in _below.get(session, ()):
        if one in session:
            session.expire(one, [attribute])


def _forget(session: Session, ended: SessionTransaction) -> None:
    if ended.parent is None:
        _below.get(session, []).clear()
