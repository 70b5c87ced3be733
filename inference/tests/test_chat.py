"""POST /chat: what it takes, what it answers, what it leaves behind."""

from __future__ import annotations

import json
from decimal import Decimal
from io import BytesIO
from typing import Any

import pytest
from django.conf import LazySettings

from accounts.tests.factories import Cast, make_key, make_tier
from inference import prompts
from inference.fake_provider import FakeUpstream
from inference.models import Model
from inference.tests.fixtures import MODEL, PROMPT, Api, Records
from inference.tests.samples import serve

DEEP = 900


def test_it_answers_with_the_models_text(api: Api, upstream: FakeUpstream) -> None:
    answer = api.chat("hello there")
    assert answer.status_code == 200
    assert answer.json() == {
        "response": "You said: hello there",
        "tokens_used": 12,
        "cached": False,
        "request_id": answer["X-Request-ID"],
    }
    assert answer["Content-Type"] == "application/json"
    assert answer["X-Model"] == MODEL
    assert answer["Cache-Control"] == "private, no-store"
    assert {"Authorization", "X-API-Key"} <= {name.strip() for name in answer["Vary"].split(",")}


def test_it_sends_the_system_message_the_users_and_the_defaults(api: Api, upstream: FakeUpstream) -> None:
    api.chat("hello there")
    (request,) = upstream.requests
    assert request.path == "/v1/chat/completions"
    assert request.body == {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "You are a helpful AI assistant."},
            {"role": "user", "content": "hello there"},
        ],
        "temperature": 0.7,
        "max_tokens": 1024,
    }
    assert prompts.SYSTEM == "You are a helpful AI assistant."


@pytest.mark.parametrize(
    ("fields", "errors"),
    [
        ({"temperature": -0.001}, {"temperature": "Ensure this value is greater than or equal to 0."}),
        ({"temperature": 2.001}, {"temperature": "Ensure this value is less than or equal to 2."}),
        ({"temperature": None}, {"temperature": "This field may not be null."}),
        *(
            ({"temperature": odd}, {"temperature": "Must be a number."})
            for odd in ("0.5", "", True, False, [1], {"value": 1}, 10**400, -(10**400))
        ),
        *(({"message": blank}, {"message": "This field may not be blank."}) for blank in ("", " \t\n", "\u00a0\u2003")),
        ({"message": "x" * 1001}, {"message": "Ensure this field has no more than 1000 characters."}),
        ({"message": "a\x00b"}, {"message": "Null characters are not allowed."}),
        ({"message": None}, {"message": "This field may not be null."}),
        *(({"message": odd}, {"message": "Must be a text."}) for odd in (7, True, ["a"], {"a": "b"})),
        ({"temprature": 1, "max_tokens": 5}, {"max_tokens": "Unknown field.", "temprature": "Unknown field."}),
    ],
)
def test_it_refuses_other_fields(api: Api, upstream: FakeUpstream, fields: Any, errors: dict[str, str]) -> None:
    answer = api.chat(**fields)
    assert answer.status_code == 400
    assert answer.json()["errors"] == {name: [text] for name, text in errors.items()}
    assert upstream.requests == []


@pytest.mark.parametrize("message", ["x", "x" * 1000, "  kept as it is \n", "é" * 1000, "𝄞" * 1000, "日本語"])
@pytest.mark.parametrize("temperature", [0, 1.999])
def test_it_sends_a_message_as_it_came(api: Api, upstream: FakeUpstream, message: str, temperature: float) -> None:
    assert api.chat(message, temperature=temperature).status_code == 200
    sent = upstream.requests[0].body
    assert (sent["messages"][1]["content"], sent["temperature"]) == (message, temperature)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"nonsense",
        b'{"message": "a",}',
        b'{"message": "a"} {}',
        b"{'message': 'a'}",
        b'{"message": "a", "temperature": NaN}',
        b'{"message": "a", "temperature": Infinity}',
        b'{"message": "a", "temperature": -Infinity}',
        b'{"message": "a", "temperature": 1e999}',
        b'{"message": "a", "temperature": -1e999}',
        b'{"message": "a", "temperature": ' + b"9" * 5000 + b"}",
        b"[]",
        b'["message"]',
        b'"message"',
        b"null",
        b"1",
        b"true",
        b'{"message": "\\ud800"}',
        b'{"message": "\\udc00 first"}',
        b'{"message": "a", "\\ud800": 1}',
        b'{"message": "\xed\xa0\x80"}',
        b'{"message": "\xff"}',
        b'{"message": "\x00"}',
        b"\xef\xbb\xbf{}",
        '{"message": "a"}'.encode("utf-16"),
        b'{"message": "line\nbreak"}',
        b'{"message":' * DEEP,
        b"[" * 60_000,
        b'{"message": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
        b" ",
    ],
)
def test_it_refuses_what_is_no_json_object(api: Api, upstream: FakeUpstream, body: bytes) -> None:
    answer = api.post("/chat", body)
    assert answer.status_code == 400
    assert answer.json()["code"] == "malformed_body"
    assert upstream.requests == []


@pytest.mark.parametrize("field", ["message", "temperature", "model", "unknown"])
def test_it_refuses_nested_values_however_deep(roomy: Api, field: str) -> None:
    for depth in range(100, DEEP, 40):
        nested = "[" * depth + "]" * depth
        answer = roomy.post("/chat", f'{{"message": "a", "{field}": {nested}}}'.encode())
        assert answer.status_code == 400, depth


@pytest.mark.parametrize(
    ("body", "said"), [(b'{"message": "\\ud834\\udd1e"}', "𝄞"), (b'{"message": "one", "message": "two"}', "two")]
)
def test_it_takes_escaped_surrogates_and_the_last_of_duplicate_names(
    api: Api, upstream: FakeUpstream, body: bytes, said: str
) -> None:
    assert api.post("/chat", body).json()["response"] == f"You said: {said}"


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        *((kind, 200) for kind in ("application/json", "application/json; charset=utf-8", "APPLICATION/JSON")),
        *((kind, 415) for kind in ("text/plain", "application/x-www-form-urlencoded", "text/json", "x", "")),
        ("multipart/form-data; boundary=x", 415),
    ],
)
def test_it_takes_json_by_any_spelling_of_its_type(api: Api, upstream: FakeUpstream, kind: str, status: int) -> None:
    answer = api.post("/chat", {"message": "a"}, content_type=kind)
    assert answer.status_code == status
    assert answer.json().get("code") == ("unsupported_media_type" if status == 415 else None)


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_it_needs_a_body_whatever_its_type(api: Api, kind: str) -> None:
    bodies: list[Any] = [b"", {}] if kind == "application/json" else [b""]
    for body in bodies:
        answer = api.post("/chat", body, content_type=kind)
        assert answer.status_code == 400
        assert answer.json()["errors"] == {"message": ["This field is required."]}


def test_it_refuses_a_body_over_the_limit(api: Api, upstream: FakeUpstream, settings: LazySettings) -> None:
    most = settings.MAX_BODY_BYTES
    assert most == 64 * 1024
    padded = b'{"message": "a"' + b" " * (most - 16) + b"}"
    assert len(padded) == most
    assert api.post("/chat", padded).status_code == 200
    answer = api.post("/chat", padded + b" ")
    assert answer.status_code == 413
    assert answer.json()["code"] == "body_too_large"


@pytest.mark.parametrize(
    ("body", "status"),
    [(b'{"message": "in chunks"}', 200), (b"", 400), (b"{", 400), (b"[]", 400), (b" " * 70_000, 413)],
)
def test_it_reads_chunked_bodies_as_it_does_others(api: Api, upstream: FakeUpstream, body: bytes, status: int) -> None:
    """As gunicorn hands them over: without a length, in a stream that ends."""
    environ: dict[str, Any] = {"wsgi.input": BytesIO(body), "CONTENT_TYPE": "application/json"}
    answer = api.post("/chat", None, headers={"Transfer-Encoding": "chunked"}, **environ)
    assert answer.status_code == status


@pytest.mark.parametrize("length", ["nonsense", "-5", "", "9" * 30])
def test_it_survives_a_length_that_is_none(api: Api, length: str) -> None:
    answer = api.post("/chat", {"message": "a"}, CONTENT_LENGTH=length)
    assert answer.status_code in (400, 413)


def test_it_asks_the_model_that_is_named_at_its_price(api: Api, upstream: FakeUpstream, records: Records) -> None:
    upstream.set(cached_ratio=0.5)
    serve("house-model", upstream_name="deep/thought-7b", input=3, cached_input=1, output=5)
    answer = api.chat("hello there", model="house-model")
    assert answer["X-Model"] == "house-model"
    assert upstream.requests[0].body["model"] == "deep/thought-7b"
    (record,) = records()
    assert record.cached_tokens == 4
    assert record.cost == (4 * 3 + 4 * 1 + 4 * 5) / Decimal(1_000_000)


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("stream", [False, True])
def test_it_bills_every_part_at_its_price(
    api: Api, upstream: FakeUpstream, records: Records, endpoint: str, stream: bool
) -> None:
    upstream.set(cached_ratio=0.25, cache_write_ratio=0.5, reasoning_ratio=0.5, tokens=4)
    deployment = serve("parts", input=3, cached_input=1, output=5)
    deployment.prices.update(cache_write_per_million=7, reasoning_per_million=11, per_request=Decimal("0.01"))
    text = "one two three four five six seven eight"
    asked = {"input": text} if "responses" in endpoint else {"messages": [{"role": "user", "content": text}]}
    answer = api.post(endpoint, {"model": "parts", "stream": stream, **asked})
    assert answer.status_code == 200
    b"".join(answer.streaming_content) if stream else answer.content  # type: ignore[attr-defined]
    (record,) = records()
    parts = (record.input_tokens, record.cached_tokens, record.cache_write_tokens, record.reasoning_tokens)
    assert (*parts, record.output_tokens) == (8, 2, 4, 2, 4)
    assert record.cost == (2 * 3 + 2 * 1 + 4 * 7 + 2 * 5 + 2 * 11) / Decimal(1_000_000) + Decimal("0.01")


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("stream", [False, True])
def test_it_bills_the_service_tier_that_the_provider_names(
    roomy: Api, upstream: FakeUpstream, records: Records, endpoint: str, stream: bool
) -> None:
    upstream.set(tokens=4)
    deployment = serve("tiered", input=3, cached_input=1, output=5)
    deployment.prices.update(flex_factor=Decimal("0.5"), priority_factor=Decimal(2))
    short, long = "one two", " ".join(["word"] * 200)
    for tier, text in (("flex", short), ("priority", short), ("priority", long), ("default", short)):
        asked = {"input": text} if "responses" in endpoint else {"messages": [{"role": "user", "content": text}]}
        answer = roomy.post(endpoint, {"model": "tiered", "stream": stream, "service_tier": tier, **asked})
        assert answer.status_code == 200
        b"".join(answer.streaming_content) if stream else answer.content  # type: ignore[attr-defined]
    billed = [(record.service_tier, record.cost) for record in records()]
    micro = Decimal(1) / 1_000_000
    assert billed == [
        ("flex", 13 * micro),
        ("priority", 52 * micro),
        ("", 620 * micro),  # the provider had no room in that tier
        ("", 26 * micro),
    ]


def test_it_says_what_a_call_needs_that_the_rest_of_a_budget_does_not_cover(roomy: Api, upstream: FakeUpstream) -> None:
    serve("dear", input=0, output=1000)
    upstream.set(tokens=10)
    poor = roomy.of(make_key(name="poor", monthly_cost_budget=Decimal("0.03")))
    asked = {"model": "dear", "messages": [{"role": "user", "content": "hi"}]}
    assert poor.post("/v1/chat/completions", {**asked, "max_completion_tokens": 20}).status_code == 200
    refused = poor.post("/v1/chat/completions", {**asked, "max_completion_tokens": 25})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (429, "insufficient_quota")
    assert error["message"] == (
        "What is left of the monthly budget, $0.020, does not cover this call, which may use up to $0.025. "
        "Ask for fewer tokens, or wait until the month ends (UTC)."
    )
    assert (error["limit"]["used"], error["limit"]["needed"]) == ("0.010000000", "0.025000000")
    for most in (20, 10):
        assert poor.post("/v1/chat/completions", {**asked, "max_completion_tokens": most}).status_code == 200
    refused = poor.post("/v1/chat/completions", {**asked, "max_completion_tokens": 1})
    assert refused.json()["error"]["message"] == "The monthly budget is exhausted."


def test_it_refuses_a_service_tier_without_a_price(roomy: Api, upstream: FakeUpstream) -> None:
    serve("tiered", input=3, output=5).prices.update(flex_factor=Decimal("0.5"))
    asked = {"model": "tiered", "messages": [{"role": "user", "content": "hi"}]}
    for tier, status in (("flex", 200), ("priority", 400), ("scale", 400)):
        answer = roomy.post("/v1/chat/completions", {**asked, "service_tier": tier})
        assert answer.status_code == status
        assert status == 200 or answer.json()["error"]["param"] == "service_tier"


@pytest.mark.parametrize("model", ["no-such-model", "MODEL", "x" * 100, "a/b:c@d", "é", "gpt-3.5-turbo "])
def test_it_answers_404_for_a_model_that_is_unknown(api: Api, upstream: FakeUpstream, model: str) -> None:
    answer = api.chat(model=model)
    assert answer.status_code == 404
    assert answer.json()["code"] == "model_not_found"


def test_it_answers_404_for_a_model_that_is_disabled(api: Api, upstream: FakeUpstream) -> None:
    Model.objects.filter(public_name=MODEL).update(is_enabled=False)
    assert api.chat().status_code == 404


def test_it_hides_a_model_outside_the_tier_as_if_unknown(api: Api, upstream: FakeUpstream) -> None:
    tier = make_tier("narrow", models=["another"], requests_per_minute=5)
    narrow = api.of(make_key(tier=tier))
    outside, unknown, default = narrow.chat(model=MODEL), narrow.chat(model="no-such-model"), narrow.chat()
    assert outside.status_code == unknown.status_code == default.status_code == 404
    told = [each.json() for each in (outside, unknown)]
    texts = [each.pop("detail").replace(name, "") for each, name in zip(told, (MODEL, "no-such-model"), strict=True)]
    assert texts[0] == texts[1]
    assert {**told[0], "request_id": ""} == {**told[1], "request_id": ""}
    assert default.json()["code"] == told[0]["code"]


@pytest.mark.parametrize("model", ["", " ", 7, None, "x" * 101, "a\x00"])
def test_it_refuses_what_can_be_no_models_name(api: Api, model: Any) -> None:
    answer = api.chat(model=model)
    assert answer.status_code == 400
    assert set(answer.json()["errors"]) == {"model"}


def test_it_counts_and_prices_the_call(api: Api, upstream: FakeUpstream, records: Records) -> None:
    answer = api.chat("hello there", headers={"X-Request-ID": "my-label.1"})
    (record,) = records()
    assert (record.label, record.endpoint, record.model, record.deployment) == (
        "my-label.1", "chat", MODEL, f"openai/{MODEL}",
    )  # fmt: skip
    assert (record.account_name, record.key_name) == (api.key.key.account.name, "caller")
    assert (record.status, record.error_code, record.cache, record.attempts) == (200, "", "miss", 1)
    assert (record.input_tokens, record.output_tokens, record.usage_source) == (8, 4, "provider")
    assert record.cost == Decimal("0.00001") == Decimal(answer["X-Cost-USD"])
    assert 0 < record.latency_ms < 60_000
    (call,) = upstream.billed
    assert (call.prompt_tokens, call.completion_tokens) == (8, 4)


def test_it_keeps_nothing_of_what_was_said(api: Api, upstream: FakeUpstream, records: Records) -> None:
    api.chat(f"{PROMPT} to be kept to ourselves")
    api.chat(f"{PROMPT} to be kept to ourselves")
    kept = json.dumps([list(map(str, vars(record).values())) for record in records()])
    assert len(records()) == 2
    assert "zanzibar" not in kept
    assert api.key.plain not in kept


def test_it_records_a_malformed_request_once_and_without_cost(api: Api, records: Records) -> None:
    api.post("/chat", b"{")
    (record,) = records()
    assert (record.status, record.error_code, record.attempts) == (400, "malformed_body", 0)
    assert not any((record.input_tokens, record.output_tokens, record.cost))


def test_it_records_nothing_for_who_is_not_known(api: Api, cast: Cast, records: Records) -> None:
    for key in ("nonsense", cast.revoked.plain, None):
        assert api.post("/chat", {"message": "a"}, key=key).status_code == 401
    assert records() == []


def test_it_needs_the_scope(api: Api, records: Records) -> None:
    other = api.of(make_key(scopes=["summarize"]))
    answer = other.chat()
    assert answer.status_code == 403
    assert answer.json()["code"] == "scope_denied"
    assert answer["X-RateLimit-Remaining"] == "4"
    assert [record.status for record in records()] == [403]
