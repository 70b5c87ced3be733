"""A model without a price is not free: what its calls cost is unknown, everywhere, and no budget in money allows them.

A price of 0 says that a model is free: then a spent budget does not stop it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.running import (
    AdminPage,
    Platform,
    ScriptedProvider,
    Served,
    chat,
    completion,
    running_platform,
    scripted_provider,
)

USED = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
CACHED = {**USED, "prompt_tokens_details": {"cached_tokens": 600}}


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    """Run a provider that answers what tests script."""
    with scripted_provider() as running:
        yield running


@pytest.fixture(scope="module")
def platform(prepared: Callable[[], dict[str, str]], provider: ScriptedProvider) -> Iterator[Platform]:
    """Run a platform with a model that has a price, and one that has none."""
    for model in ("priced", "unpriced", "free"):
        provider.script(model, completion("Hello", usage=USED))
    at = [provider.base_url]
    served = [Served("priced", at), Served("unpriced", at, input=None), Served("free", at, input=0, cached=0, output=0)]
    with running_platform(prepared(), served) as running:
        yield running


def deployment_id(platform: Platform, model: str) -> int:
    """Find the only deployment of a model."""
    (row,) = platform.rows(f"SELECT id FROM inference_deployment WHERE upstream_name = '{model}'")  # noqa: S608
    return int(row["id"])


def enter_price(platform: Platform, model: str, **amounts: str) -> AdminPage:
    """Enter a price as an operator does, in dollars per million tokens, and return the page that follows."""
    fields = {f"{name}_per_million": amount for name, amount in amounts.items()}
    return platform.admin.submit(f"/admin/inference/price/add/?deployment={deployment_id(platform, model)}", **fields)


def test_it_bills_cached_tokens_as_input_where_their_price_was_left_empty(
    platform: Platform, provider: ScriptedProvider
) -> None:
    provider.script("cached", completion("Hello", usage=CACHED))
    platform.add([Served("cached", [provider.base_url], input=None)], account="cached")
    enter_price(platform, "cached", input="2", output="10")
    record = platform.record(platform.ask("/v1/chat/completions", chat("cached")))
    assert record.cached_tokens == 600
    assert record.cost == 1000 * 2000 + 100 * 10_000


def test_it_takes_no_price_for_free_that_was_not_entered(platform: Platform, provider: ScriptedProvider) -> None:
    platform.add([Served("half", [provider.base_url], input=None)], account="half")
    assert "This field is required" in enter_price(platform, "half", input="2").words
    assert platform.rows("SELECT 1 FROM inference_price p JOIN inference_deployment d ON d.id = p.deployment_id"
                         " WHERE d.upstream_name = 'half'") == []  # fmt: skip
