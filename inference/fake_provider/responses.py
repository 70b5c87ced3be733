"""The format of /v1/responses, whole and streamed, with the events in OpenAI's order."""

import json
from collections.abc import Iterator
from typing import Any

from inference.fake_provider.answers import (
    Answer,
    BadRequest,
    Choice,
    FakeProtocol,
    Frame,
    Json,
    Prompt,
    openai_error_body,
    read_messages,
    sse,
)
from inference.fake_provider.settings import HttpError

_ECHOED = ("instructions", "metadata", "temperature", "top_p", "tool_choice", "tools", "max_output_tokens", "store")


def _prompts(body: Json) -> list[Prompt]:
    given: Any = body.get("input")
    if given is None or given in ([], ""):
        raise BadRequest("Missing required parameter: 'input'.", param="input", code="missing_required_parameter")
    if body.get("n"):
        raise BadRequest("Unknown parameter: 'n'.", param="n", code="unknown_parameter")
    instructions = [body["instructions"]] if body.get("instructions") else []
    return [read_messages([*instructions, *(given if isinstance(given, list) else [given])])]


def _usage(answer: Answer, output_tokens: int | None = None) -> Json | None:
    if not answer.usage_told:
        return None
    generated = answer.completion_tokens if output_tokens is None else output_tokens
    return {
        "input_tokens": answer.prompt_tokens,
        "input_tokens_details": {"cached_tokens": answer.cached_tokens},
        "output_tokens": generated,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": answer.prompt_tokens + generated,
    }


def _incomplete(answer: Answer) -> Json | None:
    reasons = {"length": "max_output_tokens", "content_filter": "content_filter"}
    found = [reasons[choice.finish_reason] for choice in answer.choices if choice.finish_reason in reasons]
    return {"reason": found[0]} if found else None


def _part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _item(answer: Answer, choice: Choice, status: str) -> Json:
    """Return an output item, whose content is empty while in progress."""
    done = status != "in_progress"
    if choice.tool is not None:
        item = {"id": f"fc_{answer.id}", "type": "function_call", "status": status, "call_id": f"call_{answer.id}"}
        return {**item, "name": choice.tool.name, "arguments": choice.tool.arguments if done else ""}
    content = [_part(choice.text)] if done else []
    return {"id": f"msg_{answer.id}", "type": "message", "status": status, "role": "assistant", "content": content}


def _response(answer: Answer, status: str) -> Json:
    """Return the response object, without output and usage while in progress."""
    done = status != "in_progress"
    echoed = {name: answer.body.get(name) for name in _ECHOED}
    echoed["tools"], echoed["tool_choice"] = echoed["tools"] or [], echoed["tool_choice"] or "auto"
    return {
        "id": answer.id,
        "object": "response",
        "created_at": answer.created,
        "status": status,
        "error": None,
        "incomplete_details": _incomplete(answer) if done else None,
        "model": answer.model,
        "output": [_item(answer, choice, _status(answer)) for choice in answer.choices] if done else [],
        "parallel_tool_calls": True,
        "text": answer.body.get("text") or {"format": {"type": "text"}},
        "usage": _usage(answer) if done else None,
        **echoed,
    }


def _status(answer: Answer) -> str:
    return "incomplete" if _incomplete(answer) else "completed"


def _plain(answer: Answer) -> Json:
    return _response(answer, _status(answer))


class _Events:
    """Writes and numbers the events of one stream."""

    def __init__(self) -> None:
        self._number = -1

    def of(self, kind: str, **fields: Any) -> bytes:
        """Return the next event."""
        self._number += 1
        return sse(json.dumps({"type": kind, "sequence_number": self._number, **fields}).encode(), kind)


def _text_events(events: _Events, choice: Choice, at: Json) -> Iterator[Frame]:
    place = {**at, "content_index": 0}
    yield events.of("response.content_part.added", **place, part=_part("")), 0
    for token in choice.tokens:
        yield events.of("response.output_text.delta", **place, delta=token, logprobs=[]), 1
    yield events.of("response.output_text.done", **place, text=choice.text, logprobs=[]), 0
    yield events.of("response.content_part.done", **place, part=_part(choice.text)), 0


def _call_events(events: _Events, choice: Choice, at: Json) -> Iterator[Frame]:
    for piece in choice.tokens:
        yield events.of("response.function_call_arguments.delta", **at, delta=piece), 1
    name = choice.tool.name if choice.tool else ""
    yield events.of("response.function_call_arguments.done", **at, name=name, arguments=choice.text), 0


def _stream(answer: Answer) -> Iterator[Frame]:
    events, status = _Events(), _status(answer)
    yield events.of("response.created", response=_response(answer, "in_progress")), 0
    yield events.of("response.in_progress", response=_response(answer, "in_progress")), 0
    for index, choice in enumerate(answer.choices):
        item = _item(answer, choice, "in_progress")
        yield events.of("response.output_item.added", output_index=index, item=item), 0
        write = _text_events if choice.tool is None else _call_events
        yield from write(events, choice, {"item_id": item["id"], "output_index": index})
        yield events.of("response.output_item.done", output_index=index, item=_item(answer, choice, status)), 0
    yield events.of(f"response.{status}", response=_response(answer, status)), 0


def _error_body(error: HttpError, answer: Answer, output_tokens: int | None) -> Json:
    """Return a failed response with its usage, or an error body if there is none."""
    if output_tokens is None:
        return openai_error_body(error, answer, None)
    failure = {"status": "failed", "error": error.fields(), "usage": _usage(answer, output_tokens)}
    return {**_response(answer, "in_progress"), **failure}


def _error_frame(body: Json) -> bytes:
    # The number must be higher than those already sent; their count is unknown here.
    kind = "response.failed" if body.get("object") == "response" else "error"
    fields = {"response": body} if kind == "response.failed" else body["error"]
    return sse(json.dumps({**fields, "type": kind, "sequence_number": 10_000}).encode(), kind)


RESPONSES = FakeProtocol("resp_", _prompts, _plain, _stream, _error_body, _error_frame)
