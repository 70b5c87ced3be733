"""The formats of the fake provider's endpoints: they parse prompts (one answer each), and write answers."""

import base64
import hashlib
import json
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import count
from typing import Any

from inference.fake_provider.answers import Answer, Choice, Json, Prompt
from inference.fake_provider.settings import HttpError

#: A piece of a response's body, and the completion tokens that are billed when it is sent.
Frame = tuple[bytes, int]

#: Tokens of an image in a message: OpenAI's figure for low detail.
IMAGE_TOKENS = 85
LOGPROB = -0.1
#: Most tokens of a prompt that are served in the tier priority.
PRIORITY_TOKENS = 100
#: Default length of a vector; short, so that a benchmark measures no arithmetic.
DIMENSIONS = 64
#: Anthropic's types of errors by status, and reasons to stop by the finish reason.
ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
#: Fields of a request that its response repeats, and reasons of an incomplete one by the finish reason.
ECHOED = ("instructions", "metadata", "temperature", "top_p", "tool_choice", "tools", "max_output_tokens", "store")
REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}


def sse(data: Json | bytes, event: str | None = None) -> bytes:
    """Return a server-sent event."""
    written = data if isinstance(data, bytes) else json.dumps(data).encode()
    return (b"event: %b\n" % event.encode() if event else b"") + b"data: %b\n\n" % written


def service_tier(answer: Answer) -> Json:
    """Return the tier in which a call was served, if it asked for one: priority has no capacity for long prompts."""
    tier = answer.body.get("service_tier")
    is_busy = tier == "priority" and answer.prompt_tokens > PRIORITY_TOKENS
    return {} if tier is None else {"service_tier": "default" if is_busy else tier}


def missing(param: str) -> HttpError:
    """Return the error about a parameter that a request lacks."""
    return HttpError(400, f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def parse_messages(messages: list[Any]) -> Prompt:
    """Parse chat messages (texts or parts); the last one with a text is answered."""
    last, tokens = "", 0
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else message
        parts = content if isinstance(content, list) else [content or ""]
        texts = (str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in parts)
        text = " ".join(filter(None, texts))
        images = sum(isinstance(part, dict) and "image" in str(part.get("type", "")) for part in parts)
        tokens += len(text.split()) + images * IMAGE_TOKENS
        last = text or last
    return Prompt(last, tokens)


def parse_prompts(given: Any) -> list[Prompt]:
    """Parse `prompt` or `input`: a text, a list of token numbers, or a list of those."""
    many = isinstance(given, list) and not isinstance(given[0], int)
    return [
        Prompt(" ".join(map(str, each)), len(each)) if isinstance(each, list) else Prompt(str(each), len(each.split()))
        for each in (given if many else [given])
    ]


class FakeProtocol(ABC):
    """An endpoint."""

    #: Of the ids of its calls.
    prefix: str
    #: Whether it generates text, which it can stream; otherwise no completion tokens are billed.
    generates: bool = True

    @abstractmethod
    def prompts(self, body: Json) -> list[Prompt]:
        """Return the prompts of a request; raises HttpError."""

    @abstractmethod
    def plain(self, answer: Answer) -> Json:
        """Return the body of an answer."""

    def stream(self, answer: Answer) -> Iterator[Frame]:
        """Yield the events of a streamed answer."""
        raise NotImplementedError

    def refusal(self, error: HttpError) -> bytes:
        """Return the body of an error answer."""
        return error.body

    def error_body(self, error: HttpError, answer: Answer, generated: int | None) -> Json:
        """Return an error of status 200, with the usage of a number of completion tokens (None: without)."""
        usage = {} if generated is None else {"usage": answer.usage(generated=generated)}
        return {"error": error.fields, **usage}

    def error_event(self, body: Json) -> bytes:
        """Return the event of such an error."""
        return sse(body)


class CompletionFormat(FakeProtocol):
    """Completions of bare prompts, and what chat completions share with them."""

    prefix = "cmpl-"
    #: `object` of an answer and of a chunk.
    kinds = ("text_completion", "text_completion")

    def prompts(self, body: Json) -> list[Prompt]:
        """Return the prompts."""
        if body.get("prompt") in (None, []):
            raise missing("prompt")
        return parse_prompts(body["prompt"])

    def choice(self, answer: Answer, index: int, choice: Choice) -> Json:
        """Return the content of a whole choice."""
        return {"text": choice.text}

    def chunks(self, answer: Answer, index: int, choice: Choice) -> Iterator[tuple[Json, int]]:
        """Yield the fields of a choice's chunks, each with its tokens."""
        for token in choice.tokens:
            yield {"text": token, "logprobs": None, "finish_reason": None}, 1
        yield {"text": "", "logprobs": None, "finish_reason": choice.finish_reason}, 0

    def plain(self, answer: Answer) -> Json:
        """Return the whole answer."""
        choices = [
            {"index": at, "logprobs": None, "finish_reason": each.finish_reason, **self.choice(answer, at, each)}
            for at, each in enumerate(answer.choices)
        ]
        usage = answer.usage()
        reported = {} if usage is None else {"usage": usage}
        head = {**self._head(answer, self.kinds[0]), **service_tier(answer)}
        return {**head, "choices": choices, "system_fingerprint": "fp_fake", **reported}

    def stream(self, answer: Answer) -> Iterator[Frame]:
        """Yield the chunks, then the usage if it is requested and not held back by a fault, and [DONE]."""
        head = json.dumps({**self._head(answer, self.kinds[1]), **service_tier(answer)})[:-1]
        tail, usage = "}", None
        if (answer.body.get("stream_options") or {}).get("include_usage"):
            tail, usage = ', "usage": null}', answer.usage()
        for at, each in enumerate(answer.choices):
            for content, tokens in self.chunks(answer, at, each):
                choice = f'{{"index": {at}, {json.dumps(content)[1:]}'
                yield f'data: {head}, "choices": [{choice}]{tail}\n\n'.encode(), tokens
        if usage is not None:
            yield f'data: {head}, "choices": [], "usage": {json.dumps(usage)}}}\n\n'.encode(), 0
        yield sse(b"[DONE]"), 0

    def _head(self, answer: Answer, kind: str) -> Json:
        return {"id": answer.id, "object": kind, "created": answer.created, "model": answer.model}


class ChatFormat(CompletionFormat):
    """Chat completions."""

    prefix = "chatcmpl-"
    kinds = ("chat.completion", "chat.completion.chunk")

    def prompts(self, body: Json) -> list[Prompt]:
        """Return the messages as one prompt."""
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise missing("messages")
        return [parse_messages(messages)]

    def choice(self, answer: Answer, index: int, choice: Choice) -> Json:
        """Return the message, and the logarithms of its tokens' probabilities."""
        message: Json = {"role": "assistant", "content": choice.text, "refusal": None, "annotations": []}
        if choice.tool is not None:
            calls = [self._tool_call(answer, index, choice, choice.text)]
            message = {"role": "assistant", "content": None, "refusal": None, "tool_calls": calls}
        return {"message": message, "logprobs": self._logprobs(answer, choice.tokens)}

    def chunks(self, answer: Answer, index: int, choice: Choice) -> Iterator[tuple[Json, int]]:
        """Yield the deltas: the role and a tool's name first, then a token each."""
        first: Json = {"role": "assistant", "content": "", "refusal": None}
        if choice.tool is not None:
            call = {"index": 0, **self._tool_call(answer, index, choice, "")}
            first = {"role": "assistant", "content": None, "tool_calls": [call]}
        yield {"delta": first, "logprobs": None, "finish_reason": None}, 0
        for token in choice.tokens:
            delta: Json = {"content": token}
            if choice.tool is not None:
                delta = {"tool_calls": [{"index": 0, "function": {"arguments": token}}]}
            yield {"delta": delta, "logprobs": self._logprobs(answer, [token]), "finish_reason": None}, 1
        yield {"delta": {}, "logprobs": None, "finish_reason": choice.finish_reason}, 0

    def _tool_call(self, answer: Answer, index: int, choice: Choice, arguments: str) -> Json:
        function = {"name": choice.tool, "arguments": arguments}
        return {"id": f"call_{answer.id}_{index}", "type": "function", "function": function}

    def _logprobs(self, answer: Answer, tokens: list[str]) -> Json | None:
        if not answer.body.get("logprobs"):
            return None
        told = [{"token": each, "logprob": LOGPROB, "bytes": list(each.encode("utf-8", "replace"))} for each in tokens]
        return {"content": [{**each, "top_logprobs": [each]} for each in told], "refusal": None}


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
        """Return one vector for each input: numbers from -1 to 1 that are exact in single precision."""
        data, length = [], answer.body.get("dimensions") or DIMENSIONS
        # With the fault empty_choices there are no choices.
        for index, prompt in enumerate(self.prompts(answer.body) if answer.choices else []):
            digest = hashlib.shake_128(prompt.text.encode("utf-8", "replace")).digest(length)
            numbers: Any = [(byte - 128) / 128 for byte in digest]
            if answer.body.get("encoding_format") == "base64":
                numbers = base64.b64encode(struct.pack(f"<{length}f", *numbers)).decode()
            data.append({"object": "embedding", "index": index, "embedding": numbers})
        usage = {"prompt_tokens": answer.prompt_tokens, "total_tokens": answer.prompt_tokens}
        reported = {"usage": usage} if answer.reports_usage else {}
        return {"object": "list", "data": data, "model": answer.model, **reported}


class ResponseFormat(FakeProtocol):
    """Responses; the events of a stream come in OpenAI's order."""

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
        reasons = [REASONS[choice.finish_reason] for choice in answer.choices if choice.finish_reason in REASONS]
        status = "incomplete" if reasons else "completed"
        return {
            **self._begun(answer),
            "status": status,
            "incomplete_details": {"reason": reasons[0]} if reasons else None,
            "output": [self._item(answer, choice, status) for choice in answer.choices],
            "usage": answer.usage(("input", "output")),
            **service_tier(answer),
        }

    def stream(self, answer: Answer) -> Iterator[Frame]:
        """Yield the events of a response."""
        whole, numbers = self.plain(answer), count()

        def event(kind: str, **fields: Any) -> bytes:
            kind = f"response.{kind}"
            return sse({"type": kind, "sequence_number": next(numbers), **fields}, kind)

        yield event("created", response=self._begun(answer)), 0
        yield event("in_progress", response=self._begun(answer)), 0
        for index, choice in enumerate(answer.choices):
            item = self._item(answer, choice, "in_progress")
            yield event("output_item.added", output_index=index, item=item), 0
            at = {"item_id": item["id"], "output_index": index}
            if choice.tool is not None:
                for piece in choice.tokens:
                    yield event("function_call_arguments.delta", **at, delta=piece), 1
                yield event("function_call_arguments.done", **at, name=choice.tool, arguments=choice.text), 0
            else:
                at["content_index"] = 0
                yield event("content_part.added", **at, part=self._part("")), 0
                for token in choice.tokens:
                    yield event("output_text.delta", **at, delta=token, logprobs=[]), 1
                yield event("output_text.done", **at, text=choice.text, logprobs=[]), 0
                yield event("content_part.done", **at, part=self._part(choice.text)), 0
            yield event("output_item.done", output_index=index, item=whole["output"][index]), 0
        yield event(whole["status"], response=whole), 0

    def error_body(self, error: HttpError, answer: Answer, generated: int | None) -> Json:
        """Return a failed response with its usage, or an error body if there is none."""
        if generated is None:
            return super().error_body(error, answer, None)
        usage = answer.usage(("input", "output"), generated)
        return {**self._begun(answer), "status": "failed", "error": error.fields, "usage": usage}

    def error_event(self, body: Json) -> bytes:
        """Return the event of a failed response, or of an error alone."""
        kind = "response.failed" if body.get("object") == "response" else "error"
        fields = {"response": body} if kind == "response.failed" else body["error"]
        # The number must be higher than those already sent; their count is unknown here.
        return sse({**fields, "type": kind, "sequence_number": 10_000}, kind)

    def _part(self, text: str) -> Json:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _item(self, answer: Answer, choice: Choice, status: str) -> Json:
        """Return an output item, whose content is empty while in progress."""
        is_done = status != "in_progress"
        if choice.tool is not None:
            item = {"id": f"fc_{answer.id}", "type": "function_call", "status": status, "call_id": f"call_{answer.id}"}
            return {**item, "name": choice.tool, "arguments": choice.text if is_done else ""}
        content = [self._part(choice.text)] if is_done else []
        return {"id": f"msg_{answer.id}", "type": "message", "status": status, "role": "assistant", "content": content}

    def _begun(self, answer: Answer) -> Json:
        """Return the response object in progress, without output and usage."""
        echoed = {name: answer.body.get(name) for name in ECHOED}
        return {
            "id": answer.id,
            "object": "response",
            "created_at": answer.created,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": answer.model,
            "output": [],
            "parallel_tool_calls": True,
            "text": answer.body.get("text") or {"format": {"type": "text"}},
            "usage": None,
            **echoed,
            "tools": echoed["tools"] or [],
            "tool_choice": echoed["tool_choice"] or "auto",
        }


class MessageFormat(FakeProtocol):
    """Anthropic's messages. Every answer to a request with thinking begins with a block of it."""

    prefix = "msg_"

    def prompts(self, body: Json) -> list[Prompt]:
        """Return the system prompt and the messages as one prompt."""
        messages = body.get("messages")
        for name in ("messages", "max_tokens"):
            if not body.get(name):
                raise HttpError(400, f"{name}: Field required")
        if not isinstance(messages, list):
            raise HttpError(400, "messages: Input should be a valid array")
        system = body.get("system") or []
        return [parse_messages([{"content": system}, *messages])]

    def plain(self, answer: Answer) -> Json:
        """Return the whole message; no block with the fault empty_choices."""
        reason = answer.choices[0].finish_reason if answer.choices else "stop"
        usage = answer.usage()
        return {
            **self._begun(answer),
            "content": self._blocks(answer),
            "stop_reason": STOP_REASONS.get(reason, "end_turn"),
            **({} if usage is None else {"usage": self._usage(answer, answer.completion_tokens)}),
        }

    def stream(self, answer: Answer) -> Iterator[Frame]:
        """Yield the events of a message."""
        whole = self.plain(answer)

        def event(kind: str, **fields: Any) -> bytes:
            return sse({"type": kind, **fields}, kind)

        reported = {"usage": self._usage(answer, 0)} if answer.reports_usage else {}
        yield event("message_start", message={**self._begun(answer), **reported}), 0
        yield event("ping"), 0
        for index, block in enumerate(whole["content"]):
            kind, tokens = block["type"], answer.choices[0].tokens
            if kind == "thinking":
                empty, name, pieces = {**block, "thinking": "", "signature": ""}, "thinking", [block["thinking"]]
            elif kind == "tool_use":
                empty, name, pieces = {**block, "input": {}}, "partial_json", tokens
            else:
                empty, name, pieces = {**block, "text": ""}, "text", tokens
            yield event("content_block_start", index=index, content_block=empty), 0
            delta_type = {"partial_json": "input_json_delta"}.get(name, f"{name}_delta")
            for piece in pieces:
                sent = event("content_block_delta", index=index, delta={"type": delta_type, name: piece})
                yield sent, int(kind != "thinking")
            if kind == "thinking":
                signed = {"type": "signature_delta", "signature": block["signature"]}
                yield event("content_block_delta", index=index, delta=signed), 0
            yield event("content_block_stop", index=index), 0
        reported = {"usage": self._usage(answer, answer.completion_tokens)} if answer.reports_usage else {}
        delta = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
        yield event("message_delta", delta=delta, **reported), 0
        yield event("message_stop"), 0

    def refusal(self, error: HttpError) -> bytes:
        """Return an error in Anthropic's shape."""
        return json.dumps(self._error(error)).encode()

    def error_body(self, error: HttpError, answer: Answer, generated: int | None) -> Json:
        """Return an error of status 200, with the usage of a number of tokens (None: without)."""
        usage = {} if generated is None else {"usage": self._usage(answer, generated)}
        return {**self._error(error), **usage}

    def error_event(self, body: Json) -> bytes:
        """Return the event of such an error."""
        return sse(body, "error")

    def _error(self, error: HttpError) -> Json:
        kind = ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": error.fields["message"]}}

    def _blocks(self, answer: Answer) -> list[Json]:
        if not answer.choices:
            return []
        choice, thinking = answer.choices[0], answer.body.get("thinking") or {}
        block: Json = {"type": "text", "text": choice.text}
        if choice.tool is not None:
            is_whole = choice.finish_reason == "tool_calls"
            given = json.loads(choice.text) if is_whole else {}
            block = {"type": "tool_use", "id": f"toolu_{answer.id}", "name": choice.tool, "input": given}
        thought = {"type": "thinking", "thinking": "The caller waits for an answer.", "signature": "c2lnbmF0dXJl"}
        return [*([thought] if thinking.get("type") in ("enabled", "adaptive") else []), block]

    def _usage(self, answer: Answer, generated: int) -> Json:
        return {
            "input_tokens": answer.prompt_tokens - answer.cached_tokens - answer.cache_write_tokens,
            "cache_read_input_tokens": answer.cached_tokens,
            "cache_creation_input_tokens": answer.cache_write_tokens,
            "cache_creation": {
                "ephemeral_5m_input_tokens": answer.cache_write_tokens,
                "ephemeral_1h_input_tokens": 0,
            },
            "output_tokens": generated,
            "service_tier": "standard",
        }

    def _begun(self, answer: Answer) -> Json:
        fields = {"id": answer.id, "type": "message", "role": "assistant", "model": answer.model}
        return {**fields, "content": [], "stop_reason": None, "stop_sequence": None}


class TokenCountFormat(MessageFormat):
    """The number of a prompt's tokens, which costs nothing."""

    generates = False

    def prompts(self, body: Json) -> list[Prompt]:
        """Return the prompt; no maximum is needed."""
        return super().prompts({"max_tokens": 1, **body})

    def plain(self, answer: Answer) -> Json:
        """Return the number."""
        return {"input_tokens": answer.prompt_tokens}
