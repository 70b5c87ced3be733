"""An error in the middle of a stream, as OpenAI's clients understand it."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from typing import Any

from accounts.exceptions import ApiError
from inference.calls import ModelCall
from inference.event_stream import server_sent
from inference.openai.errors import openai_error_body
from inference.surfaces.base import Body, is_count
from inference.surfaces.events import EventReader
from inference.surfaces.responses import response_surface


def error_event(call: ModelCall) -> Callable[[ApiError, EventReader], bytes]:
    """Return what writes an error: of responses the event `response.failed`, of the others a chunk that is an error."""

    def write(error: ApiError, reader: EventReader) -> bytes:
        body = openai_error_body(error)
        if call.surface is response_surface:
            return _failed_response(call, reader, body["error"])
        return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"

    return write


def _failed_response(call: ModelCall, reader: EventReader, error: Body) -> bytes:
    """End a response as failed: the whole object, as far as it was told, under the next sequence number.

    One of which no event came begins first: clients build on `response.created`.
    """
    events = list(reader.events())
    told = [event["response"] for event in events if isinstance(event.get("response"), dict)]
    beginning, number = b"", _next_number(events)
    if not told:
        told = [_new_response(call)]
        beginning, number = _numbered("response.created", 0, told[0]), 1
    items = {
        event["output_index"]: event.get("item")
        for event in events
        if event.get("type") == "response.output_item.done" and is_count(event.get("output_index"))
    }
    provider = reader.error.response if reader.error is not None else {}
    whole = {
        **told[-1],
        "output": [items[index] for index in sorted(items)],
        **provider,
        "status": "failed",
        "error": {name: error[name] for name in ("code", "message", "param")},
    }
    return beginning + _numbered("response.failed", number, whole)


def _next_number(events: list[Body]) -> int:
    """Return the sequence number that follows; some servers number nothing, then it is that of the events."""
    numbers = [event["sequence_number"] for event in events if is_count(event.get("sequence_number"))]
    return max(numbers) + 1 if numbers else len(events)


def _numbered(kind: str, number: int, response: Body) -> bytes:
    return server_sent(kind, {"type": kind, "sequence_number": number, "response": response})


def _new_response(call: ModelCall) -> Body:
    """Make the object of a response that has only begun, from what was asked."""
    asked = call.payload
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
        "model": call.model,
        "output": [],
        "usage": None,
        "store": False,
        **{name: default if asked.get(name) is None else asked[name] for name, default in defaults.items()},
    }
