"""The function's shape in each colour, its two failures, and the words for what a call came to."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import redis
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from idempo import INJECTED, RERUN, Found, IdempoError, LeaseLostError
from idempo.contracts import Colour
from idempo.steps import Steps, arun, run

__all__ = ["Declined", "Rejected", "body", "described", "judged"]


class Declined(Exception):
    """The function's own failure: what it has written in a transaction is undone with it."""


class Rejected(Exception):
    """An exception that is a result."""


def judged(first: bytes | None) -> Any:
    return RERUN if first is None else Found({"run": json.loads(first)[0]})


def described(error: Exception) -> Mapping[str, Any]:
    match error:
        case Declined():
            kind = "own"
        case IdempoError():
            kind = "idempo"
        case SQLAlchemyError() | OSError() | redis.RedisError():
            kind = "driver"
        case _:
            kind = "other"
    stored = getattr(error, "stored", None) if isinstance(error, LeaseLostError) else None
    named = (
        f"error:{stored}"
        if isinstance(stored, Rejected)
        else stored["run"]
        if isinstance(stored, dict)
        else ""
    )
    return {
        "error": type(error).__name__,
        "kind": kind,
        "ran": getattr(error, "ran", None),
        "stored": named,
        "text": str(error)[:120],
        "cause": repr(error.__cause__)[:200] if error.__cause__ else "",
    }


Work = Callable[[str, Any], Steps[dict[str, str]]]


def body(work: Work, colour: Colour, joined: bool) -> Any:
    if colour == "sync":
        if not joined:

            def plain(order_no: str, token: str, version: int) -> dict[str, str]:
                return run(work(order_no, None))

            return plain

        def joining(order_no: str, token: str, version: int, session: Session = INJECTED) -> dict[str, str]:
            return run(work(order_no, session))

        return joining
    if not joined:

        async def aplain(order_no: str, token: str, version: int) -> dict[str, str]:
            return await arun(work(order_no, None))

        return aplain

    async def ajoining(
        order_no: str, token: str, version: int, session: AsyncSession = INJECTED
    ) -> dict[str, str]:
        return await arun(work(order_no, session))

    return ajoining
