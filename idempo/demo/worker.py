"""One process that handles callbacks, one line at a time, until its parent closes the pipe or is gone."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from dataclasses import dataclass
from decimal import Decimal
from multiprocessing.connection import Connection

from idempo.demo.callbacks import Callback
from idempo.demo.postings import Post, open_postings
from idempo.errors import FingerprintMismatchError, IdempoError

__all__ = ["Answer", "serve"]

_TRIES = 5


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker says about one line."""

    line: int
    kind: str
    """executed, replayed or refused; or failed, with the reason as `detail`."""
    amount: Decimal | None = None
    """The amount that the first result of this payment has."""
    retries: int = 0
    """How often the store could not give a definite answer, so that the line was handled again."""
    detail: str = ""


def serve(pipe: Connection, url: str, run: str) -> None:
    """Answer lines until the parent closes its end, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all of us: the parent decides
    logging.getLogger("idempo").addHandler(logging.NullHandler())  # takeovers are expected here
    with contextlib.suppress(EOFError, OSError):
        try:
            postings = open_postings(url)
            post = postings.handler(run)
        except Exception as error:
            pipe.send(Answer(0, "failed", detail=_reason(error)))
            return
        pipe.send(None)
        while True:
            pipe.send(_answer(post, pipe.recv()))


def _answer(post: Post, callback: Callback) -> Answer:
    detail = ""
    for retries in range(_TRIES):
        try:
            outcome = post(callback.payment_no, callback.event_id, callback.amount)
        except FingerprintMismatchError:
            return Answer(callback.line, "refused", retries=retries)
        except Exception as error:  # busy, gone, or unknown: asking again is what the key is for
            detail = _reason(error)
            time.sleep(0.05 * 2**retries)
        else:
            kind = "replayed" if outcome.replayed else "executed"
            return Answer(callback.line, kind, outcome.value.amount, retries)
    return Answer(callback.line, "failed", detail=detail)


def _reason(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, IdempoError) and error.__cause__ is not None else None
    return f"{type(error).__name__}: {error}" + (f" ({type(cause).__name__}: {cause})" if cause else "")
