"""What each exception becomes: of the API (tests/test_error_shape.py holds what callers see), and outside it.

There, a browser gets a page that says what to do, and a program the JSON of every other error.
"""

from __future__ import annotations

from typing import Any

import pytest
from django.conf import LazySettings
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied as DjangoPermissionDenied
from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from django.db import OperationalError, connection
from django.http import Http404, HttpRequest
from django.test import Client, RequestFactory
from rest_framework import exceptions as drf

from accounts.tests.factories import make_staff
from aiapi.errors import as_api_error, error_body, json_error
from core import errors as api_errors
from core.telemetry.trace import begin_trace
from inference.tests.fixtures import Api, LogLines

pytestmark = pytest.mark.django_db
BROWSER = "text/html,application/xhtml+xml,*/*;q=0.8"


@pytest.mark.parametrize(
    ("exception", "kind"),
    [
        (api_errors.UpstreamTimeout(), api_errors.UpstreamTimeout),
        (drf.NotAuthenticated(), api_errors.KeyRequired),
        (drf.AuthenticationFailed(), api_errors.KeyInvalid),
        (drf.PermissionDenied(), api_errors.PermissionDenied),
        (DjangoPermissionDenied(), api_errors.PermissionDenied),
        (drf.NotFound(), api_errors.NotFound),
        (Http404(), api_errors.NotFound),
        (drf.MethodNotAllowed("PUT"), api_errors.MethodNotAllowed),
        (drf.NotAcceptable(), api_errors.NotAcceptable),
        (drf.UnsupportedMediaType("text/plain"), api_errors.UnsupportedMediaType),
        (RequestDataTooBig(), api_errors.BodyTooLarge),
        (drf.ParseError(), api_errors.MalformedBody),
        (SuspiciousOperation(), api_errors.MalformedBody),
        (OperationalError("secret host"), api_errors.DependencyUnavailable),
    ],
)
def test_it_translates_what_is_expected(exception: Exception, kind: type[api_errors.ApiError]) -> None:
    error = as_api_error(exception)
    assert type(error) is kind
    assert "secret" not in str(error.detail)
    assert as_api_error(RuntimeError("a bug")) is None


@pytest.mark.parametrize(
    ("detail", "errors"),
    [
        ({"field": ["one", "two"]}, {"field": ["one", "two"]}),
        ({"field": "one"}, {"field": ["one"]}),
        (["one"], {"non_field_errors": ["one"]}),
        ("one", {"non_field_errors": ["one"]}),
        ({"scopes": {0: ["one"], 2: ["two", "three"]}}, {"scopes[0]": ["one"], "scopes[2]": ["two", "three"]}),
        ({"budgets": [{}, {"model": ["one"]}]}, {"budgets[1].model": ["one"]}),
        ({"budgets": [{"non_field_errors": ["one"]}]}, {"budgets[0]": ["one"]}),
        ({"budgets": {"non_field_errors": ["one"]}}, {"budgets": ["one"]}),
        ({"outer": {"inner": {"field": ["one"]}}}, {"outer.inner.field": ["one"]}),
    ],
)
def test_it_tells_validation_errors_by_field(detail: Any, errors: dict[str, list[str]]) -> None:
    error = as_api_error(drf.ValidationError(detail))
    assert error is not None
    assert error.extra == {"errors": errors}


def test_it_writes_the_shape_of_the_platforms_own_paths_and_openais_under_v1() -> None:
    error: api_errors.ApiError = api_errors.RateLimited(retry_after=7, extra={"limit": {"name": "requests_per_minute"}})
    assert error_body(_request("/chat"), error) == {
        "detail": "Rate limit exceeded. Try again in 7 seconds.",
        "code": "rate_limited",
        "request_id": "label",
        "limit": {"name": "requests_per_minute"},
    }
    error = api_errors.InvalidRequest(errors={"temperature": ["Must be a number."]})
    told = {"message": "Must be a number.", "type": "invalid_request_error", "code": "invalid_request"}
    for path in ("/v1", "/v1/", "/v1/chat/completions", "/v1/nowhere"):
        assert error_body(_request(path), error) == {"error": {**told, "param": "temperature"}}


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (api_errors.KeyInvalid(), "invalid_request_error", "invalid_api_key"),
        (api_errors.KeyRequired(), "invalid_request_error", "invalid_api_key"),
        (api_errors.AddressDenied(), "invalid_request_error", "address_denied"),
        (api_errors.ModelNotFound(), "invalid_request_error", "model_not_found"),
        (api_errors.RateLimited(retry_after=1), "requests", "rate_limit_exceeded"),
        (api_errors.TokensLimited(), "tokens", "rate_limit_exceeded"),
        (api_errors.ConcurrencyLimited(), "requests", "rate_limit_exceeded"),
        (api_errors.TooManyFailures(), "requests", "too_many_failures"),
        (api_errors.BudgetExhausted(), "insufficient_quota", "insufficient_quota"),
        (api_errors.UpstreamFailed(), "server_error", "upstream_failed"),
        (api_errors.InternalError(), "server_error", "internal_error"),
    ],
)
def test_it_names_errors_as_openais_clients_know_them(error: api_errors.ApiError, kind: str, code: str) -> None:
    body = error_body(_request("/v1/chat/completions"), error)["error"]
    assert (body["type"], body["code"]) == (kind, code)


def test_it_makes_answers_outside_drf_as_drf_makes_them() -> None:
    answer = json_error(_request("/chat"), api_errors.Unavailable(retry_after=3))
    assert (answer.status_code, answer["Retry-After"], answer["Content-Type"]) == (503, "3", "application/json")
    assert b'", "' not in answer.content


def test_it_answers_500_outside_drf_too(api: Api, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiapi.middleware.count_attempt", lambda request, **options: 1 / 0)
    answer = api.post("/admin/login/", b"", key=None)
    assert answer.status_code == 500
    assert answer.json()["detail"] == "Internal server error"
    assert answer.json()["request_id"] == answer["X-Request-ID"]
    assert [line["exception"][0]["exc_type"] for line in log_lines() if line["event"] == "unhandled_exception"] == [
        "ZeroDivisionError"
    ]


def test_it_draws_every_error_in_the_tree_of_the_docstring() -> None:
    def below(kind: type[api_errors.ApiError]) -> list[type[api_errors.ApiError]]:
        return [kind, *(each for child in kind.__subclasses__() for each in below(child))]

    drawn = [line.lstrip("│├└─ ") for line in (api_errors.__doc__ or "").splitlines()]
    own = [kind for kind in below(api_errors.ApiError) if kind.__module__ == api_errors.__name__]
    assert len(own) > 20
    for kind in own:
        line = next((line for line in drawn if line.split(" ")[0] == kind.__name__), None)
        assert line is not None, f"{kind.__name__} is not drawn"
        if kind is not api_errors.ApiError and kind.status != getattr(kind.__base__, "status", None):
            assert line.endswith(str(kind.status))


def _request(path: str) -> HttpRequest:
    request = RequestFactory().post(path)
    request.trace = begin_trace("label")  # type: ignore[attr-defined]
    return request


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
        ("/nowhere", 404, "This page does not exist"),
        ("/admin/nowhere/", 404, "This page does not exist"),
        ("/admin/accounts/account/", 403, "Ask an administrator for it"),
    ],
)
def test_it_shows_a_page_to_a_browser(browser: Client, path: str, status: int, told: str) -> None:
    answer = browser.get(path)
    page = answer.content.decode()
    assert (answer.status_code, answer["Content-Type"]) == (status, "text/html; charset=utf-8")
    assert told in page
    assert answer["X-Request-ID"] in page
    assert ("Back to the overview" in page) is not path.startswith("/admin/")
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


def test_it_keeps_the_admin_s_menu_for_staff(browser: Client, admin_user: User) -> None:
    browser.force_login(admin_user)
    answer = browser.get("/admin/nowhere/")
    assert answer.status_code == 404
    assert all(text in answer.content.decode() for text in ("/admin/accounts/account/", "This page does not exist"))


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
    assert "The database is not responding" in answer.content.decode()


def test_it_answers_json_where_the_page_fails_too(browser: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiapi.errors.render_to_string", lambda *args, **kwargs: 1 / 0)
    answer = browser.get("/nowhere")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
