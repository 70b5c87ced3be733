"""Code that was written for OpenAI, against the running platform: only the base URL and the key are others."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel

from inference.fake_provider import FakeUpstream
from launch.environment import free_port
from tests.catalogue import record_of
from tests.npm import npm_install, run_node
from tests.running import Platform, Served, wait_until

MODEL, EMBEDDER, SPARE = "sdk-chat", "sdk-embedder", "sdk-spare"
#: A model at a provider with Anthropic's format.
CLAUDE = "sdk-claude"
ON_BOTH = pytest.mark.parametrize("model", [MODEL, CLAUDE])
ANSWER = "You said: hello there"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello there"}]
ADD: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}


class Address(BaseModel):
    """What a structured answer holds."""

    street: str
    number: int


@pytest.fixture(scope="module")
def claude() -> Iterator[FakeUpstream]:
    with FakeUpstream() as server:
        yield server


@pytest.fixture(scope="module")
def key(platform: Platform, fake: FakeUpstream, claude: FakeUpstream) -> str:
    served = [
        Served(CLAUDE, [claude.base_url], provider={"style": "anthropic"}),
        Served(MODEL, [fake.base_url]),
        Served(EMBEDDER, [fake.base_url], kind="embedding"),
        Served(SPARE, [f"http://127.0.0.1:{free_port()}/v1", fake.base_url]),
    ]
    return platform.add(served, account="sdk", requests_per_minute=1000)


@pytest.fixture
def client(platform: Platform, key: str, fake: FakeUpstream) -> Iterator[openai.OpenAI]:
    """Return the official client, which retries nothing by itself."""
    fake.reset()
    with openai.OpenAI(base_url=f"{platform.service.base_url}/v1", api_key=key, max_retries=0) as sdk:
        yield sdk
    fake.reset()


@ON_BOTH
def test_it_chats(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=MESSAGES)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 4)


def test_it_takes_the_parameters_that_openai_documents(client: openai.OpenAI, fake: FakeUpstream) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "name": "ann", "content": [{"type": "text", "text": "hello there"}]},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]},
        ],
        frequency_penalty=0.1,
        logit_bias={"50256": -100},
        logprobs=True,
        max_completion_tokens=100,
        n=2,
        presence_penalty=0.1,
        reasoning_effort="low",
        response_format={"type": "text"},
        seed=7,
        service_tier="auto",
        stop=["\n"],
        temperature=0.5,
        tool_choice="none",
        tools=[ADD],
        top_logprobs=1,
        top_p=0.9,
        user="ann",
        extra_body={"of_next_year": {"a": 1}},
    )
    assert [choice.message.content for choice in answer.choices] == [ANSWER, ANSWER]
    assert answer.choices[0].logprobs is not None
    sent = fake.requests[-1].body
    assert (sent["seed"], sent["stop"], sent["top_p"], sent["of_next_year"]) == (7, ["\n"], 0.9, {"a": 1})


@ON_BOTH
def test_it_streams(client: openai.OpenAI, model: str) -> None:
    options: dict[str, Any] = {"stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(model=model, messages=MESSAGES, stream=True, **options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 6
    plain = list(client.chat.completions.create(model=model, messages=MESSAGES, stream=True))
    assert [chunk for chunk in plain if chunk.usage or not chunk.choices] == []


@ON_BOTH
def test_it_streams_with_the_client_s_own_helper(client: openai.OpenAI, model: str) -> None:
    with client.chat.completions.stream(model=model, messages=MESSAGES) as stream:
        kinds = {event.type for event in stream}
        assert stream.get_final_completion().choices[0].message.content == ANSWER
    assert {"chunk", "content.delta", "content.done"} <= kinds


@ON_BOTH
def test_it_calls_tools(client: openai.OpenAI, model: str) -> None:
    forced: Any = {"type": "function", "function": {"name": "add"}}
    answer = client.chat.completions.create(model=model, messages=MESSAGES, tools=[ADD], tool_choice=forced)
    call = (answer.choices[0].message.tool_calls or [])[0]
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 0, "b": 0})
    result: list[ChatCompletionMessageParam] = [
        *MESSAGES,
        {"role": "assistant", "tool_calls": [call.model_dump()]},  # type: ignore[list-item]
        {"role": "tool", "tool_call_id": call.id, "content": "0"},
    ]
    assert client.chat.completions.create(model=model, messages=result, tools=[ADD]).choices[0].message.content


@ON_BOTH
def test_it_streams_tool_calls(client: openai.OpenAI, model: str) -> None:
    forced: Any = {"type": "function", "function": {"name": "add"}}
    with client.chat.completions.stream(model=model, messages=MESSAGES, tools=[ADD], tool_choice=forced) as stream:
        call = (stream.get_final_completion().choices[0].message.tool_calls or [])[0]
    assert call.function.arguments == '{"a": 0, "b": 0}'


@ON_BOTH
def test_it_parses_into_a_pydantic_model(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.parse(model=model, messages=MESSAGES, response_format=Address)
    assert answer.choices[0].message.parsed == Address(street="hello there", number=0)


def test_it_parses_a_response_into_a_pydantic_model(client: openai.OpenAI) -> None:
    response = client.responses.parse(model=MODEL, input="hello there", text_format=Address)
    assert response.output_parsed == Address(street="hello there", number=0)


@ON_BOTH
def test_it_works_asynchronously(platform: Platform, key: str, client: openai.OpenAI, model: str) -> None:
    async def talk() -> tuple[list[str | None], str]:
        async with openai.AsyncOpenAI(base_url=f"{platform.service.base_url}/v1", api_key=key, max_retries=0) as sdk:
            ask = sdk.chat.completions.create
            answers = await asyncio.gather(*(ask(model=model, messages=MESSAGES) for _ in range(10)))
            said = ""
            async for chunk in await ask(model=model, messages=MESSAGES, stream=True):
                said += chunk.choices[0].delta.content or ""
            return [answer.choices[0].message.content for answer in answers], said

    assert asyncio.run(talk()) == ([ANSWER] * 10, ANSWER)


def test_it_embeds(client: openai.OpenAI, fake: FakeUpstream) -> None:
    encoded = client.embeddings.create(model=EMBEDDER, input="hello")  # the client asks for base64 and decodes it
    assert fake.requests[-1].body["encoding_format"] == "base64"
    numbers = client.embeddings.create(model=EMBEDDER, input="hello", encoding_format="float")
    assert encoded.data[0].embedding == pytest.approx(numbers.data[0].embedding)
    raw: Any = client.embeddings.create(model=EMBEDDER, input="hello", encoding_format="base64")
    assert isinstance(raw.data[0].embedding, str)
    assert len(client.embeddings.create(model=EMBEDDER, input=["a", "b", "c"]).data) == 3
    tokens = client.embeddings.create(model=EMBEDDER, input=[[1, 2, 3], [4]])
    assert (len(tokens.data), tokens.usage.prompt_tokens) == (2, 4)
    assert len(client.embeddings.create(model=EMBEDDER, input=[1, 2], dimensions=8).data[0].embedding) == 8


def test_it_makes_responses(client: openai.OpenAI, fake: FakeUpstream) -> None:
    answer = client.responses.create(model=MODEL, input="hello there", instructions="Be brief.")
    assert answer.output_text == ANSWER
    assert answer.usage is not None
    assert answer.usage.output_tokens == 4
    assert fake.requests[-1].body["store"] is False
    listed: Any = [{"role": "user", "content": [{"type": "input_text", "text": "hello there"}]}]
    assert client.responses.create(model=MODEL, input=listed, store=True).output_text == ANSWER
    assert fake.requests[-1].body["store"] is False


def test_it_streams_responses(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model=MODEL, input="hello there", stream=True))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == ANSWER
    with client.responses.stream(model=MODEL, input="hello there") as stream:
        assert stream.get_final_response().output_text == ANSWER


def test_it_calls_tools_in_responses(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "name": "add", "parameters": ADD["function"]["parameters"], "strict": False}
    answer = client.responses.create(model=MODEL, input="hello", tools=[tool], tool_choice="required")
    (call,) = answer.output
    assert call.type == "function_call"
    assert (call.name, call.arguments) == ("add", '{"a": 0, "b": 0}')


def test_it_completes_prompts(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=["hello there", "good bye"], max_tokens=50)
    assert [choice.text for choice in answer.choices] == [ANSWER, "You said: good bye"]
    chunks = client.completions.create(model=MODEL, prompt="hello there", max_tokens=50, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == ANSWER


def test_it_lists_the_models_that_the_key_may_use(client: openai.OpenAI, platform: Platform) -> None:
    assert {MODEL, EMBEDDER, SPARE} <= {model.id for model in client.models.list()}
    assert client.models.retrieve(MODEL).object == "model"
    narrow = platform.add([], account="narrow", models=[MODEL])
    assert [model.id for model in client.with_options(api_key=narrow).models.list()] == [MODEL]
    with pytest.raises(openai.NotFoundError):
        client.with_options(api_key=narrow).models.retrieve(EMBEDDER)


def test_it_hands_a_failed_response_over(client: openai.OpenAI, fake: FakeUpstream) -> None:
    fake.set(chunk_interval_ms=10)
    fake.fail_next("cut")
    with client.responses.stream(model=MODEL, input="hello there") as stream:
        last = list(stream)[-1]
    assert last.type == "response.failed"  # which the client hands over as it is
    assert last.response.error is not None
    assert (last.response.status, last.response.error.code) == ("failed", "upstream_failed")


@pytest.mark.parametrize("name", ["previous_response_id", "conversation", "prompt"])
def test_it_refuses_what_would_live_on_at_the_provider(client: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(model=MODEL, input="hello", extra_body={name: "abc_1"})
    assert raised.value.param == name


def test_it_is_retried_by_the_client_as_it_asks(client: openai.OpenAI, platform: Platform, fake: FakeUpstream) -> None:
    narrow = client.with_options(api_key=platform.add([], account="one-at-a-time", concurrent_requests=1))
    fake.set(latency_ms=700)
    other = threading.Thread(target=narrow.chat.completions.create, kwargs={"model": MODEL, "messages": MESSAGES})
    other.start()
    wait_until(lambda: bool(fake.billed), "the first call to arrive")
    with pytest.raises(openai.RateLimitError) as raised:
        narrow.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert (raised.value.code, raised.value.type) == ("rate_limit_exceeded", "requests")
    assert raised.value.response.headers["Retry-After"] == "1"
    began = time.monotonic()
    answer = narrow.with_options(max_retries=2).chat.completions.create(model=MODEL, messages=MESSAGES)
    assert answer.choices[0].message.content == ANSWER
    assert time.monotonic() - began > 1
    other.join()


def test_it_gives_up_when_the_client_does(client: openai.OpenAI, fake: FakeUpstream) -> None:
    fake.set(latency_ms=500)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.1).chat.completions.create(model=MODEL, messages=MESSAGES)


def raw(client: openai.OpenAI, model: str = MODEL, **more: Any) -> Any:
    """Ask, and return the answer with its headers."""
    return client.chat.completions.with_raw_response.create(model=model, messages=MESSAGES, **more)


def test_it_tells_more_in_the_headers(client: openai.OpenAI) -> None:
    told = raw(client, temperature=0)
    assert told.parse().choices[0].message.content == ANSWER
    assert told.headers["X-Model"] == MODEL
    assert told.headers["X-Fallback"] == "false"
    assert told.headers["X-Cost-USD"] == "0.000044000"  # 2 tokens at 2, 4 at 10 dollars a million
    assert told.headers["x-ratelimit-limit-requests"] == "1000"
    assert int(told.headers["x-ratelimit-remaining-requests"]) < 1000
    assert told.headers["x-request-id"]
    again = raw(client, temperature=0)
    assert (again.headers["X-Cache"], again.headers["X-Cost-USD"]) == ("HIT", "0.000000000")
    bypass = raw(client, temperature=0, extra_headers={"Cache-Control": "no-cache"})
    assert bypass.headers["X-Cache"] == "BYPASS"


def test_it_shares_what_the_caller_lets_be_shared(client: openai.OpenAI, fake: FakeUpstream) -> None:
    for wanted in ("MISS", "HIT"):
        shared = raw(client, temperature=1.2, extra_headers={"X-Cache-Answer": "1"})
        assert shared.headers["X-Cache"] == wanted
    assert raw(client, temperature=1.2).headers["X-Cache"] == "BYPASS"


def test_it_answers_from_the_next_deployment(client: openai.OpenAI, platform: Platform) -> None:
    told = raw(client, SPARE)
    assert (told.headers["X-Model"], told.headers["X-Fallback"]) == (SPARE, "true")
    streamed = raw(client, SPARE, stream=True)
    assert streamed.headers["X-Fallback"] == "true"
    assert [chunk for chunk in streamed.parse() if chunk.choices]
    first, second = (record_of(platform.service, answer.headers["X-Request-ID"]) for answer in (told, streamed))
    assert (first.status, first.attempts) == (200, 2)
    assert (second.status, second.attempts) == (200, 1), "an address that could not be reached is passed by"


def test_it_answers_a_retry_once_only(client: openai.OpenAI, fake: FakeUpstream) -> None:
    headers = {"Idempotency-Key": "the-same"}
    answers = [raw(client, extra_headers=headers) for _ in range(2)]
    assert answers[0].parse().id == answers[1].parse().id
    assert answers[1].headers["Idempotency-Replayed"] == "true"
    assert len(fake.billed) == 1


def test_it_serves_the_official_node_client(platform: Platform, key: str, fake: FakeUpstream) -> None:
    """Its program asks for everything once, and tells what came."""
    fake.reset()
    arguments = ["client.mjs", f"{platform.service.base_url}/v1", key, MODEL, EMBEDDER]
    done = run_node("node", arguments, npm_install("node"))
    assert done.returncode == 0, done.stderr
    wait_until(lambda: not fake.totals()["running"], "the calls to end")
    told = json.loads(done.stdout)
    errors, events, models = (told.pop(name) for name in ("errors", "events", "models"))
    assert told == {
        **dict.fromkeys(("plain", "final", "streamed", "response", "completion"), ANSWER),
        **dict.fromkeys(("usage", "streamedUsage"), 6),
        **dict.fromkeys(("requestId", "remaining"), True),
        "tool": {"name": "add", "arguments": '{"a": 0}'},
        "parsed": {"answer": "hello there"},
        "vectors": [64, 64],
        "model": MODEL,
        "aborted": 1,
    }
    assert (events[0], events[-1]) == ("response.created", "response.completed")
    assert {MODEL, EMBEDDER} <= set(models)
    assert {name: (error["name"], error["status"], error["code"]) for name, error in errors.items()} == {
        "key": ("AuthenticationError", 401, "invalid_api_key"),
        "model": ("NotFoundError", 404, "model_not_found"),
        "parameter": ("BadRequestError", 400, "decimal_above_max_value"),
        "path": ("NotFoundError", 404, "not_found"),
    }
    assert errors["parameter"]["param"] == "temperature"
