"""System checks: each has an id, names its variable, and tells the mend."""

from __future__ import annotations

import pytest
from django.conf import LazySettings
from django.contrib import admin
from django.core.checks import CheckMessage

from aiapi import checks, urls


@pytest.fixture
def production(settings: LazySettings) -> LazySettings:
    """Return the settings of a production."""
    settings.IS_PRODUCTION = True
    return settings


def ids(messages: list[CheckMessage]) -> list[str | None]:
    """List what the messages are known by."""
    return [message.id for message in messages]


def test_it_refuses_every_host_in_production_only(production: LazySettings) -> None:
    production.ALLOWED_HOSTS = ["api.example.com", "*"]
    assert ids(checks.check_allowed_hosts()) == ["aiapi.E002"]
    production.IS_PRODUCTION, production.SECRET_KEY = False, production.DEFAULT_SECRET_KEY
    assert not checks.check_allowed_hosts() + checks.check_secret_key()


def test_it_warns_of_workers_without_a_cache_that_they_share(settings: LazySettings) -> None:
    for workers, url, expected in ((2, "", ["aiapi.W003"]), (1, "", []), (2, "redis://cache", [])):
        settings.WEB_CONCURRENCY, settings.CACHE_URL = workers, url
        assert ids(checks.check_cache_url()) == expected


@pytest.mark.parametrize(
    ("state_url", "cache_url", "identifier", "in_production"),
    [
        ("redis://state", "redis://state:6379/0", "aiapi.W004", "aiapi.E005"),
        ("redis://state", "redis://:secret@state", "aiapi.W004", "aiapi.E005"),
        ("unix:///run/state.sock", "unix:///run/state.sock?db=0", "aiapi.W004", "aiapi.E005"),
        ("redis+cluster://node:6379", "redis://node", "aiapi.W004", "aiapi.E005"),
        ("redis://state", "redis://state/1", "aiapi.W004", "aiapi.W004"),
        ("redis://state", "redis://state?db=1", "aiapi.W004", "aiapi.W004"),
        ("redis://state", "redis://state:6380/0", None, None),
        ("redis://state", "redis://cache", None, None),
        ("redis://state", "", None, None),
    ],
)
def test_it_reports_a_cache_that_would_fill_the_state_store(
    settings: LazySettings, state_url: str, cache_url: str, identifier: str | None, in_production: str | None
) -> None:
    settings.REDIS_URL, settings.CACHE_URL = state_url, cache_url
    for is_production, expected in ((False, identifier), (True, in_production)):
        settings.IS_PRODUCTION = is_production
        assert ids(checks.check_cache_server()) == ([expected] if expected else [])


def test_it_reports_operators_who_would_get_no_mail(settings: LazySettings) -> None:
    settings.ALERT_EMAILS, settings.EMAIL_URL = ["ops@example.com"], ""
    assert ids(checks.check_alert_emails()) == ["aiapi.W002"]
    settings.EMAIL_URL = "smtp://mail.example.com"
    assert checks.check_alert_emails() == []


def test_it_finds_no_fault_in_the_admin() -> None:
    assert urls.urlpatterns, "they import the admin's classes"
    assert admin.site._registry
    assert admin.site.check(None) == []
