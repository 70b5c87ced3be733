"""What every answer carries, what pages of other origins may do, and how often one may try to log in."""

from __future__ import annotations

import json
import re
from uuid import UUID

import pytest
from django.conf import LazySettings
from django.core.handlers.wsgi import WSGIRequest
from django.test import Client, RequestFactory

from accounts.tests.factories import PASSWORD, make_admin
from inference.fake_provider import FakeUpstream
from inference.tests.fixtures import Api, LogLines, Records

APP = "https://app.example.com"
EXPOSED = {
    "X-Request-ID", "X-Cache", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "RateLimit",
    "RateLimit-Policy", "Retry-After",
}  # fmt: skip


@pytest.fixture
def cors(settings: LazySettings) -> LazySettings:
    """Let pages of one origin call the API."""
    settings.CORS_ALLOWED_ORIGINS = [APP]
    return settings


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/health/live", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/docs", 200),
        ("GET", "/static/site/site.css", 200),
        ("GET", "/static/none.css", 404),
        ("GET", "/nowhere", 404),
        ("GET", "/admin", 301),
        ("GET", "/admin/", 302),
        ("POST", "/chat", 401),
        ("DELETE", "/", 405),
        ("OPTIONS", "/nowhere", 404),
    ],
)
def test_it_names_and_times_every_answer(api: Api, method: str, path: str, status: int) -> None:
    answer = api.send(method, path, key=None, headers={"X-Request-ID": "mine.1"})
    assert answer.status_code == status
    assert answer["X-Request-ID"] == "mine.1"
    assert re.fullmatch(r"\d+\.\d{3}", answer["X-Process-Time"])


@pytest.mark.parametrize("label", ["a", "A-b_c.9", "x" * 64])
def test_it_keeps_a_label_that_is_well_formed(api: Api, label: str) -> None:
    assert api.get("/health/live", headers={"X-Request-ID": label})["X-Request-ID"] == label


@pytest.mark.parametrize("label", ["", "x" * 65, "two words", "semi;colon", "é", "<script>", "a\tb", "a/b"])
def test_it_makes_an_id_in_place_of_any_other_label(api: Api, label: str) -> None:
    kept = api.get("/health/live", headers={"X-Request-ID": label})["X-Request-ID"]
    assert UUID(kept).version == 7


def test_it_gives_each_request_an_id_of_its_own(api: Api) -> None:
    assert len({api.get("/health/live")["X-Request-ID"] for _ in range(20)}) == 20


def test_it_records_requests_of_one_label_apart(api: Api, upstream: FakeUpstream, records: Records) -> None:
    for _ in range(2):
        api.chat(headers={"X-Request-ID": "again"})
    assert [record.label for record in records()] == ["again", "again"]
    assert len({record.id for record in records()}) == 2


def test_it_answers_400_to_another_host_name(api: Api, settings: LazySettings) -> None:
    settings.ALLOWED_HOSTS = ["api.example.com"]
    answer = api.get("/chat", key=None, headers={"Host": "evil.example.com"})
    assert answer.status_code == 400
    assert answer.json()["code"] == "invalid_request"
    assert answer.json()["request_id"] == answer["X-Request-ID"]
    assert "evil" not in answer.content.decode()


def test_it_names_a_refused_host_in_the_log(api: Api, settings: LazySettings, log_lines: LogLines) -> None:
    settings.ALLOWED_HOSTS = ["api.example.com"]
    api.get("/chat", key=None, headers={"Host": "www.example.com"})
    (line,) = [line for line in log_lines() if line["event"] == "host_not_allowed"]
    assert (line["host"], line["level"]) == ("www.example.com", "warning")


def test_it_redirects_to_https_where_that_is_wanted_but_not_health_checks(api: Api, settings: LazySettings) -> None:
    settings.SECURE_SSL_REDIRECT = True
    # The middleware of the shared handler was made without the setting.
    client = Client()
    answer = client.get("/stats")
    assert (answer.status_code, answer["Location"]) == (301, "https://testserver/stats")
    assert answer["X-Request-ID"]
    assert client.get("/health/live").status_code == 200


def test_it_tells_other_origins_nothing_by_default(api: Api) -> None:
    answer = api.get("/health/live", headers={"Origin": APP})
    assert not [name for name in answer.headers if name.lower().startswith("access-control-")]


def test_it_answers_a_preflight_without_a_key_and_counts_nothing(
    api: Api, upstream: FakeUpstream, cors: LazySettings, records: Records
) -> None:
    asked = {
        "Origin": APP,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,x-api-key,authorization,cache-control,idempotency-key",
    }
    for path in ("/chat", "/chat/", "/summarize", "/stats"):
        answer = api.send("OPTIONS", path, key=None, headers=asked)
        assert answer.status_code == 200
        assert answer["Access-Control-Allow-Origin"] == APP
        assert "POST" in answer["Access-Control-Allow-Methods"]
        allowed = {name.strip() for name in answer["Access-Control-Allow-Headers"].split(",")}
        assert set(asked["Access-Control-Request-Headers"].split(",")) <= allowed
        assert "Access-Control-Allow-Credentials" not in answer.headers
    assert records() == []
    assert api.chat()["X-RateLimit-Remaining"] == "4"


def test_it_lets_openai_s_client_in_a_browser_send_its_headers(api: Api, cors: LazySettings) -> None:
    sent = (
        "authorization,content-type,idempotency-key,traceparent,x-stainless-arch,x-stainless-lang,x-stainless-os,"
        "x-stainless-package-version,x-stainless-retry-count,x-stainless-runtime,x-stainless-runtime-version,"
        "x-stainless-timeout,x-stainless-helper-method,openai-organization,openai-project"
    )
    asked = {"Origin": APP, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": sent}
    answer = api.send("OPTIONS", "/v1/chat/completions", key=None, headers=asked)
    assert answer["Access-Control-Allow-Origin"] == APP
    assert set(sent.split(",")) <= {name.strip() for name in answer["Access-Control-Allow-Headers"].split(",")}


def test_it_exposes_its_headers_on_answers_and_errors(api: Api, upstream: FakeUpstream, cors: LazySettings) -> None:
    origin = {"Origin": APP}
    answers = [
        api.chat(headers=origin),
        api.post("/chat", b"{", headers=origin),
        api.post("/chat", {"message": "a"}, key="wrong", headers=origin),
        api.get("/nowhere", headers=origin),
        api.get("/chat", headers=origin),
    ]
    assert [answer.status_code for answer in answers] == [200, 400, 401, 404, 405]
    for answer in answers:
        assert answer["Access-Control-Allow-Origin"] == APP
        assert {name.strip() for name in answer["Access-Control-Expose-Headers"].split(",")} >= EXPOSED
        assert "origin" in answer["Vary"].lower()


@pytest.mark.parametrize("origin", ["https://evil.example.com", "http://app.example.com", "null", APP + ".evil.com"])
def test_it_tells_unlisted_origins_nothing(api: Api, cors: LazySettings, origin: str) -> None:
    answer = api.get("/health/live", headers={"Origin": origin})
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.django_db
def test_it_limits_log_ins_by_address(settings: LazySettings) -> None:
    settings.ADMIN_LOGIN_RATE = "3/h"
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    make_admin("chief", password=PASSWORD)
    client = Client()
    attempt = {"username": "chief", "password": "wrong"}
    assert client.get("/admin/login/").status_code == 200
    assert [client.post("/admin/login/", attempt).status_code for _ in range(4)] == [200, 200, 200, 429]
    refused = client.post("/admin/login/", {**attempt, "password": PASSWORD})
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_failures")
    assert 1 <= int(refused["Retry-After"]) <= 3600
    elsewhere = client.post("/admin/login/", {**attempt, "password": PASSWORD}, REMOTE_ADDR="192.0.2.9")
    assert elsewhere.status_code == 302


def test_it_spares_calls_to_models_what_only_pages_need(api: Api, upstream: FakeUpstream) -> None:
    from aiapi.wsgi import application

    def served(request: WSGIRequest) -> tuple[str, dict[str, str], bytes]:
        heads: list[tuple[str, dict[str, str]]] = []
        answer = application(request.environ, lambda status, headers: heads.append((status, dict(headers))))
        body = b"".join(answer)
        answer.close()
        return *heads[0], body

    key = {"X-API-Key": api.key.plain}
    asked = RequestFactory().post("/chat", {"message": "Hello"}, content_type="application/json", headers=key)
    (status, call, body), (_, page, _) = served(asked), served(RequestFactory().get("/playground/"))
    assert (status, json.loads(body)["cached"], call["X-Cache"]) == ("200 OK", False, "MISS")
    assert call["Content-Length"] == str(len(body))
    assert call["X-Content-Type-Options"] == "nosniff"
    assert {"X-Request-ID", "X-Process-Time", "Cache-Control", "Vary"} <= set(call)
    assert "Content-Security-Policy" not in call
    assert "Content-Security-Policy" in page
    assert served(RequestFactory().post("/chat", headers=key | {"Host": "elsewhere.example.com"}))[0].startswith("400")
    assert served(RequestFactory().get("/v1/nowhere"))[0].startswith("404")
