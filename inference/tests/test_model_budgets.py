"""Budgets for single models, as callers meet them."""

from __future__ import annotations

import pytest

from accounts.key_cache import build_authenticated_key, key_cache, model_budgets_of
from accounts.limits import get_limits
from accounts.limits.types import Amount
from accounts.models import public_model_name
from accounts.services import BudgetFor, model_budget_set
from accounts.tests.factories import ACTOR
from core.errors import BudgetExhausted
from inference.catalog import catalog
from inference.fake_provider import FakeUpstream
from inference.models import Deployment, Model
from inference.tests.fixtures import MODEL, Api, Records

BUDGET = 100_000


def spend(api: Api, tokens: int) -> None:
    """Let the account have used so much of the budgets for the model."""
    limits, key = get_limits(), api.key.key
    identity = build_authenticated_key(key, key.created_at, model_budgets_of(key))
    limits.usage(identity.every_limit)  # seeds the ledgers
    scope, used = identity.limits_for(MODEL), Amount(tokens)
    limits.settle(scope, "0" * 32, admitted_at=limits.now(), used=used, record=None)


@pytest.fixture
def other_model(upstream: FakeUpstream) -> str:
    """Make a second model at the same provider, and give the first an alias."""
    first = Deployment.objects.get(model__public_name=MODEL)
    Model.objects.filter(public_name=MODEL).update(aliases=["smart"])
    other = Model.objects.create(public_name="other")
    Deployment.objects.create(model=other, provider=first.provider, upstream_name=MODEL)
    catalog.forget()
    return "other"


@pytest.mark.parametrize("owner", ["key", "account"])
@pytest.mark.parametrize("name", [MODEL, "smart"])
def test_it_refuses_a_model_whose_budget_is_used_up_by_any_of_its_names(
    api: Api, other_model: str, records: Records, owner: str, name: str
) -> None:
    holder = api.key.key if owner == "key" else api.key.key.account
    model_budget_set(owner=holder, budget=BudgetFor("smart", BUDGET, None), actor=ACTOR)
    key_cache.forget()
    assert api.chat(model=name).status_code == 200
    spend(api, BUDGET - 20)
    answer = api.chat("another", model=name)
    assert (answer.status_code, answer.json()["code"]) == (BudgetExhausted.status, BudgetExhausted.code)
    limit = answer.json()["limit"]
    assert (limit["name"], limit["owner"], limit["model"]) == ("monthly_tokens", f"{owner} model", MODEL)
    assert api.chat("another", model=other_model).status_code == 200
    assert [record.model for record in records() if record.status == 200] == [MODEL, other_model]


def test_it_knows_models_that_are_switched_off(api: Api, other_model: str) -> None:
    Model.objects.update(is_enabled=False)
    assert [public_model_name(name) for name in (MODEL, "smart", "other", "none")] == [MODEL, MODEL, "other", None]
