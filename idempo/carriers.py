"""The transaction that a parameter of the function carries, and how one is begun where the caller passes none."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from idempo.connections import Database
from idempo.contracts import Colour, Site
from idempo.errors import ColourMismatchError, CompositionError, ConfigurationError
from idempo.records import Call
from idempo.steps import Steps, arun, run

__all__ = ["Transaction", "connected", "kinds"]


@dataclass(frozen=True, slots=True)
class Transaction:
    """The transaction that the parameter `join` carries, and the database to begin one in where the caller has none."""

    join: str
    database: Database | None

    def differs(self, other: Any) -> str:
        """Say why `other` is another transaction; "" if it is the same."""
        if other.join != self.join:
            return f"join={other.join!r} is another parameter than {self.join!r}"
        if self.database is None or other.database is None or self.database.is_same(other.database):
            return ""
        return "they name two databases"

    def given(self, call: Call, colour: Colour) -> Any:
        """Return the session or connection that the caller passed; None where there is none."""
        given = call.arguments.get(self.join)
        return None if given is None else _holder_of(given, self.join, colour)

    def check(self, site: Site, *, hidden: bool) -> None:
        """Raise `ConfigurationError` if the function cannot carry the transaction, nor may leave it to us."""
        if self.join not in site.parameters and not (hidden and self.database is not None):
            raise CompositionError(
                f"{site.operation}: join={self.join!r} names no parameter of the function; it has "
                f"{', '.join(site.parameters) or 'none'}" + (", and no engine= was given" if hidden else "")
            )
        wrong = kinds("sync" if site.colour == "async" else "async")
        for kind in _classes(site.hints.get(self.join)):
            if issubclass(kind, wrong):
                raise ColourMismatchError(
                    f"{site.operation} is {site.colour}, but its parameter {self.join} is a {kind.__name__}"
                )
        if self.database is not None:
            self.database.check(site.colour, site.operation)

    def close(self) -> Any:
        """Close the connections made from a URL; awaitable inside an event loop. A given engine is left alone."""
        if self.database is None:
            return None
        steps = self.database.close()
        return arun(steps) if self.database.colour == "async" else run(steps)

    def needed(self) -> Database:
        """Return the database to begin a transaction in. Raises `ConfigurationError` where there is none."""
        if self.database is None:
            raise ConfigurationError(
                f"the caller passed no {self.join}, and the strategy was given no engine, sessionmaker or URL to open "
                "one"
            )
        return self.database

    def begin(self, colour: Colour, hint: Any) -> Steps[Any]:
        """Open what the annotation of the parameter asks for: a connection, or else a session."""
        database = self.needed()
        if self.wants_connection(colour, hint):
            return (yield from connected(database.engine(colour)))
        return database.session(colour)

    def wants_connection(self, colour: Colour, hint: Any) -> bool:
        """True if the parameter is annotated as a connection."""
        _, connection = kinds(colour)
        return any(issubclass(kind, connection) for kind in _classes(hint))


def connected(engine: Any) -> Steps[Any]:
    """Return a connection of the engine, whichever its colour."""
    connection = engine.connect()
    return (yield connection) if hasattr(connection, "__await__") else connection


def _holder_of(given: Any, join: str, colour: Colour) -> Any:
    """The session or connection of the right colour behind what the caller passed."""
    holder = given() if hasattr(given, "registry") else given  # a scoped_session
    if not isinstance(holder, kinds(colour)):
        names = "Session or Connection" if colour == "sync" else "AsyncSession or AsyncConnection"
        raise ColourMismatchError(f"{join} must be a {names} here, not a {type(holder).__name__}")
    return holder


def kinds(colour: Colour) -> tuple[type, ...]:
    """The session and the connection of a colour; none for async where nobody has imported SQLAlchemy's asyncio."""
    if colour == "sync":
        return Session, Connection
    module = sys.modules.get("sqlalchemy.ext.asyncio")
    return () if module is None else (module.AsyncSession, module.AsyncConnection)


def _classes(hint: Any) -> list[type]:
    """The classes that an annotation allows, looking into unions and Annotated."""
    if isinstance(hint, type):
        return [hint]
    return [kind for argument in getattr(hint, "__args__", ()) for kind in _classes(argument)]
