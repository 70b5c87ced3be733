"""Validators of the values that operators enter for providers and models."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ValidationError

from core.network import METADATA, addresses_of, called_address

MODEL_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*\Z")
API_KEY_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*_API_KEY\Z")
HEADER_NAME = re.compile(r"[A-Za-z0-9-]+\Z")
#: Headers that the client sets itself; an operator's value would break the call or add a second secret.
RESERVED_HEADERS = frozenset({
    "accept-encoding", "authorization", "connection", "content-length", "content-type", "expect", "host", "keep-alive",
    "te", "transfer-encoding", "upgrade",
})  # fmt: skip
SECRET_HEADER = re.compile(r"key|token|secret|auth|cookie", re.IGNORECASE)


def validate_aliases(value: Any) -> None:
    """Accept a list of valid model names."""
    if not isinstance(value, list) or not all(isinstance(name, str) and MODEL_NAME.match(name) for name in value):
        raise ValidationError("Names have letters, digits and . _ : / @ - only.")


def validate_api_key_variable(name: str) -> None:
    """Accept only variables named *_API_KEY, so that no other secret of the server can be sent to a provider."""
    if not API_KEY_VARIABLE.match(name):
        raise ValidationError("Name an environment variable in capitals that ends in _API_KEY.")


def validate_extra_headers(value: Any) -> None:
    """Accept a mapping of header names to texts; a value that begins with $ must name a *_API_KEY variable."""
    if not isinstance(value, dict):
        raise ValidationError('Give headers as an object, such as {"X-Project": "blue"}.')
    for name, text in value.items():
        if not HEADER_NAME.match(name) or name.lower() in RESERVED_HEADERS:
            raise ValidationError(f"The header {name} may not be set here.")
        if not isinstance(text, str) or not text.isprintable() or not text.isascii():
            raise ValidationError(f"The value of {name} must be a text of printable ASCII characters.")
        if text.startswith("$"):
            validate_api_key_variable(text[1:])
        elif SECRET_HEADER.search(name):
            raise ValidationError(f"{name} looks like a secret: name its variable as $SOMETHING_API_KEY.")


def validate_provider_url(url: str) -> None:
    """Refuse URLs of link-local addresses, of a cloud's metadata service and, by default, of this machine.

    Names are resolved: a name with such an address is refused, a name that does not resolve is accepted (calls to it
    will fail). Private networks are allowed, because self-hosted models run there.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValidationError("Invalid URL: check its host and port.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValidationError("Give an http:// or https:// URL.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValidationError("Leave user name, password, query and fragment out of the URL.")
    with suppress(OSError, UnicodeError):
        forbidden = [address for address in addresses_of(parts.hostname) if is_forbidden_address(address)]
        if any(called_address(address).is_loopback for address in forbidden):
            raise ValidationError(
                "This is an address of the server itself. To allow providers there, set LOOPBACK_PROVIDERS=true and "
                "restart web and worker."
            )
        if forbidden:
            raise ValidationError("Link-local and metadata addresses are not allowed.")


def is_forbidden_address(text: str) -> bool:
    """Return whether an address is link-local, unspecified, multicast or a metadata service's, or loopback.

    LOOPBACK_PROVIDERS allows loopback addresses.
    """
    address = called_address(text)
    return bool(
        (address.is_loopback and not settings.LOOPBACK_PROVIDERS)
        or address.is_link_local
        or address.is_unspecified
        or address.is_multicast
        or address in METADATA
    )
