"""The prompts that the platform adds to what callers send.

VERSION is part of every cache key: whoever changes a prompt raises it, so that no answer to the old one is served.
"""

from __future__ import annotations

from typing import Any

VERSION = 1

SYSTEM = "You are a helpful AI assistant."
#: Sentences asked for, by the `length` of a /summarize request.
SENTENCES = {"short": "1-2 sentences", "medium": "3-4 sentences", "long": "5-6 sentences"}
#: The longest summary by length, in tokens: about 35 a sentence, and half of that again.
SUMMARY_TOKENS = {"short": 110, "medium": 210, "long": 320}
SUMMARY_TEMPERATURE = 0.3

Messages = list[dict[str, Any]]


def chat_messages(message: str) -> Messages:
    """Make the messages of a /chat request."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": message}]


def summary_messages(text: str, length: str) -> Messages:
    """Make the messages of a /summarize request of a length that is a key of SENTENCES."""
    instruction = f"Summarize the following text in {SENTENCES[length]}:\n\n{text}"
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": instruction}]
