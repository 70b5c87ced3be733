"""What must not be shown: API keys in a text are cut down to their displayable prefix."""

from __future__ import annotations

import re

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PREFIX = "ak_"
RANDOM_LENGTH = 43
CHECKSUM_LENGTH = 6
#: A key in a text: what of it may be shown, and the rest.
_IN_TEXT = re.compile(rf"({PREFIX}(?:live|dev)_[{ALPHABET}]{{4}})[{ALPHABET}]{{{RANDOM_LENGTH + CHECKSUM_LENGTH - 4}}}")


def without_keys(text: str) -> str:
    """Cut the keys in a text down to what of them may be shown: callers put them into the strangest places."""
    return _IN_TEXT.sub(r"\1…", text) if PREFIX in text else text
