"""What the tests of versions share: a function of an entity and a version, on every ledger, and a sink for changes."""

import inspect
import threading
from collections.abc import Callable
from typing import Any

from idempo import MonotonicVersion, idempotent
from idempo.contracts import Colour
from idempo.steps import Steps, arun, run
from tests.tokens.support import Store
from tests.traps.support import SECONDS

TOO_LATE = "too late"


def applying(body: Callable[..., Steps[Any]], colour: Colour) -> Any:
    """A function of this colour; the body gets as many of (entity, version, content, session) as it takes."""
    count = len(inspect.signature(body).parameters)

    def steps(*given: Any) -> Steps[Any]:
        return body(*given[:count])

    def plain(
        entity: Any, version: Any, content: Any = "", when: Any = None, other: Any = 1, session: Any = None
    ) -> Any:
        return run(steps(entity, version, content, session))

    async def coroutine(
        entity: Any, version: Any, content: Any = "", when: Any = None, other: Any = 1, session: Any = None
    ) -> Any:
        return await arun(steps(entity, version, content, session))

    return plain if colour == "sync" else coroutine


def versioned(store: Store, body: Callable[..., Steps[Any]], **options: Any) -> Any:
    """Decorate the body with a `MonotonicVersion` on this store. Its options are told from the decorator's."""
    mine: Any = {"entity": "{entity}", "version": "{version}"}
    for name in ("entity", "version", "stale", "changed"):
        if name in options:
            mine[name] = options.pop(name)
    terms: Any = {
        "key": ("entity", "version"),
        "using": MonotonicVersion(store.ledger(), **mine),
        "name": store.name,
        "wait": SECONDS,
        "fingerprint": ("content",),
    }
    return idempotent(**(terms | options))(applying(body, store.colour))


class Sink:
    """Another system without versions of its own: an index, a cache. A change sets an entity, or deletes it."""

    def __init__(self) -> None:
        self.state: dict[Any, Any] = {}
        self.applied: list[tuple[Any, int]] = []
        self._one = threading.Lock()

    def apply(self, entity: Any, version: int, content: Any) -> Steps[str]:
        """Content None is a deletion."""
        yield from ()
        with self._one:
            self.applied.append((entity, version))
            if content is None:
                self.state.pop(entity, None)
            else:
                self.state[entity] = (version, content)
        return f"applied {version}"

    def of(self, entity: Any) -> list[int]:
        """The versions of an entity that were applied, in order."""
        return [version for one, version in self.applied if one == entity]
