"""The prompts that the platform adds to what callers send.

VERSION is part of every cache key: whoever changes a prompt raises it, so that no answer to the old one is served.
"""

from __future__ import annotations

from typing import Any

VERSION = 2

SYSTEM = "You are a helpful AI assistant."
SUMMARY_SYSTEM = "You are a helpful AI assistant that writes concise summaries."
#: Sentences asked for, by the `length` of a /summarize request.
SENTENCES = {"short": "1-2 sentences", "medium": "3-4 sentences", "long": "5-6 sentences"}
SUMMARY_TEMPERATURE = 0.3

Messages = list[dict[str, Any]]


def chat_messages(message: str) -> Messages:
    """Make the messages of a /chat request."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": message}]


def summary_messages(text: str, length: str) -> Messages:
    """Make the messages of a /summarize request of a length that is a key of SENTENCES.

    The instruction comes after the text: small models then keep to it (measured on the local one).
    """
    instruction = f"{text}\n\nSummarize the text above in {SENTENCES[length]}."
    return [{"role": "system", "content": SUMMARY_SYSTEM}, {"role": "user", "content": instruction}]
