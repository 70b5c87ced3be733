"""The prompts that the platform adds to callers' texts.

VERSION is part of every cache key: raise it with each change of a prompt, so that old cached answers are not served.
"""

from __future__ import annotations

from typing import Any

VERSION = 2

SYSTEM = "You are a helpful AI assistant."
SUMMARY_SYSTEM = "You are a helpful AI assistant that writes concise summaries."
#: The wording of each `length` of a /summarize request.
SENTENCES = {"short": "1-2 sentences", "medium": "3-4 sentences", "long": "5-6 sentences"}
SUMMARY_TEMPERATURE = 0.3

Messages = list[dict[str, Any]]


def chat_messages(message: str) -> Messages:
    """Return the messages of a /chat request."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": message}]


def summary_messages(text: str, length: str) -> Messages:
    """Return the messages of a /summarize request; `length` is a key of SENTENCES.

    The instruction comes after the text, because small models follow it better there (measured on the local model).
    """
    instruction = f"{text}\n\nSummarize the text above in {SENTENCES[length]}."
    return [{"role": "system", "content": SUMMARY_SYSTEM}, {"role": "user", "content": instruction}]
