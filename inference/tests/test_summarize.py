"""POST /summarize: what it takes and what it answers; what it shares with /chat is in test_chat."""

from __future__ import annotations

from typing import Any

import pytest

from accounts.tests.factories import make_key
from inference import prompts
from inference.fake_provider import FakeUpstream
from inference.tests.fixtures import MODEL, Api, Records

TEXT = "In 1885 the safety bicycle, with a chain drive and equal wheels, made cycling safe for everyone who tried it."


def summarize(api: Api, text: Any = TEXT, **fields: Any) -> Any:
    """Post to /summarize."""
    return api.post("/summarize", {"text": text, **fields})


def test_it_answers_with_a_summary_and_both_lengths(api: Api, upstream: FakeUpstream) -> None:
    answer = summarize(api)
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"summary", "original_length", "summary_length", "cached", "request_id"}
    assert body["original_length"] == len(TEXT)
    assert 0 < body["summary_length"] == len(body["summary"]) < len(TEXT)
    assert body["summary"] == body["summary"].strip()
    assert (body["cached"], body["request_id"]) == (False, answer["X-Request-ID"])
    assert (answer["X-Cache"], answer["X-Model"]) == ("MISS", MODEL)


@pytest.mark.parametrize(
    ("length", "sentences"), [("short", "1-2 sentences"), ("medium", "3-4 sentences"), ("long", "5-6 sentences")]
)
def test_it_asks_for_so_many_sentences(api: Api, upstream: FakeUpstream, length: str, sentences: str) -> None:
    assert summarize(api, length=length).status_code == 200
    system, user = upstream.requests[0].body["messages"]
    assert system == {"role": "system", "content": prompts.SUMMARY_SYSTEM}
    assert user["role"] == "user"
    assert sentences in user["content"]
    assert TEXT in user["content"]


def test_it_asks_for_a_medium_one_by_default(api: Api, upstream: FakeUpstream) -> None:
    summarize(api)
    assert "3-4 sentences" in upstream.requests[0].body["messages"][1]["content"]


@pytest.mark.parametrize("text", ["x" * 10, "x" * 5000, "é" * 5000, "𝄞" * 10, "  nine kept"])
def test_it_takes_texts_within_the_bounds(api: Api, upstream: FakeUpstream, text: str) -> None:
    answer = summarize(api, text)
    assert answer.status_code == 200
    assert answer.json()["original_length"] == len(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x" * 9, "Ensure this field has at least 10 characters."),
        ("x" * 5001, "Ensure this field has no more than 5000 characters."),
        (" " * 20, "This field may not be blank."),
        ("", "This field may not be blank."),
        ("a text with \x00 in it", "Null characters are not allowed."),
        (1234567890, "Must be a text."),
        (None, "This field may not be null."),
        ([TEXT], "Must be a text."),
    ],
)
def test_it_refuses_other_texts(api: Api, upstream: FakeUpstream, text: Any, told: str) -> None:
    answer = summarize(api, text)
    assert answer.status_code == 400
    assert answer.json()["errors"] == {"text": [told]}
    assert upstream.requests == []


@pytest.mark.parametrize("length", ["tiny", "SHORT", "short ", "", None, 1, True, ["short"], {"short": 1}, "\x00"])
def test_it_refuses_other_lengths(api: Api, upstream: FakeUpstream, length: Any) -> None:
    answer = summarize(api, length=length)
    assert answer.status_code == 400
    assert set(answer.json()["errors"]) == {"length"}
    assert upstream.requests == []


def test_it_repeats_nothing_of_a_wrong_length(api: Api) -> None:
    answer = summarize(api, length="y" * 5000)
    assert len(answer.content) < 500


def test_it_refuses_a_length_that_is_nested_however_deep(roomy: Api) -> None:
    for depth in range(10, 1000, 30):
        nested = "[" * depth + "]" * depth
        answer = roomy.post("/summarize", f'{{"text": "{TEXT}", "length": {nested}}}'.encode())
        assert answer.status_code == 400, depth


def test_it_knows_no_temperature(api: Api) -> None:
    answer = summarize(api, temperature=1, lenght="short")
    assert answer.json()["errors"] == {"lenght": ["Unknown field."], "temperature": ["Unknown field."]}


def test_it_needs_the_scope(api: Api) -> None:
    assert summarize(api.of(make_key(scopes=["chat"]))).status_code == 403


def test_it_answers_again_from_the_cache_by_text_length_and_model(roomy: Api, upstream: FakeUpstream) -> None:
    first, second = summarize(roomy), summarize(roomy)
    assert second.json() == {**first.json(), "cached": True, "request_id": second["X-Request-ID"]}
    assert summarize(roomy, length="medium").json()["cached"]
    assert not summarize(roomy, length="short").json()["cached"]
    assert not summarize(roomy, TEXT + " ").json()["cached"]
    assert len(upstream.requests) == 3


def test_it_is_recorded_under_its_own_name(api: Api, upstream: FakeUpstream, records: Records) -> None:
    summarize(api)
    assert [(record.endpoint, record.status, record.cache) for record in records()] == [("summarize", 200, "miss")]
