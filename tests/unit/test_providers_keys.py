"""Keys are told from placeholders, chosen by label, and never found in any text."""

from __future__ import annotations

import random
import string

import pytest

from localfirst.providers.keys import (
    HIDDEN,
    chosen,
    is_sendable,
    looks_like_placeholder,
    redacted,
    usable,
)
from localfirst.settings import Secret


@pytest.mark.parametrize(
    "value",
    [
        "", "   ", "gsk_xxx...", "gsk_xxxxxxxxxxxxxxxxxxxx", "sk-...", "sk-", "tu_clave",
        "your_key_here", "YOUR_API_KEY", "your-api-key", "<your key>", "<key>", "${GROQ_API_KEY}",
        "{{key}}", "changeme", "change-me", "placeholder", "sk-your-key", "hf_xxxxxxxx", "…",
        "OPENAI_API_KEY", "insert-key-here", "sk-00000000000000000", "none", "null", "test",
        "***", "sk-ant-api03-...", "'sk-xxx'", "my-secret-key-placeholder", "example",
    ],
)  # fmt: skip
def test_what_templates_say_is_no_key(value: str) -> None:
    assert looks_like_placeholder(value)


@pytest.mark.parametrize(
    "value",
    ["sk-1234567890abcdef", "gsk_Ab3dEf6h", "test-key-1", "AIzaSyD4x0Xq", "hf_abcDEFghi",
     "0f9e8d7c-1234-4abc-9def-001122334455"],
)  # fmt: skip
def test_what_may_be_a_key_is_one(value: str) -> None:
    assert not looks_like_placeholder(value)


def test_what_is_too_short_or_says_the_same_over_and_over_is_no_key() -> None:
    assert [looks_like_placeholder(one) for one in ("sk-ab1", "sk-ab1c")] == [True, False]
    assert [looks_like_placeholder(one) for one in ("abABabab", "abcabcab")] == [True, False]


def test_random_keys_are_never_taken_for_placeholders() -> None:
    dice = random.Random(20261120)
    letters = string.ascii_letters + string.digits
    prefixes = ("sk-", "gsk_", "hf_", "AIza", "sk-ant-api03-", "nvapi-", "")
    made = [dice.choice(prefixes) + "".join(dice.choices(letters, k=48)) for _ in range(20_000)]
    taken = [value for value in made if looks_like_placeholder(value)]
    assert taken == []


@pytest.mark.parametrize("value", ["", "a b", "a\nb", "a\r\nx: y", "schlüssel", "a\0b", "a\tb"])
def test_what_would_break_a_header_is_never_sent(value: str) -> None:
    assert not is_sendable(value)
    assert usable([Secret(value, "K")], own_server=True) == ()


def test_the_users_own_server_may_take_any_word() -> None:
    given = [Secret("EMPTY", "A"), Secret("none", "B")]
    assert len(usable(given, own_server=True)) == 2
    assert [secret.label for secret in usable(given)] == ["A"]


def test_a_label_chooses_its_key() -> None:
    first, second = Secret("one", "A"), Secret("two", "B")
    assert chosen([first, second], "B") is second
    assert chosen([first, second], "") is first
    assert chosen([first, second], "gone") is first
    assert chosen([], "A") is None


def test_keys_are_taken_out_of_texts() -> None:
    secrets = [Secret("sk-canary-1", "A"), Secret("ab", "B")]
    text = b"Incorrect API key provided: sk-canary-1. about"
    assert redacted(text, secrets) == b"Incorrect API key provided: " + HIDDEN + b". about"
    short = [Secret("about.", "A"), Secret("about", "B")]
    assert redacted(b"about. about", short) == HIDDEN + b" about"
