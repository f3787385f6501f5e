"""What an ORM session holds when the function starts, so that a failed run leaves no object and no change behind."""

from __future__ import annotations

import contextlib
from typing import Any

from sqlalchemy import event
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session

__all__ = ["Objects"]


class Objects:
    """The objects of a session at one moment, and which of them are written afterwards.

    They are held, so that no other object takes one's identity.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._known = {id(one): one for one in (*session.identity_map.values(), *session.new)}
        self._written: list[Any] = []
        self._added: list[Any] = []
        event.listen(session, "after_flush", self._note)

    def _note(self, session: Session, _: Any) -> None:
        self._written += [*session.dirty, *session.deleted]
        self._added += session.new

    def let_go(self) -> None:
        """Stop watching. Once is enough."""
        if event.contains(self._session, "after_flush", self._note):
            event.remove(self._session, "after_flush", self._note)

    def restore(self) -> None:
        """Forget what came since, and read again what was written: the database has gone back to that moment."""
        self.let_go()
        session = self._session
        written = [*self._written, *session.dirty]
        for one in list(session.deleted):
            session.add(one)
        for one in [*session.new, *self._added]:
            if id(one) not in self._known and one in session:
                session.expunge(one)
        # What was only loaded stays: the caller may hold it, and it is read again.
        written += [one for one in session.identity_map.values() if id(one) not in self._known]
        for one in self._known.values():
            if one not in session:  # taken along by a cascade
                with contextlib.suppress(
                    InvalidRequestError
                ):  # its deletion was flushed: it is read again when asked for
                    session.add(one)
        for one in written:
            if one in session:
                session.expire(one)
