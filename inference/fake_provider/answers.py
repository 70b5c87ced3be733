"""The fake provider's answers, deterministic for each input: the text, the forced tool call, or a value of a schema.

A token is a word with the white space before it.
"""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any, NamedTuple

from inference.fake_provider.settings import FakeSettings, HttpError

Json = dict[str, Any]

TOKEN = re.compile(r"\s*\S+")
FILLER = " and so the answer goes on, word after word, until it has the length that was asked for"
#: Most words of the prompt in an answer, and characters of each piece of a tool's arguments.
ECHOED_TOKENS = 200
ARGUMENT_PIECE = 8
MOST_CHOICES = 128


class Prompt(NamedTuple):
    """A call's input: the text to answer, and the tokens of everything sent."""

    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the answers to a call: its tokens (of the text, or of a tool's arguments) and its finish reason."""

    tokens: list[str]
    finish_reason: str
    #: Name of the tool that is called.
    tool: str | None = None

    @property
    def text(self) -> str:
        """Return the joined tokens."""
        return "".join(self.tokens)


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything that an endpoint needs to write its answer; `reports_usage` is False with the fault no_usage."""

    id: str
    body: Json
    choices: list[Choice]
    prompt_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    reasoning_ratio: float
    reports_usage: bool
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def model(self) -> str:
        """Return the model's name."""
        return str(self.body["model"])

    @property
    def completion_tokens(self) -> int:
        """Return the number of tokens of all choices."""
        return sum(len(choice.tokens) for choice in self.choices)

    def usage(self, names: tuple[str, str] = ("prompt", "completion"), generated: int | None = None) -> Json | None:
        """Return the usage; None with the fault no_usage. `generated` are the tokens of an unfinished answer."""
        if not self.reports_usage:
            return None
        generated = self.completion_tokens if generated is None else generated
        return {
            f"{names[0]}_tokens": self.prompt_tokens,
            f"{names[1]}_tokens": generated,
            "total_tokens": self.prompt_tokens + generated,
            f"{names[0]}_tokens_details": {
                "cached_tokens": self.cached_tokens,
                "cache_write_tokens": self.cache_write_tokens,
                "audio_tokens": 0,
            },
            f"{names[1]}_tokens_details": {
                "reasoning_tokens": int(generated * self.reasoning_ratio),
                "audio_tokens": 0,
            },
        }


def compose(
    call_id: str, prompts: list[Prompt], body: Json, settings: FakeSettings, *, generates: bool, fault: str | None
) -> Answer:
    """Answer a call with `n` equal choices for each prompt, and apply the faults that concern the content.

    `generates`: whether the choices have a text. Raises HttpError for a body that the endpoint refuses.
    """
    times = body.get("n") or 1
    if not isinstance(times, int) or not 1 <= times <= MOST_CHOICES:
        text = f"n must be an integer between 1 and {MOST_CHOICES}."
        raise HttpError(400, text, param="n", code="invalid_value")
    choices = [
        choose(body, prompt.text, settings) if generates else Choice([], "stop")
        for prompt in prompts
        for _ in range(times)
    ]
    if fault == "content_filter":
        choices = [Choice(choice.tokens[: len(choice.tokens) // 2], "content_filter") for choice in choices]
    if fault == "empty_choices":
        choices = []
    tokens = sum(prompt.tokens for prompt in prompts)
    cached, written = (int(tokens * share) for share in (settings.cached_ratio, settings.cache_write_ratio))
    reports_usage = fault != "no_usage"
    return Answer(call_id, body, choices, tokens, cached, written, settings.reasoning_ratio, reports_usage)


def choose(body: Json, text: str, settings: FakeSettings) -> Choice:
    """Answer one prompt: with the tool that is forced, a value of the schema that is asked for, or a text."""
    if (function := forced_tool(body)) is not None:
        schema = function.get("parameters") or function.get("input_schema") or {"type": "object"}
        arguments = json.dumps(schema_example(schema, text))
        pieces = [arguments[i : i + ARGUMENT_PIECE] for i in range(0, len(arguments), ARGUMENT_PIECE)]
        return Choice(pieces, "tool_calls", str(function.get("name")))
    holder = body.get("text") or body.get("output_config")
    nested = holder.get("format") if isinstance(holder, dict) else None
    wanted: Mapping[str, Any] = body.get("response_format") or nested or {}
    if wanted.get("type") in ("json_schema", "json_object"):
        schema = wanted.get("json_schema", wanted).get("schema") if wanted["type"] == "json_schema" else None
        tokens = TOKEN.findall(json.dumps({"answer": text} if schema is None else schema_example(schema, text)))
    else:
        tokens = answer_tokens(text, settings.tokens)
        if stop := body.get("stop") or body.get("stop_sequences"):
            stops = [each for each in ([stop] if isinstance(stop, str) else stop) if isinstance(each, str) and each]
            whole = "".join(tokens)
            if ends := [at for each in stops if (at := whole.find(each)) >= 0]:
                tokens = TOKEN.findall(whole[: min(ends)])
    names = ("max_completion_tokens", "max_tokens", "max_output_tokens")
    limit = next((body[name] for name in names if body.get(name) is not None), len(tokens) or 1)
    if not isinstance(limit, int) or limit < 1:
        text = "The token limit must be a positive integer."
        raise HttpError(400, text, param="max_tokens", code="invalid_value")
    return Choice(tokens[:limit], "length" if len(tokens) > limit else "stop")


def forced_tool(body: Json) -> Mapping[str, Any] | None:
    """Return the function that tool_choice forces (the first one for `required`); None if none is forced.

    Accepts the nested form of /chat/completions, the flat one of /responses, and that of /messages.
    """
    choice, tools = body.get("tool_choice"), [tool for tool in body.get("tools") or [] if isinstance(tool, dict)]
    tools = [tool for tool in tools if tool.get("type") == "function" or "input_schema" in tool]
    functions = [tool.get("function", tool) for tool in tools]
    if isinstance(choice, dict) and choice.get("type") in ("any", "auto", "none"):
        choice = "required" if choice["type"] == "any" else None
    if isinstance(choice, dict):
        wanted = choice.get("function", choice).get("name")
        functions = [function for function in functions if function.get("name") == wanted]
    elif choice != "required":
        return None
    return next(iter(functions), None)


def answer_tokens(prompt: str, length: int | None) -> list[str]:
    """Return the answer to a prompt, `length` tokens long: the shortened text for a summary, otherwise an echo."""
    before, _, last = prompt.rpartition("\n\n")  # the instruction may stand before or after the text
    is_before, is_after = (text[:9].lower() == "summarize" for text in (prompt, last))
    if is_before or is_after:
        words = TOKEN.findall((prompt.partition(":")[2] if is_before else before).strip())
        answer = words[: max(3, len(words) // 4)]
    else:
        answer = ["You", " said:", *TOKEN.findall(" " + prompt.strip())[:ECHOED_TOKENS]]
    if length is None:
        return answer
    return (answer + list(islice(cycle(TOKEN.findall(FILLER)), max(0, length - len(answer)))))[:length]


DEEP, MOST_DEPTH = 4, 24
BY_FORMAT = {
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
    if depth > MOST_DEPTH:
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
        ends = [each for each in choices if depth > DEEP and isinstance(each, dict) and each.get("type") == "null"]
        return schema_example((ends or choices)[0], text, root, depth + 1)
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object" or "properties" in schema:
        properties = schema.get("properties", {})
        return {name: schema_example(each, text, root, depth + 1) for name, each in properties.items()}
    if kind == "array":
        least = schema.get("minItems", 0 if depth > DEEP else 1)
        return [schema_example(schema.get("items", {}), text, root, depth + 1)] * least if least else []
    if kind in ("integer", "number"):
        return schema.get("minimum", schema.get("exclusiveMinimum", 0) + ("exclusiveMinimum" in schema))
    if kind in ("boolean", "null"):
        return True if kind == "boolean" else None
    value = str(BY_FORMAT.get(schema.get("format", ""), text))
    return value.ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength")]
