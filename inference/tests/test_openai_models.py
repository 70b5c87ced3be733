"""GET /v1/models: what a key may use, by every name under which it may call it."""

from __future__ import annotations

import pytest

from accounts.tests.factories import make_key, make_tier
from inference.catalog import catalog
from inference.fake_provider import FakeUpstream
from inference.models import Model
from inference.tests.fixtures import MODEL, Api
from inference.tests.samples import serve

pytestmark = pytest.mark.usefixtures("upstream")


@pytest.fixture
def aliased(upstream: FakeUpstream) -> Model:
    """Make a model that has two more names."""
    return serve("large", input=2, cached_input=1, output=8, aliases=["gpt-4", "org/large:latest"]).model


def test_it_lists_each_model_once(roomy: Api, aliased: Model) -> None:
    listed = roomy.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == [MODEL, "large"]


@pytest.mark.parametrize("name", ["large", "gpt-4", "org/large:latest"])
def test_it_shows_a_model_by_any_name_under_which_it_is_called(roomy: Api, aliased: Model, name: str) -> None:
    shown = roomy.get(f"/v1/models/{name}")
    assert shown.status_code == 200
    assert shown.json() == {
        "id": name,
        "object": "model",
        "created": int(aliased.created_at.timestamp()),
        "owned_by": "openai",
        "kind": "chat",
        "aliases": ["gpt-4", "org/large:latest"],
        "context_size": aliased.context_size,
        "price": {
            "input_per_million": "2.000000000",
            "cached_input_per_million": "1.000000000",
            "cache_write_per_million": "2.000000000",
            "cache_write_1h_per_million": "2.000000000",
            "output_per_million": "8.000000000",
            "reasoning_per_million": "8.000000000",
            "per_request": "0.000000000",
            "per_search": None,
            "long_prompts": [],
        },
    }
    body = {"model": name, "messages": [{"role": "user", "content": "hi"}]}
    assert roomy.post("/v1/chat/completions", body)["X-Model"] == "large"


def test_it_knows_no_model_that_the_key_may_not_use(roomy: Api, aliased: Model) -> None:
    other = roomy.of(make_key(tier=make_tier("other", models=[MODEL])))
    for name in ("large", "gpt-4", "none"):
        answer = other.get(f"/v1/models/{name}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    Model.objects.update(is_enabled=False)
    catalog.forget()
    assert roomy.get("/v1/models/gpt-4").status_code == 404
