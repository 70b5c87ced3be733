"""Token counts for answers without a provider's usage: exact for OpenAI's models, an estimate for others."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import toktok

from core.background import LEAST_SLEEP

#: Prefixes of the names of models with the older encoding; all others are counted with the newer one.
OLDER_MODELS = ("gpt-3.5", "gpt-4-", "text-embedding", "davinci-002", "babbage-002")
#: Tokens around each message, and around the whole, in OpenAI's chat format (OpenAI cookbook, "How to count tokens").
MESSAGE_TOKENS = 3
REPLY_TOKENS = 3
#: Characters to count before other greenlets run; takes some milliseconds.
TURN = 500_000


def count_tokens(texts: Iterable[str], *, model: str) -> int:
    """Count the tokens of texts with the encoding of a model, given by its provider's name."""
    older = model == "gpt-4" or model.startswith(OLDER_MODELS)
    encoding = "cl100k_base" if older else "o200k_base"
    tokens, size, waiting = 0, 0, list[str]()
    for piece in _pieces(texts):
        if size + len(piece) > TURN:
            tokens += int(sum(toktok.batch_count(waiting, encoding, 1)))
            size, waiting = 0, []
            time.sleep(LEAST_SLEEP)
        waiting.append(piece.encode("utf-8", "replace").decode())  # replaces halves of surrogate pairs
        size += len(piece)
    return tokens + int(sum(toktok.batch_count(waiting, encoding, 1)))


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts in pieces of at most TURN characters; each cut may add a token."""
    for text in texts:
        for begin in range(0, len(text), TURN):
            yield text[begin : begin + TURN]
