"""Code that was written for Anthropic's Python SDK, with another base URL and key, on providers of both formats."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import anthropic
import pytest
from anthropic.types import MessageParam, ToolParam
from pydantic import BaseModel

from inference.fake_provider import FakeUpstream
from tests.catalogue import record_of
from tests.running import Platform, Served

ANSWER = "You said: hello there"
MESSAGES: list[MessageParam] = [{"role": "user", "content": "hello there"}]
PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
BY_URL = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
ADD: ToolParam = {
    "name": "add",
    "description": "Add two numbers.",
    "input_schema": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
}
#: Faults of a provider, each of which a model of its own meets, since breakers remember.
FAULTS = ("http_400", "http_429", "http_500", "http_504", "cut", "error_event")


class Address(BaseModel):
    """What a structured answer holds."""

    street: str
    number: int


@dataclass
class Side:
    """A format of providers: the name of a model at such a provider, and the provider."""

    style: str
    fake: FakeUpstream
    key: str

    @property
    def model(self) -> str:
        return f"sdk-on-{self.style}"

    @property
    def sent(self) -> Any:
        """Return the body of the latest call."""
        return self.fake.requests[-1].body

    @property
    def is_native(self) -> bool:
        return self.style == "anthropic"


@pytest.fixture(scope="module")
def sides(platform: Platform, fake: FakeUpstream) -> Iterator[dict[str, Side]]:
    with FakeUpstream() as other:
        found = {style: Side(style, each, "") for style, each in (("anthropic", other), ("openai", fake))}
        served = [
            Served(name, [side.fake.base_url], provider={"style": style})
            for style, side in found.items()
            for name in (side.model, *(f"{side.model}-{fault}" for fault in FAULTS))
        ]
        key = platform.add(served, account="anthropic-sdk", max_output_tokens=8000, requests_per_minute=1000)
        for side in found.values():
            side.key = key
        yield found


@pytest.fixture(params=["anthropic", "openai"])
def side(sides: dict[str, Side], request: pytest.FixtureRequest) -> Iterator[Side]:
    chosen = sides[request.param]
    chosen.fake.reset()
    yield chosen
    chosen.fake.reset()


@pytest.fixture
def client(platform: Platform, side: Side) -> Iterator[anthropic.Anthropic]:
    """Return the official client, which retries nothing by itself."""
    with anthropic.Anthropic(base_url=platform.service.base_url, api_key=side.key, max_retries=0) as sdk:
        yield sdk


def ask(client: anthropic.Anthropic, side: Side, **more: Any) -> anthropic.types.Message:
    """Ask for a short answer."""
    wanted: dict[str, Any] = {"model": side.model, "max_tokens": 2000, "messages": MESSAGES, **more}
    answer: anthropic.types.Message = client.messages.create(**wanted)
    return answer


def said(message: anthropic.types.Message) -> list[Any]:
    """Return what a message's blocks hold: texts, thoughts, and the inputs of tools."""
    names = {"text": "text", "thinking": "thinking", "tool_use": "input"}
    return [getattr(block, names[block.type]) for block in message.content]


def test_it_answers_and_tells_what_it_used(client: anthropic.Anthropic, side: Side, platform: Platform) -> None:
    side.fake.set(cached_ratio=0.5)
    told = client.messages.with_raw_response.create(model=side.model, max_tokens=100, messages=MESSAGES)
    answer = told.parse()
    assert (said(answer), answer.stop_reason, answer.type, answer.role) == (
        [ANSWER],
        "end_turn",
        "message",
        "assistant",
    )
    used = answer.usage
    assert (used.input_tokens, used.cache_read_input_tokens, used.output_tokens) == (1, 1, 4)
    assert told.headers["request-id"] == told.headers["x-request-id"]
    assert told.headers["anthropic-ratelimit-requests-limit"] == "1000"
    record = record_of(platform.service, told.headers["request-id"])
    assert (record.endpoint, record.model, record.usage_source) == ("v1.messages", side.model, "provider")
    assert (record.input_tokens, record.cached_tokens, record.output_tokens) == (2, 1, 4)
    assert record.cost == (1 * 2 + 1 * 1 + 4 * 10) * 1000


def test_it_takes_what_anthropic_documents(client: anthropic.Anthropic, side: Side) -> None:
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    named = {"metadata": {"user_id": "ann"}, "stop_sequences": [" there"], "tool_choice": {"type": "none"}}
    more = {**named, "temperature": 0.5, "top_p": 0.9}  # which the client no longer names
    answer = ask(client, side, system=system, tools=[ADD], extra_body=more)
    assert said(answer) == ["You said: hello"]
    sent = side.sent
    assert (sent["temperature"], sent["top_p"], sent["max_tokens"]) == (0.5, 0.9, 2000)
    if side.is_native:
        assert {name: sent[name] for name in more} == more
        assert sent["system"] == system
    else:
        assert sent["stop"] == [" there"]
        assert sent["messages"][0] == {"role": "system", "content": "Be brief."}


def test_it_streams(client: anthropic.Anthropic, side: Side) -> None:
    events = list(client.messages.create(model=side.model, max_tokens=100, messages=MESSAGES, stream=True))
    kinds = [event.type for event in events]
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
    with client.messages.stream(model=side.model, max_tokens=100, messages=MESSAGES) as stream:
        assert "".join(stream.text_stream) == ANSWER
        final = stream.get_final_message()
    assert (said(final), final.stop_reason) == ([ANSWER], "end_turn")
    assert (final.usage.input_tokens, final.usage.output_tokens) == (2, 4)


def test_it_works_asynchronously(platform: Platform, side: Side) -> None:
    async def talk() -> tuple[list[Any], str]:
        at: dict[str, Any] = {"base_url": platform.service.base_url, "auth_token": side.key, "max_retries": 0}
        wanted: dict[str, Any] = {"model": side.model, "max_tokens": 100, "messages": MESSAGES}
        async with anthropic.AsyncAnthropic(**at) as sdk:
            answers = await asyncio.gather(*(sdk.messages.create(**wanted) for _ in range(5)))
            async with sdk.messages.stream(**wanted) as stream:
                return [said(answer) for answer in answers], await stream.get_final_text()

    assert asyncio.run(talk()) == ([[ANSWER]] * 5, ANSWER)


@pytest.mark.parametrize("is_stream", [False, True])
def test_it_calls_tools(client: anthropic.Anthropic, side: Side, is_stream: bool) -> None:
    more: dict[str, Any] = {"model": side.model, "max_tokens": 100, "tools": [ADD]}
    forced: Any = {"type": "tool", "name": "add"}
    if is_stream:
        with client.messages.stream(messages=MESSAGES, tool_choice=forced, **more) as stream:
            asked = stream.get_final_message()
    else:
        asked = client.messages.create(messages=MESSAGES, tool_choice=forced, **more)
    (call,) = asked.content
    assert call.type == "tool_use"
    assert (asked.stop_reason, call.name, call.input) == ("tool_use", "add", {"a": 0, "b": 0})
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "it is 42"}]}
    turns: list[MessageParam] = [*MESSAGES, {"role": "assistant", "content": asked.content}]
    answer = client.messages.create(messages=[*turns, {"role": "user", "content": [result]}], **more)
    assert said(answer)[-1]
    assert call.id in json.dumps(side.sent["messages"][-1])
    assert "it is 42" in json.dumps(side.sent["messages"][-1])


def test_it_thinks_where_the_provider_does(client: anthropic.Anthropic, side: Side) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    answer = ask(client, side, thinking=thinking)
    assert [block.type for block in answer.content] == ["thinking", "text"][1 - side.is_native :]
    turns = [*MESSAGES, {"role": "assistant", "content": answer.content}, {"role": "user", "content": "go on"}]
    assert said(ask(client, side, thinking=thinking, messages=turns))[-1] == "You said: go on"
    if side.is_native:
        assert side.sent["messages"][1]["content"][0]["signature"] == answer.content[0].signature  # type: ignore[union-attr]
        assert side.sent["thinking"] == thinking


@pytest.mark.parametrize("image", [PNG, BY_URL], ids=["base64", "url"])
def test_it_looks_at_images(client: anthropic.Anthropic, side: Side, image: dict[str, Any]) -> None:
    content = [image, {"type": "text", "text": "hello there"}]
    answer = ask(client, side, messages=[{"role": "user", "content": content}])
    assert said(answer) == [ANSWER]
    assert answer.usage.input_tokens == 2 + 85


def test_it_parses_into_a_pydantic_model(client: anthropic.Anthropic, side: Side) -> None:
    answer = client.messages.parse(model=side.model, max_tokens=100, messages=MESSAGES, output_format=Address)
    assert answer.parsed_output == Address(street="hello there", number=0)


def test_it_counts_tokens(client: anthropic.Anthropic, side: Side) -> None:
    counted = client.messages.count_tokens(model=side.model, messages=MESSAGES, system="Be brief.", tools=[ADD])
    assert counted.input_tokens > 2


def test_it_lists_models(client: anthropic.Anthropic, side: Side) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert listed[side.model] == client.models.retrieve(side.model)
    assert listed[side.model].type == "model"
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("no-such-model")


@pytest.mark.parametrize(
    ("changed", "kind", "error_type"),
    [
        ({"api_key": "wrong"}, anthropic.AuthenticationError, "authentication_error"),
        ({"model": "no-such-model"}, anthropic.NotFoundError, "not_found_error"),
        ({"extra_body": {"temperature": 2}}, anthropic.BadRequestError, "invalid_request_error"),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            anthropic.BadRequestError,
            "invalid_request_error",
        ),
        ({"limits": {"scopes": ["embeddings"]}}, anthropic.PermissionDeniedError, "permission_error"),
        ({"limits": {"requests_per_minute": 1}}, anthropic.RateLimitError, "rate_limit_error"),
        ({"fault": "http_400"}, anthropic.BadRequestError, "invalid_request_error"),
        ({"fault": "http_429"}, anthropic.ServiceUnavailableError, "overloaded_error"),
        ({"fault": "http_500"}, anthropic.InternalServerError, "api_error"),
        ({"fault": "http_504"}, anthropic.GatewayTimeoutError, "timeout_error"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_it_raises_the_exception_of_an_error(
    client: anthropic.Anthropic, side: Side, platform: Platform, changed: dict[str, Any], kind: Any, error_type: str
) -> None:
    more = dict(changed)
    if limits := more.pop("limits", {}):
        more["api_key"] = platform.add([], account=f"{side.model}-{next(iter(limits))}", **limits)
    if "api_key" in more:
        client = client.with_options(api_key=more.pop("api_key"))
    if "fault" in more:
        fault = more.pop("fault")
        more["model"] = f"{side.model}-{fault}"
        side.fake.set(faults={fault: 1.0})
    if "requests_per_minute" in limits:
        ask(client, side)
    with pytest.raises(kind) as raised:
        ask(client, side, **more)
    error = raised.value
    assert (error.type, error.request_id) == (error_type, error.response.headers["x-request-id"])
    if error.status_code in (429, 503):
        assert int(error.response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("fault", ["cut", "error_event"])
def test_it_raises_an_error_within_a_stream(client: anthropic.Anthropic, side: Side, fault: str) -> None:
    side.fake.set(chunk_interval_ms=10, tokens=20, faults={fault: 1.0})
    with (
        pytest.raises(anthropic.APIStatusError) as raised,
        client.messages.stream(model=f"{side.model}-{fault}", max_tokens=100, messages=MESSAGES) as stream,
    ):
        stream.until_done()
    assert raised.value.type == "api_error"
