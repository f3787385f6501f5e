"""How the scripts of the Redis ledger are sent: alone, or many in one pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import redis.exceptions
from redis.exceptions import NoScriptError

from idempo.scripts import SHA
from idempo.steps import Pause, Steps
from idempo.waiting import Patience, completion_policy

T = TypeVar("T")

__all__ = ["evaluate", "evaluate_many", "sent"]

_ALL_IN_USE: type[Exception] | tuple[()] = getattr(redis.exceptions, "MaxConnectionsError", ())
_POOL_SECONDS = 20.0


def sent(request: Callable[[], Steps[T]]) -> Steps[T]:
    """Send a request; a client whose connections are all in use is asked again for a while."""
    patience = Patience(completion_policy(_POOL_SECONDS))
    while True:
        try:
            return (yield from request())
        except _ALL_IN_USE:
            seconds = patience.next_pause(_POOL_SECONDS)
            if seconds is None:
                raise
        yield Pause(seconds)


def evaluate(client: Any, script: str, keys: Sequence[bytes], *arguments: Any) -> Steps[Any]:
    # Results are bytes, whatever decode_responses says of the user's client.
    asked = len(keys), *keys, *arguments
    try:
        return (yield client.execute_command("EVALSHA", SHA[script], *asked, NEVER_DECODE=True))
    except NoScriptError:
        return (yield client.execute_command("EVAL", script, *asked, NEVER_DECODE=True))


def evaluate_many(client: Any, asked: Sequence[tuple[Any, ...]]) -> Steps[list[Any]]:
    """Evaluate many scripts in one pipeline, on a Cluster in one for each node. Raises the first error of them.

    Scripts that the server does not know yet it is told one by one.
    """
    pipeline = client.pipeline(transaction=False)
    for script, keys, *arguments in asked:
        pipeline.execute_command("EVALSHA", SHA[script], len(keys), *keys, *arguments, NEVER_DECODE=True)
    answers: list[Any] = yield pipeline.execute(raise_on_error=False)
    for index, answer in enumerate(answers):
        if isinstance(answer, NoScriptError):
            answers[index] = yield from evaluate(client, *asked[index])
        elif isinstance(answer, Exception):
            raise answer
    return answers
