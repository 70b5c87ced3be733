"""`manage.py reprice`: costs of past calls by the prices that now stand, in records, sums and ledgers alike."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from accounts.models import AuditEntry
from accounts.tests.factories import make_key
from inference.catalog import catalog
from inference.fake_provider import FakeUpstream
from inference.models import Deployment, Price
from inference.tests.fixtures import Api, Records
from inference.tests.samples import serve
from monitoring.models import RequestRecord, Rollup
from monitoring.tests.samples import recorded

MICRO = Decimal(1) / 1_000_000


@pytest.fixture
def deployment(upstream: FakeUpstream) -> Deployment:
    """Serve a model whose price is wrong."""
    found = serve("large", input=2, cached_input=1, output=10)
    found.prices.update(valid_from=timezone.now() - timedelta(days=40))
    return found


def right_price(deployment: Deployment, **fields: Any) -> None:
    """Enter the right price, which holds since a month ago."""
    prices = {"input_per_million": 4, "cached_input_per_million": 1, "output_per_million": 30, **fields}
    since = timezone.now() - timedelta(days=30)
    Price.objects.create(deployment=deployment, valid_from=since, **prices)
    catalog.forget()


def reprice(*arguments: str, begin: datetime | None = None, end: datetime | None = None) -> str:
    """Run the command and return what it prints."""
    now, output = timezone.now(), io.StringIO()
    span = [f"--from={(begin or now - timedelta(days=1)).isoformat()}", f"--to={(end or now).isoformat()}"]
    call_command("reprice", *span, *(arguments or ["--yes"]), stdout=output)
    return output.getvalue()


def ask(api: Api, text: str = "one two three four") -> None:
    """Make a call: four tokens in, six out."""
    asked = {"model": "large", "messages": [{"role": "user", "content": text}]}
    assert api.post("/v1/chat/completions", asked).status_code == 200


def used(api: Api) -> Decimal:
    """Return the money that the key's ledger says is used."""
    limits = api.get("/usage").json()["limits"]
    return Decimal(next(each["used"] for each in limits if (each["name"], each["owner"]) == ("monthly_cost", "key")))


def rolled_up(grain: str) -> Decimal:
    """Return the cost in the rollups of a grain."""
    return sum((Decimal(row.cost) for row in Rollup.objects.filter(grain=grain)), Decimal(0)) / 10**9


def test_records_sums_and_ledgers_get_the_right_cost_once(
    roomy: Api, deployment: Deployment, upstream: FakeUpstream, records: Records
) -> None:
    upstream.set(cached_ratio=0.5)
    for _ in range(3):
        ask(roomy)
    assert [record.cost for record in records()] == [66 * MICRO] * 3
    right_price(deployment)
    printed = reprice("--dry-run")
    account = roomy.key.key.account.name
    assert f"{account}: 3 records, +$0.000372" in printed
    assert used(roomy) == 3 * 66 * MICRO
    for _ in range(2):
        printed = reprice()
        right = 2 * 4 + 2 * 1 + 6 * 30
        assert [record.cost for record in records()] == [right * MICRO] * 3
        assert used(roomy) == 3 * right * MICRO
        assert {rolled_up(grain) for grain in ("kq", "kd", "km", "ad", "pq", "pd")} == {3 * right * MICRO}
    assert "Every cost that can be computed is right." in printed
    (entry,) = AuditEntry.objects.filter(action="repriced")
    assert (entry.actor, entry.after["records"], entry.after["difference"]) == ("command:reprice", "3", "372000")


def test_a_budget_that_is_now_exceeded_refuses(roomy: Api, deployment: Deployment, records: Records) -> None:
    poor = roomy.of(make_key(account=roomy.key.key.account, name="poor", monthly_cost_budget=Decimal("0.02")))
    ask(poor)
    records()
    right_price(deployment, per_request=Decimal("0.5"))
    reprice()
    assert used(poor) > Decimal("0.5")
    refused = poor.post("/v1/chat/completions", {"model": "large", "messages": [{"role": "user", "content": "a"}]})
    assert refused.status_code in (400, 429)
    assert used(poor) > Decimal("0.5")


def test_a_cost_is_known_once_there_is_a_price(roomy: Api, deployment: Deployment, records: Records) -> None:
    Price.objects.all().delete()
    catalog.forget()
    ask(roomy)
    assert records()[0].cost is None
    right_price(deployment)
    reprice()
    assert records()[0].cost == (4 * 4 + 6 * 30) * MICRO
    assert {row.unpriced for row in Rollup.objects.all()} == {0}
    assert used(roomy) == (4 * 4 + 6 * 30) * MICRO


def test_tiers_and_long_prompts_are_repriced_as_they_were_called(
    roomy: Api, deployment: Deployment, records: Records
) -> None:
    deployment.prices.update(flex_factor=Decimal(1))
    catalog.forget()
    asked = {"model": "large", "messages": [{"role": "user", "content": "a b c d"}], "service_tier": "flex"}
    assert roomy.post("/v1/chat/completions", asked).status_code == 200
    ask(roomy, " ".join(["word"] * 12))
    records()
    right_price(deployment, flex_factor=Decimal("0.5"))
    right_price(deployment, above_tokens=10, input_per_million=100, output_per_million=100)
    reprice()
    assert [record.cost for record in records()] == [(8 + 90) * MICRO, (12 * 100 + 14 * 100) * MICRO]


def test_it_keeps_what_no_record_can_tell(deployment: Deployment) -> None:
    issued = make_key()
    own = {
        "model": "large",
        "deployment": "openai/large",
        "admitted_at": int(timezone.now().timestamp() * 10**6) - 10**8,
    }
    kept = [
        recorded(issued, **own, usage_source="bound"),
        recorded(issued, **own, usage_source="provider", attempts=2, failures="a/b: http 500 inside a 200"),
        recorded(issued, **{**own, "deployment": "gone/large"}, usage_source="provider"),
        recorded(issued, **own, usage_source="cache"),
    ]
    retried = recorded(issued, **own, usage_source="provider", attempts=2, failures="a/b: http 500")
    right_price(deployment)
    printed = reprice()
    for told in ("charged their bound", "of several billed attempts", "of a deployment that is gone"):
        assert "Kept as they are: 1 request" in printed or told in printed
        assert told in printed
    costs = {str(each.pk): each.cost for each in RequestRecord.objects.all()}
    assert len({cost for pk, cost in costs.items() if pk.replace("-", "") in {each.id for each in kept}}) == 1
    assert next(cost for pk, cost in costs.items() if pk.replace("-", "") == retried.id) != Decimal("0.000025")


def test_web_searches_are_repriced_as_they_were_counted(deployment: Deployment) -> None:
    at = int((timezone.now() - timedelta(hours=1)).timestamp() * 10**6)
    recorded(
        make_key(), model="large", deployment="openai/large", admitted_at=at, usage_source="provider", web_searches=3
    )
    costs = []
    for price in ("0.01", "0.02"):
        right_price(deployment, per_search=Decimal(price))
        reprice()
        costs.append(RequestRecord.objects.get().cost or 0)
    assert costs[1] - costs[0] == Decimal("0.03")


def test_prices_hold_for_their_time(deployment: Deployment) -> None:
    issued, now = make_key(), timezone.now()
    for days in (35, 20):
        at = int((now - timedelta(days=days)).timestamp() * 10**6)
        recorded(issued, model="large", deployment="openai/large", admitted_at=at, usage_source="provider")
    right_price(deployment)
    reprice(begin=now - timedelta(days=50))
    first, second = RequestRecord.objects.order_by("admitted_at")
    tokens = first.input_tokens - first.cached_tokens, first.cached_tokens, first.output_tokens
    assert first.cost == sum(each * price for each, price in zip(tokens, (2, 1, 10), strict=True)) * MICRO
    assert second.cost == sum(each * price for each, price in zip(tokens, (4, 1, 30), strict=True)) * MICRO


def test_it_refuses_what_it_cannot_do(deployment: Deployment) -> None:
    issued, now = make_key(), timezone.now()
    for days in (9, 2):
        at = int((now - timedelta(days=days)).timestamp() * 10**6)
        recorded(issued, model="large", deployment="openai/large", admitted_at=at, usage_source="provider")
    RequestRecord.objects.order_by("admitted_at")[0].delete()  # pruned: the sums stay
    with pytest.raises(CommandError, match="no longer has all records"):
        reprice(begin=now - timedelta(days=10))
    with pytest.raises(CommandError, match="in the future"):
        reprice(end=now + timedelta(hours=1))
    with pytest.raises(CommandError, match="must be before"):
        reprice(begin=now, end=now - timedelta(days=1))
    with pytest.raises(CommandError, match="No model is named none"):
        reprice("--model=none")
    with pytest.raises(CommandError):
        call_command("reprice", "--from=yesterday", f"--to={datetime.now(UTC).isoformat()}")


def test_it_asks_first(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    at = int((timezone.now() - timedelta(hours=1)).timestamp() * 10**6)
    recorded(make_key(), model="large", deployment="openai/large", admitted_at=at, usage_source="provider")
    right_price(deployment)
    before = RequestRecord.objects.get().cost
    monkeypatch.setattr("builtins.input", lambda _: "")
    with pytest.raises(CommandError, match="Nothing was changed"):
        reprice("--model=large")
    assert RequestRecord.objects.get().cost == before
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert "Changed 1 record." in reprice("--model=large")
