"""Streams of providers that the fake, being sound, can't play: what is no answer is none, and no usage is too early."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from inference.protocols.base import count_tokens
from inference.tests.samples import odd_provider
from tests.catalogue import Record, Served, record_of, set_up
from tests.servers import Service, aiapi_server, fake_upstream
from tests.streams import Stream, asked, data_of, said

COMMENTS = b": processing\n\n" * 3
SECRET = "internal-gateway"
EARLY = {"prompt_tokens": 500, "completion_tokens": 1}


def event(text: str, **more: Any) -> bytes:
    """Write a chunk."""
    choices = [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    return b"data: " + json.dumps({"choices": choices, **more}).encode() + b"\n\n"


#: By the model that a provider serves: all that it ever says.
SAID = {
    "page": f"<html>\n<body>{SECRET}</body>\n\n".encode(),
    "comments": COMMENTS,
    "late-page": COMMENTS + f"Bad gateway: {SECRET}\n\n".encode(),
    "no-json": COMMENTS + f"data: {SECRET}\n\n".encode(),
    "error": COMMENTS + b'data: {"error": {"message": "' + SECRET.encode() + b'"}}\n\n',
    "garbage-later": event("Hello") + f"Bad gateway: {SECRET}\n\n".encode(),
    "early-usage": event("Hello ", usage=EARLY) + event("there, who") + event(" goes by?"),
    "commented": COMMENTS + event("Hello") + b"data: [DONE]\n\n",
}
NO_ANSWER = ("page", "comments", "late-page", "no-json", "error")


@dataclass
class Platform:
    """The platform before providers of that kind, alone and each with a sound spare."""

    service: Service
    key: str

    def ask(self, model: str) -> tuple[int, str, Record]:
        """Ask for a stream; return status, body and record."""
        stream = Stream(self.service, asked(model), key=self.key)
        status, text = stream.answer().status, stream.text()
        assert SECRET not in text
        return status, text, record_of(self.service, stream.label)


@pytest.fixture(scope="module")
def platform(prepared: Callable[[], dict[str, str]]) -> Iterator[Platform]:
    """Run the platform."""
    with ExitStack() as stack:
        spare = stack.enter_context(fake_upstream())
        served = []
        for name, body in SAID.items():
            url = stack.enter_context(odd_provider(body, headers={"Content-Type": "text/event-stream"}))
            served += [Served(name, [url]), Served(f"{name}-spared", [url, spare.base_url])]
        service = stack.enter_context(aiapi_server(prepared(), prepare=False))
        yield Platform(service, set_up(service, served))


@pytest.mark.parametrize("name", NO_ANSWER)
def test_it_takes_what_is_no_event_for_a_provider_s_failure(platform: Platform, name: str) -> None:
    status, text, record = platform.ask(name)
    assert (status, json.loads(text)["error"]["code"]) == (502, "upstream_failed")
    assert (record.status, record.usage_source) == (502, "" if name == "error" else "bound")


@pytest.mark.parametrize("name", NO_ANSWER)
def test_it_asks_the_next_deployment_then(platform: Platform, name: str) -> None:
    status, text, record = platform.ask(f"{name}-spared")
    assert (status, said(text), data_of(text)[-1]) == (200, "You said: hello there", "[DONE]")
    assert (record.status, record.attempts) == (200, 2)
    assert record.usage_source == ("provider" if name == "error" else "bound")


def test_it_passes_no_garbage_on_in_the_middle(platform: Platform) -> None:
    status, text, record = platform.ask("garbage-later")
    assert (status, said(text), data_of(text)[-1]["error"]["code"]) == (200, "Hello", "upstream_failed")
    assert (record.usage_source, record.is_partial) == ("estimated", True)


def test_it_charges_what_came_where_usage_was_told_too_early(platform: Platform) -> None:
    _, text, record = platform.ask("early-usage")
    assert said(text) == "Hello there, who goes by?"
    assert (record.usage_source, record.is_partial) == ("estimated", True)
    assert record.input_tokens == EARLY["prompt_tokens"]
    assert record.output_tokens == count_tokens([said(text)], model="m") > EARLY["completion_tokens"]


def test_it_waits_for_the_first_event_past_comments(platform: Platform) -> None:
    status, text, record = platform.ask("commented")
    assert (status, said(text), record.status) == (200, "Hello", 200)
