"""Authenticate requests by API key, and count failed attempts by address in the cache `attempts`.

While the server of that cache is known to be down (core.redis.availability), no request waits for it. Attempts that
can't be counted are not limited; the bad key is refused all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from django.conf import settings
from django.http import HttpRequest
from django_ratelimit.core import get_usage
from django_redis.cache import RedisCache
from redis.exceptions import RedisError
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from accounts.key_cache import AuthenticatedKey, key_cache
from accounts.keys import is_well_formed
from core.errors import AddressDenied, KeyInvalid, TooManyFailures
from core.network import client_address, is_within, rate_limit_group_key
from core.redis.availability import StoreAway

log = structlog.get_logger(__name__)


def sent_key(request: HttpRequest | Request) -> str | None:
    """Return the key of a request: X-API-Key, else a bearer token, else None."""
    key = request.META.get("HTTP_X_API_KEY")
    if key:
        return str(key).strip()
    scheme, _, token = str(request.META.get("HTTP_AUTHORIZATION", "")).partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def calling_key(request: Request) -> AuthenticatedKey | None:
    """Return the key that authenticated a request; None for a session of the admin, or without authentication."""
    user: object = request.user
    return user if isinstance(user, AuthenticatedKey) else None


def authenticate_key(key: str, request: HttpRequest) -> AuthenticatedKey:
    """Return the identity of the key that a request sent.

    Raises KeyInvalid for a key that is not usable, TooManyFailures for a bad key from an address that sent too many of
    them, AddressDenied for a key that is restricted to other addresses, and DependencyUnavailable if the database is
    down.
    """
    identity = key_cache.find(key) if is_well_formed(key) else None
    if identity is None:
        # Only further bad keys are blocked, never a good one from that address.
        count_attempt(request, group="failed-keys", rate=settings.FAILED_KEY_RATE)
        raise KeyInvalid
    if identity.networks and not is_within(client_address(request), identity.networks):
        raise AddressDenied
    return identity


class ApiKeyAuthentication(BaseAuthentication):
    """DRF authentication by API key; sets `request.user` to an AuthenticatedKey."""

    def authenticate(self, request: Request) -> tuple[AuthenticatedKey, None] | None:
        """Return the identity, or raise as authenticate_key does; None without a key, so that another class may try."""
        key = sent_key(request)
        if not key:
            return None
        return authenticate_key(key, request._request), None

    def authenticate_header(self, request: Request) -> str:
        """Return the value of WWW-Authenticate."""
        return 'Bearer realm="api"'


def count_attempt(request: HttpRequest, *, group: str, rate: str) -> None:
    """Count an attempt against the client's address; raises TooManyFailures above the rate.

    The error's `retry_after` is `time_left` + 1, because a window of django-ratelimit begins anew a second after
    `time_left` is 0.
    """
    usage = get_usage(request, group=group, key=rate_limit_group_key, rate=rate, increment=True)
    if usage is not None and usage["should_limit"]:
        raise TooManyFailures(retry_after=usage["time_left"] + 1)


class AttemptsCache(RedisCache):  # type: ignore[misc]  # django-redis is not typed
    """Redis as a counter of attempts; returns None while it is down."""

    def add(self, *args: Any, **kwargs: Any) -> Any:
        """Create a counter."""
        return self._ask(lambda: super(AttemptsCache, self).add(*args, **kwargs))

    def incr(self, *args: Any, **kwargs: Any) -> Any:
        """Increment a counter; raises ValueError if it does not exist."""
        return self._ask(lambda: super(AttemptsCache, self).incr(*args, **kwargs))

    def get(self, *args: Any, **kwargs: Any) -> Any:
        """Return a counter."""
        return self._ask(lambda: super(AttemptsCache, self).get(*args, **kwargs))

    def _ask(self, method: Callable[[], Any]) -> Any:
        try:
            return method()
        except (RedisError, OSError) as error:
            if not isinstance(error, StoreAway) or error.sent:
                log.warning("attempts_not_counted", cause=type(error).__name__)
            return None
