"""The fake provider's answers, deterministic for each input: text, choices, tokens and usage.

A token is a word with the white space before it. Surface is the interface that turns an answer into an endpoint's form.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, NamedTuple

from inference.fake_provider.settings import FakeSettings, HttpError

_TOKEN = re.compile(r"\s*\S+")
_FILLER = " and so the answer goes on, word after word, until it has the length that was asked for"
IMAGE_TOKENS = 85
"""Tokens of an image in a message: OpenAI's figure for low detail."""
ECHOED_TOKENS = 200
_DEEP, _MAX_DEPTH = 4, 24


class Prompt(NamedTuple):
    """A call's input: the text to answer, and the tokens of everything sent."""

    text: str
    tokens: int


def tokenize(text: str) -> list[str]:
    """Split a text into tokens; joined they are the text again, without white space at its end."""
    return _TOKEN.findall(text)


def _part_text(part: Any) -> str:
    return str(part.get("text", "")) if isinstance(part, dict) else str(part)


def read_messages(messages: list[Any]) -> Prompt:
    """Parse chat messages (texts or parts); the last one with a text is answered."""
    last, tokens = "", 0
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else message
        parts = content if isinstance(content, list) else [content or ""]
        text = " ".join(filter(None, map(_part_text, parts)))
        images = sum(isinstance(part, dict) and "image" in str(part.get("type", "")) for part in parts)
        tokens += len(text.split()) + images * IMAGE_TOKENS
        last = text or last
    return Prompt(last, tokens)


def read_prompt(prompt: Any) -> Prompt:
    """Parse one prompt of /completions or one input of /embeddings: a text, or a list of token numbers."""
    if isinstance(prompt, list):
        return Prompt(" ".join(map(str, prompt)), len(prompt))
    return Prompt(str(prompt), len(str(prompt).split()))


def _text_to_summarize(prompt: str) -> str | None:
    """Return the text to summarize, with the instruction before or after it; None for other prompts."""
    if prompt[:9].lower() == "summarize":
        return prompt.partition(":")[2].strip()
    text, _, instruction = prompt.rpartition("\n\n")
    return text.strip() if instruction[:9].lower() == "summarize" else None


def answer_tokens(prompt: str, length: int | None) -> list[str]:
    """Return the answer to a prompt, `length` tokens long: the shortened text for a summary, otherwise an echo."""
    text = _text_to_summarize(prompt)
    if text is not None:
        words = tokenize(text)
        answer = words[: max(3, len(words) // 4)]
    else:
        answer = ["You", " said:", *tokenize(" " + prompt.strip())[:ECHOED_TOKENS]]
    if length is None:
        return answer
    return (answer + list(islice(cycle(tokenize(_FILLER)), max(0, length - len(answer)))))[:length]


def stopped(tokens: list[str], stop: Any) -> list[str]:
    """Return the tokens before the first of the stop texts (a text, a list of them, or None)."""
    stops = [stop] if isinstance(stop, str) else [text for text in stop or [] if isinstance(text, str) and text]
    text = "".join(tokens)
    ends = [position for each in stops if (position := text.find(each)) >= 0]
    return tokenize(text[: min(ends)]) if ends else tokens


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    target: Any = root
    for name in str(schema["$ref"]).lstrip("#/").split("/"):
        target = target.get(name, {}) if isinstance(target, dict) else {}
    return target if isinstance(target, dict) else {}


_BY_FORMAT = {
    "date": "2025-01-31",
    "date-time": "2025-01-31T12:00:00Z",
    "email": "someone@example.com",
    "time": "12:00:00Z",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def _scalar_example(kind: Any, schema: Mapping[str, Any], text: str) -> Any:
    low = schema.get("minimum", schema.get("exclusiveMinimum", 0) + ("exclusiveMinimum" in schema))
    if kind in ("integer", "number"):
        return low
    if kind in ("boolean", "null"):
        return True if kind == "boolean" else None
    value = str(_BY_FORMAT.get(schema.get("format", ""), text))
    return value.ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength")]


def _chosen(choices: list[Any], depth: int) -> Any:
    """Return the first of several schemas; at a great depth null, if allowed, which ends a recursion."""
    empty = [choice for choice in choices if isinstance(choice, dict) and choice.get("type") == "null"]
    return empty[0] if empty and depth > _DEEP else choices[0]


def _example_of_type(kind: Any, schema: Mapping[str, Any], text: str, root: Mapping[str, Any], depth: int) -> Any:
    if kind == "object" or "properties" in schema:
        properties = schema.get("properties", {})
        return {name: schema_example(each, text, root, depth + 1) for name, each in properties.items()}
    if kind == "array":
        least = schema.get("minItems", 0 if depth > _DEEP else 1)
        return [schema_example(schema.get("items", {}), text, root, depth + 1)] * least if least else []
    return _scalar_example(kind, schema, text)


def schema_example(schema: Mapping[str, Any], text: str, root: Mapping[str, Any] | None = None, depth: int = 0) -> Any:
    """Return a value that fits a JSON schema of the simple kind that SDKs generate from classes.

    Strings are `text`, numbers the least allowed, choices the first. Values below 24 levels become None.
    """
    root = schema if root is None else root
    if depth > _MAX_DEPTH:
        return None
    if "$ref" in schema:
        return schema_example(_resolved(schema, root), text, root, depth + 1)
    if "const" in schema or schema.get("enum"):
        return schema["const"] if "const" in schema else schema["enum"][0]
    for choice in ("anyOf", "oneOf", "allOf"):
        if schema.get(choice):
            return schema_example(_chosen(schema[choice], depth), text, root, depth + 1)
    kind = schema.get("type")
    return _example_of_type(kind[0] if isinstance(kind, list) else kind, schema, text, root, depth)


def json_answer(schema: Mapping[str, Any] | None, text: str) -> str:
    """Return a JSON text that fits `schema`; without a schema, an object with the field `answer`."""
    return json.dumps({"answer": text} if schema is None else schema_example(schema, text))


def vector(text: str, dimensions: int) -> list[float]:
    """Return numbers from -1 to 1 that depend on the text alone and are exact in single precision."""
    stream = hashlib.shake_128(text.encode("utf-8", "replace")).digest(dimensions)
    return [(byte - 128) / 128 for byte in stream]


Json = dict[str, Any]
Frame = tuple[bytes, int]
"""A piece of a response's body, and the completion tokens that are billed when it is sent."""

_ARGUMENT_PIECE = 8
_MAX_CHOICES = 128


class Tool(NamedTuple):
    """A tool that the answer calls: its name, and its arguments as JSON."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the answers to a call: its tokens (of the text, or of a tool's arguments) and its finish reason."""

    tokens: list[str]
    finish_reason: str
    tool: Tool | None = None

    @property
    def text(self) -> str:
        """Return the joined tokens."""
        return "".join(self.tokens)


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything that an endpoint needs to write its answer; `usage_told` is False with the fault no_usage."""

    id: str
    model: str
    body: Json
    choices: list[Choice]
    prompt_tokens: int
    cached_tokens: int
    usage_told: bool
    created: int

    @property
    def completion_tokens(self) -> int:
        """Return the number of tokens of all choices."""
        return sum(len(choice.tokens) for choice in self.choices)

    def usage(self, completion_tokens: int | None = None) -> Json | None:
        """Return the usage in the format of chat and completions; None with the fault no_usage.

        `completion_tokens` are those of an unfinished answer.
        """
        if not self.usage_told:
            return None
        generated = self.completion_tokens if completion_tokens is None else completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self.prompt_tokens + generated,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        }


class BadRequest(Exception):
    """A request that OpenAI would refuse; carries the error of the response."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.error = HttpError(status, "invalid_request_error", code, param, message)


class FakeProtocol(NamedTuple):
    """An endpoint's functions: parse prompts (one answer each), and write an answer whole or as frames.

    `stream` is None if the endpoint generates nothing and so bills no completion tokens. `error_body` returns an error
    of status 200, with the usage of a number of completion tokens (None: without); `error_frame` returns its event.
    """

    prefix: str
    prompts: Callable[[Json], list[Prompt]]
    plain: Callable[[Answer], Json]
    stream: Callable[[Answer], Iterator[Frame]] | None
    error_body: Callable[[HttpError, Answer, int | None], Json]
    error_frame: Callable[[Json], bytes]


def sse(data: bytes, event: str | None = None) -> bytes:
    """Return a server-sent event."""
    return (b"event: %b\n" % event.encode() if event else b"") + b"data: %b\n\n" % data


def openai_error_body(error: HttpError, answer: Answer, completion_tokens: int | None) -> Json:
    """Return the error body of most endpoints."""
    usage = {} if completion_tokens is None else {"usage": answer.usage(completion_tokens)}
    return {"error": error.fields(), **usage}


def openai_error_frame(body: Json) -> bytes:
    """Return the error event of chat and completion streams."""
    return sse(json.dumps(body).encode())


def forced_tool(body: Json) -> Mapping[str, Any] | None:
    """Return the function that tool_choice forces (the first one for `required`); None if none is forced.

    Accepts the nested form of /chat/completions and the flat one of /responses.
    """
    choice, tools = body.get("tool_choice"), [tool for tool in body.get("tools") or [] if isinstance(tool, dict)]
    functions = [tool.get("function", tool) for tool in tools if tool.get("type") == "function"]
    if choice == "required":
        return functions[0] if functions else None
    if not isinstance(choice, dict):
        return None
    wanted = choice.get("function", choice).get("name")
    return next((function for function in functions if function.get("name") == wanted), None)


def wanted_format(body: Json) -> tuple[bool, Mapping[str, Any] | None]:
    """Return whether the answer must be JSON, and its schema (None: any object)."""
    text = body.get("text")
    nested = text.get("format") if isinstance(text, dict) else None
    wanted: Mapping[str, Any] = body.get("response_format") or nested or {}
    if wanted.get("type") == "json_schema":
        return True, wanted.get("json_schema", wanted).get("schema")
    return wanted.get("type") == "json_object", None


def _limit(body: Json) -> int | None:
    names = ("max_completion_tokens", "max_tokens", "max_output_tokens")
    limit = next((body[name] for name in names if body.get(name) is not None), None)
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise BadRequest("The token limit must be a positive integer.", param="max_tokens", code="invalid_value")
    return limit


def _choice(body: Json, text: str, settings: FakeSettings) -> Choice:
    if function := forced_tool(body):
        arguments = json.dumps(schema_example(function.get("parameters") or {"type": "object"}, text))
        pieces = [arguments[i : i + _ARGUMENT_PIECE] for i in range(0, len(arguments), _ARGUMENT_PIECE)]
        return Choice(pieces, "tool_calls", Tool(str(function.get("name")), arguments))
    wants_json, schema = wanted_format(body)
    if wants_json:
        tokens = tokenize(json_answer(schema, text))
    else:
        tokens = stopped(answer_tokens(text, settings.tokens), body.get("stop"))
    limit = _limit(body)
    if limit is not None and len(tokens) > limit:
        return Choice(tokens[:limit], "length")
    return Choice(tokens, "stop")


def _filtered(choice: Choice) -> Choice:
    return Choice(choice.tokens[: len(choice.tokens) // 2], "content_filter")


def _choices(protocol: FakeProtocol, body: Json, prompts: list[Prompt], settings: FakeSettings) -> list[Choice]:
    times = body.get("n") or 1
    if not isinstance(times, int) or not 1 <= times <= _MAX_CHOICES:
        raise BadRequest(f"n must be an integer between 1 and {_MAX_CHOICES}.", param="n", code="invalid_value")
    if protocol.stream is None:
        return [Choice([], "stop") for _ in prompts]
    return [choice for prompt in prompts for choice in [_choice(body, prompt.text, settings)] * times]


def compose(call_id: str, protocol: FakeProtocol, body: Json, settings: FakeSettings, fault: str | None) -> Answer:
    """Answer a call with `n` equal choices for each prompt, and apply the faults that concern the content.

    Raises BadRequest for a body that the endpoint refuses.
    """
    prompts = protocol.prompts(body)
    choices = _choices(protocol, body, prompts, settings)
    if fault == "content_filter":
        choices = [_filtered(choice) for choice in choices]
    if fault == "empty_choices":
        choices = []
    tokens = sum(prompt.tokens for prompt in prompts)
    cached = int(tokens * settings.cached_ratio)
    reports_usage = fault != "no_usage"
    return Answer(call_id, str(body["model"]), body, choices, tokens, cached, reports_usage, int(time.time()))


def half(frames: Iterable[Frame], tokens: int) -> Iterator[Frame]:
    """Yield frames until half of `tokens` are sent."""
    sent = 0
    for frame in frames:
        if sent >= tokens // 2 and frame[1]:
            return
        sent += frame[1]
        yield frame
