"""Guards that cross the rooms: each stands where something once went wrong."""

from __future__ import annotations

import json

import pytest

from accounts.tests.factories import make_key, make_tier
from inference import pipeline
from inference.catalog import catalog
from inference.fake_provider import FakeUpstream
from inference.models import Model
from inference.tests.fixtures import MODEL, PROMPT, Api, Records

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}]}


def test_it_asks_the_default_that_operators_chose(roomy: Api, upstream: FakeUpstream) -> None:
    other = Model.objects.create(public_name="chosen", is_default=True)
    Model.objects.get(public_name=MODEL).deployments.update(model=other)
    catalog.forget()
    assert roomy.chat()["X-Model"] == "chosen"


def test_it_allows_an_alias_to_whom_the_model_is_allowed(api: Api, upstream: FakeUpstream) -> None:
    Model.objects.filter(public_name=MODEL).update(aliases=["fast"])
    catalog.forget()
    narrow = api.of(make_key(account=api.key.key.account, name="narrow", tier=make_tier("narrow", models=[MODEL])))
    other = api.of(make_key(account=api.key.key.account, name="other", tier=make_tier("other", models=["fast"])))
    assert narrow.chat(model="fast").status_code == 200
    assert other.chat(model="fast").status_code == 404


def test_it_charges_a_call_on_which_we_fail_ourselves(
    roomy: Api, upstream: FakeUpstream, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise TypeError("a fault of ours")

    monkeypatch.setattr(pipeline, "share_answer", fail)
    assert roomy.chat().status_code == 500
    (record,) = records()
    assert (record.status, record.error_code, record.usage_source) == (500, "internal_error", "provider")
    assert record.input_tokens == upstream.billed[0].prompt_tokens


@pytest.mark.parametrize(
    ("of_tier", "switch", "outcome"),
    [
        (False, None, "BYPASS"),
        (False, "1", "HIT"),
        (False, "True", "HIT"),
        (False, "0", "BYPASS"),
        (False, "perhaps", "BYPASS"),
        (True, None, "HIT"),
        (True, "perhaps", "HIT"),
        (True, "0", "BYPASS"),
        (True, "false", "BYPASS"),
    ],
)
def test_it_shares_what_may_come_out_otherwise_by_tier_or_request(
    api: Api, upstream: FakeUpstream, of_tier: bool, switch: str | None, outcome: str
) -> None:
    caller = api.of(make_key(tier=make_tier("warm", cache_any_temperature=of_tier)))
    headers = {} if switch is None else {"X-Cache-Answer": switch}
    body = {**CHAT, "temperature": 1}
    answers = [caller.post("/v1/chat/completions", body, headers=headers) for _ in range(2)]
    assert answers[1]["X-Cache"] == outcome
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    for personal in ({"user": "u"}, {"tools": tools}):
        assert caller.post("/v1/chat/completions", {**body, **personal}, headers=headers)["X-Cache"] == "BYPASS"


def test_it_keeps_no_new_key_under_an_idempotency_key(api: Api) -> None:
    manager = api.of(make_key(account=api.key.key.account, name="manager", scopes=["keys:manage"]))
    asked = {"name": "new", "scopes": ["keys:manage"]}
    first, again = (manager.post("/keys", asked, headers={"Idempotency-Key": "k"}) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json()["key"].startswith("ak_")
    assert "key" not in again.json()
    assert again.json() == {name: value for name, value in json.loads(first.content).items() if name != "key"}
