"""The fake provider's endpoints over real sockets, mostly by the official client."""

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from inference.fake_provider import FakeUpstream
from inference.tests.wire import CHAT, HELLO, chat_body, events, post

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}


class Person(BaseModel):
    """What `parse` should make of an answer."""

    name: str
    age: int
    friends: list["Person"] | None


@pytest.fixture
def fake() -> Iterator[FakeUpstream]:
    with FakeUpstream() as server:
        yield server


@pytest.fixture
def client(fake: FakeUpstream) -> openai.OpenAI:
    return openai.OpenAI(base_url=fake.base_url, api_key="sk-any", max_retries=0, timeout=5)


def test_it_answers_a_chat_with_the_tokens_that_it_bills(fake: FakeUpstream, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="m", messages=HELLO)
    assert answer.choices[0].message.content == "You said: hello there"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 4)
    (call,) = fake.billed
    assert (call.id, call.prompt_tokens, call.completion_tokens, call.outcome) == (answer.id, 2, 4, "complete")


def test_it_streams_a_chat_token_by_token(fake: FakeUpstream, client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(model="m", messages=HELLO, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "You said: hello there"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == fake.billed[0].completion_tokens == 4


def test_it_tells_no_usage_in_a_stream_that_did_not_ask(fake: FakeUpstream) -> None:
    body = chat_body(stream=True)
    del body["stream_options"]
    received = events(post(fake, CHAT, body).read())
    assert received[-1] == "[DONE]"
    assert not any("usage" in event for event in received)


def test_it_keeps_to_max_tokens_n_and_stop(client: openai.OpenAI) -> None:
    short = client.chat.completions.create(model="m", messages=HELLO, max_completion_tokens=2, n=3)
    assert [(each.message.content, each.finish_reason) for each in short.choices] == [("You said:", "length")] * 3
    assert short.usage is not None
    assert short.usage.completion_tokens == 6
    stopped = client.chat.completions.create(model="m", messages=HELLO, stop=["there"])
    assert stopped.choices[0].message.content == "You said: hello"


@pytest.mark.parametrize("form", ["Summarize the following text in 1-2 sentences:\n\n{}", "{}\n\nSummarize the text."])
def test_it_summarizes_when_asked_to(client: openai.OpenAI, form: str) -> None:
    prompt = form.format("One two three four. " * 20)
    answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": prompt}])
    assert answer.choices[0].message.content == "One two three four. " * 4 + "One two three four."


@pytest.mark.parametrize("stream", [False, True])
def test_it_calls_the_forced_tool(client: openai.OpenAI, stream: bool) -> None:
    choice: Any = {"type": "function", "function": {"name": "weather"}}
    tools: Any = [TOOL]
    if stream:
        with client.chat.completions.stream(model="m", messages=HELLO, tools=tools, tool_choice=choice) as chunks:
            (answer,) = chunks.get_final_completion().choices
    else:
        (answer,) = client.chat.completions.create(model="m", messages=HELLO, tools=tools, tool_choice=choice).choices  # type: ignore[assignment]
    assert answer.finish_reason == "tool_calls"
    (call,) = answer.message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "hello there", "days": 0})


def test_it_fills_a_schema_so_that_parse_works(client: openai.OpenAI) -> None:
    chat = client.chat.completions.parse(model="m", messages=HELLO, response_format=Person)
    response = client.responses.parse(model="m", input="hello there", text_format=Person)
    for person in (chat.choices[0].message.parsed, response.output_parsed):
        assert person is not None
        assert (person.name, person.age) == ("hello there", 0)


def test_it_tells_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="m", messages=HELLO, logprobs=True, top_logprobs=1)
    assert answer.choices[0].logprobs is not None
    assert [each.token for each in answer.choices[0].logprobs.content or []] == ["You", " said:", " hello", " there"]


def test_it_completes_prompts(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="m", prompt=["one", "two three"])
    assert [choice.text for choice in answer.choices] == ["You said: one", "You said: two three"]
    stream = client.completions.create(model="m", prompt="one", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "You said: one"


@pytest.mark.parametrize(
    ("given", "tokens", "count"), [("a b", 2, 1), (["a", "b c"], 3, 2), ([5, 6, 7], 3, 1), ([[5], [6, 7]], 3, 2)]
)
def test_it_embeds_texts_and_tokens(
    fake: FakeUpstream, client: openai.OpenAI, given: Any, tokens: int, count: int
) -> None:
    answer = client.embeddings.create(model="m", input=given, encoding_format="float", dimensions=8)
    assert [len(each.embedding) for each in answer.data] == [8] * count
    assert answer.usage.prompt_tokens == fake.totals()["prompt_tokens"] == tokens
    assert fake.totals()["completion_tokens"] == 0


def test_it_embeds_the_same_in_base64(fake: FakeUpstream) -> None:
    as_floats = json.load(post(fake, "/v1/embeddings", {"model": "m", "input": "a"}))["data"][0]["embedding"]
    body = {"model": "m", "input": "a", "encoding_format": "base64"}
    packed = base64.b64decode(json.load(post(fake, "/v1/embeddings", body))["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(packed) // 4}f", packed)) == as_floats


def test_it_responds(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="m", input="hello there", instructions="be kind")
    assert (answer.output_text, answer.status) == ("You said: hello there", "completed")
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (4, 4)
    assert client.responses.create(model="m", input="hello", max_output_tokens=1).status == "incomplete"


def test_it_streams_the_events_of_a_response_in_order(client: openai.OpenAI) -> None:
    received = list(client.responses.create(model="m", input="hello", max_output_tokens=2, stream=True))
    kinds = [event.type.removeprefix("response.") for event in received]
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.delta", "output_text.done", "content_part.done", "output_item.done", "incomplete"),
    ]
    assert [event.sequence_number for event in received] == list(range(10))


def test_it_streams_the_call_of_a_tool_in_a_response(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", **TOOL["function"]}]  # type: ignore[dict-item]
    stream = client.responses.create(model="m", input="hello", tools=tools, tool_choice="required", stream=True)
    done = [event for event in stream if event.type == "response.function_call_arguments.done"]
    assert json.loads(done[0].arguments) == {"city": "hello", "days": 0}


def test_it_lists_models_and_knows_only_those() -> None:
    with FakeUpstream(models=["one", "two"]) as fake:
        client = openai.OpenAI(base_url=fake.base_url, api_key="any", max_retries=0)
        assert [model.id for model in client.models.list()] == ["one", "two"]
        assert client.models.retrieve("two").id == "two"
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.models.retrieve("three")
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.chat.completions.create(model="three", messages=HELLO)


def test_it_answers_under_azures_paths() -> None:
    with FakeUpstream(api_key="azure-key") as fake:
        url = f"http://127.0.0.1:{fake.port}"
        client = openai.AzureOpenAI(azure_endpoint=url, api_key="azure-key", api_version="2024-10-21", max_retries=0)
        answer = client.chat.completions.create(model="my-deployment", messages=HELLO)
        assert answer.model == "my-deployment"
        assert fake.requests[0].path == "/openai/deployments/my-deployment/chat/completions"
        assert post(fake, fake.requests[0].path, chat_body(), headers={"api-key": "azure-key"}).status == 404


def test_it_wants_the_key_if_it_has_one() -> None:
    with FakeUpstream(api_key="right") as fake:
        assert post(fake, CHAT, chat_body()).status == 401
        assert post(fake, CHAT, chat_body(), headers={"Authorization": "Bearer wrong"}).status == 401
        assert post(fake, CHAT, chat_body(), headers={"Authorization": "Bearer right"}).status == 200
        assert fake.totals()["calls"] == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (CHAT, "{", 400, None),
        (CHAT, "[]", 400, None),
        (CHAT, {"messages": HELLO}, 400, "model"),
        (CHAT, {"model": "m", "messages": []}, 400, "messages"),
        (CHAT, {"model": "m", "messages": HELLO, "n": 0.5}, 400, "n"),
        (CHAT, {"model": "m", "messages": HELLO, "max_tokens": 0}, 400, "max_tokens"),
        ("/v1/completions", {"model": "m"}, 400, "prompt"),
        ("/v1/embeddings", {"model": "m"}, 400, "input"),
        ("/v1/responses", {"model": "m"}, 400, "input"),
        ("/v1/files", {}, 404, None),
    ],
)
def test_it_refuses_as_openai_does(fake: FakeUpstream, path: str, body: Any, status: int, param: str | None) -> None:
    answer = post(fake, path, body)
    assert answer.status == status
    assert json.load(answer)["error"]["param"] == param
    assert fake.totals()["prompt_tokens"] == 0
