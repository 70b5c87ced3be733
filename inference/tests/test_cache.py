"""The cache of answers: what makes two requests the same, whose answers they are, and what a broken one costs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from django.conf import LazySettings
from django.core.cache import caches

from accounts.tests.factories import Cast, make_key, make_tier
from inference import cache, prompts
from inference.cache import answer_key
from inference.catalog import catalog
from inference.fake_provider import FakeUpstream
from inference.models import Deployment, Price, Provider
from inference.tests.fixtures import MODEL, PROMPT, Api, Records
from inference.tests.samples import serve


def test_it_answers_the_same_question_without_a_call(api: Api, upstream: FakeUpstream, records: Records) -> None:
    first, second = api.chat(), api.chat()
    assert (first["X-Cache"], second["X-Cache"]) == ("MISS", "HIT")
    assert second.json() == {**first.json(), "cached": True, "request_id": second["X-Request-ID"]}
    assert len(upstream.requests) == 1
    assert second["X-Model"] == MODEL
    assert float(second["X-Cost-USD"]) == 0
    _, hit = records()
    assert (hit.status, hit.cache, hit.usage_source, hit.attempts) == (200, "hit", "cache", 0)
    assert not any((hit.input_tokens, hit.output_tokens, hit.cost))


def test_it_records_what_a_hit_saved_at_the_price_of_then(api: Api, upstream: FakeUpstream, records: Records) -> None:
    deployment = serve("priced", input=3, output=7)
    api.chat(model="priced")
    deployment.prices.update(input_per_million=900, output_per_million=900)
    catalog.forget()
    assert api.chat(model="priced")["X-Cost-USD"] == "0.000000000"
    paid, hit = records()
    assert paid.saved_cost == hit.cost == 0
    assert hit.saved_cost == (paid.cost or 0) > 0


def test_it_saves_only_what_the_answer_itself_had_cost(api: Api, upstream: FakeUpstream, records: Records) -> None:
    deployment = serve("twice", input=3, output=7)
    spare = Provider.objects.create(name="spare", base_url=upstream.base_url, from_environment=True)
    other = Deployment.objects.create(model=deployment.model, provider=spare, upstream_name="twice", order=1)
    Price.objects.create(deployment=other, input_per_million=3, output_per_million=7)
    catalog.forget()
    upstream.set(api_key=None)
    upstream.fail_next("broken_json")
    for _ in range(2):
        assert api.chat(model="twice").status_code == 200
    paid, hit = records()
    assert (paid.attempts, paid.usage_source, hit.cache) == (2, "bound", "hit")
    assert 0 < hit.saved_cost < (paid.cost or 0)


def test_it_saves_nothing_by_an_answer_whose_cost_nobody_knows(
    api: Api, upstream: FakeUpstream, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    def store_as_before(key: str, answer: cache.CachedAnswer) -> None:
        known = {name: value for name, value in asdict(answer).items() if name != "cost"}
        caches["answers"].set(key, known)

    monkeypatch.setattr(cache, "store", store_as_before)
    assert [api.chat()["X-Cache"] for _ in range(2)] == ["MISS", "HIT"]
    assert records()[1].saved_cost == 0


@pytest.mark.parametrize("other", [{"temperature": 0.71}, {"temperature": 0}, {"model": "another"}])
def test_it_tells_questions_apart_by_all_that_shapes_the_answer(
    api: Api, upstream: FakeUpstream, other: dict[str, Any]
) -> None:
    serve("another")
    answers = [api.chat(), api.chat(**other), api.chat(**other)]
    assert [answer["X-Cache"] for answer in answers] == ["MISS", "MISS", "HIT"]


@pytest.mark.parametrize("name", ["most_output", "is_stream", "asked"])
def test_it_tells_apart_what_a_caller_names_as_the_platform_does(api: Api, upstream: FakeUpstream, name: str) -> None:
    asked = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], "temperature": 0}
    answers = [api.post("/v1/chat/completions", {**asked, name: value}) for value in (1, 2, 2)]
    assert [answer["X-Cache"] for answer in answers] == ["MISS", "MISS", "HIT"]


def test_it_takes_a_default_for_the_same_as_the_value_itself(api: Api, upstream: FakeUpstream) -> None:
    api.chat()
    assert api.chat(temperature=0.7, model=MODEL)["X-Cache"] == "HIT"


def test_it_takes_one_and_one_point_nought_for_the_same(api: Api, upstream: FakeUpstream) -> None:
    api.chat(temperature=1)
    assert api.chat(temperature=1.0)["X-Cache"] == "HIT"


@pytest.mark.parametrize("message", [PROMPT + " ", PROMPT.upper(), " " + PROMPT])
def test_it_compares_messages_letter_by_letter(api: Api, upstream: FakeUpstream, message: str) -> None:
    api.chat()
    assert api.chat(message)["X-Cache"] == "MISS"


def test_it_tells_endpoints_apart(api: Api, upstream: FakeUpstream) -> None:
    api.chat("a text that both endpoints take")
    assert api.post("/summarize", {"text": "a text that both endpoints take"})["X-Cache"] == "MISS"


def test_it_shares_answers_within_an_account_and_never_beyond(api: Api, cast: Cast, upstream: FakeUpstream) -> None:
    owner, colleague, stranger = (api.of(key) for key in (cast.owner, cast.colleague, cast.stranger))
    assert owner.chat()["X-Cache"] == "MISS"
    assert stranger.chat()["X-Cache"] == "MISS"
    assert colleague.chat()["X-Cache"] == "HIT"
    assert owner.chat()["X-Cache"] == "HIT"
    assert len(upstream.requests) == 2


def test_it_asks_anew_where_a_tier_allows_longer_answers(api: Api, upstream: FakeUpstream) -> None:
    longer = make_key(account=api.key.key.account, tier=make_tier("longer", max_output_tokens=2048))
    api.chat()
    assert api.of(longer).chat()["X-Cache"] == "MISS"


def test_it_passes_by_a_tier_without_it(api: Api, upstream: FakeUpstream, records: Records) -> None:
    plain = api.of(make_key(tier=make_tier("plain", cache_enabled=False)))
    assert [plain.chat()["X-Cache"] for _ in range(2)] == ["BYPASS", "BYPASS"]
    assert [record.cache for record in records()] == ["bypass", "bypass"]


def test_it_reads_nothing_and_stores_afresh_under_no_cache(api: Api, upstream: FakeUpstream) -> None:
    api.chat()
    upstream.set(tokens=7)
    fresh = api.chat(headers={"Cache-Control": "no-cache"})
    assert (fresh["X-Cache"], fresh.json()["cached"]) == ("BYPASS", False)
    assert api.chat().json()["response"] == fresh.json()["response"]
    assert len(upstream.requests) == 2


@pytest.mark.parametrize("directives", ["no-store", "no-store, no-cache", "max-age=0,  No-Store "])
def test_it_neither_reads_nor_stores_under_no_store(api: Api, upstream: FakeUpstream, directives: str) -> None:
    assert api.chat(headers={"Cache-Control": directives})["X-Cache"] == "BYPASS"
    assert api.chat()["X-Cache"] == "MISS"
    assert api.chat(headers={"Cache-Control": directives})["X-Cache"] == "BYPASS"


@pytest.mark.parametrize("directives", ["max-age=60", "no-transform", "", "x" * 500, "no-store-at-all"])
def test_it_reads_as_usual_under_other_directives(api: Api, upstream: FakeUpstream, directives: str) -> None:
    api.chat()
    assert api.chat(headers={"Cache-Control": directives})["X-Cache"] == "HIT"


@pytest.mark.parametrize("fault", ["http_500", "broken_json", "empty_choices", "content_filter", "cut", "http_400"])
def test_it_stores_no_failure(api: Api, upstream: FakeUpstream, fault: str) -> None:
    upstream.set(faults={fault: 1})
    assert api.chat().status_code >= 400
    upstream.set(faults={})
    assert api.chat()["X-Cache"] == "MISS"


def test_it_stores_no_answer_that_a_limit_cut_short(api: Api, upstream: FakeUpstream) -> None:
    tight = make_tier("tight", tokens_per_minute=1000, max_output_tokens=800, requests_per_minute=None)
    upstream.set(tokens=700)
    other = api.of(make_key(account=api.key.key.account, tier=tight))
    assert other.chat("first").status_code == 200
    cut = other.chat()
    assert cut.json()["tokens_used"] < 400
    roomier = make_tier("as-long", tokens_per_minute=None, max_output_tokens=800)
    whole = api.of(make_key(account=api.key.key.account, tier=roomier)).chat()
    assert whole["X-Cache"] == "MISS"
    assert whole.json()["tokens_used"] > 700


def test_it_keeps_answers_for_an_hour_by_default(settings: LazySettings) -> None:
    assert settings.CACHE_TTL == settings.CACHES["answers"]["TIMEOUT"] == 3600


@pytest.mark.parametrize("stored", ["no json", "{}", "[1]", "null", '{"body": {}}'])
def test_it_takes_what_it_cant_read_for_no_answer(stored: Any) -> None:
    caches["answers"].set("key", stored)
    assert cache.look_up("key") is None


def test_it_takes_what_the_cache_cant_decode_for_no_answer() -> None:
    answers: Any = caches["answers"]
    answers.client.get_client().set(answers.client.make_key("key"), b"\x80")
    assert cache.look_up("key") is None


def test_it_makes_one_key_whatever_the_order_of_names() -> None:
    first = answer_key(1, endpoint="chat", model="m", payload={"a": 1, "b": {"c": 2, "d": 3}})
    second = answer_key(1, endpoint="chat", model="m", payload={"b": {"d": 3, "c": 2}, "a": 1})
    assert first == second
    assert len(first) == 64


def test_it_makes_different_keys_for_whatever_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    usual: dict[str, Any] = {"endpoint": "chat", "model": "m", "payload": {"a": 1}}
    keys = [
        answer_key(1, **usual),
        answer_key(2, **usual),
        answer_key(1, **{**usual, "endpoint": "summarize"}),
        answer_key(1, **{**usual, "model": "n"}),
        answer_key(1, **{**usual, "payload": {"a": "1"}}),
        answer_key(1, **{**usual, "payload": {"a": True}}),
        answer_key(1, **{**usual, "payload": {"a": [1]}}),
        answer_key(1, **{**usual, "payload": {"a": 1, "b": None}}),
    ]
    monkeypatch.setattr(prompts, "VERSION", prompts.VERSION + 1)
    keys.append(answer_key(1, **usual))
    assert len(set(keys)) == len(keys)


def test_it_cant_make_a_key_without_an_account() -> None:
    with pytest.raises(TypeError):
        answer_key(endpoint="chat", model="m", payload={})  # type: ignore[call-arg]
