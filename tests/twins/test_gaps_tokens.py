"""Rules of tokens that no test held until a mutant went unnoticed; see docs/explanation/mutation.md."""

from typing import Any

import pytest

from idempo import KeyRefusedError, Memory, OneTimeToken, TokenUnknownError, idempotent


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
