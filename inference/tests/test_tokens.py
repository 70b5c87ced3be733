"""Counting tokens where a provider doesn't say."""

from __future__ import annotations

import pytest

from inference.protocols.base import count_tokens

#: The example, and its counts, of the OpenAI cookbook's "How to count tokens with tiktoken".
TEXT = "お誕生日おめでとう"
OLDER, NEWER = 9, 8


@pytest.mark.parametrize(
    "model", ["gpt-3.5-turbo", "gpt-4", "gpt-4-turbo", "text-embedding-3-small", "davinci-002", "babbage-002"]
)
def test_it_counts_older_models_by_their_own_encoding(model: str) -> None:
    assert count_tokens([TEXT], model=model) == OLDER


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4.1-mini", "o3", "gpt-5", "llama-3", ""])
def test_it_counts_all_others_as_the_newer_ones_count(model: str) -> None:
    assert count_tokens([TEXT], model=model) == NEWER


def test_it_adds_texts_up() -> None:
    assert count_tokens(["hello", "", "hello"], model="gpt-4o") == 2 * count_tokens(["hello"], model="gpt-4o")
    assert count_tokens([], model="gpt-4o") == 0


def test_it_takes_what_looks_like_a_special_token_for_text() -> None:
    assert count_tokens(["<|endoftext|>"], model="gpt-4o") > 1


def test_it_counts_what_is_no_text() -> None:
    assert count_tokens(["half of a pair: \ud83d"], model="gpt-4o") > 1
