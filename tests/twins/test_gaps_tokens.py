"""Rules of tokens that no test held until a mutant went unnoticed; see docs/explanation/mutation.md."""

from typing import Any

import pytest

from idempo import (
    ConfigurationError,
    FingerprintMismatchError,
    KeyRefusedError,
    Memory,
    OneTimeToken,
    TokenUnknownError,
    idempotent,
)


def desk(**options: Any) -> tuple[OneTimeToken, Any]:
    tokens = OneTimeToken(Memory(), **options)

    @idempotent(key="{token}", using=tokens)
    def place(token: str) -> str:
        return "placed"

    return tokens, place


def test_a_token_may_have_1024_characters_and_no_more() -> None:
    longest = "x" * 1024
    tokens, place = desk(make=lambda: longest)
    assert tokens.issue() == longest
    assert place(longest) == "placed"
    with pytest.raises(KeyRefusedError, match="at most 1024 characters, and this one has 1025"):
        place(longest + "x")


@pytest.mark.parametrize(
    ("token", "shown"), [("abcd" + "x" * 16, "abcd…"), ("abcd" + "x" * 15, "…")], ids=["20", "19"]
)
def test_a_token_shows_its_first_four_characters_where_it_has_twenty(token: str, shown: str) -> None:
    _, place = desk()
    with pytest.raises(TokenUnknownError) as unknown:
        place(token)
    assert unknown.value.key == shown


@pytest.mark.parametrize(
    ("token", "named"), [("", "empty"), (1.5, "a float"), (b"t", "a bytes"), (True, "a bool")], ids=repr
)
def test_what_is_no_token_is_refused_by_its_kind(token: Any, named: str) -> None:
    tokens, _ = desk()
    with pytest.raises(KeyRefusedError, match=f"this one is {named}"):
        tokens.peek(token)


def test_a_token_that_is_one_part_of_an_argument_leaves_the_other_parts_to_be_compared() -> None:
    tokens = OneTimeToken(Memory())

    @idempotent(key="{form[token]}", using=tokens)
    def place(form: dict[str, Any]) -> str:
        return "placed"

    token = tokens.issue()
    assert place({"token": token, "amount": 1}) == "placed"
    with pytest.raises(FingerprintMismatchError, match="form"):
        place({"token": token, "amount": 2})


def test_an_operation_that_is_not_decorated_has_no_tokens_though_there_is_one_that_is() -> None:
    tokens, _ = desk()
    with pytest.raises(ConfigurationError, match="name the operation"):
        tokens.issue(operation="another")


def test_closing_a_token_closes_the_ledger_in_it() -> None:
    closed: list[str] = []

    class Closing(Memory):
        def close(self) -> None:
            closed.append("closed")

    OneTimeToken(Closing()).close()
    assert closed == ["closed"]
    OneTimeToken(Memory()).close()  # which has nothing to close


@pytest.mark.parametrize(
    ("key", "inside", "told"), [("{order}", [], True), ("{order}", [Memory()], False), ("{token}", [], False)]
)
def test_explain_says_where_a_token_stands_alone_before_another_key(
    key: str, inside: list[Any], told: bool
) -> None:
    @idempotent(key=key, using=[OneTimeToken(Memory(), key="{token}"), *inside])
    def place(token: str, order: str) -> str:
        return order

    assert ("runs once for each token: nothing remembers" in str(place.explain())) == told
