"""`manage.py prices`: what the public list says against the prices in force, and only on demand taken over."""

from __future__ import annotations

import io
from decimal import Decimal
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from accounts.models import AuditEntry
from core.formats import NOTHING
from inference.models import Deployment, Model, Price, Provider, prices_in_force
from inference.seeds import listed_prices

pytestmark = pytest.mark.django_db
URL = "https://api.openai.com/v1"


@pytest.fixture
def deployment() -> Deployment:
    """Serve a model of OpenAI, at a price of its own and a factor."""
    provider = Provider.objects.create(name="openai", base_url=URL)
    found = Deployment.objects.create(
        model=Model.objects.create(public_name="small"), provider=provider, upstream_name="gpt-4.1-mini"
    )
    Price.objects.create(
        deployment=found, input_per_million=9, output_per_million=Decimal("1.6"), flex_factor=Decimal("0.5")
    )
    return found


def prices(*arguments: str) -> str:
    """Run the command and return what it prints."""
    output = io.StringIO()
    call_command("prices", *arguments, stdout=output)
    return output.getvalue()


def in_force(deployment: Deployment) -> dict[int, Price]:
    """Return the prices in force, by the length of prompts."""
    return {price.above_tokens: price for price in deployment.prices.filter(prices_in_force(timezone.now()))}


def test_it_shows_each_difference_and_changes_nothing(deployment: Deployment) -> None:
    own = Provider.objects.create(name="own", base_url="https://gpu.example.com/v1")
    Deployment.objects.create(model=deployment.model, provider=own, upstream_name="our-model")
    listed = listed_prices("gpt-4.1-mini", URL)[0]
    printed = prices("diff")
    assert f"input per million: $9.00 here, ${listed['input_per_million']:.2f} listed" in printed
    assert "output per million" not in printed
    assert "Not in the list: 1 deployment." in printed
    assert Price.objects.count() == 1


def test_it_takes_over_what_is_listed_from_now_on(deployment: Deployment) -> None:
    before = timezone.now()
    assert "Updated 1 deployment." in prices("update", "--yes", "--model=small")
    price = in_force(deployment)[0]
    listed = listed_prices("gpt-4.1-mini", URL)[0]
    assert {name: getattr(price, name) for name in listed} == listed
    assert price.valid_from >= before
    assert price.flex_factor == Decimal("0.5")
    assert Price.objects.count() == 2
    assert AuditEntry.objects.filter(actor="command:prices", target_type="price").count() == 1
    assert prices("update", "--yes") == "No price differs from the list.\n"


def test_steps_come_and_go_with_the_list(deployment: Deployment) -> None:
    google = Provider.objects.create(name="google", base_url="https://generativelanguage.googleapis.com/v1beta/openai")
    found = Deployment.objects.create(model=deployment.model, provider=google, upstream_name="gemini-2.5-pro")
    listed: list[dict[str, Any]] = listed_prices("gemini-2.5-pro", google.base_url)
    assert len(listed) == 2
    Price.objects.create(deployment=found, input_per_million=1, output_per_million=1)
    Price.objects.create(deployment=found, above_tokens=7, input_per_million=2, output_per_million=2)
    printed = prices("update", "--yes")
    assert f"above 7 tokens, input per million: $2.00 here, {NOTHING} listed" in printed
    assert set(in_force(found)) == {row["above_tokens"] for row in listed}


def test_it_asks_first_and_knows_its_models(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "n")
    with pytest.raises(CommandError, match="Nothing was changed"):
        prices("update")
    assert Price.objects.count() == 1
    with pytest.raises(CommandError, match="No model is named none"):
        prices("diff", "--model=none")
