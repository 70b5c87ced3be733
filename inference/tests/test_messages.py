"""What of a provider's message is passed on: the words about a request, and nothing about where they come from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.upstream.errors import GAP, LONGEST, passable

#: What a message may hold that nobody outside is to see.
SECRETS = (
    "https://gpu-7.internal.example/v1?key=1",
    "http://vllm:8000/v1/chat/completions",
    "gpu-7.internal.example",
    "api.openai.com/v1",
    "llm.corp:8443",
    "vllm-0:8000",
    "localhost:8000",
    "10.1.2.3",
    "10.1.2.3:8000/v1",
    "[fd00::12:9]:8000",
    "ops@corp.example",
    "/usr/lib/python3/site-packages/vllm/engine.py",
    "sk-proj-aB3dE5gH7jK9mN1pQ3sT5vX7",
    "sk-abcd****wxyz",
    "org-9f8e7d6c5b4a",
    "req_0123456789abcdef",
    "Bearer abcdefgh12345",
    "api_key=hunter2",
    "0b6f2c1e-6d1f-4f7a-9c55-0a7f3f0b6c1d",
    "0123456789abcdef0123456789abcdef",
    "Zm9vYmFyOmJhejEyMzQ1Njc4",
)


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",
        "Unsupported value: 'temperature' does not support 0.7 with gpt-5-mini-2025-08-07.",
        "Invalid 'tools[0].function.name': expected a string that matches the pattern '^[a-zA-Z0-9_-]+$'.",
        "Unknown parameter: 'text.format.schema.additionalProperties'.",
        "Invalid 'messages[1].content[0].image_url.url': expected a base64-encoded data URL, and/or https.",
        "max_completion_tokens is too large: 16384. At most 4096 (e.g. 100) are supported since 2024-10-21 at 12:30.",
        "[{'loc': ('body', 'temperature'), 'msg': 'Input should be less than or equal to 2'}]",
        "Die Eingabe ist zu lang: höchstens 4.096 Token, 你好.",
    ],
)
def test_it_passes_on_what_is_about_the_request(message: str) -> None:
    assert passable(message, ["sk-secret", "10.0.0.1"]) == message


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("text", ["Too long for {}", "{} says: too long", "Too long ({}).", "Too long: '{}', sorry"])
def test_it_leaves_out_whose_word_it_is(secret: str, text: str) -> None:
    passed = passable(text.format(secret), [])
    assert "oo long" in passed
    assert GAP in passed
    assert not any(part in passed for part in secret.replace("/", " ").split() if len(part) > 7)


def test_it_leaves_out_what_is_named_to_it_in_any_case() -> None:
    assert (
        passable("Too long for Blue-Whale, says blue-whale", ["blue-whale", "", "so"])
        == f"Too long for {GAP}, says {GAP}"
    )


@pytest.mark.parametrize(
    "message", [None, 7, {}, "", "\n", "7", "<html>no", "http://a.b/c", "Traceback (most recent call"]
)
def test_it_says_nothing_where_there_is_nothing_to_say(message: object) -> None:
    assert passable(message, []) == ""


@given(st.text(), st.text(alphabet="sk-proj/:.@[]=aA1 \n", max_size=3000))
def test_it_makes_one_short_line_of_anything(start: str, rest: str) -> None:
    passed = passable(start + rest, [])
    assert len(passed) <= LONGEST
    assert len(passed.splitlines()) <= 1


def test_it_never_passes_on_half_a_secret() -> None:
    for length in range(900, 1010):
        message = "http://a.example/ " * 40 + "x" * (length - 720) + " sk-proj-aB3dE5gH7jK9mN1pQ3sT5vX7"
        assert "aB3" not in passable(message, [])
