"""The format of /v1/responses, whole and streamed, with the events in OpenAI's order."""

from collections.abc import Iterator
from itertools import count
from typing import Any

from inference.fake_provider.answers import Answer, FakeProtocol, Frame, Json, Prompt, parse_messages, sse
from inference.fake_provider.settings import HttpError, missing

ECHOED = ("instructions", "metadata", "temperature", "top_p", "tool_choice", "tools", "max_output_tokens", "store")
REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponseFormat(FakeProtocol):
    """Responses."""

    prefix = "resp_"

    def prompts(self, body: Json) -> list[Prompt]:
        """Return instructions and input as one prompt."""
        given: Any = body.get("input")
        if given in (None, [], ""):
            raise missing("input")
        if body.get("n"):
            raise HttpError(400, "Unknown parameter: 'n'.", param="n", code="unknown_parameter")
        instructions = [body["instructions"]] if body.get("instructions") else []
        return [parse_messages([*instructions, *(given if isinstance(given, list) else [given])])]

    def plain(self, answer: Answer) -> Json:
        """Return the whole response."""
        return _response(answer, _status(answer))

    def stream(self, answer: Answer) -> Iterator[Frame]:
        """Yield the events of a response."""
        status, numbers = _status(answer), count()

        def event(kind: str, **fields: Any) -> bytes:
            return sse({"type": kind, "sequence_number": next(numbers), **fields}, kind)

        yield event("response.created", response=_response(answer, "in_progress")), 0
        yield event("response.in_progress", response=_response(answer, "in_progress")), 0
        for index, choice in enumerate(answer.choices):
            item, done = _item(answer, index, "in_progress"), _item(answer, index, status)
            yield event("response.output_item.added", output_index=index, item=item), 0
            at = {"item_id": item["id"], "output_index": index}
            if choice.tool is not None:
                for piece in choice.tokens:
                    yield event("response.function_call_arguments.delta", **at, delta=piece), 1
                whole = {"name": choice.tool.name, "arguments": choice.text}
                yield event("response.function_call_arguments.done", **at, **whole), 0
            else:
                at["content_index"] = 0
                yield event("response.content_part.added", **at, part=_part("")), 0
                for token in choice.tokens:
                    yield event("response.output_text.delta", **at, delta=token, logprobs=[]), 1
                yield event("response.output_text.done", **at, text=choice.text, logprobs=[]), 0
                yield event("response.content_part.done", **at, part=_part(choice.text)), 0
            yield event("response.output_item.done", output_index=index, item=done), 0
        yield event(f"response.{status}", response=_response(answer, status)), 0

    def error_body(self, error: HttpError, answer: Answer, completion_tokens: int | None) -> Json:
        """Return a failed response with its usage, or an error body if there is none."""
        if completion_tokens is None:
            return super().error_body(error, answer, None)
        failure = {"status": "failed", "error": error.fields, "usage": _usage(answer, completion_tokens)}
        return {**_response(answer, "in_progress"), **failure}

    def error_event(self, body: Json) -> bytes:
        """Return the event of a failed response, or of an error alone."""
        # The number must be higher than those already sent; their count is unknown here.
        kind = "response.failed" if body.get("object") == "response" else "error"
        fields = {"response": body} if kind == "response.failed" else body["error"]
        return sse({**fields, "type": kind, "sequence_number": 10_000}, kind)


def _usage(answer: Answer, output_tokens: int | None = None) -> Json | None:
    if not answer.reports_usage:
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
    found = [REASONS[choice.finish_reason] for choice in answer.choices if choice.finish_reason in REASONS]
    return {"reason": found[0]} if found else None


def _status(answer: Answer) -> str:
    return "incomplete" if _incomplete(answer) else "completed"


def _part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _item(answer: Answer, index: int, status: str) -> Json:
    """Return an output item, whose content is empty while in progress."""
    choice, is_done = answer.choices[index], status != "in_progress"
    if choice.tool is not None:
        item = {"id": f"fc_{answer.id}", "type": "function_call", "status": status, "call_id": f"call_{answer.id}"}
        return {**item, "name": choice.tool.name, "arguments": choice.tool.arguments if is_done else ""}
    content = [_part(choice.text)] if is_done else []
    return {"id": f"msg_{answer.id}", "type": "message", "status": status, "role": "assistant", "content": content}


def _response(answer: Answer, status: str) -> Json:
    """Return the response object, without output and usage while in progress."""
    is_done = status != "in_progress"
    echoed = {name: answer.body.get(name) for name in ECHOED}
    echoed["tools"], echoed["tool_choice"] = echoed["tools"] or [], echoed["tool_choice"] or "auto"
    return {
        "id": answer.id,
        "object": "response",
        "created_at": answer.created,
        "status": status,
        "error": None,
        "incomplete_details": _incomplete(answer) if is_done else None,
        "model": answer.model,
        "output": [_item(answer, index, _status(answer)) for index in range(len(answer.choices))] if is_done else [],
        "parallel_tool_calls": True,
        "text": answer.body.get("text") or {"format": {"type": "text"}},
        "usage": _usage(answer) if is_done else None,
        **echoed,
    }
