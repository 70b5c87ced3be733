"""What messages may hold: parts of known types, images inline or from public hosts, and what those count."""

from __future__ import annotations

from typing import Any

import pytest
from django.conf import LazySettings
from hypothesis import given
from hypothesis import strategies as st

from inference.fake_provider import FakeUpstream
from inference.protocols.base import REQUEST_OVERHEAD, WireProtocol, count_tokens
from inference.protocols.chat import chat_protocol
from inference.protocols.content import IMAGE_TOKENS, is_public_url
from inference.protocols.responses import response_protocol
from inference.tests.fixtures import MODEL, Api
from inference.tests.samples import is_taken_as_it_is, refusal

DATA_URL = "data:image/png;base64," + "A" * 100_000
PUBLIC_URL = "https://example.com/a.png"
SCREENSHOT = {"type": "computer_screenshot", "image_url": DATA_URL}
WORDS = "zanzibar seventeen " * 20_000
count_tokens([], model="gpt-4o")  # the first count in an encoding takes a second
texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)


def image(url: Any = DATA_URL, **more: Any) -> dict[str, Any]:
    """Make an image part of a chat."""
    return {"type": "image_url", "image_url": {"url": url, **more}}


def chat(*parts: Any, **more: Any) -> dict[str, Any]:
    """Make a chat of one message."""
    return {"messages": [{"role": "user", "content": list(parts), **more}]}


def response(*parts: Any, kind: str = "message", field: str = "content", **more: Any) -> dict[str, Any]:
    """Make a response's input of one item."""
    return {"input": [{"type": kind, field: list(parts), **more}]}


# What counts


@pytest.mark.parametrize(
    ("protocol", "payload"),
    [
        (chat_protocol, chat(image())),
        (chat_protocol, chat({"type": "image_url", "image_url": DATA_URL})),
        (chat_protocol, {"messages": [{"role": "tool", "content": [image(PUBLIC_URL)]}]}),
        (response_protocol, response({"type": "input_image", "image_url": DATA_URL})),
        (
            response_protocol,
            response({"type": "input_image", "image_url": PUBLIC_URL}, kind="function_call_output", field="output"),
        ),
        (
            response_protocol,
            {"input": [{"type": "computer_call_output", "output": SCREENSHOT}]},
        ),
    ],
)
def test_it_reckons_an_image_by_number(protocol: WireProtocol, payload: dict[str, Any]) -> None:
    assert IMAGE_TOKENS < protocol.prompt_bound(payload) < IMAGE_TOKENS + 500


def test_it_reckons_each_image() -> None:
    assert chat_protocol.prompt_bound(chat(image(), image(PUBLIC_URL), image())) > 3 * IMAGE_TOKENS


@pytest.mark.parametrize(
    ("protocol", "payload"),
    [
        (chat_protocol, chat({**image(), "text": WORDS})),
        (chat_protocol, chat(image(detail=WORDS))),
        (chat_protocol, chat(image(WORDS))),
        (chat_protocol, chat({"type": "input_image", "text": WORDS})),
        (chat_protocol, chat({"type": "computer_screenshot", "text": WORDS})),
        (chat_protocol, {"messages": [{"role": "user", "content": {"type": "image_url", "text": WORDS}}]}),
        (chat_protocol, {"messages": [{"type": "image_url", "image_url": {"url": DATA_URL}, "content": WORDS}]}),
        (chat_protocol, {"messages": [{"role": "user", "content": [{"content": [image(DATA_URL + WORDS)]}]}]}),
        (response_protocol, response({"type": "input_image", "image_url": DATA_URL, "text": WORDS})),
        (response_protocol, {"input": [{"type": "input_image", "image_url": DATA_URL, "content": WORDS}]}),
        (response_protocol, {"input": [{"output": {"type": "computer_screenshot", "image_url": WORDS}}]}),
        (response_protocol, {"input": [{"output": {**SCREENSHOT, "detail": WORDS}}]}),
        (response_protocol, {"input": [{"type": "additional_tools", "tools": [{"type": "function", "name": WORDS}]}]}),
    ],
)
def test_it_counts_every_byte_around_an_image(protocol: WireProtocol, payload: dict[str, Any]) -> None:
    assert protocol.prompt_bound(payload) > len(WORDS)


@given(texts, texts, st.sampled_from(["image_url", "input_image", "text", "computer_screenshot"]), st.integers(0, 3))
def test_it_bounds_what_stands_around_images_from_above(text: str, detail: str, kind: str, images: int) -> None:
    parts = [{"type": kind, "text": text, "image_url": {"url": PUBLIC_URL, "detail": detail}}] * images
    counted = count_tokens([text, detail] * images, model="gpt-4o")
    least = counted + (images * IMAGE_TOKENS if kind in ("image_url", "input_image") else 0)
    assert chat_protocol.prompt_bound(chat(*parts)) >= least + REQUEST_OVERHEAD


# What is taken


@pytest.mark.parametrize(
    "payload",
    [
        chat(image(), {"type": "text", "text": "what is it?", "cache_control": {"type": "ephemeral"}}),
        chat({"type": "refusal", "refusal": "no"}, audio=None),
        chat(image(PUBLIC_URL, detail="low")),
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}]},
        {"messages": [{"role": "assistant"}, {"role": "user", "content": "file"}]},
    ],
)
def test_it_takes_a_chat_of_texts_and_images(payload: dict[str, Any]) -> None:
    assert is_taken_as_it_is(chat_protocol, payload)


@pytest.mark.parametrize(
    "payload",
    [
        {"input": [{"role": "user", "content": "hello"}]},
        response({"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": DATA_URL, "file_id": None}),
        response({"type": "output_text", "text": "a", "annotations": []}, {"type": "refusal", "refusal": "no"}),
        {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]},
        {"input": [{"type": "function_call_output", "call_id": "c", "output": "42"}]},
        {"input": [{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}]},
        response({"type": "reasoning_text", "text": "hm"}, kind="reasoning"),
    ],
)
def test_it_takes_a_response_s_own_items(payload: dict[str, Any]) -> None:
    assert is_taken_as_it_is(response_protocol, payload)


# What is refused


@pytest.mark.parametrize(
    ("part", "param", "code"),
    [
        ({"type": "file", "file": {"file_id": "file-1"}}, "messages[0].content[1].type", "invalid_value"),
        ({"type": "file", "file": {"file_data": "JVBERi0="}}, "messages[0].content[1].type", "invalid_value"),
        ({"type": "input_audio", "input_audio": {"data": "UklG"}}, "messages[0].content[1].type", "invalid_value"),
        ({"type": "video_url", "video_url": {"url": DATA_URL}}, "messages[0].content[1].type", "invalid_value"),
        ({"type": "image_embeds"}, "messages[0].content[1].type", "invalid_value"),
        ({"type": ["text"]}, "messages[0].content[1].type", "invalid_value"),
        ({"text": "no type"}, "messages[0].content[1].type", "invalid_value"),
        ("hello", "messages[0].content[1].type", "invalid_value"),
        (
            {"type": "text", "text": "a", "video_url": {"url": "u"}},
            "messages[0].content[1].video_url",
            "unsupported_parameter",
        ),
        ({"type": "text", "Type": "file", "text": "a"}, "messages[0].content[1].Type", "unknown_parameter"),
        ({**image(), "file_id": "file-1"}, "messages[0].content[1].file_id", "unsupported_parameter"),
        (image(file_id="file-1"), "messages[0].content[1].image_url.file_id", "unsupported_parameter"),
        (image(None), "messages[0].content[1].image_url", "invalid_image_url"),
        ({"type": "image_url"}, "messages[0].content[1].image_url", "invalid_image_url"),
    ],
)
def test_it_refuses_other_parts_of_a_chat(part: Any, param: str, code: str) -> None:
    assert refusal(chat_protocol, chat({"type": "text", "text": "a"}, part)) == (param, code)


@pytest.mark.parametrize(
    ("message", "param", "code"),
    [
        ({"role": "assistant", "audio": {"id": "audio_1"}}, "messages[0].audio", "unsupported_parameter"),
        ({"role": "user", "content": "a", "images": ["AAAA"]}, "messages[0].images", "unsupported_parameter"),
        ({"role": "user", "Content": [{"type": "file"}]}, "messages[0].Content", "unknown_parameter"),
        ({"role": "user", "content": "a", "IMAGES": ["AAAA"]}, "messages[0].IMAGES", "unknown_parameter"),
        ({"role": "user", "content": {"type": "text"}}, "messages[0].content", "invalid_type"),
        ({"role": "user", "content": 5}, "messages[0].content", "invalid_type"),
    ],
)
def test_it_refuses_other_messages(message: dict[str, Any], param: str, code: str) -> None:
    assert refusal(chat_protocol, {"messages": [message]}) == (param, code)


@pytest.mark.parametrize(
    ("payload", "param", "code"),
    [
        (response({"type": "input_file", "file_url": PUBLIC_URL}), "input[0].content[0].type", "invalid_value"),
        (response({"type": "text", "text": "a"}), "input[0].content[0].type", "invalid_value"),
        (
            response({"type": "input_image", "file_id": "file-1"}),
            "input[0].content[0].file_id",
            "unsupported_parameter",
        ),
        (
            response({"type": "input_file", "file_id": "f"}, kind="function_call_output", field="output"),
            "input[0].output[0].type",
            "invalid_value",
        ),
        (response({"type": "input_text"}, kind="reasoning"), "input[0].content[0].type", "invalid_value"),
        ({"input": [{"type": "computer_call_output", "output": {}}]}, "input[0].output.type", "invalid_value"),
        ({"input": [{"type": {}}]}, "input[0].type", "invalid_value"),
    ],
)
def test_it_refuses_other_parts_and_items_of_a_response(payload: dict[str, Any], param: str, code: str) -> None:
    assert refusal(response_protocol, payload) == (param, code)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/a.png",
        "https://localhost/a.png",
        "https://localhost./a.png",
        "https://metadata/a.png",
        "https://metadata.google.internal/computeMetadata/v1/",
        "https://printer.local/a.png",
        "https://x.svc/a",
        "https://1.0.0.127.in-addr.arpa/a",
        "https://127.0.0.1/a.png",
        "https://2130706433/a.png",
        "https://0x7f.0x0.0x0.0x1/a.png",
        "https://10.1/a.png",
        "https://[::1]/a.png",
        "https://[::ffff:10.0.0.1]/a.png",
        "https://user@example.com/a.png",
        "https://example.com:8443/a.png",
        "https://example.com:99999/a.png",
        "https://example.com\\@127.0.0.1/a.png",
        "https://\uff11\uff12\uff17.0.0.1/a.png",
        "https://example.com/a b",
        "https://exa\tmple.com/a",
        " https://example.com/a",
        "https:///a.png",
        "https://example.com/" + "a" * 9000,
        "file:///etc/passwd",
        "gs://bucket/a.png",
        "data:text/plain;base64,AAAA",
        "data:image/svg+xml;base64,AAAA",
        "data:image/png,AAAA",
    ],
)
def test_it_refuses_images_from_where_the_caller_may_not_look(url: str) -> None:
    assert refusal(chat_protocol, chat(image(url))) == (
        "messages[0].content[0].image_url",
        "invalid_image_url",
    )


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png",
        "https://EXAMPLE.com:443/",
        "https://a-b.c_d.example.co.uk./x?y=z#w",
        "https://x.xn--p1ai/",
    ],
)
def test_it_takes_images_from_public_hosts(url: str) -> None:
    assert is_public_url(url)
    assert is_taken_as_it_is(chat_protocol, chat(image(url)))


def test_it_takes_inline_images_alone_where_operators_say_so(settings: LazySettings) -> None:
    settings.IMAGE_URLS = "data"
    assert is_taken_as_it_is(chat_protocol, chat(image()))
    assert refusal(chat_protocol, chat(image(PUBLIC_URL)))[1] == "invalid_image_url"


def test_it_says_in_openai_s_shape_which_part_is_at_fault(roomy: Api, upstream: FakeUpstream) -> None:
    answer = roomy.post("/v1/chat/completions", {"model": MODEL, **chat(image("http://10.0.0.1/a.png"))})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages[0].content[0].image_url"
    assert answer.json()["error"]["code"] == "invalid_image_url"
    assert not upstream.requests


def test_it_passes_images_on_as_they_came(roomy: Api, upstream: FakeUpstream) -> None:
    messages = chat(image(PUBLIC_URL, detail="low"), {"type": "text", "text": "what is it?"})["messages"]
    assert roomy.post("/v1/chat/completions", {"model": MODEL, "messages": messages}).status_code == 200
    assert upstream.requests[-1].body["messages"] == messages
