"""Counting tokens where a provider doesn't say: exact for OpenAI's models, an estimate for others."""

from __future__ import annotations

from collections.abc import Iterable

import toktok

#: Beginnings of the names of models that use the older encoding; everything else is counted as the newer ones count.
OLDER_MODELS = ("gpt-3.5", "gpt-4-", "text-embedding", "davinci-002", "babbage-002")
#: Tokens around each message, and around the whole, in OpenAI's chat format (OpenAI cookbook, "How to count tokens").
MESSAGE_TOKENS = 3
REPLY_TOKENS = 3


def count_tokens(texts: Iterable[str], *, model: str) -> int:
    """Count the tokens of texts as a model does whose name its provider knows."""
    older = model == "gpt-4" or model.startswith(OLDER_MODELS)
    whole = [text.encode("utf-8", "replace").decode() for text in texts]  # halves of surrogate pairs are no text
    return sum(toktok.batch_count(whole, "cl100k_base" if older else "o200k_base", 1))
