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
from inference.protocols.content import IMAGE_TOKENS
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
    ("protocol", "payload", "images"),
    [
        (chat_protocol, chat(image()), 1),
        (chat_protocol, chat({"type": "image_url", "image_url": DATA_URL}), 1),
        (chat_protocol, {"messages": [{"role": "tool", "content": [image(PUBLIC_URL)]}]}, 1),
        (chat_protocol, chat(image(), image(PUBLIC_URL), image()), 3),
        (response_protocol, response({"type": "input_image", "image_url": DATA_URL}), 1),
        (
            response_protocol,
            response({"type": "input_image", "image_url": PUBLIC_URL}, kind="function_call_output", field="output"),
            1,
        ),
        (response_protocol, {"input": [{"type": "computer_call_output", "output": SCREENSHOT}]}, 1),
    ],
)
def test_it_reckons_each_image_by_number(protocol: WireProtocol, payload: dict[str, Any], images: int) -> None:
    assert images * IMAGE_TOKENS < protocol.prompt_bound(payload) < images * IMAGE_TOKENS + 500


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
    ("protocol", "payload"),
    [
        (
            chat_protocol,
            chat(image(), {"type": "text", "text": "what is it?", "cache_control": {"type": "ephemeral"}}),
        ),
        (chat_protocol, chat({"type": "refusal", "refusal": "no"}, audio=None)),
        (chat_protocol, chat(image(PUBLIC_URL, detail="low"))),
        (
            chat_protocol,
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}]},
        ),
        (chat_protocol, {"messages": [{"role": "assistant"}, {"role": "user", "content": "file"}]}),
        (chat_protocol, {**chat(), "tools": [{"type": "function"}, {"type": "custom"}]}),
        (response_protocol, {"input": [{"role": "user", "content": "hello"}]}),
        (
            response_protocol,
            response(
                {"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": DATA_URL, "file_id": None}
            ),
        ),
        (
            response_protocol,
            response({"type": "output_text", "text": "a", "annotations": []}, {"type": "refusal", "refusal": "no"}),
        ),
        (response_protocol, {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]}),
        (response_protocol, {"input": [{"type": "function_call_output", "call_id": "c", "output": "42"}]}),
        (
            response_protocol,
            {"input": [{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}]},
        ),
        (response_protocol, response({"type": "reasoning_text", "text": "hm"}, kind="reasoning")),
        (response_protocol, {"input": "a", "store": True, "tools": [{"type": "custom"}]}),
    ],
)
def test_it_takes_texts_images_and_own_tools_as_they_are(protocol: WireProtocol, payload: dict[str, Any]) -> None:
    assert is_taken_as_it_is(protocol, payload)


# What is refused

PART = "messages[0].content[1]"
ENVIRONMENT = "tools[0].environment.type"


@pytest.mark.parametrize(
    ("part", "param", "code"),
    [
        *(
            (part, f"{PART}.type", "invalid_value")
            for part in (
                {"type": "file", "file": {"file_id": "file-1"}},
                {"type": "file", "file": {"file_data": "JVBERi0="}},
                {"type": "input_audio", "input_audio": {"data": "UklG"}},
                {"type": "video_url", "video_url": {"url": DATA_URL}},
                {"type": "image_embeds"},
                {"type": ["text"]},
                {"text": "no type"},
                "hello",
            )
        ),
        ({"type": "text", "text": "a", "video_url": {"url": "u"}}, f"{PART}.video_url", "unsupported_parameter"),
        ({"type": "text", "Type": "file", "text": "a"}, f"{PART}.Type", "unknown_parameter"),
        ({**image(), "file_id": "file-1"}, f"{PART}.file_id", "unsupported_parameter"),
        (image(file_id="file-1"), f"{PART}.image_url.file_id", "unsupported_parameter"),
        (image(None), f"{PART}.image_url", "invalid_image_url"),
        ({"type": "image_url"}, f"{PART}.image_url", "invalid_image_url"),
    ],
)
def test_it_refuses_other_parts_of_a_chat(part: Any, param: str, code: str) -> None:
    assert refusal(chat_protocol, chat({"type": "text", "text": "a"}, part)) == (param, code)


@pytest.mark.parametrize(
    ("message", "field", "code"),
    [
        ({"role": "assistant", "audio": {"id": "audio_1"}}, "audio", "unsupported_parameter"),
        ({"role": "user", "content": "a", "images": ["AAAA"]}, "images", "unsupported_parameter"),
        ({"role": "user", "Content": [{"type": "file"}]}, "Content", "unknown_parameter"),
        ({"role": "user", "content": "a", "IMAGES": ["AAAA"]}, "IMAGES", "unknown_parameter"),
        ({"role": "user", "content": {"type": "text"}}, "content", "invalid_type"),
        ({"role": "user", "content": 5}, "content", "invalid_type"),
    ],
)
def test_it_refuses_other_messages(message: dict[str, Any], field: str, code: str) -> None:
    assert refusal(chat_protocol, {"messages": [message]}) == (f"messages[0].{field}", code)


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
        # what would live on at the provider, or run there
        ({"tools": [{"type": "function"}, {"type": "file_search"}]}, "tools[1].type", "invalid_value"),
        ({"tools": [{"type": "shell", "environment": {"type": "container"}}]}, ENVIRONMENT, "invalid_value"),
        ({"tools": [{"type": "tool_search"}]}, "tools[0].execution", "invalid_value"),
        ({"tools": [{"type": "namespace", "tools": [{"type": "mcp"}]}]}, "tools[0].tools[0].type", "invalid_value"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type", "invalid_value"),
        ({"input": [{"role": "user", "content": "a"}, {"id": "msg_1"}]}, "input[1].type", "invalid_value"),
        ({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}, "input[0]", "unsupported_parameter"),
        ({"input": [{"type": "shell_call_output"}]}, "input[0].output", "invalid_type"),
        ({"input": [{"type": "configuration_update", "model": "m"}]}, "input[0].model", "unsupported_parameter"),
    ],
)
def test_it_refuses_other_parts_items_and_tools_of_a_response(payload: dict[str, Any], param: str, code: str) -> None:
    assert refusal(response_protocol, {"input": "a", **payload}) == (param, code)


@pytest.mark.parametrize(
    ("tool", "field", "code"),
    [
        ({"type": "code_interpreter"}, "type", "invalid_value"),
        ({}, "type", "invalid_value"),
        ({"type": "function", "Type": "web_search"}, "Type", "unknown_parameter"),
    ],
)
def test_it_refuses_the_provider_s_own_tools(tool: dict[str, Any], field: str, code: str) -> None:
    assert refusal(chat_protocol, {**chat(), "tools": [tool]}) == (f"tools[0].{field}", code)
    assert refusal(response_protocol, {"input": "hello", "tools": [tool]}) == (f"tools[0].{field}", code)


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
    assert is_taken_as_it_is(chat_protocol, chat(image(url)))


def test_it_takes_inline_images_alone_where_operators_say_so(settings: LazySettings) -> None:
    settings.IMAGE_URLS = "data"
    assert is_taken_as_it_is(chat_protocol, chat(image()))
    assert refusal(chat_protocol, chat(image(PUBLIC_URL)))[1] == "invalid_image_url"


def test_it_passes_images_on_as_they_came_or_says_which_is_at_fault(roomy: Api, upstream: FakeUpstream) -> None:
    answer = roomy.post("/v1/chat/completions", {"model": MODEL, **chat(image("http://10.0.0.1/a.png"))})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "messages[0].content[0].image_url")
    assert error["code"] == "invalid_image_url"
    assert not upstream.requests
    messages = chat(image(PUBLIC_URL, detail="low"), {"type": "text", "text": "what is it?"})["messages"]
    assert roomy.post("/v1/chat/completions", {"model": MODEL, "messages": messages}).status_code == 200
    assert upstream.requests[-1].body["messages"] == messages
