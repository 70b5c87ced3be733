"""The formats of /v1/chat/completions and /v1/completions, whole and streamed, and of /v1/embeddings.

The numbers of embeddings depend on the input alone; they are sent as lists or in base64.
"""

import base64
import json
import struct
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
    openai_error_frame,
    read_messages,
    read_prompt,
    sse,
    vector,
)

_DONE: Frame = (sse(b"[DONE]"), 0)
_LOGPROB = -0.1


def _logprob(token: str) -> Json:
    entry: Json = {"token": token, "logprob": _LOGPROB, "bytes": list(token.encode("utf-8", "replace"))}
    return {**entry, "top_logprobs": [entry]}


def _logprobs(answer: Answer, tokens: list[str]) -> Json | None:
    return {"content": [_logprob(token) for token in tokens], "refusal": None} if answer.body.get("logprobs") else None


def _tool_call(answer: Answer, index: int, choice: Choice, arguments: str) -> Json:
    name = choice.tool.name if choice.tool else ""
    return {"id": f"call_{answer.id}_{index}", "type": "function", "function": {"name": name, "arguments": arguments}}


def _message(answer: Answer, index: int, choice: Choice) -> Json:
    if choice.tool is None:
        return {"role": "assistant", "content": choice.text, "refusal": None, "annotations": []}
    calls = [_tool_call(answer, index, choice, choice.tool.arguments)]
    return {"role": "assistant", "content": None, "refusal": None, "tool_calls": calls}


def _with_usage(answer: Answer, fields: Json) -> Json:
    usage = answer.usage()
    return fields if usage is None else {**fields, "usage": usage}


def _head(answer: Answer, kind: str) -> Json:
    return {"id": answer.id, "object": kind, "created": answer.created, "model": answer.model}


def _chat_prompts(body: Json) -> list[Prompt]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("Missing required parameter: 'messages'.", param="messages", code="missing_required_parameter")
    return [read_messages(messages)]


def _chat_plain(answer: Answer) -> Json:
    choices = [
        {
            "index": index,
            "message": _message(answer, index, choice),
            "logprobs": _logprobs(answer, choice.tokens),
            "finish_reason": choice.finish_reason,
        }
        for index, choice in enumerate(answer.choices)
    ]
    head = _head(answer, "chat.completion")
    return _with_usage(answer, {**head, "choices": choices, "system_fingerprint": "fp_fake"})


class _Chunks:
    """Writes the chunks of one stream around the part that all of them share."""

    def __init__(self, answer: Answer, kind: str) -> None:
        self._head = json.dumps(_head(answer, kind))[:-1]
        self._asked = bool((answer.body.get("stream_options") or {}).get("include_usage"))
        self._tail = ', "usage": null}' if self._asked else "}"
        self._usage = answer.usage() if self._asked else None

    def of(self, choice: Json) -> bytes:
        """Return the event of a chunk with one choice."""
        return f'data: {self._head}, "choices": [{json.dumps(choice)}]{self._tail}\n\n'.encode()

    def last(self) -> Iterator[Frame]:
        """Yield the end of a stream: the usage, if requested and not held back by a fault, and [DONE]."""
        if self._usage is not None:
            yield f'data: {self._head}, "choices": [], "usage": {json.dumps(self._usage)}}}\n\n'.encode(), 0
        yield _DONE


def _delta(index: int, delta: Json, finish_reason: str | None = None, logprobs: Json | None = None) -> Json:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _first_delta(answer: Answer, index: int, choice: Choice) -> Json:
    if choice.tool is None:
        return {"role": "assistant", "content": "", "refusal": None}
    call = {"index": 0, **_tool_call(answer, index, choice, "")}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _token_delta(choice: Choice, token: str) -> Json:
    if choice.tool is None:
        return {"content": token}
    return {"tool_calls": [{"index": 0, "function": {"arguments": token}}]}


def _chat_stream(answer: Answer) -> Iterator[Frame]:
    chunks = _Chunks(answer, "chat.completion.chunk")
    for index, choice in enumerate(answer.choices):
        yield chunks.of(_delta(index, _first_delta(answer, index, choice))), 0
        for token in choice.tokens:
            delta = _delta(index, _token_delta(choice, token), logprobs=_logprobs(answer, [token]))
            yield chunks.of(delta), 1
        yield chunks.of(_delta(index, {}, choice.finish_reason)), 0
    yield from chunks.last()


def _completion_prompts(body: Json) -> list[Prompt]:
    prompt: Any = body.get("prompt")
    if prompt is None or prompt == []:
        raise BadRequest("Missing required parameter: 'prompt'.", param="prompt", code="missing_required_parameter")
    many = isinstance(prompt, list) and not isinstance(prompt[0], int)
    return [read_prompt(each) for each in (prompt if many else [prompt])]


def _completion_choice(index: int, text: str, finish_reason: str | None) -> Json:
    return {"text": text, "index": index, "logprobs": None, "finish_reason": finish_reason}


def _completion_plain(answer: Answer) -> Json:
    choices = [
        _completion_choice(index, choice.text, choice.finish_reason) for index, choice in enumerate(answer.choices)
    ]
    return _with_usage(answer, {**_head(answer, "text_completion"), "choices": choices})


def _completion_stream(answer: Answer) -> Iterator[Frame]:
    chunks = _Chunks(answer, "text_completion")
    for index, choice in enumerate(answer.choices):
        for token in choice.tokens:
            yield chunks.of(_completion_choice(index, token, None)), 1
        yield chunks.of(_completion_choice(index, "", choice.finish_reason)), 0
    yield from chunks.last()


CHAT = FakeProtocol("chatcmpl-", _chat_prompts, _chat_plain, _chat_stream, openai_error_body, openai_error_frame)
COMPLETIONS = FakeProtocol(
    "cmpl-", _completion_prompts, _completion_plain, _completion_stream, openai_error_body, openai_error_frame
)

DIMENSIONS = 64
"""Default length of a vector; short, so that a benchmark measures no arithmetic."""


def _inputs(body: Json) -> list[Any]:
    given = body.get("input")
    if given is None or given in ([], ""):
        raise BadRequest("Missing required parameter: 'input'.", param="input", code="missing_required_parameter")
    many = isinstance(given, list) and not isinstance(given[0], int)
    return given if isinstance(given, list) and many else [given]


def _prompts(body: Json) -> list[Prompt]:
    return [read_prompt(each) for each in _inputs(body)]


def _encoded(numbers: list[float], encoding: Any) -> list[float] | str:
    if encoding != "base64":
        return numbers
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def _plain(answer: Answer) -> Json:
    dimensions = answer.body.get("dimensions") or DIMENSIONS
    encoding = answer.body.get("encoding_format")
    # With the fault empty_choices there are no choices.
    texts = [prompt.text for prompt in _prompts(answer.body)] if answer.choices else []
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector(text, dimensions), encoding)}
        for index, text in enumerate(texts)
    ]
    body: Json = {"object": "list", "data": data, "model": answer.model}
    if answer.usage_told:
        body["usage"] = {"prompt_tokens": answer.prompt_tokens, "total_tokens": answer.prompt_tokens}
    return body


EMBEDDINGS = FakeProtocol("embd-", _prompts, _plain, None, openai_error_body, openai_error_frame)
