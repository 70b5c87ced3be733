"""The models that can be called: what is read, for how long it is believed, and what happens without a database."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.conf import LazySettings
from django.db import OperationalError, connection
from django.utils import timezone

from core.errors import DependencyUnavailable
from inference.catalog import Catalog, CatalogModel, default_model_name
from inference.fake_provider import FakeUpstream
from inference.models import Deployment, Model, Price, Provider
from inference.prices import Rates
from inference.tests.fixtures import MODEL
from inference.tests.samples import serve
from inference.usage import Usage


class Clock:
    """Seconds that only a test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def found(name: str) -> CatalogModel:
    """Return a model that a new catalog finds."""
    model = Catalog().find(name)
    assert model is not None
    return model


def test_it_finds_a_model_with_its_routes_and_prices(upstream: FakeUpstream) -> None:
    deployment = serve("house", upstream_name="deep/7b", input=3, cached_input=1, output=5)
    (route,) = found("house").routes
    assert (route.name, route.upstream_name, route.base_url) == ("openai/deep/7b", "deep/7b", upstream.base_url)
    assert route.api_key_variable == "OPENAI_API_KEY"
    assert route.rates == Rates(3 * 10**9, 10**9, 5 * 10**9, 3 * 10**9, 3 * 10**9, 5 * 10**9)
    deployment.prices.update(cached_input_per_million=None)  # then it costs what other input does
    assert found("house").routes[0].rates == Rates(3 * 10**9, 3 * 10**9, 5 * 10**9, 3 * 10**9, 3 * 10**9, 5 * 10**9)


def test_it_knows_nothing_of_what_is_switched_off(upstream: FakeUpstream) -> None:
    assert Catalog().find("unknown") is None
    for kind in (Deployment, Provider):
        kind.objects.update(is_enabled=False)
        assert found(MODEL).routes == ()
        kind.objects.update(is_enabled=True)
    Model.objects.update(is_enabled=False)
    assert Catalog().find(MODEL) is None


def test_it_tries_routes_in_order_and_then_by_weight_and_bounds_by_the_dearest(upstream: FakeUpstream) -> None:
    first = serve("many", upstream_name="a", input=1, cached_input=4, output=2)
    for name, order, weight in (("b", 1, 1), ("c", 0, 9), ("d", 1, 5)):
        made = Deployment.objects.create(
            model=first.model, provider=first.provider, upstream_name=name, order=order, weight=weight
        )
    Price.objects.create(deployment=made, input_per_million=3, output_per_million=Decimal("1.5"))
    model = found("many")
    assert [route.upstream_name for route in model.routes] == ["c", "a", "d", "b"]
    assert model.ceiling(100) == (4 * 10**9, 2 * 10**9, 0, 0)


def test_it_takes_the_latest_price_that_has_begun(upstream: FakeUpstream) -> None:
    deployment = serve("priced", input=1)
    now = timezone.now()
    for days, price in ((-2, 7), (1, 9)):
        amounts = {"input_per_million": price, "output_per_million": 0}
        Price.objects.create(deployment=deployment, valid_from=now + timedelta(days=days), **amounts)
    assert found("priced").routes[0].rates == Rates.of([deployment.prices.get(input_per_million=1)])


def test_a_new_price_for_all_prompts_ends_those_for_longer_ones(upstream: FakeUpstream) -> None:
    deployment = serve("stepped", input=1, output=1)
    now = timezone.now()

    def add(hours: int, above: int, price: int) -> None:
        amounts = {"input_per_million": price, "output_per_million": price}
        since = now + timedelta(hours=hours)
        Price.objects.create(deployment=deployment, valid_from=since, above_tokens=above, **amounts)

    def costs() -> list[int]:
        rates = found("stepped").routes[0].rates
        assert rates is not None
        return [rates.cost(Usage(tokens)) // tokens // 1000 for tokens in (1000, 200_000, 200_001)]

    deployment.prices.update(valid_from=now - timedelta(hours=9))
    add(-8, 200_000, 2)
    add(1, 200_000, 9)  # not yet
    assert costs() == [1, 1, 2]
    add(-7, 200_000, 3)
    assert costs() == [1, 1, 3]
    add(-6, 0, 4)
    assert costs() == [4, 4, 4]


def test_it_believes_what_it_read_for_a_second(upstream: FakeUpstream, django_assert_num_queries: Any) -> None:
    clock = Clock()
    catalog = Catalog(clock=clock)
    assert catalog.find("later") is None
    serve("later")
    with django_assert_num_queries(0):
        clock.now += 0.99
        assert catalog.find("later") is None
    clock.now += 0.01
    assert catalog.find("later") is not None


def test_it_answers_503_without_a_database_once_the_second_is_over(
    upstream: FakeUpstream, settings: LazySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    catalog = Catalog(clock=clock)
    assert catalog.find(MODEL)
    monkeypatch.setattr("inference.catalog._read_models", _fail)
    clock.now += 0.5
    assert catalog.find(MODEL)
    clock.now += 0.5
    with pytest.raises(DependencyUnavailable):
        catalog.find(MODEL)
    settings.AUTH_STALE_SECONDS = 30
    assert catalog.find(MODEL)
    clock.now += 30
    with pytest.raises(DependencyUnavailable):
        catalog.find(MODEL)


def test_it_makes_nobody_wait_behind_others_for_a_database_that_is_away(
    upstream: FakeUpstream, settings: LazySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    catalog = Catalog(clock=clock)
    assert catalog.find(MODEL)
    asked: list[float] = []

    def fail_slowly() -> None:
        asked.append(clock.now)
        time.sleep(0.2)
        raise OperationalError("no connection")

    def ask_together() -> list[bool]:
        with ThreadPoolExecutor(20) as threads:
            return list(threads.map(lambda _: catalog.find(MODEL) is not None, range(20)))

    monkeypatch.setattr("inference.catalog._read_models", fail_slowly)
    settings.AUTH_STALE_SECONDS = 30
    for _ in range(2):
        clock.now += 1
        began = time.monotonic()
        assert all(ask_together())
        assert time.monotonic() - began < 20 * 0.2 / 2
    assert len(asked) == 2, "one of them asks, once a second"
    monkeypatch.undo()
    clock.now += 1
    serve("later")
    assert catalog.find("later"), "it is back"


@pytest.mark.parametrize(
    ("key", "url", "model", "name"),
    [
        ("", "", "", "smollm2-135m-instruct"),
        ("sk", "", "", "gpt-3.5-turbo"),
        ("", "http://h/v1", "", "gpt-3.5-turbo"),
        ("", "", "mine", "mine"),
        ("sk", "http://h/v1", "mine", "mine"),
    ],
)
def test_it_names_the_default_model(settings: LazySettings, key: str, url: str, model: str, name: str) -> None:
    settings.OPENAI_API_KEY, settings.OPENAI_BASE_URL, settings.OPENAI_MODEL = key, url, model
    assert default_model_name() == name


def _fail() -> None:
    raise OperationalError


@pytest.mark.django_db(transaction=True)
def test_it_keeps_no_connection_of_the_pool_once_models_are_read() -> None:
    Catalog().models()
    assert connection.vendor == "sqlite" or connection.connection is None
