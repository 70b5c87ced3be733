"""From a request's headers to the identity of its key."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpRequest
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from accounts.addresses import client_address, is_within
from accounts.attempts import count_attempt
from accounts.exceptions import AddressDenied, KeyInvalid
from accounts.keys import is_well_formed
from accounts.snapshots import Identity, directory


def sent_key(request: HttpRequest | Request) -> str | None:
    """Return the key that a request carries: X-API-Key, else a bearer token, else None."""
    key = request.META.get("HTTP_X_API_KEY")
    if key:
        return str(key).strip()
    scheme, _, token = str(request.META.get("HTTP_AUTHORIZATION", "")).partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def authenticate_key(key: str, request: HttpRequest) -> Identity:
    """Find the identity of a key that a request carries.

    Raises KeyInvalid for any that is not usable, TooManyFailures for a bad key from an address that sent too many of
    them, AddressDenied for one that is restricted to other addresses, and DependencyUnavailable when the database
    can't be asked.
    """
    identity = directory.find(key) if is_well_formed(key) else None
    if identity is None:
        # Only further bad keys are blocked, never a good one from that address.
        count_attempt(request, group="failed-keys", rate=settings.FAILED_KEY_RATE)
        raise KeyInvalid
    if identity.networks and not is_within(client_address(request), identity.networks):
        raise AddressDenied
    return identity


class ApiKeyAuthentication(BaseAuthentication):
    """DRF authentication by API key; `request.user` becomes an Identity."""

    def authenticate(self, request: Request) -> tuple[Identity, None] | None:
        """Return the identity, or raise as authenticate_key does; None without a key, for another class to try."""
        key = sent_key(request)
        if not key:
            return None
        identity = authenticate_key(key, request._request)
        request._request.identity = identity  # type: ignore[attr-defined]  # for headers, log and record
        return identity, None

    def authenticate_header(self, request: Request) -> str:
        """Name the scheme for WWW-Authenticate."""
        return 'Bearer realm="api"'
