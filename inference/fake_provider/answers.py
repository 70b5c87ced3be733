"""The fake provider's answers, deterministic for each input, and what each call bills.

A token is a word with the white space before it. An endpoint (FakeProtocol) turns an answer into its own form.
"""

import hashlib
import json
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any, NamedTuple

from inference.fake_provider.settings import FakeSettings, HttpError

Json = dict[str, Any]
Frame = tuple[bytes, int]
"""A piece of a response's body, and the completion tokens that are billed when it is sent."""

TOKEN = re.compile(r"\s*\S+")
FILLER = " and so the answer goes on, word after word, until it has the length that was asked for"
IMAGE_TOKENS = 85
"""Tokens of an image in a message: OpenAI's figure for low detail."""
ECHOED_TOKENS = 200
ARGUMENT_PIECE = 8
MOST_CHOICES = 128


@dataclass(slots=True)
class FakeCall:
    """A call to a model and the tokens billed for it; times are monotonic seconds, `ended_at` is None while it runs.

    `outcome` is `running`, `complete`, `cut` (by a fault), `client_left` or `failed` (nothing billed).
    """

    id: str
    path: str
    model: str
    stream: bool
    fault: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    outcome: str = "running"
    started_at: float = field(default_factory=time.monotonic)
    ended_at: float | None = None

    def end(self, outcome: str) -> None:
        """End the call with an outcome; only the first end counts."""
        if self.ended_at is None:
            self.outcome = outcome
            self.ended_at = time.monotonic()


class Prompt(NamedTuple):
    """A call's input: the text to answer, and the tokens of everything sent."""

    text: str
    tokens: int


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
    """Everything that an endpoint needs to write its answer; `reports_usage` is False with the fault no_usage."""

    id: str
    model: str
    body: Json
    choices: list[Choice]
    prompt_tokens: int
    cached_tokens: int
    reports_usage: bool
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def completion_tokens(self) -> int:
        """Return the number of tokens of all choices."""
        return sum(len(choice.tokens) for choice in self.choices)

    def usage(self, completion_tokens: int | None = None) -> Json | None:
        """Return the usage in the format of chat and completions; None with the fault no_usage.

        `completion_tokens` are those of an unfinished answer.
        """
        if not self.reports_usage:
            return None
        generated = self.completion_tokens if completion_tokens is None else completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self.prompt_tokens + generated,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        }


class FakeProtocol(ABC):
    """An endpoint: it parses prompts (one answer each), and writes an answer whole or as frames."""

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

    def error_body(self, error: HttpError, answer: Answer, completion_tokens: int | None) -> Json:
        """Return an error of status 200, with the usage of a number of completion tokens (None: without)."""
        usage = {} if completion_tokens is None else {"usage": answer.usage(completion_tokens)}
        return {"error": error.fields, **usage}

    def error_event(self, body: Json) -> bytes:
        """Return the event of such an error."""
        return sse(body)


def sse(data: Json | bytes, event: str | None = None) -> bytes:
    """Return a server-sent event."""
    written = data if isinstance(data, bytes) else json.dumps(data).encode()
    return (b"event: %b\n" % event.encode() if event else b"") + b"data: %b\n\n" % written


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


def compose(call: FakeCall, protocol: FakeProtocol, body: Json, settings: FakeSettings) -> Answer:
    """Answer a call with `n` equal choices for each prompt, and apply the faults that concern the content.

    Raises HttpError for a body that the endpoint refuses.
    """
    prompts, times = protocol.prompts(body), body.get("n") or 1
    if not isinstance(times, int) or not 1 <= times <= MOST_CHOICES:
        text = f"n must be an integer between 1 and {MOST_CHOICES}."
        raise HttpError(400, text, param="n", code="invalid_value")
    choices = [
        _choose(body, prompt.text, settings) if protocol.generates else Choice([], "stop")
        for prompt in prompts
        for _ in range(times)
    ]
    if call.fault == "content_filter":
        choices = [Choice(choice.tokens[: len(choice.tokens) // 2], "content_filter") for choice in choices]
    if call.fault == "empty_choices":
        choices = []
    tokens = sum(prompt.tokens for prompt in prompts)
    cached = int(tokens * settings.cached_ratio)
    return Answer(call.id, str(body["model"]), body, choices, tokens, cached, call.fault != "no_usage")


def _choose(body: Json, text: str, settings: FakeSettings) -> Choice:
    """Answer one prompt: with the tool that is forced, a value of the schema that is asked for, or a text."""
    if (function := forced_tool(body)) is not None:
        arguments = json.dumps(schema_example(function.get("parameters") or {"type": "object"}, text))
        pieces = [arguments[i : i + ARGUMENT_PIECE] for i in range(0, len(arguments), ARGUMENT_PIECE)]
        return Choice(pieces, "tool_calls", Tool(str(function.get("name")), arguments))
    nested = body["text"].get("format") if isinstance(body.get("text"), dict) else None
    wanted: Mapping[str, Any] = body.get("response_format") or nested or {}
    if wanted.get("type") == "json_schema":
        schema = wanted.get("json_schema", wanted).get("schema")
        value = {"answer": text} if schema is None else schema_example(schema, text)
        tokens = TOKEN.findall(json.dumps(value))
    elif wanted.get("type") == "json_object":
        tokens = TOKEN.findall(json.dumps({"answer": text}))
    else:
        tokens = stopped(answer_tokens(text, settings.tokens), body.get("stop"))
    names = ("max_completion_tokens", "max_tokens", "max_output_tokens")
    limit = next((body[name] for name in names if body.get(name) is not None), len(tokens) or 1)
    if not isinstance(limit, int) or limit < 1:
        text = "The token limit must be a positive integer."
        raise HttpError(400, text, param="max_tokens", code="invalid_value")
    return Choice(tokens[:limit], "length" if len(tokens) > limit else "stop")


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


def answer_tokens(prompt: str, length: int | None) -> list[str]:
    """Return the answer to a prompt, `length` tokens long: the shortened text for a summary, otherwise an echo."""
    before, _, last = prompt.rpartition("\n\n")  # the instruction may stand before or after the text
    if prompt[:9].lower() == "summarize":
        words = TOKEN.findall(prompt.partition(":")[2].strip())
        answer = words[: max(3, len(words) // 4)]
    elif last[:9].lower() == "summarize":
        words = TOKEN.findall(before.strip())
        answer = words[: max(3, len(words) // 4)]
    else:
        answer = ["You", " said:", *TOKEN.findall(" " + prompt.strip())[:ECHOED_TOKENS]]
    if length is None:
        return answer
    return (answer + list(islice(cycle(TOKEN.findall(FILLER)), max(0, length - len(answer)))))[:length]


def stopped(tokens: list[str], stop: Any) -> list[str]:
    """Return the tokens before the first of the stop texts (a text, a list of them, or None)."""
    stops = [stop] if isinstance(stop, str) else [text for text in stop or [] if isinstance(text, str) and text]
    text = "".join(tokens)
    ends = [position for each in stops if (position := text.find(each)) >= 0]
    return TOKEN.findall(text[: min(ends)]) if ends else tokens


_DEEP, _MAX_DEPTH = 4, 24
_BY_FORMAT = {
    "date": "2025-01-31",
    "date-time": "2025-01-31T12:00:00Z",
    "email": "someone@example.com",
    "time": "12:00:00Z",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def schema_example(schema: Mapping[str, Any], text: str, root: Mapping[str, Any] | None = None, depth: int = 0) -> Any:
    """Return a value that fits a JSON schema of the simple kind that SDKs generate from classes.

    Strings are `text`, numbers the least allowed, choices the first. Values below 24 levels become None.
    """
    root = schema if root is None else root
    if depth > _MAX_DEPTH:
        return None
    if "$ref" in schema:
        target: Any = root
        for name in str(schema["$ref"]).lstrip("#/").split("/"):
            target = target.get(name, {}) if isinstance(target, dict) else {}
        return schema_example(target if isinstance(target, dict) else {}, text, root, depth + 1)
    if "const" in schema or schema.get("enum"):
        return schema["const"] if "const" in schema else schema["enum"][0]
    if choices := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
        # deep inside, null ends a recursion where it is allowed
        ends = [each for each in choices if depth > _DEEP and isinstance(each, dict) and each.get("type") == "null"]
        return schema_example((ends or choices)[0], text, root, depth + 1)
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object" or "properties" in schema:
        properties = schema.get("properties", {})
        return {name: schema_example(each, text, root, depth + 1) for name, each in properties.items()}
    if kind == "array":
        least = schema.get("minItems", 0 if depth > _DEEP else 1)
        return [schema_example(schema.get("items", {}), text, root, depth + 1)] * least if least else []
    return _scalar_example(kind, schema, text)


def _scalar_example(kind: Any, schema: Mapping[str, Any], text: str) -> Any:
    if kind in ("integer", "number"):
        return schema.get("minimum", schema.get("exclusiveMinimum", 0) + ("exclusiveMinimum" in schema))
    if kind in ("boolean", "null"):
        return True if kind == "boolean" else None
    value = str(_BY_FORMAT.get(schema.get("format", ""), text))
    return value.ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength")]


def vector(text: str, dimensions: int) -> list[float]:
    """Return numbers from -1 to 1 that depend on the text alone and are exact in single precision."""
    stream = hashlib.shake_128(text.encode("utf-8", "replace")).digest(dimensions)
    return [(byte - 128) / 128 for byte in stream]
