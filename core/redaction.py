"""Redaction of API keys in texts that are logged, stored or shown."""

from __future__ import annotations

import re

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PREFIX = "ak_"
RANDOM_LENGTH = 43
CHECKSUM_LENGTH = 6
#: A key in a text; the group is the prefix that may be shown.
_IN_TEXT = re.compile(rf"({PREFIX}(?:live|dev)_[{ALPHABET}]{{4}})[{ALPHABET}]{{{RANDOM_LENGTH + CHECKSUM_LENGTH - 4}}}")


#: The token of an invitation in a path (accounts.admin.invitations).
INVITATION = "/invitation/"
_TOKEN = re.compile(rf"({INVITATION}[^/]*/)[^/]+")


def without_keys(text: str) -> str:
    """Cut the API keys in a text down to their displayable prefix, and remove tokens of invitations from paths.

    Callers send keys in unexpected fields.
    """
    if INVITATION in text:
        text = _TOKEN.sub(r"\1…", text)
    return _IN_TEXT.sub(r"\1…", text) if PREFIX in text else text
