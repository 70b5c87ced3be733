"""Validate what operators type into lists: model names, scopes, networks."""

from __future__ import annotations

import ipaddress
import re
from typing import Any
from unicodedata import category

from django.core.exceptions import ValidationError

#: What a key can be allowed. An empty list means all of them except `keys:manage`.
SCOPES = ("chat", "summarize", "embeddings", "usage", "keys:manage")
DEFAULT_SCOPES = frozenset(SCOPES) - {"keys:manage"}
#: Unicode categories that no name needs: control, format (direction marks, zero width), surrogates, line and paragraph
#: separators.
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
#: Invisible characters of other categories: joiners, fillers, variation selectors.
BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")


def _require_texts(value: Any, what: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        raise ValidationError(f'Give {what} as a list of strings, such as ["one", "two"].')
    return value


def validate_line(text: str) -> None:
    """Accept one line of visible characters, so that names that look the same in logs and tables are the same."""
    if BLANK.search(text) or any(category(character) in UNSEEN for character in text):
        raise ValidationError("Must be one line, without control, direction or zero-width characters.")


def validate_model_names(value: Any) -> None:
    """Accept a list of public model names. Whether they exist is not checked, because models are added and removed."""
    _require_texts(value, "model names")


def validate_scopes(value: Any) -> None:
    """Accept a list of known scopes."""
    unknown = set(_require_texts(value, "scopes")) - set(SCOPES)
    if unknown:
        raise ValidationError(f"Unknown scope: {', '.join(sorted(unknown))}. Known: {', '.join(SCOPES)}.")


def validate_networks(value: Any) -> None:
    """Accept a list of IPv4 or IPv6 addresses and networks."""
    for text in _require_texts(value, "addresses"):
        try:
            ipaddress.ip_network(text)
        except ValueError:
            raise ValidationError(f"{text} is not an address or a network (host bits must be zero).") from None
