"""An answer before it takes the form of an endpoint: choices, tokens, usage; and the form that an endpoint gives."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .faults import HttpError
from .settings import FakeSettings
from .text import Prompt, answer_tokens, json_answer, schema_example, stopped, tokenize

Json = dict[str, Any]
Frame = tuple[bytes, int]
"""A piece of an answer's body, and the completion tokens that are billed once it is sent."""

_ARGUMENT_PIECE = 8
_MAX_CHOICES = 128


class Tool(NamedTuple):
    """A tool that the answer calls: its name, and its arguments as JSON."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the answers to a call: its tokens (of the text, or of the tool's arguments) and why it ended."""

    tokens: list[str]
    finish_reason: str
    tool: Tool | None = None

    @property
    def text(self) -> str:
        """Return the tokens as a text."""
        return "".join(self.tokens)


@dataclass(frozen=True, slots=True)
class Answer:
    """All that an endpoint needs to write its answer; `usage_told` is False under the fault no_usage."""

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
        """Return the tokens of all choices."""
        return sum(len(choice.tokens) for choice in self.choices)

    def usage(self, completion_tokens: int | None = None) -> Json | None:
        """Return the usage as the chat and completions endpoints tell it, None if it is kept back.

        `completion_tokens` are those of an answer that was not finished.
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
    """A request that OpenAI would refuse; carries the error to answer with."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.error = HttpError(status, "invalid_request_error", code, param, message)


class Surface(NamedTuple):
    """An endpoint's form: how it reads prompts (one answer each), and writes an answer whole or as frames.

    `stream` is None where an endpoint generates nothing and so bills no completion tokens. `error_body` makes an error
    of status 200, with the usage of so many completion tokens (None: without); `error_frame` the event of one.
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
    """Return the body by which most endpoints tell of an error."""
    usage = {} if completion_tokens is None else {"usage": answer.usage(completion_tokens)}
    return {"error": error.fields(), **usage}


def openai_error_frame(body: Json) -> bytes:
    """Return the event by which chat and completion streams tell of an error."""
    return sse(json.dumps(body).encode())


def forced_tool(body: Json) -> Mapping[str, Any] | None:
    """Return the function that tool_choice forces (the first one for `required`), None if none is forced.

    Reads the nested form of /chat/completions and the flat one of /responses.
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
    """Return whether the answer must be JSON, and the schema if there is one."""
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


def _choices(surface: Surface, body: Json, prompts: list[Prompt], settings: FakeSettings) -> list[Choice]:
    times = body.get("n") or 1
    if not isinstance(times, int) or not 1 <= times <= _MAX_CHOICES:
        raise BadRequest(f"n must be an integer between 1 and {_MAX_CHOICES}.", param="n", code="invalid_value")
    if surface.stream is None:
        return [Choice([], "stop") for _ in prompts]
    return [choice for prompt in prompts for choice in [_choice(body, prompt.text, settings)] * times]


def compose(call_id: str, surface: Surface, body: Json, settings: FakeSettings, fault: str | None) -> Answer:
    """Answer a call: `n` equal choices to each prompt, bent by the faults that concern the content.

    Raises BadRequest for a body that the endpoint refuses.
    """
    prompts = surface.prompts(body)
    choices = _choices(surface, body, prompts, settings)
    if fault == "content_filter":
        choices = [_filtered(choice) for choice in choices]
    if fault == "empty_choices":
        choices = []
    tokens = sum(prompt.tokens for prompt in prompts)
    cached = int(tokens * settings.cached_ratio)
    told = fault != "no_usage"
    return Answer(call_id, str(body["model"]), body, choices, tokens, cached, told, int(time.time()))


def half(frames: Iterable[Frame], tokens: int) -> Iterator[Frame]:
    """Yield frames until half of `tokens` are sent."""
    sent = 0
    for frame in frames:
        if sent >= tokens // 2 and frame[1]:
            return
        sent += frame[1]
        yield frame
