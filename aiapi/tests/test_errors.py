"""The one handler: what each exception becomes. tests/test_error_shape.py holds what callers see of it."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import PermissionDenied as DjangoPermissionDenied
from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from django.db import OperationalError
from django.http import Http404, HttpRequest
from django.test import RequestFactory
from rest_framework import exceptions as drf

from aiapi.errors import as_api_error, error_body, json_error
from core import errors as api_errors
from core.telemetry.trace import begin_trace
from inference.tests.fixtures import Api, LogLines


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
