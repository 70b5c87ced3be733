"""The one way of every model call: what it leaves behind, whatever becomes of it."""

from __future__ import annotations

import sys
from decimal import Decimal

import pytest
from django.conf import LazySettings

from accounts.key_cache import AuthenticatedKey, build_authenticated_key
from accounts.limits import get_limits
from accounts.tests.factories import make_account, make_key, make_tier
from inference.catalog import catalog
from inference.fake_provider import FakeUpstream
from inference.models import Deployment, Provider
from inference.tests.fixtures import MODEL, Api, LogLines, Records
from inference.tests.samples import odd_provider, serve
from monitoring.models import RequestRecord


def identity_of(api: Api) -> AuthenticatedKey:
    """Return the caller's identity as the limits know it."""
    key = api.key.key
    return build_authenticated_key(key, key.created_at)


def settled(api: Api) -> list[tuple[int, int, int]]:
    """Return tokens, cost (nano-dollars) and open slots of the caller's key and account."""
    usages = get_limits().usage(identity_of(api).limits)
    return [(each.settled.tokens, each.settled.cost, each.slots) for each in usages]


def test_it_settles_what_the_provider_bills(api: Api, upstream: FakeUpstream, records: Records) -> None:
    api.chat("hello there")
    (record,) = records()
    billed = upstream.totals()
    assert (record.input_tokens, record.output_tokens) == (billed["prompt_tokens"], billed["completion_tokens"])
    tokens = record.input_tokens + record.output_tokens
    assert settled(api) == [(tokens, int((record.cost or 0) * 10**9), 0)] * 2


@pytest.mark.parametrize("fault", ["http_401", "content_filter", "empty_choices"])
def test_it_holds_nothing_after_a_failure(api: Api, upstream: FakeUpstream, records: Records, fault: str) -> None:
    upstream.set(faults={fault: 1})
    api.chat()
    (record,) = records()
    tokens = record.input_tokens + record.output_tokens
    assert settled(api) == [(tokens, int((record.cost or 0) * 10**9), 0)] * 2


def test_it_leaves_one_record_of_each_request(api: Api, upstream: FakeUpstream, records: Records) -> None:
    api.chat()
    api.chat()
    api.chat(model="unknown")
    api.post("/chat", b"{")
    upstream.set(faults={"http_401": 1})
    api.chat("failing")
    api.chat("one too many")
    found = [(record.status, record.cache, record.error_code) for record in records()]
    assert found == [
        (200, "miss", ""),
        (200, "hit", ""),
        (404, "", "model_not_found"),
        (400, "", "malformed_body"),
        (502, "miss", "upstream_failed"),
        (429, "", "rate_limited"),
    ]
    assert len({record.id for record in records()}) == 6


def test_it_charges_no_budget_for_hits_and_refusals(api: Api, upstream: FakeUpstream) -> None:
    api.chat()
    before = settled(api)
    api.chat()
    api.post("/chat", b"{")
    api.chat(model="unknown")
    assert settled(api) == before


def test_it_refuses_what_a_budget_has_no_room_for(api: Api, upstream: FakeUpstream, records: Records) -> None:
    account = make_account(monthly_token_budget=400)
    poor = api.of(make_key(account=account, tier=make_tier("poor", max_output_tokens=50, requests_per_minute=None)))
    upstream.set(tokens=50)
    statuses = [poor.chat(f"question {number}").status_code for number in range(8)]
    assert statuses[0] == 200
    assert statuses[-1] == 429
    refused = poor.chat("another")
    assert refused.json()["code"] == "budget_exhausted"
    assert refused.json()["limit"]["name"] == "monthly_tokens"
    assert refused.json()["limit"]["owner"] == "account"
    assert int(refused["Retry-After"]) >= 1
    spent = sum(record.input_tokens + record.output_tokens for record in records())
    assert spent <= 400


def test_it_refuses_with_400_what_could_never_fit(api: Api, upstream: FakeUpstream) -> None:
    tiny = api.of(make_key(tier=make_tier("tiny", tokens_per_minute=10)))
    answer = tiny.chat()
    assert (answer.status_code, answer.json()["code"]) == (400, "bound_exceeds_limit")
    assert upstream.requests == []


def test_it_sends_the_bound_as_the_maximum(api: Api, upstream: FakeUpstream) -> None:
    short = api.of(make_key(tier=make_tier("short", max_output_tokens=17)))
    upstream.set(tokens=500)
    short.chat()
    assert upstream.requests[0].body["max_tokens"] == 17
    assert upstream.billed[0].completion_tokens == 17


def test_it_answers_502_for_a_model_that_nothing_serves(api: Api, upstream: FakeUpstream, records: Records) -> None:
    Deployment.objects.update(is_enabled=False)
    answer = api.chat()
    assert (answer.status_code, answer.json()["code"]) == (502, "upstream_failed")
    assert [record.status for record in records()] == [502]


def test_it_tells_a_bug_as_500_and_records_it(
    api: Api, upstream: FakeUpstream, records: Records, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.pipeline.share_answer", lambda *parts: 1 / 0)
    answer = api.chat()
    assert answer.status_code == 500
    assert answer.json() == {
        "detail": "Internal server error",
        "code": "internal_error",
        "request_id": answer["X-Request-ID"],
    }
    assert [line["event"] for line in log_lines()].count("unhandled_exception") == 1
    (record,) = records()
    assert (record.status, record.error_code) == (500, "internal_error")


def test_it_marks_an_overrun_and_charges_it(api: Api, upstream: FakeUpstream, records: Records) -> None:
    body = b'{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": 9000, "completion_tokens": 9000}}'
    with odd_provider(body) as url:
        _serve_at(url)
        assert api.chat().status_code == 200
    (record,) = records()
    assert record.is_overrun
    assert record.input_tokens + record.output_tokens == 18_000
    assert settled(api)[0][0] == 18_000


def test_it_takes_an_error_beside_an_answer_for_a_failure(api: Api, upstream: FakeUpstream) -> None:
    body = b'{"error": {"message": "internal"}, "choices": [{"message": {"content": "a"}, "finish_reason": "error"}]}'
    with odd_provider(body) as url:
        _serve_at(url)
        answer = api.post("/v1/chat/completions", {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_failed")
    assert b"internal" not in answer.content


@pytest.mark.parametrize("text", ["1e400", "-1e400", "NaN", "9" * 5000])
def test_it_takes_a_number_that_none_can_pass_on_for_a_failure(api: Api, upstream: FakeUpstream, text: str) -> None:
    body = b'{"choices": [{"message": {"content": "a"}, "logprobs": {"content": [{"logprob": %b}]}}]}' % text.encode()
    with odd_provider(body) as url:
        _serve_at(url)
        answer = api.post("/v1/chat/completions", {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_failed")


def test_it_rounds_costs_up_once_a_request(api: Api, upstream: FakeUpstream, records: Records) -> None:
    deployment = serve("cheap")
    deployment.prices.update(input_per_million=Decimal("0.0001"), output_per_million=Decimal("0.0001"))
    upstream.set(tokens=1)
    api.chat("x", model="cheap")
    (record,) = records()
    # 8 tokens at 0.1 nano-dollars are 0.8: one nano-dollar.
    assert record.cost == Decimal("0.000000001")


def test_it_tells_what_each_stage_took(api: Api, upstream: FakeUpstream) -> None:
    upstream.set(latency_ms=50)
    timing = dict(part.split(";dur=") for part in api.chat()["Server-Timing"].split(", "))
    assert {"limits", "cache", "upstream"} <= set(timing)
    assert 50 <= float(timing["upstream"]) < 2000
    assert float(timing["limits"]) < 1000


def test_it_uses_the_model_that_settings_name(api: Api, upstream: FakeUpstream, settings: LazySettings) -> None:
    serve("house-model")
    assert api.chat()["X-Model"] == MODEL
    settings.OPENAI_MODEL = "house-model"
    catalog.forget()
    assert api.chat()["X-Model"] == "house-model"


def test_it_keeps_records_of_others_apart(api: Api, upstream: FakeUpstream, records: Records) -> None:
    other = api.of(make_key())
    api.chat()
    other.chat()
    assert [record.account_id for record in records()] == [api.key.key.account_id, other.key.key.account_id]
    assert RequestRecord.objects.filter(account_id=api.key.key.account_id).count() == 1


def _serve_at(url: str) -> None:
    Provider.objects.update(base_url=url)
    catalog.forget()


# A caller's W3C trace reaches the provider, also where the platform sends no traces

SENT = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "vendor=1"}


def told(upstream: FakeUpstream) -> dict[str, str]:
    """Return what the provider was last told of a trace."""
    return {name: text for name, text in upstream.requests[-1].headers.items() if name in SENT}


def test_it_passes_the_callers_trace_on(api: Api, upstream: FakeUpstream) -> None:
    assert api.chat("with a trace", headers=SENT).status_code == 200
    assert told(upstream) == SENT


def test_it_passes_nothing_on_of_one_that_is_malformed_or_of_another_request(api: Api, upstream: FakeUpstream) -> None:
    api.chat("with a trace", headers=SENT)
    assert api.chat("malformed", headers={**SENT, "traceparent": "00-zz"}).status_code == 200
    assert told(upstream) == {}
    assert api.chat("without").status_code == 200
    assert told(upstream) == {}


def test_it_imports_nothing_of_opentelemetry_while_traces_are_off(api: Api, upstream: FakeUpstream) -> None:
    api.chat("without")
    assert "core.telemetry.otel" not in sys.modules
