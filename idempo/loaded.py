"""The objects of an ORM session that show a row which a guard changes below the ORM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Mapper, Session
from sqlalchemy.orm.attributes import set_committed_value

from idempo.records import Done
from idempo.rows import BusinessRow
from idempo.steps import Steps

__all__ = ["Loaded"]


class Loaded:
    """What a session has loaded of the row: told what the database says now, and told back when that is undone."""

    def __init__(
        self, holder: Any, mapper: Mapper[Any] | None, row: BusinessRow, values: Mapping[str, Any]
    ) -> None:
        self._objects: list[Any] = []
        self._before: list[tuple[Any, str, Any]] = []
        if isinstance(holder, Session) and mapper is not None:
            shown = [
                (mapper.get_property_by_column(named.column).key, values[f"w_{number}"])
                for number, named in enumerate(row.where)
            ]
            self._objects = [
                one
                for one in holder.identity_map.values()
                if isinstance(one, mapper.class_) and all(vars(one).get(key) == value for key, value in shown)
            ]

    def assign(self, attribute: str, value: Any) -> None:
        """Show `value`, as if it had been read from the database just now."""
        for one in self._objects:
            if attribute in vars(one):
                self._before.append((one, attribute, vars(one)[attribute]))
                set_committed_value(one, attribute, value)

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
        """Show again what was shown before."""
        for one, attribute, value in reversed(self._before):
            if attribute in vars(one):
                set_committed_value(one, attribute, value)
        self._before.clear()
