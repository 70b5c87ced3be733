"""The prices that a new installation begins with; what else is seeded is in aiapi's test_bootstrap."""

from __future__ import annotations

from decimal import Decimal

import pytest
from django.conf import LazySettings

from accounts.models import AuditEntry
from inference.fake_provider import FakeUpstream
from inference.models import Deployment, Price, Provider
from inference.seeds import listed_prices, provider_seed
from inference.tests.fixtures import MODEL


def test_it_looks_prices_up_in_dollars_per_million_tokens() -> None:
    plain = {"above_tokens": 0, "input_per_million": Decimal("0.5"), "output_per_million": Decimal("1.5")}
    assert listed_prices("gpt-3.5-turbo") == [plain]
    (price,) = listed_prices("gpt-4o-mini")
    assert 0 < price["cached_input_per_million"] < price["input_per_million"] < price["output_per_million"]
    assert [listed_prices(model) for model in ("no-such-model", "smollm2-135m-instruct")] == [[], []]


def test_it_looks_up_cache_writes_and_the_prices_of_long_prompts() -> None:
    base, long = listed_prices("claude-sonnet-4-5", "https://api.anthropic.com/v1")
    assert (base["above_tokens"], long["above_tokens"]) == (0, 200_000)
    assert base["input_per_million"] < base["cache_write_per_million"] < base["cache_write_1h_per_million"]
    assert all(long[name] > base[name] for name in base if name.endswith("_per_million"))


def test_it_enters_no_second_price(upstream: FakeUpstream) -> None:
    Price.objects.update(input_per_million=9)
    provider_seed(actor="command:test")
    price = Price.objects.get(deployment=Deployment.objects.get(upstream_name=MODEL))
    assert price.input_per_million == 9


def test_it_enters_a_price_of_0_for_what_the_fake_provider_serves_and_none_for_another_server(
    upstream: FakeUpstream, settings: LazySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.OPENAI_MODEL = "made-up"
    provider_seed(actor="command:test")
    price = Price.objects.get(deployment__upstream_name="made-up")
    assert price.input_per_million == price.output_per_million == 0
    assert price.cached_input_per_million is None
    settings.OPENAI_MODEL = "of-another"
    monkeypatch.setattr("inference.seeds.OWNER", "somebody else")
    provider_seed(actor="command:test")
    assert not Price.objects.filter(deployment__upstream_name="of-another").exists()


def test_the_local_model_s_new_port_is_no_change_in_the_audit_log(db: None, settings: LazySettings) -> None:
    settings.OPENAI_API_KEY = settings.OPENAI_BASE_URL = settings.OPENAI_MODEL = ""
    entries = []
    for port in (4001, 4002):
        settings.LOCAL_MODEL_URL = f"http://127.0.0.1:{port}/v1"
        provider_seed(actor="command:test")
        entries.append(AuditEntry.objects.count())
    assert entries[0] == entries[1]
    assert Provider.objects.get(name="local").base_url.endswith(":4002/v1")
