"""What a request leaves in the log: one record each, and in none of them a prompt, an answer or a secret."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from importlib import import_module
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from accounts.tests.factories import IssuedKey, make_key, make_tier
from monitoring.ingester import Ingester
from monitoring.models import RequestRecord

pytestmark = pytest.mark.django_db
PROMPT = "What is the airspeed of a swallow in the year 1974?"
MODEL = "gpt-3.5-turbo"
#: Of inference's class, which monitoring may not import.
FakeUpstream = Any
PROVIDER_SECRET = "sk-of-the-fake-provider"


@pytest.fixture(scope="module")
def upstream() -> Iterator[FakeUpstream]:
    """Run a fake provider."""
    with import_module("inference.fake_provider").FakeUpstream() as server:
        yield server


@pytest.fixture
def provider(upstream: FakeUpstream, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> FakeUpstream:
    """Set up the platform with that provider, as bootstrap does from the environment."""
    upstream.reset()
    monkeypatch.setenv("OPENAI_API_KEY", PROVIDER_SECRET)
    settings.OPENAI_BASE_URL, settings.OPENAI_API_KEY, settings.OPENAI_MODEL = upstream.base_url, PROVIDER_SECRET, MODEL
    call_command("bootstrap", verbosity=0)
    return upstream


@pytest.fixture
def key(provider: FakeUpstream) -> IssuedKey:
    """Make a key of twenty requests a minute."""
    return make_key(tier=make_tier("premium"))


def chat(issued: IssuedKey, message: Any = PROMPT, **headers: str) -> Any:
    """Ask the model."""
    body = json.dumps({"message": message})
    return Client().post("/chat", body, content_type="application/json", **issued.headers, **headers)  # type: ignore[arg-type]


def the_records() -> list[RequestRecord]:
    """Return what is in the log, in order, after what may wait in a stream has been moved."""
    Ingester().run_once()
    return list(RequestRecord.objects.order_by("id"))


def test_it_tells_who_what_and_how_much_and_bills_nothing_for_a_hit(key: IssuedKey, provider: FakeUpstream) -> None:
    began = timezone.now()
    answer = chat(key, HTTP_X_REQUEST_ID="my-label.1")
    assert chat(key)["X-Cache"] == "HIT"
    row, hit = the_records()
    (billed,) = provider.billed
    assert (row.label, row.endpoint, row.status, row.error_code) == ("my-label.1", "chat", 200, "")
    assert (row.account_id, row.account_name) == (key.key.account_id, key.key.account.name)
    assert (row.key_id, row.key_name) == (key.key.pk, key.key.name)
    assert (row.model, row.deployment) == (MODEL, f"openai/{MODEL}")
    assert (row.cache, row.usage_source, row.attempts, row.revision) == ("miss", "provider", 1, 2)
    assert (row.input_tokens, row.output_tokens) == (billed.prompt_tokens, billed.completion_tokens)
    assert row.cost == Decimal(answer["X-Cost-USD"])
    assert abs((row.admitted_at - began).total_seconds()) < 30
    assert 0 < row.latency_ms < 30_000
    assert row.id.version == 7
    assert (hit.status, hit.cache, hit.usage_source, hit.deployment) == (200, "hit", "cache", f"openai/{MODEL}")
    assert hit.cost == hit.input_tokens == hit.output_tokens == hit.attempts == 0


@pytest.mark.parametrize(
    ("fault", "status", "code", "source"),
    [
        ("http_401", 502, "upstream_failed", ""),
        ("http_429", 503, "upstream_busy", ""),
        ("http_400", 400, "context_length_exceeded", ""),
        ("content_filter", 502, "content_filtered", "provider"),
        ("empty_choices", 502, "upstream_failed", "bound"),
        ("broken_json", 502, "upstream_failed", "bound"),
        ("no_usage", 200, "", "estimated"),
    ],
)
def test_it_tells_how_a_call_failed(
    key: IssuedKey, provider: FakeUpstream, fault: str, status: int, code: str, source: str
) -> None:
    provider.set(retry_after=600)  # longer than the deadline: no second try
    provider.fail_next(fault)
    assert chat(key).status_code == status
    (row,) = the_records()
    assert (row.status, row.error_code, row.usage_source, row.attempts) == (status, code, source, 1)
    assert (row.input_tokens + row.output_tokens > 0) == bool(source)


def test_it_records_what_was_refused_before_a_call(key: IssuedKey, provider: FakeUpstream) -> None:
    assert chat(key, 42).status_code == 400
    small = make_key(account=key.key.account, tier=make_tier("tiny", requests_per_minute=1))
    assert [chat(small).status_code for _ in range(2)] == [200, 429]
    malformed, limited = the_records()[0], the_records()[-1]
    assert (malformed.status, malformed.error_code, malformed.endpoint) == (400, "invalid_request", "chat")
    assert (limited.status, limited.error_code, limited.cache) == (429, "rate_limited", "")
    assert limited.cost == limited.input_tokens == limited.output_tokens == limited.attempts == 0


@pytest.mark.usefixtures("provider")
def test_it_records_nothing_without_a_key_or_off_the_model_endpoints(key: IssuedKey) -> None:
    client = Client()
    client.post("/chat", "{}", content_type="application/json")
    client.post("/chat", "{}", content_type="application/json", HTTP_X_API_KEY="ak_dev_nobody")
    for path in ("/stats", "/health", "/", "/openapi.json", "/nowhere"):
        client.get(path, **key.headers)  # type: ignore[arg-type]
    client.get("/chat", **key.headers)  # type: ignore[arg-type]
    assert the_records() == []


@pytest.mark.parametrize("fault", ["", "http_500", "http_400", "broken_json", "content_filter"])
def test_it_keeps_no_prompt_answer_or_secret(
    key: IssuedKey, provider: FakeUpstream, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if fault:
        provider.fail_next(fault, times=10)
    answer = chat(key).json().get("response", "provider-internal-detail")
    (row,) = the_records()
    kept = " ".join(str(getattr(row, field.attname)) for field in RequestRecord._meta.concrete_fields)
    written = kept + "".join(capfd.readouterr())
    for secret in (PROMPT, answer, key.plain, key.key.digest, PROVIDER_SECRET, "provider-internal-detail"):
        assert secret not in written
