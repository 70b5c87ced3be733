"""Environment variables that limits depend on have an effect that a caller can see."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from pytest_django import Settings

from accounts.key_cache import build_authenticated_key
from accounts.limits import get_limits, reset_limits
from accounts.limits.backend import LimitBackend
from accounts.limits.types import SECOND, Amount, Bound, Reserved
from accounts.tests.limits_fixtures import DRAFT, an_operation
from inference.tests.fixtures import Api
from tests.silent import Silent

pytestmark = pytest.mark.django_db


def test_it_frees_what_a_dead_call_holds_after_limits_lease_seconds(api: Api, settings: Settings) -> None:
    settings.LIMITS_LEASE_SECONDS = 7
    reset_limits()
    limits = get_limits()
    scope = build_authenticated_key(api.key.key, datetime.now(UTC)).limits
    at = limits.now()
    bound = Bound(Amount(5, 5))
    granted = limits.reserve(scope, an_operation(), admitted_at=at, bound=bound, draft=DRAFT)
    assert isinstance(granted, Reserved)
    assert 6 * SECOND < granted.lease_until - at < 8 * SECOND


@pytest.fixture
def silent_redis(silent: Silent, settings: Settings) -> Iterator[None]:
    """Let the limits live in a Redis that takes connections and never answers."""
    settings.REDIS_URL = silent.redis_url
    yield
    limits = get_limits()
    assert isinstance(limits, LimitBackend)
    limits.store.is_away = False  # its mender ends
    reset_limits()


@pytest.mark.parametrize(("seconds", "least", "most"), [(0.25, 0.2, 0.9), (1.5, 1.4, 2.5)])
def test_it_waits_for_redis_no_longer_than_redis_timeout(
    api: Api, settings: Settings, silent_redis: None, seconds: float, least: float, most: float
) -> None:
    settings.REDIS_TIMEOUT = seconds
    reset_limits()
    began = time.monotonic()
    assert api.get("/usage").json()["source"] == "records"
    assert least < time.monotonic() - began < most
