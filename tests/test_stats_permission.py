"""GET /stats by a session of the admin asks for the permission that the dashboard asks for: to view request records."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.running import Admin, Platform, Served, chat, completion, running_platform, scripted_provider

SEES_RECORDS = "monitoring.view_requestrecord"


@pytest.fixture(scope="module")
def platform(prepared: Callable[[], dict[str, str]]) -> Iterator[Platform]:
    """Run the platform, and ask it once."""
    with scripted_provider() as provider:
        provider.script("m", completion("Hello"))
        with running_platform(prepared(), [Served("m", [provider.base_url])]) as running:
            assert running.ask("/v1/chat/completions", chat("m")).status == 200
            yield running


def stats(admin: Admin) -> tuple[int, dict[str, Any]]:
    """Ask for the statistics by a session."""
    status, text = admin.get("/stats")
    return status, json.loads(text)


def shows_figures(admin: Admin) -> bool:
    """Tell whether the admin's index is the dashboard."""
    return "Dashboard" in admin.page("/admin/").words


def test_it_shows_staff_without_the_permission_nothing(platform: Platform) -> None:
    staff = platform.staff("keeper", "accounts.view_apikey", "accounts.view_account")
    status, body = stats(staff)
    assert (status, body["code"]) == (403, "permission_denied")
    assert set(body) == {"detail", "code", "request_id"}
    assert not shows_figures(staff)


def test_it_shows_all_accounts_to_those_who_may_view_records(platform: Platform) -> None:
    staff = platform.staff("looker", SEES_RECORDS)
    status, body = stats(staff)
    assert (status, body["requests_by_key"]) == (200, {"e2e/e2e": 1})
    assert shows_figures(staff)


def test_it_shows_a_key_its_own_account(platform: Platform) -> None:
    assert platform.ask("/stats").json()["requests_by_key"] == {"e2e": 1}
