"""Errors outside the API: a browser gets a page that says what to do, a program the JSON of every other error."""

from __future__ import annotations

import pytest
from django.conf import LazySettings
from django.contrib.auth.models import User
from django.db import OperationalError, connection
from django.test import Client

from accounts.tests.factories import make_staff

pytestmark = pytest.mark.django_db
BROWSER = "text/html,application/xhtml+xml,*/*;q=0.8"


@pytest.fixture
def staff() -> User:
    """Return somebody who may enter the admin and do nothing there."""
    return make_staff()


@pytest.fixture
def browser(staff: User) -> Client:
    """Return a browser of his."""
    client = Client(headers={"Accept": BROWSER}, enforce_csrf_checks=True, raise_request_exception=False)
    client.force_login(staff)
    return client


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("/nowhere", 404, "There is nothing under this address"),
        ("/admin/nowhere/", 404, "There is nothing under this address"),
        ("/admin/accounts/account/", 403, "Ask an administrator for the permission"),
    ],
)
def test_it_shows_a_page_to_a_browser(browser: Client, path: str, status: int, told: str) -> None:
    answer = browser.get(path)
    page = answer.content.decode()
    assert (answer.status_code, answer["Content-Type"]) == (status, "text/html; charset=utf-8")
    assert told in page
    assert answer["X-Request-ID"] in page
    assert ("Back to the administration" in page) is path.startswith("/admin/")
    assert "script-src" in answer["Content-Security-Policy"]
    assert "Accept" in answer["Vary"]


def test_it_answers_json_to_a_program_and_where_only_programs_call(staff: User, browser: Client) -> None:
    client = Client(headers={"Accept": "*/*"})
    client.force_login(staff)
    answers = [client.get(path) for path in ("/nowhere", "/admin/nowhere/", "/v1/nowhere", "/chat/nowhere")]
    for answer in (*answers, browser.get("/v1/nowhere")):
        assert (answer.status_code, answer["Content-Type"]) == (404, "application/json")


def test_it_names_the_setting_to_those_whose_forms_are_refused(browser: Client) -> None:
    answer = browser.post("/admin/logout/", headers={"Origin": "https://admin.example.com"})
    assert answer.status_code == 403
    assert "CSRF_TRUSTED_ORIGINS" in answer.content.decode()


def test_it_names_the_setting_but_no_host_to_those_who_come_by_another_one(
    browser: Client, settings: LazySettings
) -> None:
    settings.ALLOWED_HOSTS = ["api.example.com"]
    answer = browser.get("/account/", headers={"Host": "evil.example.com"})
    page = answer.content.decode()
    assert answer.status_code == 400
    assert "ALLOWED_HOSTS" in page
    assert "example.com" not in page


def test_it_shows_a_page_for_a_fault_of_ours(browser: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiapi.pages.PageView.get_context_data", lambda *args, **kwargs: 1 / 0)
    answer = browser.get("/account/")
    assert answer.status_code == 500
    assert "Report the request id to your operator" in answer.content.decode()


def test_it_shows_a_page_for_a_database_that_is_away(browser: Client) -> None:
    def fail(*_: object) -> None:
        raise OperationalError

    with connection.execute_wrapper(fail):
        answer = browser.get("/admin/")
    assert (answer.status_code, answer["Retry-After"]) == (503, "1")
    assert "The database does not answer" in answer.content.decode()


def test_it_answers_json_where_the_page_fails_too(browser: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiapi.errors.render_to_string", lambda *args, **kwargs: 1 / 0)
    answer = browser.get("/nowhere")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
