"""`OneTimeToken`: a token runs a function once; unknown, in use and used are three answers."""

import itertools
import logging
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from sqlalchemy import insert

from idempo import (
    CompositionError,
    ConfigurationError,
    Event,
    FingerprintMismatchError,
    IdempoError,
    InProgressError,
    KeyRefusedError,
    KeyTemplateError,
    LocalCache,
    Memory,
    OneTimeToken,
    OutcomeUnknownError,
    RedisCache,
    ResultUnavailableError,
    StateGuard,
    TokenSpentError,
    TokenUnknownError,
    UniqueInsert,
    current,
    idempotent,
)
from idempo.contracts import Layer, Site, Strategy
from idempo.layers import Leased
from idempo.steps import Steps
from idempo.testing import Effects, Gate
from tests.tokens import support
from tests.tokens.support import COLOURS, EVERY, MYSQL, SOME, InDatabase, Store, driven, dump, everywhere, on
from tests.traps.support import Declined, Order, Running, calling, caught

store = support.store
whole_world = on(*EVERY, *MYSQL)


@dataclass
class Receipt:
    order: str
    amount: Decimal
    number: int


def desk(store: Store, *, key: Any = None, reuse: Any = "replay", make: Any = None, **options: Any) -> Any:
    """Tokens, a function behind them, and what it has done."""
    effects = Effects()

    def body(order: str) -> Steps[Any]:
        yield from ()
        return ["done", order, effects.add(order)]

    tokens = OneTimeToken(store.ledger(), key=key, reuse=reuse, make=make)
    return tokens, store.decorate(body, tokens, **options), effects


# ------------------------------------------------------------------------ spending is the claim


@whole_world
@driven
def test_a_token_runs_the_function_once_and_every_later_use_gets_the_first_result(
    store: Store,
) -> Steps[None]:
    effects = Effects()

    def body(order: str) -> Steps[Receipt]:
        yield from ()
        return Receipt(order, Decimal("19.90"), effects.add(order))

    body_of: Any = support.submitting(body, store.colour)
    body_of.__annotations__["return"] = Receipt
    tokens = OneTimeToken(store.ledger())
    f = idempotent(key="{token}", using=tokens, name=store.name)(body_of)
    token = yield tokens.issue()
    first = yield f(token)
    assert first == Receipt("A-1", Decimal("19.90"), 1)
    for _ in range(2):
        outcome = yield f.outcome(token)
        assert (outcome.value, type(outcome.value), outcome.replayed) == (first, Receipt, True)
        assert outcome.attempt == 1
    assert len(effects) == 1


@whole_world
@driven
def test_a_token_in_use_is_waited_for_and_then_replays(store: Store) -> Steps[None]:
    inside, gate, effects = Gate(store.colour), Gate(store.colour), Effects()

    def body(order: str) -> Steps[int]:
        inside.open()
        yield gate.wait()
        return effects.add(order)

    def waited(event: Event) -> None:
        if event.kind == "waited":
            gate.open()

    tokens = OneTimeToken(store.ledger())
    f = store.decorate(body, tokens, hooks=[waited])
    hasty = store.decorate(body, tokens, wait=0)
    token = yield tokens.issue()
    first = Running(store.colour, [calling(lambda: f(token))])
    yield inside.wait()
    error = yield from caught(InProgressError, lambda: hasty(token))
    assert error.ran is False
    second = Running(store.colour, [calling(lambda: f.outcome(token))])
    if store.joined:  # it waits in the database, and tells nobody
        gate.open()
    assert (yield from first.results()) == [1]
    (outcome,) = yield from second.results()
    assert (outcome.value, outcome.replayed) == (1, True)
    assert len(effects) == 1


@whole_world
@driven
def test_under_refuse_a_used_token_is_an_error_with_whatever_arguments(store: Store) -> Steps[None]:
    tokens, f, effects = desk(store, reuse="refuse")
    token = yield tokens.issue()
    assert (yield f(token)) == ["done", "A-1", 1]
    for order in ("A-1", "A-2"):
        error = yield from caught(TokenSpentError, partial(f, token, order))
        assert error.ran is False
        assert error.operation == store.name
    assert len(effects) == 1
    assert (yield f((yield tokens.issue()), "A-2")) == ["done", "A-2", 2]


@whole_world
@driven
def test_a_used_token_with_other_arguments_is_refused_by_name(store: Store) -> Steps[None]:
    tokens, f, effects = desk(store)
    token = yield tokens.issue()
    yield f(token, "A-1")
    error = yield from caught(FingerprintMismatchError, lambda: f(token, "A-2"))
    assert error.differing == ("order",)
    assert error.ran is False
    assert len(effects) == 1


@whole_world
@driven
def test_an_unknown_token_runs_nothing_and_writes_nothing(store: Store) -> Steps[None]:
    for reuse in ("replay", "refuse"):
        tokens, f, effects = desk(store, reuse=reuse)
        yield tokens.issue()
        before = store.records()
        for guess in ("guessed", 17, uuid.uuid4(), "x" * 43):
            error = yield from caught(TokenUnknownError, partial(f, guess))
            assert error.ran is False
            assert error.operation == store.name
        assert store.records() == before
        assert len(effects) == 0
        assert (yield f.lookup("guessed")) is None
        assert (yield f.forget("guessed")) is False


@whole_world
@driven
def test_a_token_is_unknown_when_its_time_is_over(store: Store) -> Steps[None]:
    tokens, f, effects = desk(store)
    unused, used = (yield tokens.issue(keep=60)), (yield tokens.issue(keep=60))
    yield f(used)
    store.end_retention()
    before = store.records()
    for token in (unused, used):
        assert (yield tokens.peek(token)) is None
        yield from caught(TokenUnknownError, partial(f, token))
        assert (yield tokens.revoke(token)) is False
    assert store.records() == before
    assert len(effects) == 1


@whole_world
@driven
def test_a_revoked_token_is_unknown_and_only_an_unspent_one_is_revoked(store: Store) -> Steps[None]:
    tokens, f, effects = desk(store)
    one, other = (yield tokens.issue()), (yield tokens.issue())
    assert (yield tokens.revoke(one)) is True
    assert (yield tokens.revoke(one)) is False
    assert len(store.records()) == 1
    yield from caught(TokenUnknownError, lambda: f(one))
    yield f(other)
    assert (yield tokens.revoke(other)) is False
    assert (yield f(other)) == ["done", "A-1", 1]
    assert len(effects) == 1


@everywhere
@driven
def test_a_token_is_good_for_one_scope_only(store: Store) -> Steps[None]:
    tokens, f, effects = desk(store, scope="{tenant}")
    token = yield tokens.issue(scope="acme")
    before = store.records()
    yield from caught(TokenUnknownError, lambda: f(token, tenant="umbrella"))
    assert store.records() == before
    assert (yield tokens.peek(token, scope="umbrella")) is None
    assert (yield tokens.revoke(token, scope="umbrella")) is False
    assert (yield tokens.peek(token, scope="acme")).scope == "acme"
    assert (yield f(token, tenant="acme")) == ["done", "A-1", 1]
    assert len(effects) == 1


@everywhere
@driven
def test_a_token_is_good_for_one_operation_only(store: Store) -> Steps[None]:
    tokens, f, _ = desk(store)
    others, g, effects = desk(store, name=f"{store.name}.other")
    token = yield tokens.issue()
    yield from caught(TokenUnknownError, lambda: g(token))
    assert (yield others.peek(token)) is None
    assert len(effects) == 0
    assert (yield f(token)) == ["done", "A-1", 1]


@on(*SOME)
@driven
def test_a_key_that_was_used_without_a_token_is_none(store: Store) -> Steps[None]:
    """Business keys and tokens of one operation are never taken for each other."""
    tokens, f, _ = desk(store)
    g = store.decorate(lambda order: (yield order), store.ledger())
    assert (yield g("A-1")) == "A-1"
    yield from caught(TokenUnknownError, lambda: f("A-1"))
    token = yield tokens.issue()
    assert (yield g(token)) == "A-1"
    assert (yield tokens.peek(token)).state == "issued"


# ------------------------------------------------------------------------ failure


@whole_world
@driven
def test_a_token_whose_function_failed_can_be_used_again_and_revoked(store: Store) -> Steps[None]:
    effects = Effects()

    def body(order: str) -> Steps[int]:
        yield from ()
        if effects.add(order) in (1, 3):
            raise Declined(order)
        return len(effects)

    tokens = OneTimeToken(store.ledger())
    f = store.decorate(body, tokens)
    token = yield tokens.issue()
    yield from caught(Declined, lambda: f(token))
    assert (yield tokens.peek(token)).state == "issued"
    assert (yield f.outcome(token)).value == 2
    other = yield tokens.issue()
    yield from caught(Declined, lambda: f(other))
    assert (yield tokens.revoke(other)) is True
    yield from caught(TokenUnknownError, lambda: f(other))
    assert len(effects) == 3


@whole_world
@driven
def test_a_failed_token_may_come_back_with_corrected_arguments(store: Store) -> Steps[None]:
    def body(order: str) -> Steps[str]:
        yield from ()
        if order == "bad":
            raise Declined(order)
        return order

    tokens = OneTimeToken(store.ledger())
    f = store.decorate(body, tokens)
    token = yield tokens.issue()
    yield from caught(Declined, lambda: f(token, "bad"))
    assert (yield f(token, "good")) == "good"


@whole_world
@driven
def test_the_same_token_takes_over_after_a_crash(store: Store) -> Steps[None]:
    """A process that dies after spending: its lease ends, and the token runs again. A joined one leaves nothing."""
    effects = Effects()

    def body(order: str) -> Steps[int]:
        yield from ()
        if effects.add(order) == 1:
            raise KeyboardInterrupt
        return len(effects)

    tokens = OneTimeToken(store.ledger())
    f = store.decorate(body, tokens, wait=0)
    token = yield tokens.issue()
    yield from caught(KeyboardInterrupt, lambda: f(token))
    if not store.joined:
        assert (yield tokens.peek(token)).state == "running"
        yield from caught(InProgressError, lambda: f(token))
        assert (yield tokens.revoke(token)) is False
        store.end_leases()
        assert (yield tokens.peek(token)).state == "orphan"
        assert (yield tokens.revoke(token)) is False
    outcome = yield f.outcome(token)
    assert (outcome.value, outcome.replayed) == (2, False)
    assert (yield f.outcome(token)).replayed


def _vanishing(store: Store, **options: Any) -> tuple[Any, Any, Effects]:
    """A function whose first run ends without anybody knowing whether its effect happened."""
    effects = Effects()

    def body(order: str) -> Steps[int]:
        yield from ()
        if effects.add(order) == 1:
            raise TimeoutError("no answer from the bank")
        return len(effects)

    tokens = OneTimeToken(store.ledger())
    return tokens, store.decorate(body, tokens, unknown_errors=[TimeoutError], **options), effects


@whole_world
@driven
def test_an_unknown_outcome_lets_the_same_token_run_again(store: Store) -> Steps[None]:
    tokens, f, _ = _vanishing(store)
    token = yield tokens.issue()
    yield from caught(OutcomeUnknownError, lambda: f(token))
    assert (yield tokens.peek(token)).state == "orphan"
    assert (yield tokens.revoke(token)) is False
    assert (yield f(token)) == 2


@whole_world
@driven
def test_under_on_orphan_refuse_a_token_with_an_unknown_outcome_never_runs_again(store: Store) -> Steps[None]:
    """Not when it is forgotten either: what is forgotten was never issued."""
    tokens, f, effects = _vanishing(store, on_orphan="refuse")
    token = yield tokens.issue()
    for _ in range(2):
        yield from caught(OutcomeUnknownError, lambda: f(token))
    assert (yield f.forget(token)) is True
    yield from caught(TokenUnknownError, lambda: f(token))
    assert len(effects) == 1


@whole_world
@driven
def test_an_exception_that_is_a_result_spends_the_token(store: Store) -> Steps[None]:
    effects = Effects()

    def body(order: str) -> Steps[int]:
        yield from ()
        raise LookupError("no such account", effects.add(order))

    for reuse in ("replay", "refuse"):
        tokens = OneTimeToken(store.ledger(), reuse=reuse)
        f = store.decorate(body, tokens, replay_errors=[LookupError])
        token = yield tokens.issue()
        first = yield from caught(LookupError, partial(f, token))
        kind = LookupError if reuse == "replay" else TokenSpentError
        again = yield from caught(kind, partial(f, token))
        if reuse == "replay":
            assert again.args == first.args == ("no such account", 1)
        assert (yield tokens.peek(token)).state == "failed"
    assert len(effects) == 2


@on(*SOME)
@driven
def test_a_result_that_cannot_be_stored_spends_the_token(store: Store) -> Steps[None]:
    effects = Effects()

    def body(order: str) -> Steps[object]:
        yield from ()
        effects.add(order)
        return object()

    tokens = OneTimeToken(store.ledger())
    f = store.decorate(body, tokens)
    token = yield tokens.issue()
    yield f(token)
    yield from caught(ResultUnavailableError, lambda: f(token))
    assert len(effects) == 1


# ------------------------------------------------------------------------ issue, peek, revoke


def test_a_token_is_256_random_bits_of_the_secrets_module(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def token_urlsafe(size: int) -> str:
        asked.append(size)
        return f"made-{len(asked)}"

    tokens = OneTimeToken(Memory())
    idempotent(key="{token}", using=tokens, name="random")(lambda token: 1)
    made = {tokens.issue() for _ in range(1000)}
    assert len(made) == 1000
    assert {len(token) for token in made} == {43}
    monkeypatch.setattr("idempo.strategies.one_time_token.secrets.token_urlsafe", token_urlsafe)
    assert tokens.issue() == "made-1"
    assert asked == [32]


@everywhere
@driven
def test_tokens_may_be_uuids_or_numbers_and_come_back_as_their_text(store: Store) -> Steps[None]:
    count = itertools.count(7_000_000_000_000_000_000)
    for make in (uuid.uuid4, lambda: next(count)):
        tokens, f, effects = desk(store, make=make, fingerprint=("order",))
        one, other = (yield tokens.issue()), (yield tokens.issue())
        assert type(one) is (uuid.UUID if make is uuid.uuid4 else int)
        assert (yield f(one)) == (yield f(str(one))) == ["done", "A-1", 1]
        assert (yield f(str(other))) == (yield f(other)) == ["done", "A-1", 2]
        assert (yield tokens.peek(str(one))).state == "completed"
        assert len(effects) == 2


@everywhere
@driven
def test_a_make_that_repeats_itself_is_an_error_after_three_tries(store: Store) -> Steps[None]:
    made = iter(["one", "one", "one", "two", "one", "one", "one", "never"])
    tokens, f, _ = desk(store, make=lambda: next(made))
    assert (yield tokens.issue()) == "one"
    yield f("one")
    assert (yield tokens.issue()) == "two"
    error = yield from caught(ConfigurationError, tokens.issue)
    assert "gave 3 tokens that were issued before" in str(error)
    assert next(made) == "never"
    assert (yield tokens.peek("one")).state == "completed"


@pytest.mark.parametrize("made", [True, 1.5, None, "", b"bytes", ("a",)])
def test_a_make_that_returns_no_token_is_refused(made: Any) -> None:
    tokens = OneTimeToken(Memory(), make=lambda: made)
    f: Any = idempotent(key="{token}", using=tokens, name="made")(lambda token: 1)
    for call in (tokens.issue, partial(tokens.peek, made), partial(tokens.revoke, made), partial(f, made)):
        with pytest.raises(KeyRefusedError) as caught:
            call()
        assert caught.value.ran is False


@everywhere
@driven
def test_keep_is_seconds_or_a_timedelta_and_an_hour_by_default(store: Store) -> Steps[None]:
    tokens, _, _ = desk(store)
    for keep, seconds in ((90, 90), (90.5, 90.5), (timedelta(days=2), 172_800), (None, 3600)):
        token = yield (tokens.issue() if keep is None else tokens.issue(keep=keep))
        record = yield tokens.peek(token)
        assert seconds - 60 < record.keep_left <= seconds


@pytest.mark.parametrize("keep", [0, -1, float("nan"), float("inf"), "1h", True, timedelta(days=40_000)])
def test_a_keep_that_is_no_duration_is_refused(keep: Any) -> None:
    tokens = OneTimeToken(Memory())
    idempotent(key="{token}", using=tokens, name="keeps")(lambda token: 1)
    with pytest.raises(ConfigurationError, match="keep"):
        tokens.issue(keep=keep)


@everywhere
@driven
def test_a_used_token_is_known_for_as_long_as_the_decorator_says(store: Store) -> Steps[None]:
    """Not for as long as it could have been used."""
    tokens, f, _ = desk(store, keep=7200)
    token = yield tokens.issue(keep=60)
    yield f(token)
    assert 7000 < (yield tokens.peek(token)).keep_left <= 7200


@everywhere
@driven
def test_peek_tells_issued_running_completed_and_unknown(store: Store) -> Steps[None]:
    inside, gate = Gate(store.colour), Gate(store.colour)

    def body(order: str) -> Steps[str]:
        inside.open()
        yield gate.wait()
        return order

    tokens = OneTimeToken(store.ledger())
    f = store.decorate(body, tokens)
    assert (yield tokens.peek("never issued")) is None
    token = yield tokens.issue()
    record = yield tokens.peek(token)
    assert (record.state, record.attempt, record.operation, record.payload) == ("issued", 0, store.name, None)
    running = Running(store.colour, [calling(lambda: f(token))])
    yield inside.wait()
    # What a transaction has claimed, nobody else sees before it commits.
    assert (yield tokens.peek(token)).state == ("issued" if store.joined else "running")
    if not store.joined:
        assert (yield tokens.revoke(token)) is False
    gate.open()
    yield from running.results()
    assert (yield tokens.peek(token)).state == (yield f.lookup(token)).state == "completed"


@on(*SOME)
@driven
def test_the_scope_of_a_token_is_read_as_the_decorators_is(store: Store) -> Steps[None]:
    def of_both(tenant: str, order: str) -> tuple[str, str]:
        return tenant, order

    for spec, scope in ((("tenant", "order"), ("acme", "A-1")), (of_both, ("acme", "A-1"))):
        tokens, f, _ = desk(store, scope=spec)
        token = yield tokens.issue(scope=scope)
        assert (yield f(token, tenant="acme")) == ["done", "A-1", 1]
        yield from caught(TokenUnknownError, partial(f, token, "A-2", "acme"))


def test_a_scope_goes_with_the_decorators_or_the_token_is_refused() -> None:
    def tokens(scope: Any) -> OneTimeToken:
        made = OneTimeToken(Memory())
        idempotent(key="{token}", using=made, name="scoped", scope=scope)(lambda token, tenant, user: 1)
        return made

    for scoped, given in ((None, "acme"), ("{tenant}", None)):
        made = tokens(scoped)
        for call in (made.issue, partial(made.peek, "t"), partial(made.revoke, "t")):
            with pytest.raises(ConfigurationError, match="scope"):
                call(scope=given)
    with pytest.raises(KeyTemplateError, match="several parts"):
        tokens("{tenant}:{user}").issue(scope="acme:joe")
    for wrong in ("acme", ("acme",), ("acme", "joe", "more")):
        with pytest.raises(KeyRefusedError, match="tuple of 2"):
            tokens(("tenant", "user")).issue(scope=wrong)
    for empty in ("", 1.5):
        with pytest.raises(KeyRefusedError):
            tokens("{tenant}").issue(scope=empty)


def test_there_is_nothing_to_issue_before_a_function_is_decorated() -> None:
    tokens = OneTimeToken(Memory())
    for call in (tokens.issue, partial(tokens.peek, "t"), partial(tokens.revoke, "t")):
        with pytest.raises(ConfigurationError, match="no function is decorated"):
            call()


@on("memory", "redis")
@driven
def test_one_strategy_in_front_of_several_functions_asks_which(store: Store) -> Steps[None]:
    tokens = OneTimeToken(store.ledger())
    f = store.decorate(lambda order: (yield "f"), tokens, name="several.f")
    g = store.decorate(lambda order: (yield "g"), tokens, name="several.g")
    for call in (
        tokens.issue,
        partial(tokens.peek, "t"),
        partial(tokens.revoke, "t"),
        partial(tokens.issue, operation="h"),
    ):
        with pytest.raises(ConfigurationError, match=r"several\.f, several\.g"):
            call()
    for named in (f, "several.f"):
        token = yield tokens.issue(operation=named)
        yield from caught(TokenUnknownError, partial(g, token))
        assert (yield tokens.peek(token, operation=g)) is None
        assert (yield tokens.peek(token, operation=f)).state == "issued"
        assert (yield f(token)) == "f"
    other = yield tokens.issue(operation=g)
    assert (yield tokens.revoke(other, operation=f)) is False
    assert (yield tokens.revoke(other, operation=g)) is True


@on("memory", colours=("async",))
@driven
def test_issue_peek_and_revoke_are_awaitable_where_the_function_is(store: Store) -> Steps[None]:
    tokens, _, _ = desk(store)
    for call in (tokens.issue, partial(tokens.peek, "t"), partial(tokens.revoke, "t")):
        awaitable = call()
        assert hasattr(awaitable, "__await__")
        yield awaitable


# ------------------------------------------------------------------------ secrets


class Declining(Exception):
    """Says nothing of its own."""


def _journey(store: Store, tokens: Any, decorate: Callable[..., Any], events: list[Event]) -> Steps[Any]:
    """All that can become of tokens. Returns them, and the errors."""
    outcomes = iter([Declining(), 1, KeyboardInterrupt(), TimeoutError(), 2])

    def body(order: str) -> Steps[Any]:
        yield from ()
        if order != "A-1":
            return order
        outcome = next(outcomes)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    terms = {"hooks": [events.append], "unknown_errors": [TimeoutError], "wait": 0}
    f = decorate(body, tokens, **terms)
    refusing = decorate(body, tokens, on_orphan="refuse", **terms)
    used, lost = (yield tokens.issue()), (yield tokens.issue())
    unknown, revoked = (yield tokens.issue()), (yield tokens.issue())
    errors = [
        (yield from caught(Declining, lambda: f(used))),
        (yield f(used)),
        (yield f(used)),
        (yield from caught(FingerprintMismatchError, lambda: f(used, "A-2"))),
        (yield from caught(KeyboardInterrupt, lambda: f(lost))),
        (yield from caught((TimeoutError, OutcomeUnknownError), lambda: f(unknown))),  # type: ignore[arg-type]
        (yield tokens.revoke(revoked)),
        (yield from caught(TokenUnknownError, lambda: f(revoked))),
    ]
    if not store.joined:
        errors.append((yield from caught(InProgressError, lambda: f(lost))))
    store.end_leases()
    errors += [(yield f(lost)), (yield tokens.peek(lost))]
    errors.append((yield from caught(IdempoError, lambda: refusing(used, "A-2"))))
    return (used, lost, unknown, revoked), errors


@everywhere
@driven
def test_what_a_token_is_stays_out_of_logs_events_and_stores(store: Store) -> Steps[None]:
    seen: list[str] = []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(f"{record.getMessage()} {record.exc_text} {record.exc_info}")

    logger, listening = logging.getLogger("idempo"), Listening(level=1)
    level = logger.level
    logger.addHandler(listening)
    logger.setLevel(1)
    try:
        for key in (None, "{token}"):
            events: list[Event] = []
            tokens = OneTimeToken(store.ledger(), key=key)
            name = f"{store.name}.{key}"

            def decorate(body: Any, using: Any, key: Any = key, name: str = name, **options: Any) -> Any:
                own = key is not None
                return store.decorate(body, using, key="{order}" if own else "{token}", name=name, **options)

            issued, told = yield from _journey(store, tokens, decorate, events)
            stored = dump(store)
            assert name.encode() in stored
            assert len(events) > 8
            for token in issued:
                shown = [error for error in told if isinstance(error, BaseException)]
                texts = [*seen, *map(repr, events), *map(str, shown), *map(repr, shown), repr(told)]
                assert not [text for text in texts if token in text]
                assert token.encode() not in stored
                assert token.encode().hex().encode() not in stored
                assert token[:5] not in "".join(texts)
    finally:
        logger.removeHandler(listening)
        logger.setLevel(level)


@on("memory", "redis", "postgres")
@driven
def test_a_short_token_is_not_shown_at_all(store: Store) -> Steps[None]:
    made: list[str | int] = ["wxyz-short", 123_456_789]
    tokens, f, _ = desk(store, make=made.pop)
    for strange in (987_654_321, "zyxw-short"):
        token = yield tokens.issue()
        assert (yield tokens.peek(token)).key == "…"
        yield f(token)
        error = yield from caught(TokenUnknownError, lambda: f(strange))  # noqa: B023
        assert error.key == "…"
    assert b"123456789" not in dump(store)
    # Of letters: four digits stand in many a time of a record.
    assert b"wxyz" not in dump(store)


def test_a_long_token_shows_its_first_four_characters() -> None:
    tokens = OneTimeToken(Memory(), make=lambda: "abcdefghijklmnopqrstuvwxyz")
    idempotent(key="{token}", using=tokens, name="shown")(lambda token: 1)
    assert tokens.peek(tokens.issue()).key == "abcd…"


# ------------------------------------------------------------------------ in front of a record


class Checkout:
    """An order form: tokens in Redis, orders and their records in one transaction of a database."""

    def __init__(self, store: InDatabase, cache: Store) -> None:
        self.store = store
        self.cache = cache
        self.failing = False
        self.tokens = OneTimeToken(cache.ledger(), key="{token}")
        insert_order = store.insert(join="session")

        def body(order: str, session: Any) -> Steps[str]:
            yield session.execute(insert(Order).values(order_no=order))
            if self.failing:
                raise Declined(order)
            assert current().key == order
            return f"{order} placed as number {store.count() + 1}"

        self.submit = store.decorate(body, [self.tokens, insert_order], key="{order}")


@pytest.fixture
def cache(request: pytest.FixtureRequest, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return support.make_store("redis", store.colour, request, tmp_path_factory)


checkouts = on("postgres joined", "mariadb joined", "mysql joined", "sqlite joined")


def _at_checkout(store: Store, cache: Store, test: Callable[[Checkout], Steps[None]]) -> Steps[None]:
    assert isinstance(store, InDatabase)
    try:
        yield from test(Checkout(store, cache))
    finally:
        yield from cache.closing()


@checkouts
@driven
def test_a_form_sent_twice_makes_one_order(store: Store, cache: Store) -> Steps[None]:
    def test(at: Checkout) -> Steps[None]:
        token = yield at.tokens.issue()
        first = yield at.submit.outcome(token, "A-1")
        again = yield at.submit.outcome(token, "A-1")
        assert (first.replayed, again.replayed, first.value) == (False, True, again.value)
        assert at.store.count() == 1

    yield from _at_checkout(store, cache, test)


@checkouts
@driven
def test_a_new_token_for_the_same_order_gives_the_first_order_back(store: Store, cache: Store) -> Steps[None]:
    """The token is no part of the fingerprint."""

    def test(at: Checkout) -> Steps[None]:
        one, other = (yield at.tokens.issue()), (yield at.tokens.issue())
        first = yield at.submit(one, "A-1")
        again = yield at.submit.outcome(other, "A-1")
        assert (again.value, again.replayed) == (first, True)
        assert (yield at.tokens.peek(other)).state == "completed"
        assert at.store.count() == 1

    yield from _at_checkout(store, cache, test)


@checkouts
@driven
def test_a_used_token_is_good_for_no_other_order(store: Store, cache: Store) -> Steps[None]:
    def test(at: Checkout) -> Steps[None]:
        token = yield at.tokens.issue()
        yield at.submit(token, "A-1")
        error = yield from caught(FingerprintMismatchError, lambda: at.submit(token, "A-2"))
        assert error.differing == ("order",)
        assert at.store.count() == 1
        assert (yield at.submit.lookup(token, "A-2")) is None

    yield from _at_checkout(store, cache, test)


@checkouts
@driven
def test_an_unknown_token_never_reaches_the_database(store: Store, cache: Store) -> Steps[None]:
    def test(at: Checkout) -> Steps[None]:
        yield from caught(TokenUnknownError, lambda: at.submit("guessed", "A-1"))
        assert at.store.count() == 0
        assert at.store.records() == at.cache.records() == []

    yield from _at_checkout(store, cache, test)


@checkouts
@driven
def test_the_token_of_a_failed_order_is_good_for_another_try(store: Store, cache: Store) -> Steps[None]:
    def test(at: Checkout) -> Steps[None]:
        token = yield at.tokens.issue()
        at.failing = True
        yield from caught(Declined, lambda: at.submit(token, "A-1"))
        assert (yield at.tokens.peek(token)).state == "issued"
        assert at.store.count() == 0
        at.failing = False
        yield at.submit(token, "A-1")
        assert at.store.count() == 1

    yield from _at_checkout(store, cache, test)


@checkouts
@driven
def test_a_flushed_redis_makes_tokens_unknown_and_never_a_second_order(
    store: Store, cache: Store
) -> Steps[None]:
    def test(at: Checkout) -> Steps[None]:
        used, unused = (yield at.tokens.issue()), (yield at.tokens.issue())
        first = yield at.submit(used, "A-1")
        at.cache.empty()
        for token in (used, unused):
            yield from caught(TokenUnknownError, partial(at.submit, token, "A-1"))
        new = yield at.tokens.issue()
        assert (yield at.submit(new, "A-1")) == first
        assert at.store.count() == 1

    yield from _at_checkout(store, cache, test)


@checkouts
@driven
def test_forget_takes_the_order_and_its_token(store: Store, cache: Store) -> Steps[None]:
    def test(at: Checkout) -> Steps[None]:
        token = yield at.tokens.issue()
        yield at.submit(token, "A-1")
        assert (yield at.submit.lookup(token, "A-1")).key == "A-1"
        assert (yield at.submit.forget(token, "A-1")) is True
        yield from caught(TokenUnknownError, lambda: at.submit(token, "A-1"))

    yield from _at_checkout(store, cache, test)


@checkouts
@driven
def test_a_token_spent_in_the_callers_transaction_comes_back_with_its_rollback(
    store: Store, cache: Store
) -> Steps[None]:
    """Alone and joined: the token, its result and the caller's writes are one."""
    from sqlalchemy import create_engine
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
    from sqlalchemy.orm import sessionmaker

    from tests.servers import async_url

    assert isinstance(store, InDatabase)
    engine: Any
    if store.colour == "sync":
        engine = create_engine(store.url)
        sessions: Any = sessionmaker(engine)
    else:
        url = async_url(store.url)
        engine = create_async_engine(url)
        sessions = async_sessionmaker(engine)

    def body(order: str, session: Any) -> Steps[str]:
        yield session.execute(insert(Order).values(order_no=order))
        return order

    try:
        tokens = OneTimeToken(store.ledger())
        f = store.decorate(body, tokens, fingerprint=("order",))
        token = yield tokens.issue()
        for commit in (False, True, True):
            session = sessions()
            outcome = yield f.outcome(token, session=session)
            yield (session.commit() if commit else session.rollback())
            yield session.close()
            state = (yield tokens.peek(token)).state
            assert state == ("completed" if commit else "issued")
        assert outcome.replayed
        assert store.count() == 1
    finally:
        yield engine.dispose()
        yield from cache.closing()


# ------------------------------------------------------------------------ what is refused, and explain()


class NoIssue:
    """A ledger that cannot issue."""

    def bind(self, site: Site) -> Layer:
        return Leased.at(site, _Mute(), "NoIssue")  # type: ignore[arg-type]


class _Mute:
    store = None


URL = "sqlite:///never-made.db"

REFUSED: dict[str, tuple[Callable[[], Any], str, Any]] = {
    "inside another ledger": (
        lambda: [Memory(), OneTimeToken(Memory(), key="{token}")],
        "stands first",
        None,
    ),
    "twice": (
        lambda: [OneTimeToken(Memory(), key="{token}"), OneTimeToken(Memory(), key="{order}")],
        "stands first",
        None,
    ),
    "around itself": (lambda: OneTimeToken(OneTimeToken(Memory())), "takes a ledger", None),
    "around a cache": (lambda: [OneTimeToken(LocalCache()), Memory()], "LocalCache", None),
    "around a guard": (
        lambda: OneTimeToken(
            StateGuard(Order.order_no, where={Order.id: "{order}"}, flow={"a": ["b"]}, to="b", engine=URL)
        ),
        "takes a ledger",
        None,
    ),
    "around a key of its own": (
        lambda: OneTimeToken(Memory(key="{token}")),
        "give key= to OneTimeToken",
        None,
    ),
    "around a key of its own, in front": (
        lambda: [OneTimeToken(Memory(key="{token}"), key="{token}"), Memory()],
        "give key= to OneTimeToken",
        None,
    ),
    "joined in front of a ledger": (
        lambda: [OneTimeToken(UniqueInsert(URL, join="session"), key="{token}"), Memory()],
        "is the record itself",
        None,
    ),
    "a passable ledger": (lambda: OneTimeToken(RedisCache("redis://h", required=False)), "required", None),
    "a ledger that cannot issue": (lambda: OneTimeToken(NoIssue()), "cannot issue", ConfigurationError),
    "a tuple": (lambda: OneTimeToken(Memory(), key=("token",)), "not the tuple", KeyTemplateError),
    "an unknown parameter": (lambda: OneTimeToken(Memory(), key="{nonce}"), "nonce", KeyTemplateError),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_stand_together_is_refused_while_decorating(name: str) -> None:
    using, why, kind = REFUSED[name]

    def submit(token: str, order: str, session: Any = None) -> str:
        return order

    with pytest.raises(kind or CompositionError, match=why):
        idempotent(key="{order}", using=using(), name="refused")(submit)


def test_other_words_than_replay_and_refuse_are_refused() -> None:
    for reuse in ("once", "", None, True):
        with pytest.raises(ConfigurationError, match="reuse"):
            OneTimeToken(Memory(), reuse=reuse)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="make"):
        OneTimeToken(Memory(), make="uuid4")  # type: ignore[arg-type]


def test_a_decorators_tuple_key_is_no_token() -> None:
    with pytest.raises(KeyTemplateError, match="not the tuple"):
        idempotent(key=("token", "order"), using=OneTimeToken(Memory()), name="t")(lambda token, order: 1)


@pytest.mark.parametrize("colour", COLOURS)
def test_the_token_may_be_had_by_a_callable(colour: Any) -> None:
    tokens = OneTimeToken(Memory(), key=lambda form: form["token"])
    f: Any = idempotent(
        key="{form[order]}", using=[tokens, Memory()], name="c", fingerprint=("{form[order]}",)
    )(lambda form: form["order"])
    token = tokens.issue()
    assert f({"token": token, "order": "A-1"}) == "A-1"
    with pytest.raises(TokenUnknownError):
        f({"token": "other", "order": "A-1"})
    with pytest.raises(KeyRefusedError):
        f({"order": "A-1"})


EXPLAINED: dict[str, tuple[Callable[[], Strategy], bool, bool]] = {
    "Memory": (Memory, False, False),
    "RedisCache": (lambda: RedisCache("redis://h"), False, True),
    "UniqueInsert": (lambda: UniqueInsert(URL), False, False),
    "joined": (lambda: UniqueInsert(URL, join="session"), True, False),
}


@pytest.mark.parametrize("scope", [None, "{order}"])
@pytest.mark.parametrize("name", EXPLAINED)
def test_explain_says_what_a_token_alone_is_worth(name: str, scope: str | None) -> None:
    make, joined, lossy = EXPLAINED[name]

    def submit(token: str, order: str, session: Any = None) -> str:
        return order

    f = idempotent(key="{token}", using=OneTimeToken(make()), name="submit", scope=scope)(submit)
    explanation = f.explain()
    (part,) = explanation.parts
    inside = "UniqueInsert" if joined else name
    assert (part.strategy, part.role) == (f"OneTimeToken({inside})", "record")
    assert (part.joined, part.lossy) == (joined, lossy)
    assert explanation.joined_effects == ("exactly once" if joined else "at least once")
    assert explanation.foreign_effects == "at least once"
    text = str(explanation)
    assert f"OneTimeToken({inside}): keeps the record" in text
    assert "asks for a token that was issued for this operation" in text
    assert ("operation and scope" in text) == (scope is not None)
    assert ("an eviction or a flush" in text) == lossy
    assert ("lives and dies with this process" in text) == (name == "Memory")


@pytest.mark.parametrize("name", ["Memory", "RedisCache", "UniqueInsert"])
def test_explain_says_that_the_record_behind_a_token_decides(name: str) -> None:
    make, _, _ = EXPLAINED[name]

    def submit(token: str, order: str, session: Any = None) -> str:
        return order

    using: list[Strategy] = [OneTimeToken(make(), key="{token}"), UniqueInsert(URL, join="session")]
    explanation = idempotent(key="{order}", using=using, name="submit")(submit).explain()
    assert [part.role for part in explanation.parts] == ["own key", "record"]
    assert explanation.joined_effects == "exactly once"
    assert f"OneTimeToken({name}): claims a key of its own before the record inside it is asked" in str(
        explanation
    )


@pytest.mark.parametrize("reuse", ["replay", "refuse"])
def test_the_digest_of_a_token_depends_on_nothing_random(reuse: Any) -> None:
    """Another process, with a strategy of its own, knows the token."""
    ledger = Memory()
    made = os.urandom(8).hex()
    one, other = (OneTimeToken(ledger, reuse=reuse, make=lambda: made) for _ in range(2))
    for tokens in (one, other):
        idempotent(key="{token}", using=tokens, name="both")(lambda token: 1)
    one.issue()
    assert other.peek(made).state == "issued"
