"""What each endpoint of a provider may use at most, what it did use, and which answers may be shared."""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounts.key_cache import AuthenticatedKey, build_authenticated_key
from accounts.tests.factories import make_key, make_tier
from core.errors import InvalidRequest
from inference.catalog import CatalogModel, Route
from inference.prices import Rates
from inference.protocols.base import MESSAGE_TOKENS, REPLY_TOKENS, WireProtocol, count_tokens
from inference.protocols.chat import chat_protocol, completion_protocol
from inference.protocols.embeddings import embedding_protocol
from inference.protocols.responses import BUILT_IN_TOKENS, response_protocol
from inference.usage import Usage

MODELS = ("gpt-4", "gpt-4o")
DATA_URL = "data:image/png;base64," + "A" * 100_000
for name in MODELS:
    count_tokens([], model=name)  # the first count in an encoding takes a second

texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200)
roles = st.sampled_from(["system", "user", "assistant", "developer", "tool"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
)


def route(number: int = 1, rates: Rates | None = None) -> Route:
    """Make a deployment."""
    return Route(number, "p/m", "p", "http://p/v1", "", (), "m", "max_tokens", 0, 1, rates or Rates())


def model(*rates: Rates, context_size: int = 8192, kind: str = "chat") -> CatalogModel:
    """Make a model with a deployment at each of the prices."""
    routes = tuple(route(number, each) for number, each in enumerate(rates or (Rates(),)))
    return CatalogModel("m", kind, context_size, 0, routes)


@pytest.fixture
def identity(db: None) -> AuthenticatedKey:
    """Return a caller who may have 1,000 tokens of output."""
    key = make_key(tier=make_tier("t", max_output_tokens=1000)).key
    return build_authenticated_key(key, key.created_at)


def chat(*contents: Any, **more: Any) -> dict[str, Any]:
    """Make a chat's payload."""
    return {"messages": [{"role": "user", "content": content} for content in contents], **more}


# Bounds of prompts


@given(st.lists(st.tuples(roles, texts), min_size=1, max_size=6), texts)
def test_it_bounds_the_tokens_of_messages_from_above(messages: list[tuple[str, str]], instructions: str) -> None:
    payload = {"messages": [{"role": role, "content": text} for role, text in messages]}
    items = [{"role": role, "content": [{"type": "input_text", "text": text}]} for role, text in messages]
    bound = chat_protocol.prompt_bound(payload)
    of_response = response_protocol.prompt_bound({"input": items, "instructions": instructions})
    around = MESSAGE_TOKENS * (len(messages) + 1) + REPLY_TOKENS
    for name in MODELS:
        assert count_tokens([part for message in messages for part in message], model=name) + around <= bound
        assert count_tokens([instructions, *(text for _, text in messages)], model=name) + around <= of_response
    alone = response_protocol.prompt_bound({"input": instructions})
    assert count_tokens([instructions], model="gpt-4o") + MESSAGE_TOKENS + REPLY_TOKENS <= alone


@given(texts, texts, values)
def test_it_bounds_the_tokens_of_tools_from_above(name: str, description: str, schema: Any) -> None:
    tool = {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}
    plain, with_tools = chat("hello"), chat("hello", tools=[tool])
    written = count_tokens([json.dumps(tool, ensure_ascii=False, separators=(",", ":"))], model="gpt-4o")
    assert chat_protocol.prompt_bound(with_tools) >= chat_protocol.prompt_bound(plain) + written
    asked = {"input": "hello", "tools": [tool]}
    assert response_protocol.prompt_bound(asked) >= response_protocol.prompt_bound({"input": "hello"}) + written


@given(st.lists(texts, min_size=1, max_size=5), st.lists(st.integers(0, 200_000), min_size=1, max_size=50))
def test_it_bounds_the_tokens_of_prompts_from_above(prompts: list[str], tokens: list[int]) -> None:
    for name in MODELS:
        counted = count_tokens(prompts, model=name)
        assert counted <= completion_protocol.prompt_bound({"prompt": prompts})
        assert counted <= embedding_protocol.prompt_bound({"input": prompts})
    assert len(tokens) <= completion_protocol.prompt_bound({"prompt": tokens})
    assert 2 * len(tokens) <= embedding_protocol.prompt_bound({"input": [tokens, tokens]})


def test_it_bounds_what_is_read_beside_the_prompt() -> None:
    """A model that inserts reads the suffix after every prompt."""
    suffix, prompts = "zanzibar " * 1000, ["a"] * 50
    assert completion_protocol.prompt_bound({"prompt": prompts, "suffix": suffix}) >= 50 * len(suffix)
    assert completion_protocol.prompt_bound({"prompt": prompts}) < 500
    assert embedding_protocol.prompt_bound({"input": "a", "instruction": suffix}) > 9000
    group = {"type": "namespace", "name": "n", "tools": [{"type": "function"}, {"type": "custom"}]}
    for payload, count in (
        ({"input": "a", "tools": [{"type": "apply_patch"}, group]}, 1),
        ({"input": [{"type": "additional_tools", "tools": [{"type": "apply_patch"}, {"type": "computer"}]}]}, 2),
    ):
        least = count * BUILT_IN_TOKENS + len(json.dumps(payload, separators=(",", ":")))
        assert least < response_protocol.prompt_bound(payload) < least + 200


# Bounds of calls


@pytest.mark.parametrize(
    ("asked", "context", "output"),
    [(None, 8192, 1000), (50, 8192, 50), (5000, 8192, 1000), (None, 300, 300), (200, 100, 100)],
)
def test_it_gives_what_is_asked_for_within_tier_and_context(
    identity: AuthenticatedKey, asked: int | None, context: int, output: int
) -> None:
    payload = chat("hello", max_completion_tokens=asked)
    bound = chat_protocol.bound(payload, identity, model(context_size=context))
    assert (bound.output_tokens, bound.least_output, bound.step) == (output, 1 if asked is None else output, 1)


@pytest.mark.parametrize(
    ("protocol", "payload", "answers", "output"),
    [
        (chat_protocol, chat("hello", n=3, max_tokens=10), 3, 30),
        (completion_protocol, {"prompt": ["a", "b"], "n": 3, "max_tokens": 10}, 6, 60),
        (completion_protocol, {"prompt": "a", "n": 2, "best_of": 5, "max_tokens": 10}, 5, 50),
        (completion_protocol, {"prompt": [[1, 2], [3]], "max_tokens": 10}, 2, 20),
        (completion_protocol, {"prompt": [1, 2, 3], "max_tokens": 10}, 1, 10),
        (completion_protocol, {"prompt": "a"}, 1, 16),  # the provider's own maximum
        (embedding_protocol, {"input": ["a", "b"]}, 1, 0),
    ],
)
def test_it_reckons_the_output_of_each_answer(
    identity: AuthenticatedKey, protocol: WireProtocol, payload: dict[str, Any], answers: int, output: int
) -> None:
    bound = protocol.bound(payload, identity, model())
    assert (protocol.answers(payload), bound.output_tokens, bound.step) == (answers, output, answers)


def test_it_bounds_by_the_dearest_price_and_refuses_what_is_too_large(identity: AuthenticatedKey) -> None:
    rates = (Rates(input=1_000_000, output=5_000_000), Rates(input=2_000_000, cached_input=9_000_000, output=1_000_000))
    bound = chat_protocol.bound(chat("hello", max_tokens=10), identity, model(*rates))
    assert bound.at(10).cost == 9 * bound.prompt.tokens + 5 * 10
    dear = Rates(output=2**50)
    with pytest.raises(InvalidRequest):
        chat_protocol.bound(chat("hello"), replace(identity, max_output_tokens=2**40), model(dear, context_size=2**40))


# What is sent


@pytest.mark.parametrize(
    "asked", [{}, {"max_tokens": 9}, {"max_completion_tokens": 9}, {"max_tokens": 9, "max_completion_tokens": 8}]
)
@pytest.mark.parametrize("known", ["max_tokens", "max_completion_tokens"])
def test_it_sends_the_maximum_under_the_one_name_that_the_deployment_knows(asked: dict[str, int], known: str) -> None:
    sent = chat_protocol.with_output(chat("hello", seed=1, **asked), 7, known)
    assert sent == chat("hello", seed=1, **{known: 7})


def test_it_lets_nothing_be_stored_at_the_provider() -> None:
    assert chat_protocol.with_output(chat("hello", store=True), 7, "max_tokens")["store"] is False
    sent = {"input": "a", "store": False, "max_output_tokens": 7}
    assert response_protocol.with_output({"input": "a", "store": True}, 7, "max_tokens") == sent
    assert completion_protocol.with_output({"prompt": "a"}, 7, "max_completion_tokens")["max_tokens"] == 7


def test_it_asks_for_usage_in_streams_whatever_the_caller_asks() -> None:
    for protocol in (chat_protocol, completion_protocol):
        sent = protocol.as_stream({"stream_options": {"include_usage": False, "include_obfuscation": False}})
        assert sent == {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}}
    assert response_protocol.as_stream({"input": "a"}) == {"input": "a", "stream": True}


# What was used


@given(texts, texts)
def test_it_counts_what_a_provider_does_not_tell(question: str, answer: str) -> None:
    asked, said = count_tokens([question], model="gpt-4o"), count_tokens([answer], model="gpt-4o")
    body = {"choices": [{"message": {"role": "assistant", "content": answer}, "text": answer}]}
    counted = chat_protocol.estimate(chat(question), body, model="gpt-4o")
    assert counted.input_tokens >= asked + MESSAGE_TOKENS + REPLY_TOKENS
    assert counted.output_tokens == said
    assert completion_protocol.estimate({"prompt": [question]}, body, model="gpt-4o") == Usage(asked, 0, said)
    assert embedding_protocol.estimate({"input": question}, {}, model="gpt-4o") == Usage(asked, 0, 0)
    response = {"output": [{"content": [{"type": "output_text", "text": answer}]}]}
    assert response_protocol.estimate({"input": question}, response, model="gpt-4o").output_tokens == said


def test_it_counts_tokens_that_were_sent_as_such() -> None:
    assert embedding_protocol.estimate({"input": [[1, 2, 3], [4]]}, {}, model="m") == Usage(4, 0, 0)
    assert completion_protocol.estimate({"prompt": [1, 2, 3]}, {"choices": []}, model="m") == Usage(3, 0, 0)


TOOLS = [{"type": "function", "function": {"name": "f", "description": "word " * 500, "parameters": {}}}]
IMAGE = [{"type": "image_url", "image_url": {"url": DATA_URL}}]


@pytest.mark.parametrize(
    ("protocol", "payload", "least"),
    [
        (chat_protocol, {**chat("hi"), "tools": TOOLS}, 500),
        (response_protocol, {"input": "hi", "tools": TOOLS}, 500),
        (chat_protocol, chat(IMAGE), 1000),
        (response_protocol, {"input": [{"content": [{"type": "input_image", "image_url": DATA_URL}]}]}, 1000),
    ],
)
def test_it_counts_what_a_model_reads_beside_the_messages(
    protocol: WireProtocol, payload: dict[str, Any], least: int
) -> None:
    """Whoever leaves a stream before its usage comes would have tools and images for nothing."""
    assert least < protocol.estimate(payload, {}, model="gpt-4o").input_tokens <= protocol.prompt_bound(payload)


STORY = "Once upon a time there was a dog who lived in a small house by the sea, and every day it ran."
TOKENS = count_tokens([STORY], model="")


def answers(number: int, told: int) -> dict[str, Any]:
    """Make a body of so many answers, of which the provider tells so many tokens, for both kinds of completions."""
    choices = [{"message": {"role": "assistant", "content": STORY}, "text": STORY}] * number
    return {"choices": choices, "usage": {"prompt_tokens": 9, "completion_tokens": told}}


@pytest.mark.parametrize("protocol", [chat_protocol, completion_protocol])
def test_it_charges_every_answer_of_a_provider_that_tells_the_tokens_of_one(protocol: WireProtocol) -> None:
    for number in (2, 4):
        body, payload = answers(number, TOKENS), {**chat("hi"), "prompt": "hi", "n": number}
        used, source = protocol.used(payload, body, model="smollm2")
        assert source == "estimated"
        assert used.output_tokens == pytest.approx(number * TOKENS, abs=number)
        assert used.input_tokens >= 9
    for number, told in ((3, 3 * TOKENS * 4 // 5 + 1), (1, 1)):  # its tokenizer makes a fifth less
        assert protocol.used({}, answers(number, told), model="") == (Usage(9, 0, told), "provider")
    body = answers(2, 3 * TOKENS)
    for choice in body["choices"]:  # thoughts that are told twice are no answer
        choice["message"] = {**choice["message"], "reasoning": STORY * 5, "reasoning_content": STORY * 5}
    assert protocol.used({}, body, model="") == (Usage(9, 0, 3 * TOKENS), "provider")


def test_it_takes_an_echoed_prompt_for_no_output() -> None:
    payload = {"prompt": [STORY, STORY], "n": 2, "echo": True}
    body = {"choices": [{"text": STORY + " The end."}] * 4, "usage": {"prompt_tokens": 9, "completion_tokens": 12}}
    assert completion_protocol.estimate(payload, body, model="") == Usage(2 * TOKENS, 0, 12)


# Whole answers, and shared ones


@pytest.mark.parametrize(
    ("protocol", "whole", "broken"),
    [
        (chat_protocol, {"choices": [{}]}, [{}, {"choices": []}, {"choices": "a"}, {"choices": [1]}, {"error": {}}]),
        (completion_protocol, {"choices": [{}]}, [{}, {"choices": []}, {"choices": {}}]),
        (embedding_protocol, {"data": [{}]}, [{}, {"data": []}, {"data": {}}]),
        (response_protocol, {"output": []}, [{}, {"output": None}, {"output": [], "status": "failed"}]),
    ],
)
def test_it_knows_a_whole_answer(protocol: WireProtocol, whole: dict[str, Any], broken: list[dict[str, Any]]) -> None:
    assert protocol.is_complete(whole)
    assert not any(protocol.is_complete(body) for body in broken)


def test_it_shares_answers_at_temperature_0_that_are_nobody_s_own() -> None:
    personal: dict[str, Any] = {"functions": [{}], "store": True, "user": "u", "safety_identifier": "u"}
    personal |= {"tools": [{}], "metadata": {"a": "b"}, "prompt_cache_key": "k"}
    generating: list[WireProtocol] = [chat_protocol, completion_protocol, response_protocol]
    for protocol in generating:
        assert protocol.is_cacheable({"temperature": 0})
        assert protocol.is_cacheable({"temperature": 0.0, "seed": 1, "tools": [], "metadata": {}, "user": ""})
        assert not protocol.is_cacheable({"temperature": 0.1})
        assert not protocol.is_cacheable({})
    for protocol in [*generating, embedding_protocol]:
        assert not any(protocol.is_cacheable({"temperature": 0, name: value}) for name, value in personal.items())
    assert embedding_protocol.is_cacheable({"input": "a"})


@pytest.mark.parametrize(
    ("protocol", "body", "is_finished"),
    [
        (chat_protocol, {"choices": [{"finish_reason": "stop"}, {"finish_reason": "content_filter"}]}, False),
        (response_protocol, {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}, False),
        (chat_protocol, {"choices": [{"finish_reason": "stop"}, {"finish_reason": "tool_calls"}]}, True),
        (completion_protocol, {"choices": [{"finish_reason": "length"}]}, True),
        *(
            (protocol, {"choices": [{"finish_reason": reason}]}, False)
            for protocol in (chat_protocol, completion_protocol)
            for reason in ("", "error", "abort", "whatever")
        ),
        (chat_protocol, {"choices": [{"finish_reason": None}]}, False),
        (chat_protocol, {"choices": [{"finish_reason": []}]}, False),
        (chat_protocol, {"choices": [{}]}, False),
        (response_protocol, {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, True),
        (response_protocol, {"status": "completed", "incomplete_details": None}, True),
        (response_protocol, {"status": "in_progress"}, False),
        (response_protocol, {"status": "incomplete", "incomplete_details": None}, False),
        (response_protocol, {}, False),
        (embedding_protocol, {"data": []}, True),
    ],
)
def test_it_knows_an_answer_that_may_be_cached(protocol: WireProtocol, body: dict[str, Any], is_finished: bool) -> None:
    assert protocol.is_finished(body) is is_finished


def test_it_takes_encrypted_reasoning_for_about_the_text_that_it_was() -> None:
    thoughts = STORY * 4
    reasoning = {"type": "reasoning", "summary": [], "encrypted_content": b64encode(thoughts.encode()).decode()}
    used = response_protocol.estimate({"input": "a"}, {"output": [reasoning, "odd"]}, model="")
    assert used.output_tokens == pytest.approx(count_tokens([thoughts], model=""), rel=0.25)


# Counting tokens where a provider doesn't report them

#: The example, with its counts, of the OpenAI cookbook's "How to count tokens with tiktoken".
BIRTHDAY = "お誕生日おめでとう"


def test_it_counts_with_each_model_s_own_encoding() -> None:
    older = ("gpt-3.5-turbo", "gpt-4", "gpt-4-turbo", "text-embedding-3-small", "davinci-002", "babbage-002")
    newer = ("gpt-4o", "gpt-4.1-mini", "o3", "gpt-5", "llama-3", "")
    assert {count_tokens([BIRTHDAY], model=name) for name in older} == {9}
    assert {count_tokens([BIRTHDAY], model=name) for name in newer} == {8}
    assert count_tokens(["hello", "", "hello"], model="gpt-4o") == 2 * count_tokens(["hello"], model="gpt-4o")
    assert count_tokens([], model="gpt-4o") == 0
    for odd in ("<|endoftext|>", "half of a pair: \ud83d"):  # no special token, and no text at all
        assert count_tokens([odd], model="gpt-4o") > 1


@pytest.mark.parametrize("output", [None, 7, "text", {}, ["odd", {"type": "web_search_call", "action": 7}]])
def test_a_response_s_end_is_read_whatever_its_output_is(output: Any) -> None:
    reader = response_protocol.reader({"input": "a"})
    ended = {"output": output, "usage": {"input_tokens": 9, "output_tokens": 3}}
    reader.feed(b"data: " + json.dumps({"type": "response.completed", "response": ended}).encode() + b"\n\n")
    assert reader.usage is not None
    assert (reader.usage.input_tokens, reader.usage.web_searches) == (9, isinstance(output, list))
