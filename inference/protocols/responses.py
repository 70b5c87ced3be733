"""The protocol of POST /responses, and the reader of its streams."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from typing import Any

from inference.protocols.base import (
    MESSAGE_TOKENS,
    PART_OVERHEAD,
    REPLY_TOKENS,
    REQUEST_OVERHEAD,
    Body,
    Payload,
    Usage,
    WireProtocol,
    count_tokens,
    is_count,
    json_bytes,
    read_response_usage,
)
from inference.protocols.content import (
    IMAGE_ESTIMATE,
    IMAGE_TOKENS,
    image_count,
    refuse_items,
    schema_texts,
    texts_in,
    tool_overhead,
    tools_in,
    without_images,
)
from inference.protocols.events import EventReader
from inference.protocols.parameters import (
    ANSWER_NAMES,
    KEPT,
    MOST_OUTPUT,
    OUTPUT_NAMES,
    REFUSED,
    SAMPLING,
    integer,
    is_input,
    is_objects,
    is_string,
    others,
    unsupported,
)
from inference.protocols.sse import server_sent

#: Fields of an output item that the model did not write, besides its type and id.
LABELS = {"role": None, "status": None, "call_id": None, "encrypted_content": None}
#: Characters of encrypted reasoning a token: base64 of about 4.5 characters of text.
ENCRYPTED = 6


class ResponseProtocol(WireProtocol):
    """Responses, without anything that the provider would store."""

    path = "/responses"
    least_output = 16
    prompt_parameter = "input"
    refused = {
        **REFUSED,
        **others(OUTPUT_NAMES, "max_output_tokens"),
        **dict.fromkeys(ANSWER_NAMES, unsupported("a response is one answer.")),
        **dict.fromkeys(("previous_response_id", "conversation", "prompt"), unsupported(KEPT)),
        "background": unsupported(KEPT, off=False),
    }
    checks = {
        **refused,
        **SAMPLING,
        "input": is_input,
        "instructions": is_string,
        "max_output_tokens": integer(1, MOST_OUTPUT),
        "tools": is_objects,
    }

    def check_content(self, payload: Payload) -> None:
        """Raise InvalidRequest for tools that the provider runs, and for items that are not accepted."""
        refuse_items(payload)

    def prompt_bound(self, payload: Payload) -> int:
        """Return one token a byte of the request's JSON, plus IMAGE_TOKENS an image, plus overhead."""
        items = _items(payload.get("input"))
        rest = {name: value for name, value in payload.items() if name != "input"}
        images = image_count(items)
        size = json_bytes(without_images(items) if images else items) + json_bytes(rest)
        around = PART_OVERHEAD * len(items) + sum(map(tool_overhead, tools_in(_tools(payload))))
        return REQUEST_OVERHEAD + around + size + IMAGE_TOKENS * images

    def asked_output(self, payload: Payload) -> int | None:
        """Return max_output_tokens."""
        asked = payload.get("max_output_tokens")
        return None if asked is None else int(asked)

    def with_output(self, payload: Payload, tokens: int, parameter: str) -> Body:
        """Set the maximum, and forbid the provider to store anything."""
        return {**payload, "max_output_tokens": tokens, "store": False}

    def read_usage(self, body: Body) -> Usage | None:
        """Return the usage in `usage`."""
        return read_response_usage(body.get("usage"))

    def estimate(self, payload: Payload, body: Body, *, model: str) -> Usage:
        """Count the input, the schemas, the images and the output."""
        given = _items(payload.get("input"))
        shown = ({**item, "tools": None} if isinstance(item, dict) else item for item in without_images(given))
        items = [*shown, payload.get("instructions")]
        texts = chain(texts_in(items), schema_texts({**payload, "tools": _tools(payload)}))
        around = MESSAGE_TOKENS * len(items) + REPLY_TOKENS + IMAGE_ESTIMATE * image_count(given)
        prompt = count_tokens(texts, model=model) + around
        output = [item for item in body.get("output") or [] if isinstance(item, dict)]
        hidden = sum(len(str(item.get("encrypted_content") or "")) for item in output) // ENCRYPTED
        written = count_tokens(texts_in([{**item, **LABELS} for item in output]), model=model)
        return Usage(prompt, 0, written + hidden)

    def is_complete(self, body: Body) -> bool:
        """Return whether there is an output and the response has not failed."""
        return isinstance(body.get("output"), list) and body.get("status") != "failed"

    def is_finished(self, body: Body) -> bool:
        """Return whether the response is completed, or ended at its maximum of output tokens."""
        details = body.get("incomplete_details")
        is_cut = isinstance(details, dict) and details.get("reason") == "max_output_tokens"
        return body.get("status") == "completed" or (body.get("status") == "incomplete" and is_cut)

    def is_cacheable(self, payload: Payload) -> bool:
        """Return whether the temperature is 0 and the request has no tools, also in its input."""
        return super().is_cacheable(payload) and not _tools(payload)

    def as_stream(self, payload: Payload) -> Body:
        """Ask for a stream, whose last event holds the usage."""
        return {**payload, "stream": True}

    def opens_stream(self, event: Body) -> bool:
        """Return whether the event belongs to a response and is not its failure."""
        kind = event.get("type")
        return isinstance(kind, str) and kind.startswith("response.") and kind != "response.failed"

    def reader(self, payload: Payload) -> ResponseReader:
        """Return a reader of the events of a response."""
        return ResponseReader()

    def error_event(self, payload: Payload, model: str, reader: EventReader, error: Body) -> bytes:
        """Return the event that ends a response as failed: the object received so far, under the next sequence number.

        If no event was sent yet, `response.created` comes first, because clients rely on it.
        """
        events = list(reader.events())
        received = [event["response"] for event in events if isinstance(event.get("response"), dict)]
        beginning, number = b"", _next_number(events)
        if not received:
            received = [_new_response(payload, model)]
            beginning, number = _numbered("response.created", 0, received[0]), 1
        items = {
            event["output_index"]: event.get("item")
            for event in events
            if event.get("type") == "response.output_item.done" and is_count(event.get("output_index"))
        }
        provider = reader.error.response if reader.error is not None else {}
        whole = {
            **received[-1],
            "output": [items[index] for index in sorted(items)],
            **provider,
            "status": "failed",
            "error": {name: error["error"][name] for name in ("code", "message", "param")},
        }
        return beginning + _numbered("response.failed", number, whole)


response_protocol = ResponseProtocol()


class ResponseReader(EventReader):
    """Reads the events of a response, the last of which holds the whole response.

    Some gateways (vLLM's and LiteLLM's) also send `[DONE]`, unlike OpenAI; it is not forwarded.
    """

    signs = (
        b'"response.completed"',
        b'"response.incomplete"',
        b'"response.failed"',
        b'"error"',
        b"event: error",
        b"event:error",
    )
    start = b"event:"

    def __init__(self) -> None:
        super().__init__()
        self._whole: Body = {}

    def look(self, event: Body) -> bool:
        """Note the end and the usage in it."""
        if event.get("type") in ("response.completed", "response.incomplete"):
            self.is_done = True
            response = event.get("response")
            self._whole = response if isinstance(response, dict) else {}
            self.usage = read_response_usage(self._whole.get("usage"))
        return True

    def take_done(self) -> bool:
        """Return False: the end is another event."""
        return False

    def has_generated(self) -> bool:
        """Return whether any output was received."""
        return bool(_output_in(self.events()))

    def body(self) -> Body:
        """Return the output items, the text pieces of unfinished ones, and the status of the response."""
        ended: Body = {name: self._whole[name] for name in ("status", "incomplete_details") if name in self._whole}
        return {"output": _output_in(self.events()), **ended}


def _output_in(events: Iterator[Body]) -> list[Body]:
    """Return the output items in the events of a response. A tool call may come in one piece, without deltas."""
    whole: dict[str, Body] = {}
    pieces: defaultdict[str, list[str]] = defaultdict(list)
    for event in events:
        place, kind, item = str(event.get("output_index")), str(event.get("type")), event.get("item")
        if kind == "response.output_item.done" and isinstance(item, dict):
            whole[place] = item
        elif "delta" in kind:
            pieces[place].append(str(event.get("delta") or ""))
    texts = {place: "".join(each) for place, each in pieces.items() if place not in whole}
    return [*whole.values(), *({"content": text} for text in texts.values() if text)]


def _tools(payload: Payload) -> list[Body]:
    """Return all tools of a request: those beside its input, and those in the items of its input."""
    items = (item for item in _items(payload.get("input")) if isinstance(item, dict))
    return [tool for holder in (payload, *items) for tool in holder.get("tools") or ()]


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value if value is not None else ""]


def _next_number(events: list[Body]) -> int:
    """Return the next sequence number; the number of events if the provider's events have none."""
    numbers = [event["sequence_number"] for event in events if is_count(event.get("sequence_number"))]
    return max(numbers) + 1 if numbers else len(events)


def _numbered(kind: str, number: int, response: Body) -> bytes:
    return server_sent(kind, {"type": kind, "sequence_number": number, "response": response})


def _new_response(payload: Payload, model: str) -> Body:
    """Build the object of a response that has just begun, from the request."""
    defaults: dict[str, Any] = {
        "instructions": None,
        "max_output_tokens": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": None,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
    }
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "usage": None,
        "store": False,
        **{name: default if payload.get(name) is None else payload[name] for name, default in defaults.items()},
    }
