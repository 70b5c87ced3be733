"""Counting tokens where a provider doesn't say: exact for OpenAI's models, an estimate for others."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import toktok

from core.background import LEAST_SLEEP

#: Beginnings of the names of models that use the older encoding; everything else is counted as the newer ones count.
OLDER_MODELS = ("gpt-3.5", "gpt-4-", "text-embedding", "davinci-002", "babbage-002")
#: Tokens around each message, and around the whole, in OpenAI's chat format (OpenAI cookbook, "How to count tokens").
MESSAGE_TOKENS = 3
REPLY_TOKENS = 3
#: Characters that are counted before others get their turn: some milliseconds.
TURN = 500_000


def count_tokens(texts: Iterable[str], *, model: str) -> int:
    """Count the tokens of texts as a model does whose name its provider knows."""
    older = model == "gpt-4" or model.startswith(OLDER_MODELS)
    encoding = "cl100k_base" if older else "o200k_base"
    tokens, size, waiting = 0, 0, list[str]()
    for piece in _pieces(texts):
        if size + len(piece) > TURN:
            tokens += int(sum(toktok.batch_count(waiting, encoding, 1)))
            size, waiting = 0, []
            time.sleep(LEAST_SLEEP)
        waiting.append(piece.encode("utf-8", "replace").decode())  # halves of surrogate pairs are no text
        size += len(piece)
    return tokens + int(sum(toktok.batch_count(waiting, encoding, 1)))


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """Cut texts that take too long in one go; a cut may add a token."""
    for text in texts:
        for begin in range(0, len(text), TURN):
            yield text[begin : begin + TURN]
