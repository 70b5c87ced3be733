"""What the tests of monitoring share: the cast, and the limits on an empty store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.test import Client

from accounts.limits import get_limits, reset_limits
from accounts.limits.backend import LimitBackend
from accounts.tests.factories import Cast, logged_in, make_admin, make_cast
from core.redis.client import redis_client


@pytest.fixture
def cast(db: None) -> Cast:
    """Make everybody whom a test should meet: owner, colleague, stranger, revoked, expired, disabled."""
    return make_cast()


@pytest.fixture
def site(db: None) -> Client:
    """Return a browser that is logged in to the admin as a superuser."""
    return logged_in(make_admin())


@pytest.fixture
def store(redis_url: str) -> Iterator[Any]:
    """Return a client of a real Redis that is empty."""
    client: Any = redis_client(redis_url, read_timeout=5)
    client.flushdb()
    yield client
    client.close()


@pytest.fixture
def redis_limits(store: Any) -> Iterator[LimitBackend]:
    """Return the limits, with nothing in their store."""
    reset_limits()
    yield get_limits()
    reset_limits()
