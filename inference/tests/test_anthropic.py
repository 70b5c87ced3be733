"""POST /v1/messages and count_tokens on a provider like Anthropic: untouched on the way, bounded, billed, cached."""

from __future__ import annotations

import json
from copy import deepcopy
from decimal import Decimal
from typing import Any

import pytest

from accounts.tests.factories import make_key, make_tier
from inference.catalog import catalog, provider_route
from inference.fake_provider import FakeUpstream
from inference.models import Deployment, Provider
from inference.protocols.base import find_error
from inference.protocols.events import parse_events
from inference.protocols.messages import MessageReader, messages_protocol
from inference.tests.fixtures import Api, Records
from inference.tests.samples import refusal, serve
from inference.upstream.errors import ErrorAnswer, failed_attempt
from inference.usage import Usage, merged_usage

PATH = "/v1/messages"
HELLO = {"model": "claude", "max_tokens": 50, "messages": [{"role": "user", "content": "hello there"}]}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}}
TOOL = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}


@pytest.fixture
def claude(upstream: FakeUpstream) -> Deployment:
    """Serve a model at a provider like Anthropic; in dollars per million tokens, writes and reads have their prices."""
    deployment = serve("claude", upstream_name="claude-sonnet-4-5", input=3, cached_input=1, output=15)
    deployment.prices.update(cache_write_per_million=Decimal(4))
    Provider.objects.update(style=Provider.Style.ANTHROPIC)
    catalog.forget()
    return deployment


pytestmark = pytest.mark.usefixtures("claude")


def streamed(answer: Any) -> list[dict[str, Any]]:
    """Return the events of a streamed answer."""
    return list(parse_events(content_of(answer)))


def content_of(answer: Any) -> bytes:
    """Return the whole body of an answer, plain or streamed."""
    return b"".join(answer.streaming_content) if answer.streaming else bytes(answer.content)


def test_a_message_passes_untouched(roomy: Api, upstream: FakeUpstream) -> None:
    asked = {
        **HELLO,
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "look"}, IMAGE, {**PDF, "title": "A letter"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
                    {"type": "redacted_thinking", "data": "cmVk"},
                    {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "toolu_1",
                        "content": [{"type": "text", "text": "sun"}, IMAGE],
                    }
                ],
            },
        ],
        "tools": [TOOL, {"type": "bash_20250124", "name": "bash"}],
        "tool_choice": {"type": "auto"},
        "thinking": {"type": "enabled", "budget_tokens": 2000},
        "max_tokens": 4000,
        "stop_sequences": ["STOP"],
        "metadata": {"user_id": "u"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "a_new_parameter": {"of": ["Anthropic"]},
    }
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "interleaved-thinking-2025-05-14"}
    long = roomy.of(make_key(tier=make_tier("long", max_output_tokens=4000)))
    answer = long.post(PATH, asked, headers=headers)
    assert answer.status_code == 200, answer.content
    request = upstream.requests[-1]
    assert request.path == PATH
    assert request.body == {**asked, "model": "claude-sonnet-4-5"}
    sent = {name: request.headers.get(name) for name in ("x-api-key", "authorization", *headers)}
    assert sent == {"x-api-key": "sk-of-the-fake-provider", "authorization": None, **headers}
    body = answer.json()
    assert body["type"] == "message"
    assert [block["type"] for block in body["content"]] == ["thinking", "text"]
    assert answer["request-id"] == answer["X-Request-ID"]


def test_it_bills_what_the_provider_bills(roomy: Api, upstream: FakeUpstream, records: Records) -> None:
    upstream.set(cached_ratio=0.5, cache_write_ratio=0.25)
    asked = {**HELLO, "messages": [{"role": "user", "content": " ".join(["word"] * 8)}]}
    streamed(roomy.post(PATH, {**asked, "stream": True}))
    answer = roomy.post(PATH, asked)
    assert answer.json()["usage"]["input_tokens"] == 2
    for record in records():
        assert (record.endpoint, record.usage_source) == ("v1.messages", "provider")
        assert (record.input_tokens, record.cached_tokens, record.cache_write_tokens) == (8, 4, 2)
        assert record.output_tokens == 10
        assert record.cost == Decimal("0.000003") * 2 + Decimal("0.000001") * 4 + Decimal("0.000004") * 2 + Decimal(
            "0.000150"
        )


def test_a_stream_passes_event_by_event(roomy: Api, upstream: FakeUpstream) -> None:
    events = streamed(roomy.post(PATH, {**HELLO, "stream": True}))
    kinds = [event["type"] for event in events]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    text = "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta")
    assert text == "You said: hello there"


def test_a_repeated_question_costs_nothing(roomy: Api, upstream: FakeUpstream) -> None:
    for is_stream in (False, True):
        asked = {**HELLO, "temperature": 0, "stream": is_stream}
        first, second = roomy.post(PATH, asked), roomy.post(PATH, asked, headers={"anthropic-beta": ""})
        assert content_of(first) == content_of(second)
        assert (first["X-Cache"], second["X-Cache"]) == ("MISS", "HIT")
        other = roomy.post(PATH, asked, headers={"anthropic-beta": "a-feature-that-changes-answers"})
        assert other["X-Cache"] == "MISS"


def test_errors_have_anthropics_shape(api: Api, roomy: Api, upstream: FakeUpstream) -> None:
    other = roomy.of(make_key(tier=make_tier("two", requests_per_minute=2)))
    answers = {
        "authentication_error": api.post(PATH, HELLO, key="nonsense"),
        "not_found_error": roomy.post(PATH, {**HELLO, "model": "none"}),
        "invalid_request_error": roomy.post(PATH, {**HELLO, "max_tokens": 0}),
        "rate_limit_error": [other.post(PATH, HELLO) for _ in range(3)][-1],
    }
    upstream.fail_next("http_500", 9)
    answers["api_error"] = roomy.post(PATH, HELLO)
    assert [answer.status_code for answer in answers.values()] == [401, 404, 400, 429, 502]
    for kind, answer in answers.items():
        body = answer.json()
        assert (body["type"], body["error"]["type"]) == ("error", kind)
        assert body["request_id"] == answer["X-Request-ID"]
    limited = answers["rate_limit_error"]
    assert limited["anthropic-ratelimit-requests-limit"] == "2"
    assert limited["anthropic-ratelimit-requests-remaining"] == "0"
    assert limited["anthropic-ratelimit-requests-reset"].endswith("Z")
    assert int(limited["Retry-After"]) > 0


def test_an_error_in_a_stream_is_an_event(roomy: Api, upstream: FakeUpstream, records: Records) -> None:
    upstream.fail_next("error_event")
    answer = roomy.post(PATH, {**HELLO, "stream": True})
    content = content_of(answer)
    last = content.strip().split(b"\n\n")[-1]
    assert last.startswith(b"event: error\n")
    assert json.loads(last.split(b"data: ")[1])["error"]["type"] == "api_error"
    assert b"provider-internal-detail" not in content
    assert records()[-1].status == 502


def test_a_stream_that_breaks_off_is_billed_as_far_as_it_came(
    roomy: Api, upstream: FakeUpstream, records: Records
) -> None:
    upstream.fail_next("cut")
    content_of(roomy.post(PATH, {**HELLO, "stream": True}))
    record, billed = records()[-1], upstream.totals()
    assert (record.input_tokens, record.usage_source, record.is_partial) == (billed["prompt_tokens"], "estimated", True)
    assert record.output_tokens >= billed["completion_tokens"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prompt is too long: 208310 tokens > 200000 maximum", "prompt is too long: 208310 tokens > 200000 maximum"),
        ("messages.0: all messages must have content", "messages.0: all messages must have content"),
        ("see https://internal.example/x for sk-ant-secret12345", "see [...] for [...]"),
    ],
)
def test_what_anthropic_says_about_the_request_reaches_the_caller(text: str, told: str) -> None:
    route = provider_route(Provider.objects.get())
    body = {"type": "error", "error": {"type": "invalid_request_error", "message": text}}
    failed = failed_attempt(ErrorAnswer(400, {}, json.dumps(body).encode()), route)
    assert (failed.error.status, failed.error.detail) == (400, told)


@pytest.mark.parametrize(
    ("status", "kind", "text", "cause"),
    [
        (400, "invalid_request_error", "Your credit balance is too low to access the API.", "the credit is used up"),
        (402, "billing_error", "Pay.", "the credit is used up"),
        (529, "overloaded_error", "Overloaded", "http 529"),
        (401, "authentication_error", "invalid x-api-key", "http 401"),
    ],
)
def test_the_operators_troubles_stay_theirs(status: int, kind: str, text: str, cause: str) -> None:
    route = provider_route(Provider.objects.get())
    body = {"type": "error", "error": {"type": kind, "message": text}}
    failed = failed_attempt(ErrorAnswer(status, {}, json.dumps(body).encode()), route)
    assert failed.error.status in (502, 503)
    assert text not in failed.error.detail
    assert failed.cause.startswith(cause)
    event = find_error(body)
    assert event is not None
    assert text not in failed_attempt(event, route).error.detail or status == 400


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no maximum": ({"max_tokens": None}, "max_tokens"),
    "searches without end": ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools[0].max_uses"),
    "a search that runs code": ({"tools": [{"type": "web_search_20260209", "name": "w"}]}, "tools[0].type"),
    "code at the provider": ({"tools": [{"type": "code_execution_20250825", "name": "c"}]}, "tools[0].type"),
    "another server": ({"mcp_servers": [{"type": "url", "url": "https://a.example"}]}, "mcp_servers"),
    "a container": ({"container": "c"}, "container"),
    "a summary that is billed": (
        {"context_management": {"edits": [{"type": "compact_20260112"}]}},
        "context_management.edits[0].type",
    ),
    "faster service": ({"speed": "fast"}, "speed"),
    "more answers": ({"n": 2}, "n"),
    "another name of the maximum": ({"max_completion_tokens": 5}, "max_completion_tokens"),
    "a temperature": ({"temperature": 1.5}, "temperature"),
}
BLOCKS: dict[str, tuple[dict[str, Any], str]] = {
    "a stored image": ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "source.type"),
    "an inner address": ({"type": "image", "source": {"type": "url", "url": "https://10.0.0.1/a.png"}}, "source.url"),
    "a plain address": ({"type": "image", "source": {"type": "url", "url": "http://a.com/a.png"}}, "source.url"),
    "another file": (
        {"type": "document", "source": {"type": "base64", "media_type": "text/html", "data": ""}},
        "source.media_type",
    ),
    "code run by the provider": ({"type": "server_tool_use", "id": "x", "name": "code_execution"}, "name"),
    "an upload": ({"type": "container_upload", "file_id": "f"}, "type"),
    "no type": ({"text": "x"}, "type"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_bounded_is_refused_by_name(name: str) -> None:
    fields, place = REFUSED[name]
    assert refusal(messages_protocol, {**HELLO, **fields})[0] == place


@pytest.mark.parametrize("name", BLOCKS)
def test_content_that_cannot_be_bounded_is_refused_wherever_it_is(name: str) -> None:
    block, place = BLOCKS[name]
    inner = {"type": "tool_result", "tool_use_id": "t", "content": [block]}
    document = {"type": "document", "source": {"type": "content", "content": [block]}}
    for content, at in (
        ([block], "[0]"),
        ([inner], "[0].content[0]"),
        ([document], "[0].source.content[0]"),
    ):
        messages = [{"role": "user", "content": content}]
        assert refusal(messages_protocol, {**HELLO, "messages": messages})[0] == f"messages[0].content{at}.{place}"


def test_a_thinking_budget_fits_the_tokens_that_are_granted() -> None:
    asked = {**HELLO, "max_tokens": 9000, "thinking": {"type": "enabled", "budget_tokens": 8000}}
    before = deepcopy(asked)
    thinking = {tokens: messages_protocol.with_output(asked, tokens, "")["thinking"] for tokens in (9000, 5000, 900)}
    assert thinking == {
        9000: {"type": "enabled", "budget_tokens": 8000},
        5000: {"type": "enabled", "budget_tokens": 4999},
        900: {"type": "disabled"},
    }
    assert asked == before


def test_thinking_of_another_providers_model_is_left_out(roomy: Api, upstream: FakeUpstream) -> None:
    signed = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
    unsigned, text = {**signed, "signature": ""}, {"type": "text", "text": "Yes."}
    question = HELLO["messages"][0]  # type: ignore[index]
    contents: list[Any] = ["plain", [unsigned, text], [signed, text], [unsigned]]
    messages = [question, *({"role": "assistant", "content": content} for content in contents)]
    assert roomy.post(PATH, {**HELLO, "messages": messages}).status_code == 200
    sent = [message["content"] for message in upstream.requests[-1].body["messages"]]
    assert sent == ["hello there", "plain", [text], [signed, text]]


def test_images_are_bounded_by_their_most_and_pdfs_by_the_context() -> None:
    model = catalog.find("claude")
    assert model is not None
    data = "A" * 1_000_000

    def bound(block: dict[str, Any]) -> int:
        block = {**block, "source": {**block["source"], "data": data}}
        inner = {"type": "tool_result", "tool_use_id": "t", "content": [block]}
        return messages_protocol.most_prompt({**HELLO, "messages": [{"role": "user", "content": [inner]}]}, model)

    assert 50_000 < bound(IMAGE) < 60_000
    assert bound(PDF) == model.context_size


def test_it_counts_tokens_at_the_provider_and_by_itself_where_that_cannot(
    roomy: Api, upstream: FakeUpstream, records: Records
) -> None:
    asked = {"model": "claude", "messages": HELLO["messages"], "system": "Be brief."}
    answer = roomy.post(f"{PATH}/count_tokens", asked)
    assert answer.json() == {"input_tokens": 4}
    assert upstream.requests[-1].body == {**asked, "model": "claude-sonnet-4-5"}
    upstream.fail_next("http_404", 3)
    estimated = roomy.post(f"{PATH}/count_tokens", asked)
    assert 4 <= estimated.json()["input_tokens"] < 30
    for record in records():
        assert record.endpoint == "v1.messages.count_tokens"
        assert record.cost == record.input_tokens == 0
    assert roomy.post(f"{PATH}/count_tokens", {"model": "claude"}).json()["error"]["param"] == "messages"


def test_models_are_listed_as_anthropic_lists_them(roomy: Api) -> None:
    headers = {"anthropic-version": "2023-06-01"}
    listed = roomy.get("/v1/models", headers=headers).json()
    assert [each["id"] for each in listed["data"]] == ["claude", "gpt-3.5-turbo"]
    assert (listed["has_more"], listed["first_id"], listed["last_id"]) == (False, "claude", "gpt-3.5-turbo")
    shown = roomy.get("/v1/models/claude", headers=headers).json()
    assert shown["type"] == "model"
    assert shown["created_at"].endswith("Z")
    assert "object" not in shown
    assert roomy.get("/v1/models/claude").json()["object"] == "model"


def test_other_endpoints_have_no_such_provider(roomy: Api) -> None:
    answer = roomy.post("/v1/completions", {"model": "claude", "prompt": "hi"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_endpoint")


def test_a_budget_refuses_what_could_exceed_it(roomy: Api, upstream: FakeUpstream) -> None:
    poor = roomy.of(make_key(name="poor", monthly_cost_budget=Decimal("0.02")))
    assert poor.post(PATH, HELLO).status_code == 200
    refused = poor.post(PATH, {**HELLO, "max_tokens": 1000})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bound_exceeds_limit")
    assert len(upstream.billed) == 1


def test_the_events_of_a_message_make_the_message() -> None:
    whole = {"id": "m", "type": "message", "role": "assistant", "stop_reason": "tool_use", "stop_sequence": None}
    cited = {"cited_text": "x"}
    blocks: list[dict[str, Any]] = [
        {"type": "thinking", "thinking": "let me see", "signature": "c2ln"},
        {"type": "text", "text": "Here is it", "citations": [cited]},
        {"type": "tool_use", "id": "t", "name": "weather", "input": {"city": "Rome"}},
    ]
    events: list[dict[str, Any]] = [
        {
            "type": "message_start",
            "message": {
                **whole,
                "content": [],
                "stop_reason": None,
                "usage": {"input_tokens": 5, "cache_read_input_tokens": 3, "output_tokens": 1},
            },
        },
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "thinking", "thinking": "", "signature": ""},
        },
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "let me"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": " see"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "c2ln"}},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Here is it"}},
        {
            "type": "content_block_delta",
            "index": 1,
            "delta": {"type": "citations_delta", "citation": {"cited_text": "x"}},
        },
        {"type": "content_block_start", "index": 2, "content_block": {**blocks[2], "input": {}}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"city":'}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '"Rome"}'}},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use"},
            "usage": {"input_tokens": 0, "output_tokens": 9},
        },
        {"type": "message_stop"},
    ]
    reader = MessageReader()
    for event in events:
        reader.feed(b"event: %b\ndata: %b\n\n" % (event["type"].encode(), json.dumps(event).encode()))
    usage = {"input_tokens": 5, "cache_read_input_tokens": 3, "output_tokens": 9}
    assert reader.body() == {**whole, "content": blocks, "usage": usage}
    assert reader.is_done
    assert reader.usage == Usage(8, 3, 9)


def test_usages_of_one_message_are_cumulative() -> None:
    first = {"input_tokens": 0, "output_tokens": 3, "cache_creation": {"ephemeral_1h_input_tokens": 4}, "tier": None}
    last = {"input_tokens": 9, "output_tokens": 2, "cache_creation": {"ephemeral_1h_input_tokens": 0}, "tier": "a"}
    merged = {"input_tokens": 9, "output_tokens": 3, "cache_creation": {"ephemeral_1h_input_tokens": 4}, "tier": "a"}
    assert merged_usage(first, last, None) == merged
