"""Which budgets the dashboard looks at when there are more than it can."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from accounts.limits.types import Amount
from accounts.models import Account, ModelBudget
from accounts.services import api_key_create, api_key_rotate
from accounts.tests.factories import ACTOR, IssuedKey, logged_in, make_account, make_admin, make_key, make_tier
from monitoring.models import Rollup
from monitoring.tests.samples import recorded
from operations.dashboard import limits
from operations.dashboard.limits import MANY, budgeted_accounts, budgeted_keys, limits_nearly_reached, model_budgets

pytestmark = pytest.mark.django_db

USED = {
    "idle": None,
    "cheap": Amount(5, 0),
    "wordy": Amount(900, 0),
    "dear": Amount(1, 1000),
    "dearest": Amount(1, 10**9),
}


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it look at three of each."""
    monkeypatch.setattr(limits, "MOST", 3)


def use(issued: IssuedKey, *, cost: int = 0, tokens: int = 1, model: str = "m") -> None:
    """Use so much of this month."""
    recorded(issued, model=model, cost=cost, input_tokens=tokens, output_tokens=0)


@pytest.fixture
def keys() -> dict[str, IssuedKey]:
    """Make accounts with budgets of all kinds, whose keys used as much as their names say."""
    tier, made = make_tier("t"), {}
    for name, used in USED.items():
        account = make_account(name, monthly_token_budget=1000)
        made[name] = make_key(account=account, name=name, tier=tier, monthly_token_budget=1000)
        ModelBudget.objects.create(account=account, model="m", monthly_token_budget=1000)
        if used is not None:
            use(made[name], cost=used.cost, tokens=used.tokens)
    use(make_key(account=make_account("unbudgeted"), tier=tier), cost=10**12)
    return made


def chosen() -> list[set[str]]:
    """Name the accounts of what it looks at: accounts, keys and budgets for a model."""
    now = timezone.now()
    (accounts, _), (keys, _), (budgets, _) = budgeted_accounts(now), budgeted_keys(now), model_budgets(now)
    owners = accounts, [key.account for key in keys], [budget.account for budget in budgets]
    return [{account.name for account in each if account} for each in owners]


def test_it_looks_at_those_who_used_most(keys: dict[str, IssuedKey]) -> None:
    assert chosen() == [{"dear", "dearest", "wordy"}] * 3
    near = limits_nearly_reached(timezone.now())
    assert [each.owner for each in near.limits] == ["wordy", "wordy", "wordy / wordy"]
    assert near.notes == [MANY]
    assert MANY in logged_in(make_admin()).get("/admin/").content.decode()
    use(keys["idle"], cost=10**12, model="another")
    assert chosen() == [{"idle", "dear", "dearest"}, {"idle", "dear", "dearest"}, {"dear", "dearest", "wordy"}]


def test_it_says_nothing_of_few_and_where_the_others_used_nothing(keys: dict[str, IssuedKey]) -> None:
    Rollup.objects.filter(account_name__in=["wordy", "cheap"]).delete()
    assert chosen() == [{"dear", "dearest"}] * 3
    assert limits_nearly_reached(timezone.now()).notes == []
    Account.objects.filter(name__in=["idle", "cheap"]).update(is_active=False)
    ModelBudget.objects.filter(account__is_active=False).delete()
    assert chosen() == [{"dear", "dearest", "wordy"}] * 3
    assert limits_nearly_reached(timezone.now()).notes == []


def test_it_counts_what_replaced_keys_and_the_keys_that_a_key_made_used(keys: dict[str, IssuedKey]) -> None:
    successor, _ = api_key_rotate(key=keys["dearest"].key, grace=timedelta(0), actor=ACTOR)
    assert successor in budgeted_keys(timezone.now())[0]
    maker = keys["idle"].key
    made, _ = api_key_create(account=maker.account, tier=maker.tier, name="made", actor=ACTOR, maker=maker)
    below, plain = api_key_create(account=maker.account, tier=maker.tier, name="below", actor=ACTOR, maker=made)
    use(IssuedKey(below, plain), cost=10**12, tokens=950)
    assert maker in budgeted_keys(timezone.now())[0]
    assert "idle / idle" in {each.owner for each in limits_nearly_reached(timezone.now()).limits}


def test_it_tells_a_model_s_budget_as_the_newest_key_has_it(keys: dict[str, IssuedKey]) -> None:
    key = keys["wordy"].key
    ModelBudget.objects.exclude(account__name="wordy").delete()
    ModelBudget.objects.create(key=key, model="m", monthly_token_budget=1000)
    successor, _ = api_key_rotate(key=key, grace=timedelta(hours=1), actor=ACTOR)
    successor.model_budgets.update(monthly_token_budget=100_000)
    assert {budget.key for budget in model_budgets(timezone.now())[0]} == {None, successor}
    Account.objects.filter(name="wordy").update(is_active=False)
    assert model_budgets(timezone.now())[0] == []
