"""Checks of the lists that operators type: model names, scopes, networks."""

from __future__ import annotations

import ipaddress
from typing import Any
from unicodedata import category

from django.core.exceptions import ValidationError

#: What a key can be allowed. `keys:manage` is never implied; the others are what an empty list means.
SCOPES = ("chat", "summarize", "embeddings", "usage", "keys:manage")
DEFAULT_SCOPES = frozenset(SCOPES) - {"keys:manage"}
#: Unicode's categories of control characters, and of separators of lines and of paragraphs.
LINE_BREAKING = ("Cc", "Zl", "Zp")


def _require_texts(value: Any, what: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        raise ValidationError(f'Give {what} as a list of texts, such as ["one", "two"].')
    return value


def validate_line(text: str) -> None:
    """Accept one line of text: names stand in log lines, tables and files of usage."""
    if any(category(character) in LINE_BREAKING for character in text):
        raise ValidationError("Must be one line, without control characters.")


def validate_model_names(value: Any) -> None:
    """Accept a list of public model names; whether they exist is not asked, for models come and go."""
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
