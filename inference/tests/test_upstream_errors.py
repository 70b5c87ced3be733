"""What a provider's failures mean to the caller: the documented status, a cause in the log, no word of the provider.

tests/test_fault_matrix.py proves what each of them is billed, plain and streamed; test_protocols how usage is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx2
import pytest
from django.conf import LazySettings, settings

from inference.catalog import catalog
from inference.fake_provider import LEAK_MARKER, FakeUpstream
from inference.models import Provider
from inference.tests.fixtures import MODEL, PROMPT, PROVIDER_SECRET, Api, LogLines, Records
from inference.tests.samples import odd_provider
from inference.upstream import errors
from inference.upstream.errors import retry_after_seconds

#: Fault of the fake -> status, code and a part of the logged cause.
OUTCOMES = {
    "http_400": (400, "context_length_exceeded", "http 400 context_length_exceeded"),
    "http_401": (502, "upstream_failed", "http 401 invalid_api_key"),
    "http_402": (502, "upstream_failed", "the credit is used up (http 402)"),
    "http_403": (502, "upstream_failed", "http 403"),
    "http_404": (502, "upstream_failed", "http 404 model_not_found"),
    "http_408": (504, "upstream_timeout", "http 408"),
    "http_422": (400, "invalid_value", "http 422 invalid_value"),
    "http_429": (503, "upstream_busy", "http 429 rate_limit_exceeded"),
    "no_credit": (502, "upstream_failed", "the credit is used up (http 429 insufficient_quota)"),
    "http_500": (502, "upstream_failed", "http 500"),
    "http_503": (502, "upstream_failed", "http 503 overloaded"),
    "http_504": (504, "upstream_timeout", "http 504"),
    "refuse": (502, "upstream_failed", "connection"),
    "reset": (502, "upstream_failed", "Error"),
    "cut": (502, "upstream_failed", "Error"),
    "hang": (504, "upstream_timeout", "timeout"),
    "broken_json": (502, "upstream_failed", "JSONDecodeError"),
    "empty_choices": (502, "upstream_failed", ""),
    "error_event": (502, "server_error", "http 500 server_error inside a 200"),
    "error_first": (502, "server_error", "http 500 server_error inside a 200"),
    "error_usage": (502, "server_error", "http 500 server_error inside a 200"),
    "wrong_type": (502, "upstream_failed", "JSONDecodeError"),
    "content_filter": (502, "content_filtered", "content_filtered"),
}


#: A row of the table of failures in docs/faults.md.
ROW = re.compile(r"\| `(\w+)` \| [^|]+ \| (\d+) `(\w+)`[^|]* \| (yes|no) \| (yes|no) \| ([^|]+) \| (yes|no) \|")


def test_it_documents_what_follows_each_failure() -> None:
    documented = ROW.findall((settings.BASE_DIR / "docs" / "faults.md").read_text())
    table = {name: each for name, each in vars(errors).items() if isinstance(each, errors.Verdict)}
    assert documented == [
        (
            name.lower(),
            str(each.sees.status),
            each.sees.code,
            *("yes" if may else "no" for may in (each.retry, each.fallback)),
            str(each.breaker),
            "yes" if each.may_be_billed else "no",
        )
        for name, each in table.items()
    ]


@pytest.fixture(autouse=True)
def _impatient(settings: LazySettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait no longer than a test may take."""
    settings.UPSTREAM_TIMEOUT = 0.5
    monkeypatch.setattr("inference.upstream.routing.FIRST_PAUSE", 0.01)


def break_by(fake: FakeUpstream, fault: str) -> None:
    """Let every call fail."""
    fake.set(retry_after=30)  # longer than a call waits for another try
    if fault == "refuse":
        fake.refuse()
    else:
        fake.set(faults={fault: 1})


@pytest.mark.parametrize("path", ["/chat", "/summarize"])
@pytest.mark.parametrize("fault", OUTCOMES)
def test_it_turns_a_fault_into_its_documented_answer(
    api: Api, upstream: FakeUpstream, log_lines: LogLines, records: Records, fault: str, path: str
) -> None:
    break_by(upstream, fault)
    status, code, cause = OUTCOMES[fault]
    body = {"message": PROMPT} if path == "/chat" else {"text": PROMPT}
    answer = api.post(path, body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json()["request_id"] == answer["X-Request-ID"]
    assert answer["X-RateLimit-Remaining"] == "4"
    if fault == "http_429":
        assert answer["Retry-After"] == "30"
    _assert_no_leak(answer, log_lines)
    lines = [line for line in log_lines() if line["event"] == "upstream_failed"]
    assert lines, "no line tells the cause"
    assert all(cause in line["cause"] and line["request_id"] == answer["X-Request-ID"] for line in lines)
    (record,) = records()
    assert (record.status, record.error_code, record.model) == (status, code, MODEL)
    assert record.deployment == f"openai/{MODEL}"
    assert record.attempts >= 1
    assert record.id == UUID(next(line["record_id"] for line in log_lines() if line["event"] == "request"))


def test_it_answers_once_the_fault_is_over(api: Api, upstream: FakeUpstream) -> None:
    for fault in ("http_500", "reset"):
        upstream.set(faults={fault: 1})
        assert api.chat().status_code == 502
    upstream.set(faults={})
    assert api.chat().status_code == 200


def test_it_says_the_same_of_a_wrong_secret_as_of_any_failure_of_ours(
    api: Api, upstream: FakeUpstream, log_lines: LogLines
) -> None:
    upstream.set(api_key="another")
    answer = api.chat()
    assert (answer.status_code, answer.json()["detail"]) == (502, "The model provider failed to answer.")
    _assert_no_leak(answer, log_lines)


CHOICE = '{"choices": [{"message": {"content": %s}, "finish_reason": "stop"}]}'


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"null", b"1", b'"text"', b"{}", b"\xff\xfe", b"[" * 100_000, b'{"choices": ' + b"[" * 100_000,
        b'{"choices": null}', b'{"choices": {}}', b'{"choices": [null]}', b'{"choices": ["a"]}',
        b'{"choices": [{}]}', b'{"choices": [{"message": null}]}', b'{"choices": [{"message": "text"}]}',
        *((CHOICE % content).encode() for content in ("null", "1", '""', '"  "', "[]", "{}")),
    ],
)  # fmt: skip
def test_it_takes_a_senseless_answer_for_a_failure(
    api: Api, upstream: FakeUpstream, records: Records, log_lines: LogLines, body: bytes
) -> None:
    answer = _chat_with(api, body)
    assert (answer.status_code, answer.json()["code"]) == (502, "upstream_failed")
    assert [record.status for record in records()] == [502]
    assert [line for line in log_lines() if line["event"] == "upstream_failed"]


def test_it_passes_no_lone_surrogate_on_and_keeps_a_pair(api: Api, upstream: FakeUpstream) -> None:
    answer = _chat_with(api, (CHOICE % '"\\ud83d\\ude00 \\ud83d"').encode())
    assert (answer.status_code, answer.json()["response"]) == (200, "😀 \ufffd")
    assert api.chat().json()["cached"]


@pytest.mark.parametrize(
    ("status", "headers"), [(302, {"Location": "http://169.254.169.254/latest"}), (204, {}), (418, {}), (599, {})]
)
def test_it_takes_senseless_statuses_for_failures(
    api: Api, upstream: FakeUpstream, status: int, headers: Mapping[str, str]
) -> None:
    answer = _chat_with(api, (CHOICE % '"fine"').encode(), status=status, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (502, "upstream_failed")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"code": "fine_code-1"}, "fine_code-1"),
        ({"code": f"a sentence with {LEAK_MARKER}"}, "upstream_rejected"),
        ({"code": None}, "upstream_rejected"),
        ({"code": "x" * 200}, "upstream_rejected"),
        (LEAK_MARKER, "upstream_rejected"),
    ],
)
def test_it_passes_a_rejections_code_on_only_if_it_is_a_name(
    api: Api, upstream: FakeUpstream, log_lines: LogLines, error: Any, code: str
) -> None:
    body = json.dumps({"error": error}).encode()
    answer = _chat_with(api, body, status=400)
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    _assert_no_leak(answer, log_lines)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": " 7 "}, 7),
        ({"Retry-After": "1.5"}, 1.5),
        ({"Retry-After": "999999999"}, 999999999),
        ({"Retry-After-Ms": "250"}, 0.25),
        ({"Retry-After-Ms": "1500.5", "Retry-After": "1"}, 1.5005),
        ({"Retry-After": "Sun Nov  6 08:49:37 1994"}, 0),
        *(({"Retry-After": text}, 0) for text in ("0", "", "-1", "1e3", "nan", "soon", "9" * 400, "Wed, 99 Oct 2015")),
        ({}, 0),
    ],
)
def test_it_reads_how_long_a_provider_wants_to_be_left_alone(headers: dict[str, str], seconds: float) -> None:
    assert retry_after_seconds(httpx2.Headers(headers)) == seconds


@pytest.mark.parametrize("form", ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y"])
def test_it_reads_the_date_after_which_a_provider_may_be_asked(form: str) -> None:
    at = datetime.now(UTC) + timedelta(hours=2)
    assert retry_after_seconds(httpx2.Headers({"retry-after": at.strftime(form)})) == pytest.approx(7200, abs=2)


def test_it_tells_a_positive_retry_after_whatever_the_provider_said(api: Api, upstream: FakeUpstream) -> None:
    for said in ("soon", "-5", "Wed, 21 Oct 2015 07:28:00 GMT"):
        answer = _chat_with(api, b"{}", status=429, headers={"Retry-After": said})
        assert answer.status_code == 503
        assert int(answer["Retry-After"]) >= 1


def _chat_with(api: Api, body: bytes, **options: Any) -> Any:
    with odd_provider(body, **options) as url:
        Provider.objects.update(base_url=url)
        catalog.forget()
        return api.chat()


def _assert_no_leak(answer: Any, log_lines: LogLines) -> None:
    """Nothing of the provider's text, address or secret reaches the caller; nor the text or prompt the log."""
    told = answer.content.decode() + str(answer.headers)
    for part in (LEAK_MARKER, PROVIDER_SECRET, "127.0.0.1", "openai", "/v1", "Traceback"):
        assert part not in told
    logged = json.dumps(log_lines())
    for part in (LEAK_MARKER, PROVIDER_SECRET, PROMPT):
        assert part not in logged
