"""`OneTimeToken`: the key must have been issued beforehand, and is spent by the claim."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeAlias

from idempo.asking import ask
from idempo.contracts import Inner, KeySpec, Layer, Site, Strategy
from idempo.errors import ConfigurationError, KeyRefusedError, KeyTemplateError
from idempo.guarantees import Part
from idempo.keys import check_given, digest, key_given
from idempo.layers import asking_about, enclosed, good_for
from idempo.records import Call, Done, Issued, Record, replace
from idempo.specs import Arguments, Field, parse, value_reader
from idempo.steps import Steps, arun, run
from idempo.terms import Duration, seconds_of

__all__ = ["OneTimeToken"]

Token: TypeAlias = str | int | uuid.UUID
Reuse: TypeAlias = Literal["replay", "refuse"]

_ROLE = "token"
_CENTURY = 100 * 365 * 86_400.0
_TRIES = 3
_LONGEST = 1024


class OneTimeToken:
    """Lets the function run for a token that was issued beforehand, once: spending the token is the claim.

    Before: `tokens = OneTimeToken(RedisCache(url), key="{token}")` in `using=[tokens, ...]`, always first. To hand one
    out: `tokens.issue(scope=..., keep=...)`, awaitable where the function is. A call with the token then

    - runs the function, if nobody has used it; a second one meanwhile waits;
    - gets the first result, or under `reuse="refuse"` a `TokenSpentError`, once it was used;
    - gets a `TokenUnknownError` if it was never issued for this operation and scope, if its time is over, or if it was
      revoked.

    If the function raises, the token can be used again; if its process dies, the same token takes over once the lease
    is over. From its first use on, the token is known for as long as the decorator's `keep` says. Ledgers keep a digest
    of the token, never the token, and logs show its first characters at the most.

    Args:
        ledger: where tokens are kept: `Memory`, `RedisCache`, `UniqueInsert`; with `UniqueInsert(join=...)` the token
            is spent in the transaction of the function.
        key: a template of one field, or a callable, for the token of a call; by default the decorator's key.
        reuse: what a token that was used gives: "replay" for a form that is sent twice, "refuse" for a nonce.
        make: makes a token: a text, a number or a UUID that nobody can guess; by default 256 random bits of `secrets`.

    Raises:
        ConfigurationError: for arguments that are none of these.
    """

    outermost = True

    def __init__(
        self,
        ledger: Strategy,
        *,
        key: KeySpec | None = None,
        reuse: Reuse = "replay",
        make: Callable[[], Token] | None = None,
    ) -> None:
        if reuse not in ("replay", "refuse"):
            raise ConfigurationError(f'reuse= is "replay" or "refuse", not {reuse!r}')
        if make is not None and not callable(make):
            raise ConfigurationError(f"make= takes a callable that returns a token, not {make!r}")
        self._ledger = ledger
        self._key = key
        self._reuse: Reuse = reuse
        self._make: Callable[[], Token] = make or (lambda: secrets.token_urlsafe(32))
        self._bound: dict[str, _Layer] = {}

    @property
    def carried(self) -> Any:
        """The transaction that the token is spent in, if its ledger joins one."""
        return getattr(self._ledger, "carried", None)

    def close(self) -> Any:
        """Close what the ledger has made from a URL, as its own `close()` does."""
        close = getattr(self._ledger, "close", None)
        return None if close is None else close()

    def bind(self, site: Site) -> Layer:
        spec = site.key if self._key is None else self._key
        note = "asks for a token that was issued for this operation" + (
            "" if site.scope is None else " and scope"
        )
        notes = [note]
        if not site.tier and spec != site.key:
            notes.append(
                f"runs once for each token: nothing remembers {site.key!r}; put a ledger inside for that"
            )
        layer, part = enclosed(site, self._ledger, "OneTimeToken", *notes)
        if not callable(getattr(layer.ledger, "issue", None)):
            raise ConfigurationError(f"{site.operation}: {type(self._ledger).__name__} cannot issue tokens")
        if isinstance(spec, tuple):
            raise KeyTemplateError(f"a token is one value, not the tuple {spec!r}", operation=site.operation)
        read = value_reader(spec, site.parameters, what="token", operation=site.operation)

        def token(**arguments: Any) -> str:
            return _text(read(arguments))

        if site.scope is not None:
            check_given(site.scope, what="scope", operation=site.operation)
        if self.carried is not None and self.carried.database is None:
            raise ConfigurationError(
                f"{site.operation}: tokens are issued outside of calls: give the UniqueInsert in it an engine too"
            )
        ignores = _only(spec, site)
        bound = _Layer(
            site, layer, part, read, site.rekeyed(token, _ROLE), self._reuse, ignores,
            own=spec != site.key, of_key=_names(site.key, ignores),
        )  # fmt: skip
        self._bound[site.operation] = bound
        return bound

    def issue(
        self, *, scope: object = None, keep: Duration = timedelta(hours=1), operation: object = None
    ) -> Any:
        """Issue a token and return it; awaitable where the function is.

        Args:
            scope: tenant or principal, as the decorator's `scope=` reads it; the token is good for no other.
            keep: for how long it can be used, in seconds or as a timedelta.
            operation: the decorated function, or its name, where this strategy stands in front of several.

        Raises `ConfigurationError` where no function is decorated yet, several are and none is named, or the scope does
        not go with the decorator's; `LedgerUnavailableError` where the ledger does not answer.
        """
        bound = self._of(operation)
        return bound.driven(bound.issue(self._make, scope, seconds_of("keep", keep, most=_CENTURY)))

    def peek(self, token: Token, *, scope: object = None, operation: object = None) -> Any:
        """Return the `Record` of a token, without spending it; None if it is unknown or its time is over.

        Its `state` is "issued" until it is used. Awaitable where the function is; raises as `issue` does.
        """
        bound = self._of(operation)
        return bound.driven(bound.peek(token, scope))

    def revoke(self, token: Token, *, scope: object = None, operation: object = None) -> Any:
        """Take back a token that nobody has used. True if there was one: it is unknown from now on.

        A token in use, or used, is left as it is. Awaitable where the function is; raises as `issue` does.
        """
        bound = self._of(operation)
        return bound.driven(bound.revoke(token, scope))

    def _of(self, operation: object) -> _Layer:
        name = getattr(getattr(operation, "__idempo__", None), "name", operation)
        if name is None and len(self._bound) == 1:
            return next(iter(self._bound.values()))
        if isinstance(name, str) and name in self._bound:
            return self._bound[name]
        there = ", ".join(self._bound) or "no function is decorated with it yet"
        raise ConfigurationError(f"name the operation that the token is for, with operation=: {there}")


def _only(spec: KeySpec, site: Site) -> frozenset[str]:
    """The parameter that is nothing but the token: another token does not make it another order."""
    if not isinstance(spec, str):
        return frozenset()
    parts = parse(spec, site.parameters, what="token", operation=site.operation).parts
    return frozenset(part.parameter for part in parts if isinstance(part, Field) and not part.steps)


def _names(spec: KeySpec, parameters: frozenset[str]) -> bool:
    """True if a key shows one of these parameters."""
    texts = (spec,) if isinstance(spec, str) else spec if isinstance(spec, tuple) else ()
    return callable(spec) or any(
        one == text or f"{{{one}}}" in text or f"{{{one}." in text for text in texts for one in parameters
    )


def _text(token: object) -> str:
    """The token as text: what was made as a number comes back from a form as digits."""
    if isinstance(token, bool) or not isinstance(token, str | int | uuid.UUID) or token == "":
        named = "empty" if token == "" else f"a {type(token).__name__}"
        raise KeyRefusedError(f"A token is a text, a number or a UUID, and this one is {named}.")
    text = str(token)
    if len(text) > _LONGEST:
        raise KeyRefusedError(f"A token has at most {_LONGEST} characters, and this one has {len(text)}.")
    return text


def _shown(token: str) -> str:
    """What people may see of a token."""
    return f"{token[:4]}…" if len(token) >= 20 else "…"


@dataclass(frozen=True)
class _Layer:
    site: Site
    layer: Any
    part: Part
    read: Callable[[Arguments], Any]
    rekey: Callable[[Call], Call]
    reuse: Reuse
    ignores: frozenset[str]
    own: bool
    """True if the token is not the decorator's key."""
    of_key: bool
    """True if the decorator's key shows the token."""

    @property
    def shown(self) -> Callable[[str], str] | None:
        """What people may see of the decorator's key, where that is the token."""
        return _shown if self.of_key else None

    @property
    def injects(self) -> frozenset[str]:
        injects: frozenset[str] = self.layer.injects
        return injects

    def around(self, call: Call, inner: Inner) -> Steps[Done]:
        def admitted(mine: Call) -> Steps[Done]:
            # As the record, the claim of the token is that of the call; in front of one, the record makes its own.
            own = replace(mine, key=call.key, digest=call.digest, demand=None)
            return inner(own if self.part.role == "record" else call)

        spent = self._spent(call)
        if self.own:
            spent = good_for(call, spent)
        done: Done = yield from asking_about(self.layer, call).around(spent, admitted)
        return done

    def lookup(self, call: Call) -> Steps[Record | None]:
        found: Record | None = yield from self.layer.lookup(self._spent(call))
        return found

    def forget(self, call: Call) -> Steps[bool]:
        forgotten: bool = yield from self.layer.forget(self._spent(call))
        return forgotten

    def _spent(self, call: Call) -> Call:
        """The same call under its token."""
        try:
            text = _text(self.read(call.arguments))
        except KeyRefusedError as error:
            raise KeyRefusedError(f"{error} Nothing ran.", operation=call.operation) from error.__cause__
        return replace(self.rekey(call), key=_shown(text), demand=Issued(self.reuse))

    def driven(self, steps: Steps[Any]) -> Any:
        return arun(steps) if self.site.colour == "async" else run(steps)

    def issue(self, make: Callable[[], Token], scope: object, keep: float) -> Steps[Token]:
        for _ in range(_TRIES):
            token = make()
            call = replace(self._call(token, scope), keep=keep)
            if (yield from ask(self.layer.ledger.issue(call), call, self.site.terms)):
                return token
        raise ConfigurationError(
            f"make= gave {_TRIES} tokens that were issued before: whoever can guess one can use it",
            operation=self.site.operation,
        )

    def peek(self, token: Token, scope: object) -> Steps[Record | None]:
        call = self._call(token, scope)
        found: Record | None = yield from ask(self.layer.lookup(call), call, self.site.terms)
        return found

    def revoke(self, token: Token, scope: object) -> Steps[bool]:
        call = self._call(token, scope)
        revoked: bool = yield from ask(self.layer.ledger.revoke(call.digest), call, self.site.terms)
        return revoked

    def _call(self, token: Token, scope: object) -> Call:
        """A call that has this token and scope, and nothing else."""
        operation, text = self.site.operation, _text(token)
        spec = self.site.scope
        if (spec is None) != (scope is None):
            raise ConfigurationError(
                f"{operation} has no scope=, so a token for {scope!r} would be good for everybody"
                if spec is None
                else f"{operation} has a scope=: say for which one the token is good"
            )
        within = None if spec is None else key_given(spec, scope, what="scope", operation=operation)
        identity = digest(operation, within, key_given("{token}", text), _ROLE)
        shown = "" if within is None else within.text
        return Call(operation, shown, _shown(text), identity, b"", b"", 0.0, 1.0, {})
