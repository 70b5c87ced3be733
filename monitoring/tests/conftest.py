"""What the tests of monitoring share: the cast, and the limits on a real Redis in either run of the suite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pytest_django import Settings

from accounts.limits import get_limits, reset_limits
from accounts.limits.contract import LimitBackend
from accounts.limits.redis import redis_client
from accounts.tests.factories import Cast, make_cast


@pytest.fixture
def cast(db: None) -> Cast:
    """Make everybody whom a test should meet: owner, colleague, stranger, revoked, expired, disabled."""
    return make_cast()


@pytest.fixture
def store(redis_url: str) -> Iterator[Any]:
    """Return a client of a real Redis that is empty."""
    client: Any = redis_client(redis_url, read_timeout=5)
    client.flushdb()
    yield client
    client.close()


@pytest.fixture
def redis_limits(store: Any, redis_url: str, settings: Settings) -> Iterator[LimitBackend]:
    """Keep the limits in that Redis, whatever the settings of this run say."""
    settings.REDIS_URL = redis_url
    reset_limits()
    yield get_limits()
    reset_limits()
