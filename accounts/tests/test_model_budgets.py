"""Budgets for single models: of keys and accounts, set by operators, held like every other budget."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from io import StringIO
from typing import Any

import pytest
from django.apps import apps
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries, DjangoCaptureOnCommitCallbacks

from accounts import services
from accounts.explain import explain_key, explanation_text
from accounts.key_cache import AuthenticatedKey, KeyCache, build_authenticated_key, key_cache, model_budgets_of
from accounts.limit_usage import refusal_error
from accounts.limits import get_limits
from accounts.limits.types import Amount, Bound, InFlight, LimitName, Refusal, Reserved
from accounts.models import Account, ApiKey, ModelBudget
from accounts.services import BudgetFor
from accounts.tests.factories import ACTOR, Cast, IssuedKey, latest, make_key
from accounts.tests.limits_fixtures import DRAFT, an_operation
from core.errors import BudgetExhausted

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _models(db: None) -> None:
    """Let there be two models, one of them with an alias."""
    models = apps.get_model("inference", "Model").objects
    models.create(public_name="gpt", aliases=["alias"])
    models.create(public_name="small")


def give(owner: Account | ApiKey, tokens: int | None = 100, cost: str | None = None, model: str = "gpt") -> ModelBudget:
    """Give a key or an account a budget for a model."""
    money = None if cost is None else Decimal(cost)
    budget = services.model_budget_set(owner=owner, budget=BudgetFor(model, tokens, money), actor=ACTOR)
    assert budget is not None
    return budget


def identity_of(key: ApiKey) -> AuthenticatedKey:
    """Take the snapshot of a key."""
    return build_authenticated_key(key, timezone.now(), model_budgets_of(key))


def call(key: ApiKey, tokens: int, model: str = "gpt", *, settles: bool = True) -> Reserved | Refusal | InFlight:
    """Reserve for a call of a model, at 1,000 nano-dollars a token, and settle it."""
    limits, scope, operation = get_limits(), identity_of(key).limits_for(model), an_operation()
    bound, at = Bound(Amount(tokens, tokens * 1_000)), limits.now()
    answer = limits.reserve(scope, operation, admitted_at=at, bound=bound, draft=DRAFT)
    if isinstance(answer, Reserved) and settles:
        limits.settle(scope, operation, admitted_at=at, used=bound.prompt, record=None)
    return answer


def refused(key: ApiKey, tokens: int, model: str = "gpt") -> Refusal:
    """Return why a call is refused."""
    answer = call(key, tokens, model)
    assert isinstance(answer, Refusal)
    return answer


class TestHolding:
    def test_it_holds_the_budget_of_a_key_and_leaves_other_models_alone(self, cast: Cast) -> None:
        give(cast.owner.key, 100)
        call(cast.owner.key, 40)
        call(cast.owner.key, 40, settles=False)
        refusal = refused(cast.owner.key, 21)
        assert (refusal.limit, refusal.subject.kind, refusal.used) == (LimitName.MONTHLY_TOKENS, "key_model", 80)
        error = refusal_error(refusal)
        assert isinstance(error, BudgetExhausted)
        told = error.extra["limit"]
        assert [told[name] for name in ("name", "owner", "model")] == ["monthly_tokens", "key model", "gpt"]
        assert (told["used"], told["limit"]) == (80, 100)
        assert isinstance(call(cast.owner.key, 20), Reserved)
        assert isinstance(call(cast.colleague.key, 100), Reserved)
        assert isinstance(call(cast.owner.key, 1_000, "small"), Reserved)

    def test_it_holds_the_budget_of_an_account_over_all_its_keys(self, cast: Cast) -> None:
        give(cast.owner.key.account, None, "0.0001")
        assert isinstance(call(cast.owner.key, 60), Reserved)
        refusal = refused(cast.colleague.key, 41)
        assert (refusal.limit, refusal.subject.kind) == (LimitName.MONTHLY_COST, "account_model")
        assert refusal.used == 60_000
        assert isinstance(call(cast.stranger.key, 100), Reserved)

    def test_it_adds_nothing_to_the_calls_of_others(self, cast: Cast) -> None:
        give(cast.owner.key, 10)
        identity, other = identity_of(cast.owner.key), identity_of(cast.stranger.key)
        assert len(identity.limits_for("gpt").subjects) == 3
        assert identity.limits_for("small") == identity.limits
        assert other.limits_for("gpt") == other.limits

    def test_it_begins_anew_from_the_records_where_a_budget_is_made_again(self, cast: Cast) -> None:
        first = give(cast.owner.key)
        services.model_budget_delete(budget=first, actor=ACTOR)
        assert give(cast.owner.key).ledger_id != first.ledger_id

    def test_it_keeps_ledger_and_budget_through_a_rotation(self, cast: Cast) -> None:
        give(cast.owner.key, 100, "1.5")
        call(cast.owner.key, 60)
        for name in ("owner", "owner-2"):
            key = ApiKey.objects.get(name=name)
            services.api_key_rotate(key=key, grace=timedelta(hours=1), actor=ACTOR)
        successor = ApiKey.objects.get(name="owner-3")
        assert refused(successor, 41).used == 60
        assert isinstance(call(successor, 40), Reserved)
        assert refused(cast.owner.key, 1).used == 100
        budget = successor.model_budgets.get()
        assert (budget.monthly_token_budget, budget.monthly_cost_budget) == (100, Decimal("1.5"))


class TestSnapshots:
    def test_it_asks_for_budgets_only_where_there_are_any(
        self, cast: Cast, django_assert_num_queries: DjangoAssertNumQueries
    ) -> None:
        ApiKey.objects.update(last_used_at=timezone.now())
        with django_assert_num_queries(1):
            assert KeyCache().find(cast.owner.plain)
        give(cast.owner.key.account)
        with django_assert_num_queries(2):
            identity = KeyCache().find(cast.colleague.plain)
        assert identity is not None
        assert [name for name, _ in identity.model_subjects] == ["gpt"]

    def test_it_takes_a_change_at_once_in_this_process(
        self, cast: Cast, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
    ) -> None:
        for budget in (BudgetFor("gpt", 1, None), BudgetFor("gpt", None, None)):
            with django_capture_on_commit_callbacks(execute=True):
                row = services.model_budget_set(owner=cast.owner.key, budget=budget, actor=ACTOR)
            identity = key_cache.find(cast.owner.plain)
            assert identity is not None
            assert len(identity.limits_for("gpt").subjects) == (3 if row else 2)


class TestSetting:
    def test_it_takes_an_alias_for_the_model_and_audits_each_change(self, cast: Cast) -> None:
        budget = give(cast.owner.key, model="alias")
        assert budget.model == "gpt"
        assert (latest().action, latest().target_type) == ("created", "budget for a model")
        assert latest().after["monthly_token_budget"] == 100
        assert give(cast.owner.key, 50, model="alias").pk == budget.pk
        assert (latest().before, latest().after) == ({"monthly_token_budget": 100}, {"monthly_token_budget": 50})
        services.model_budget_set(owner=cast.owner.key, budget=BudgetFor("gpt", None, None), actor=ACTOR)
        assert (latest().action, latest().target_id) == ("deleted", str(budget.pk))

    def test_it_refuses_what_makes_no_sense(self, cast: Cast) -> None:
        key, budget = cast.owner.key, give(cast.owner.key)
        budget.model = "small"
        for wrong, told in (
            (ModelBudget(key=key, model="gtp", monthly_token_budget=1), "No model has the name or alias gtp"),
            (ModelBudget(key=key, model="small"), "tokens, of money, or both"),
            (ModelBudget(key=key, model="gpt", monthly_token_budget=1), "already exists"),
            (ModelBudget(model="gpt", monthly_token_budget=1), "model_budget_of_key_or_account"),
            (
                ModelBudget(model="gpt", monthly_token_budget=1, key=key, account=key.account),
                "model_budget_of_key_or_account",
            ),
            (budget, "can't be changed"),
        ):
            with pytest.raises(ValidationError, match=told):
                services.model_budget_save(budget=wrong, actor=ACTOR)


class TestTelling:
    def test_it_tells_them_in_usage_and_in_explanations(self, cast: Cast) -> None:
        give(cast.owner.key, 100)
        give(cast.owner.key.account, 60, "2")
        call(cast.owner.key, 60)
        body = Client().get("/usage", **cast.owner.headers).json()  # type: ignore[arg-type]
        told = {(each["owner"], each["name"]): each for each in body["limits"] if "model" in each}
        names = ("monthly_tokens", "monthly_cost")
        assert list(told) == [(owner, name) for owner in ("key model", "account model") for name in names]
        tokens, cost = told["key model", "monthly_tokens"], told["account model", "monthly_cost"]
        assert (tokens["model"], tokens["limit"], tokens["used"], tokens["remaining"]) == ("gpt", 100, 60, 40)
        assert (cost["limit"], cost["remaining"]) == ("2.000000000", "1.999940000")
        assert len(body["limits"]) == 14
        explained = explain_key(cast.owner.key)
        assert explained.admitted, "calls of other models are"
        (note,) = explained.notes
        assert note.startswith("Calls of gpt would be refused (429 budget_exhausted): A limit of the account is")
        row = next(each for each in explained.limits if each.whose == "account model gpt" and each.name == names[0])
        assert (row.source, row.used) == ("account acme", 60)
        assert "account model gpt  monthly_tokens" in explanation_text(explained)

    def test_it_shows_them_in_the_admin(self, cast: Cast, admin_site: Client) -> None:
        key = cast.owner.key
        give(key.account, 80)
        give(key, 80)
        call(key, 60)
        page = admin_site.get(f"/admin/accounts/account/{key.account_id}/change/").content.decode()
        assert "Tokens this month, gpt" in page
        assert "60 of 80 (75 %)" in page
        page = admin_site.get(f"/admin/accounts/apikey/{key.pk}/test/").content.decode()
        assert "Tokens this month, gpt (key)" in page


@pytest.mark.parametrize("page", ["apikey", "account"])
def test_it_sets_changes_and_removes_them_in_the_admin(cast: Cast, admin_site: Client, page: str) -> None:
    owner: Any = cast.owner.key if page == "apikey" else cast.owner.key.account
    url = f"/admin/accounts/{page}/{owner.pk}/change/"

    def send(row: dict[str, Any], *, initial: int) -> Any:
        numbers = {"TOTAL_FORMS": 1, "INITIAL_FORMS": initial, "MIN_NUM_FORMS": 0, "MAX_NUM_FORMS": 9}
        inline = {f"model_budgets-{name}": value for name, value in numbers.items()}
        none = {f"api_keys-{name}": 0 for name in numbers}
        fields = {"name": owner.name, "metadata": "{}", "tier": cast.owner.key.tier_id, **none}
        dates = {f"{name}_{part}": "" for name in ("expires_at", "overrides_until") for part in (0, 1)}
        rows = {f"model_budgets-0-{name}": value for name, value in row.items()}
        return admin_site.post(url, {**fields, **dates, **inline, **rows})

    wrong = send({"model": "nothing"}, initial=0).content.decode()
    assert "No model has the name or alias nothing." in wrong
    assert send({"model": "alias", "monthly_token_budget": "70"}, initial=0).status_code == 302
    budget = owner.model_budgets.get()
    assert (budget.model, budget.monthly_token_budget, latest().actor) == ("gpt", 70, "admin:root")
    known = {"id": budget.pk, "model": "gpt"}
    assert send({**known, "monthly_token_budget": "80"}, initial=1).status_code == 302
    assert owner.model_budgets.get().monthly_token_budget == 80
    assert send({**known, "monthly_token_budget": "80", "DELETE": "on"}, initial=1).status_code == 302
    assert not owner.model_budgets.exists()
    assert latest().action == "deleted"


class TestDelegation:
    @pytest.fixture
    def manager(self, cast: Cast) -> IssuedKey:
        """Make a key that manages keys, with a budget for a model."""
        scopes = ["chat", "usage", "keys:manage"]
        manager = make_key(account=cast.owner.key.account, name="manager", scopes=scopes)
        give(manager.key, 100, "1")
        return manager

    @pytest.fixture
    def post(self, manager: IssuedKey) -> Callable[..., Any]:
        """Return what posts to /keys with that key."""

        def send(path: str = "/keys", **body: Any) -> Any:
            return Client().post(path, json.dumps(body), "application/json", **manager.headers)  # type: ignore[arg-type]

        return send

    def test_it_hands_on_the_makers_own_or_less_and_budgets_for_further_models(self, post: Callable[..., Any]) -> None:
        answer = post(name="new")
        own = {"model": "gpt", "monthly_token_budget": 100, "monthly_cost_budget": "1.000000000"}
        assert (answer.status_code, answer.json()["model_budgets"]) == (201, [own])
        wanted = [{"model": "alias", "monthly_token_budget": 40}, {"model": "small", "monthly_cost_budget": "0.5"}]
        assert post(name="less", model_budgets=wanted).json()["model_budgets"] == [
            {**own, "monthly_token_budget": 40},
            {"model": "small", "monthly_token_budget": None, "monthly_cost_budget": "0.500000000"},
        ]

    @pytest.mark.parametrize(
        "wanted",
        [
            {"model": "gpt", "monthly_token_budget": 101},
            {"model": "gpt", "monthly_cost_budget": "1.01"},
            {"model": "gpt"},
            {"model": "unknown", "monthly_token_budget": 1},
            {"model": "gpt", "monthly_token_budget": 1, "tokens": 1},
        ],
    )
    def test_it_refuses_more_and_what_makes_no_sense(self, post: Callable[..., Any], wanted: dict[str, Any]) -> None:
        answer = post(name="new", model_budgets=[wanted])
        assert answer.status_code == 400
        (field,) = answer.json()["errors"]
        assert field.partition("[")[0] == "model_budgets"
        assert not ApiKey.objects.filter(name="new").exists()

    def test_it_does_not_tell_whether_a_model_of_others_exists(self, post: Callable[..., Any]) -> None:
        ApiKey.objects.filter(name="manager").update(models=["gpt"])
        told = [
            post(name="new", model_budgets=[{"model": name, "monthly_token_budget": 1}]).json()["errors"]
            for name in ("small", "other")
        ]
        assert [json.dumps(each).replace("other", "small") for each in told] == [json.dumps(told[0])] * 2

    def test_it_rotates_no_key_with_a_larger_budget(self, cast: Cast, post: Callable[..., Any]) -> None:
        path = f"/keys/{cast.colleague.key.pk}/rotate"
        ApiKey.objects.update(scopes=["chat", "usage", "keys:manage"])
        assert "model_budgets" in post(path).json()["detail"]
        give(cast.colleague.key, 100, "1.5")
        assert post(path).status_code == 403
        give(cast.colleague.key, 100, "1")
        assert post(path).status_code == 201


def run(*arguments: str) -> str:
    """Run `key budget` for the account acme."""
    output = StringIO()
    call_command("key", "budget", "--account", "acme", *arguments, stdout=output)
    return output.getvalue()


def test_its_command_sets_and_removes_them(cast: Cast) -> None:
    told = run("--name", "owner", "--model", "alias", "--tokens", "5000", "--cost", "2.50")
    assert told.strip().endswith("may use 5,000 tokens and $2.5 of gpt a month.")
    budget = cast.owner.key.model_budgets.get()
    assert (budget.monthly_token_budget, budget.monthly_cost_budget) == (5000, Decimal("2.5"))
    run("--name", "owner", "--model", "gpt", "--remove")
    assert not ModelBudget.objects.exists()
    answer = json.loads(run("--model", "gpt", "--cost", "3", "--json"))
    assert answer == {"model": "gpt", "monthly_token_budget": None, "monthly_cost_budget": "3.000000000"}
    assert cast.owner.key.account.model_budgets.get().monthly_cost_budget == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("--model", "gpt"),
        ("--model", "gpt", "--remove", "--tokens", "1"),
        ("--model", "none", "--tokens", "1"),
        ("--model", "gpt", "--cost", "much"),
        ("--model", "gpt", "--tokens", "-1"),
    ],
)
def test_its_command_says_what_it_can_not_do(cast: Cast, arguments: tuple[str, ...]) -> None:
    with pytest.raises(CommandError):
        run(*arguments)
    assert not ModelBudget.objects.exists()
