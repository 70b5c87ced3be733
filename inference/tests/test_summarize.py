"""POST /summarize: what it takes and what it answers; what it shares with /chat is in test_chat."""

from __future__ import annotations

import hashlib
import json
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


def test_it_answers_with_a_summary_and_both_lengths(api: Api, upstream: FakeUpstream, records: Records) -> None:
    answer = summarize(api)
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"summary", "original_length", "summary_length", "cached", "request_id"}
    assert body["original_length"] == len(TEXT)
    assert 0 < body["summary_length"] == len(body["summary"]) < len(TEXT)
    assert body["summary"] == body["summary"].strip()
    assert (body["cached"], body["request_id"]) == (False, answer["X-Request-ID"])
    assert (answer["X-Cache"], answer["X-Model"]) == ("MISS", MODEL)
    assert [(record.endpoint, record.status, record.cache) for record in records()] == [("summarize", 200, "miss")]


@pytest.mark.parametrize(
    ("fields", "sentences"),
    [
        ({"length": "short"}, "1-2 sentences"),
        ({"length": "medium"}, "3-4 sentences"),
        ({}, "3-4 sentences"),
        ({"length": "long"}, "5-6 sentences"),
    ],
)
def test_it_asks_for_so_many_sentences(api: Api, upstream: FakeUpstream, fields: Any, sentences: str) -> None:
    assert summarize(api, **fields).status_code == 200
    system, user = upstream.requests[0].body["messages"]
    assert system == {"role": "system", "content": prompts.SUMMARY_SYSTEM}
    assert user["role"] == "user"
    assert sentences in user["content"]
    assert TEXT in user["content"]


#: Digest of all that is sent to the model by /chat and /summarize, by the prompts' version.
DIGESTS = {2: "88a4c92b6ce7cfd5"}


def test_it_has_a_version_that_goes_with_the_words() -> None:
    sent = [prompts.chat_messages("Q"), *(prompts.summary_messages("T", length) for length in prompts.SENTENCES)]
    words = json.dumps([sent, prompts.SUMMARY_TEMPERATURE])
    digest = hashlib.sha256(words.encode()).hexdigest()[:16]
    assert DIGESTS.get(prompts.VERSION) == digest, f"the prompts changed: raise VERSION, and add {digest} here"


@pytest.mark.parametrize("text", ["x" * 10, "x" * 5000, "𝄞" * 10, "  nine kept"])
def test_it_counts_the_characters_of_a_text(api: Api, upstream: FakeUpstream, text: str) -> None:
    answer = summarize(api, text)
    assert (answer.status_code, answer.json()["original_length"]) == (200, len(text))


@pytest.mark.parametrize(
    ("fields", "errors"),
    [
        ({"text": "x" * 9}, {"text": "Ensure this field has at least 10 characters."}),
        ({"text": "x" * 5001}, {"text": "Ensure this field has no more than 5000 characters."}),
        ({"text": " " * 20}, {"text": "This field may not be blank."}),
        ({"text": "a text with \x00 in it"}, {"text": "Null characters are not allowed."}),
        ({"text": 1234567890}, {"text": "Must be a text."}),
        ({"text": None}, {"text": "This field may not be null."}),
        ({"length": None}, {"length": "This field may not be null."}),
        *(
            ({"length": length}, {"length": "Must be one of short, medium, long."})
            for length in ("tiny", "SHORT", "short ", "", 1, True, ["short"], {"short": 1}, "\x00", "y" * 5000)
        ),
        ({"temperature": 1, "lenght": "short"}, {"lenght": "Unknown field.", "temperature": "Unknown field."}),
    ],
)
def test_it_refuses_anything_else(api: Api, upstream: FakeUpstream, fields: Any, errors: dict[str, str]) -> None:
    answer = summarize(api, **fields)
    assert answer.status_code == 400
    assert answer.json()["errors"] == {name: [text] for name, text in errors.items()}
    assert upstream.requests == []


def test_it_refuses_a_length_that_is_nested_however_deep(roomy: Api) -> None:
    for depth in range(10, 1000, 30):
        nested = "[" * depth + "]" * depth
        answer = roomy.post("/summarize", f'{{"text": "{TEXT}", "length": {nested}}}'.encode())
        assert answer.status_code == 400, depth


def test_it_needs_the_scope(api: Api) -> None:
    assert summarize(api.of(make_key(scopes=["chat"]))).status_code == 403


def test_it_answers_again_from_the_cache_by_text_length_and_model(roomy: Api, upstream: FakeUpstream) -> None:
    first, second = summarize(roomy), summarize(roomy)
    assert second.json() == {**first.json(), "cached": True, "request_id": second["X-Request-ID"]}
    assert summarize(roomy, length="medium").json()["cached"]
    assert not summarize(roomy, length="short").json()["cached"]
    assert not summarize(roomy, TEXT + " ").json()["cached"]
    assert len(upstream.requests) == 3
