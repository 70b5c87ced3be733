"""The formats of /v1/chat/completions and /v1/completions, whole and streamed, and of /v1/embeddings."""

import base64
import json
import struct
from collections.abc import Iterable, Iterator
from typing import Any

from inference.fake_provider.answers import (
    Answer,
    Choice,
    FakeProtocol,
    Frame,
    Json,
    Prompt,
    parse_messages,
    parse_prompts,
    sse,
    vector,
)
from inference.fake_provider.settings import missing

LOGPROB = -0.1
#: Default length of a vector; short, so that a benchmark measures no arithmetic.
DIMENSIONS = 64


class ChatFormat(FakeProtocol):
    """Chat completions."""

    prefix = "chatcmpl-"

    def prompts(self, body: Json) -> list[Prompt]:
        """Return the messages as one prompt."""
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise missing("messages")
        return [parse_messages(messages)]

    def plain(self, answer: Answer) -> Json:
        """Return a chat completion."""
        choices = []
        for index, choice in enumerate(answer.choices):
            message: Json = {"role": "assistant", "content": choice.text, "refusal": None, "annotations": []}
            if choice.tool is not None:
                calls = [_tool_call(answer, index, choice, choice.tool.arguments)]
                message = {"role": "assistant", "content": None, "refusal": None, "tool_calls": calls}
            entry = {"index": index, "message": message, "logprobs": _logprobs(answer, choice.tokens)}
            choices.append({**entry, "finish_reason": choice.finish_reason})
        return {
            **_head(answer, "chat.completion"),
            "choices": choices,
            "system_fingerprint": "fp_fake",
            **_usage(answer),
        }

    def stream(self, answer: Answer) -> Iterator[Frame]:
        """Yield the chunks of a chat completion."""
        return _chunks(answer, "chat.completion.chunk", self._deltas(answer))

    def _deltas(self, answer: Answer) -> Iterator[tuple[Json, int]]:
        for index, choice in enumerate(answer.choices):
            first: Json = {"role": "assistant", "content": "", "refusal": None}
            if choice.tool is not None:
                call = {"index": 0, **_tool_call(answer, index, choice, "")}
                first = {"role": "assistant", "content": None, "tool_calls": [call]}
            yield {"index": index, "delta": first, "logprobs": None, "finish_reason": None}, 0
            for token in choice.tokens:
                delta: Json = {"content": token}
                if choice.tool is not None:
                    delta = {"tool_calls": [{"index": 0, "function": {"arguments": token}}]}
                logprobs = _logprobs(answer, [token])
                yield {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}, 1
            yield {"index": index, "delta": {}, "logprobs": None, "finish_reason": choice.finish_reason}, 0


class CompletionFormat(FakeProtocol):
    """Completions of bare prompts."""

    prefix = "cmpl-"

    def prompts(self, body: Json) -> list[Prompt]:
        """Return the prompts."""
        if body.get("prompt") in (None, []):
            raise missing("prompt")
        return parse_prompts(body["prompt"])

    def plain(self, answer: Answer) -> Json:
        """Return a completion."""
        choices = [
            {"text": choice.text, "index": index, "logprobs": None, "finish_reason": choice.finish_reason}
            for index, choice in enumerate(answer.choices)
        ]
        return {**_head(answer, "text_completion"), "choices": choices, **_usage(answer)}

    def stream(self, answer: Answer) -> Iterator[Frame]:
        """Yield the chunks of a completion."""
        return _chunks(answer, "text_completion", self._pieces(answer))

    def _pieces(self, answer: Answer) -> Iterator[tuple[Json, int]]:
        for index, choice in enumerate(answer.choices):
            for token in choice.tokens:
                yield {"text": token, "index": index, "logprobs": None, "finish_reason": None}, 1
            yield {"text": "", "index": index, "logprobs": None, "finish_reason": choice.finish_reason}, 0


class EmbeddingFormat(FakeProtocol):
    """Embeddings, as lists or in base64; the numbers depend on the input alone."""

    prefix = "embd-"
    generates = False

    def prompts(self, body: Json) -> list[Prompt]:
        """Return the inputs."""
        if body.get("input") in (None, [], ""):
            raise missing("input")
        return parse_prompts(body["input"])

    def plain(self, answer: Answer) -> Json:
        """Return one vector for each input."""
        data = []
        # With the fault empty_choices there are no choices.
        for index, prompt in enumerate(self.prompts(answer.body) if answer.choices else []):
            numbers: Any = vector(prompt.text, answer.body.get("dimensions") or DIMENSIONS)
            if answer.body.get("encoding_format") == "base64":
                numbers = base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
            data.append({"object": "embedding", "index": index, "embedding": numbers})
        usage = {"prompt_tokens": answer.prompt_tokens, "total_tokens": answer.prompt_tokens}
        reported = {"usage": usage} if answer.reports_usage else {}
        return {"object": "list", "data": data, "model": answer.model, **reported}


def _head(answer: Answer, kind: str) -> Json:
    return {"id": answer.id, "object": kind, "created": answer.created, "model": answer.model}


def _usage(answer: Answer) -> Json:
    usage = answer.usage()
    return {} if usage is None else {"usage": usage}


def _tool_call(answer: Answer, index: int, choice: Choice, arguments: str) -> Json:
    name = choice.tool.name if choice.tool else ""
    return {"id": f"call_{answer.id}_{index}", "type": "function", "function": {"name": name, "arguments": arguments}}


def _logprobs(answer: Answer, tokens: list[str]) -> Json | None:
    if not answer.body.get("logprobs"):
        return None
    entries = [{"token": each, "logprob": LOGPROB, "bytes": list(each.encode("utf-8", "replace"))} for each in tokens]
    return {"content": [{**entry, "top_logprobs": [entry]} for entry in entries], "refusal": None}


def _chunks(answer: Answer, kind: str, choices: Iterable[tuple[Json, int]]) -> Iterator[Frame]:
    """Yield a chunk for each choice, then the usage if it is requested and not held back by a fault, and [DONE]."""
    head, usage = json.dumps(_head(answer, kind))[:-1], None
    tail = "}"
    if (answer.body.get("stream_options") or {}).get("include_usage"):
        tail, usage = ', "usage": null}', answer.usage()
    for choice, tokens in choices:
        yield f'data: {head}, "choices": [{json.dumps(choice)}]{tail}\n\n'.encode(), tokens
    if usage is not None:
        yield f'data: {head}, "choices": [], "usage": {json.dumps(usage)}}}\n\n'.encode(), 0
    yield sse(b"[DONE]"), 0
