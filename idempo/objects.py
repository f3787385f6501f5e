"""What an ORM session holds when the function starts, so that a failed run leaves no object behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

__all__ = ["Objects"]


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of a session at one moment. They are held, so that no other object takes one's identity."""

    known: dict[int, Any]

    @classmethod
    def of(cls, session: Session) -> Objects:
        return cls({id(one): one for one in (*session.identity_map.values(), *session.new)})

    def restore(self, session: Session) -> None:
        """Forget what came since, and read again what was there: the database has gone back to that moment."""
        for one in list(session.deleted):
            session.add(one)
        for one in (*session.new, *session.identity_map.values()):
            if id(one) not in self.known:
                session.expunge(one)
        session.expire_all()
