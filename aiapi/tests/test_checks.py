"""System checks: each has an id, names its variable, and tells the mend."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from django.conf import LazySettings
from django.contrib import admin
from django.core.checks import CheckMessage, run_checks

from aiapi import checks, urls
from aiapi.settings import BASE_DIR
from core.env import Environment
from launch.checks import PRODUCTION

STRONG = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRST"


@pytest.fixture
def production(settings: LazySettings) -> LazySettings:
    """Return the settings of a production that lacks nothing."""
    settings.IS_PRODUCTION, settings.SECRET_KEY, settings.ALLOWED_HOSTS = True, STRONG, ["api.example.com"]
    settings.CORS_ALLOWED_ORIGINS = []
    return settings


def found(setting: str, value: Any, settings: LazySettings) -> list[CheckMessage]:
    """Return what the project's checks say once a setting is changed."""
    setattr(settings, setting, value)
    messages = [*checks.check_secret_key(), *checks.check_allowed_hosts(), *checks.check_cors_origins()]
    assert {message.id for message in messages} <= {message.id for message in run_checks()}
    return messages


def test_it_finds_nothing_in_a_complete_production(production: LazySettings) -> None:
    assert found("IS_PRODUCTION", True, production) == []


@pytest.mark.parametrize(
    ("setting", "value", "identifier"),
    [
        ("SECRET_KEY", "short", "aiapi.E001"),
        ("ALLOWED_HOSTS", [], "aiapi.E002"),
        ("ALLOWED_HOSTS", ["api.example.com", "*"], "aiapi.E002"),
        ("CORS_ALLOWED_ORIGINS", ["*"], "aiapi.E003"),
    ],
)
def test_it_refuses_what_is_unsafe(production: LazySettings, setting: str, value: Any, identifier: str) -> None:
    (message,) = found(setting, value, production)
    assert message.id == identifier
    assert message.is_serious()
    assert setting in message.msg
    assert message.hint


def test_it_refuses_the_default_secret_in_production_only(settings: LazySettings, production: LazySettings) -> None:
    (message,) = found("SECRET_KEY", settings.DEFAULT_SECRET_KEY, production)
    assert message.id == "aiapi.E001"
    assert found("IS_PRODUCTION", False, production) == []


def test_it_warns_of_a_slip_in_a_variables_name(settings: LazySettings) -> None:
    env = Environment({"REDIS_URI": "redis://secret@host"})
    env.text("REDIS_URL")
    settings.ENV = env
    (message,) = checks.check_variable_names()
    assert (message.id, message.msg, message.hint) == (
        "aiapi.W001", "REDIS_URI is set, but not known.", "Did you mean REDIS_URL?",
    )  # fmt: skip
    assert not message.is_serious()


def test_it_is_clean_under_check_deploy_in_production() -> None:
    command = [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "WARNING"]
    done = subprocess.run(command, env=PRODUCTION, cwd=BASE_DIR, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no issues" in done.stdout


def test_it_warns_of_workers_without_a_cache_that_they_share(settings: LazySettings) -> None:
    settings.WEB_CONCURRENCY, settings.CACHE_URL = 2, ""
    assert [message.id for message in checks.check_cache_url()] == ["aiapi.W003"]
    settings.WEB_CONCURRENCY = 1
    assert checks.check_cache_url() == []
    settings.WEB_CONCURRENCY, settings.CACHE_URL = 2, "redis://cache"
    assert checks.check_cache_url() == []


@pytest.mark.parametrize(
    ("cache_url", "identifier", "in_production"),
    [
        ("redis://state:6379/0", "aiapi.W004", "aiapi.E005"),
        ("redis://:secret@state", "aiapi.W004", "aiapi.E005"),
        ("redis://state/1", "aiapi.W004", "aiapi.W004"),
        ("redis://state?db=1", "aiapi.W004", "aiapi.W004"),
        ("redis://state:6380/0", None, None),
        ("redis://cache", None, None),
        ("", None, None),
    ],
)
def test_it_reports_a_cache_that_would_fill_the_state_store(
    production: LazySettings, cache_url: str, identifier: str | None, in_production: str | None
) -> None:
    production.REDIS_URL, production.CACHE_URL = "redis://state", cache_url
    for is_production, expected in ((False, identifier), (True, in_production)):
        production.IS_PRODUCTION = is_production
        assert [message.id for message in checks.check_cache_server()] == ([expected] if expected else [])


def test_it_knows_one_socket_or_one_node_of_a_cluster_as_the_same(production: LazySettings) -> None:
    production.REDIS_URL, production.CACHE_URL = "unix:///run/state.sock", "unix:///run/state.sock?db=0"
    assert [message.id for message in checks.check_cache_server()] == ["aiapi.E005"]
    production.REDIS_URL, production.CACHE_URL = "redis+cluster://node:6379", "redis://node"
    assert [message.id for message in checks.check_cache_server()] == ["aiapi.E005"]


def test_it_reports_operators_who_would_get_no_mail(production: LazySettings) -> None:
    production.ALERT_EMAILS, production.EMAIL_URL = ["ops@example.com"], ""
    assert [message.id for message in checks.check_alert_emails()] == ["aiapi.W002"]
    production.EMAIL_URL = "smtp://mail.example.com"
    assert checks.check_alert_emails() == []


def test_it_finds_no_fault_in_the_admin() -> None:
    assert urls.urlpatterns, "they import the admin's classes"
    assert admin.site._registry
    assert admin.site.check(None) == []
