"""Words in, words out: what a call asks for and which text answers it, the same for the same input every time.

A token is a word with the space before it.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from itertools import cycle, islice
from typing import Any, NamedTuple

_TOKEN = re.compile(r"\s*\S+")
_FILLER = " and so the answer goes on, word after word, until it has the length that was asked for"
IMAGE_TOKENS = 85
"""What an image in a message counts; OpenAI's figure for one of low detail."""
ECHOED_TOKENS = 200
_DEEP, _MAX_DEPTH = 4, 24


class Prompt(NamedTuple):
    """What a call asks: the text to answer, and the tokens of everything sent."""

    text: str
    tokens: int


def tokenize(text: str) -> list[str]:
    """Split a text in tokens; joined they give it again, apart from space at its end."""
    return _TOKEN.findall(text)


def _part_text(part: Any) -> str:
    return str(part.get("text", "")) if isinstance(part, dict) else str(part)


def read_messages(messages: list[Any]) -> Prompt:
    """Read chat messages (text or parts); the last one with a text is answered."""
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
    """Read one prompt of /completions or one input of /embeddings: a text, or a list of token numbers."""
    if isinstance(prompt, list):
        return Prompt(" ".join(map(str, prompt)), len(prompt))
    return Prompt(str(prompt), len(str(prompt).split()))


def _text_to_summarize(prompt: str) -> str | None:
    """Return the text that a prompt wants summarized (the instruction before or after it), None for other prompts."""
    if prompt[:9].lower() == "summarize":
        return prompt.partition(":")[2].strip()
    text, _, instruction = prompt.rpartition("\n\n")
    return text.strip() if instruction[:9].lower() == "summarize" else None


def answer_tokens(prompt: str, length: int | None) -> list[str]:
    """Return the answer to a prompt: a shortened text if it asks for a summary, else an echo; `length` tokens long."""
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
    """Return the first of the schemas to choose from; far down one that ends a recursion, if there is one."""
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
    """Return a value that fits a JSON schema of the simple kind that SDKs make of classes.

    Strings are `text`, numbers the least allowed, choices the first. What nests deeper than 24 levels becomes None.
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
    """Return a JSON text that fits `schema`; without one an object with the field `answer`."""
    return json.dumps({"answer": text} if schema is None else schema_example(schema, text))


def vector(text: str, dimensions: int) -> list[float]:
    """Return numbers of -1 to 1 that depend on the text alone, in single precision."""
    stream = hashlib.shake_128(text.encode("utf-8", "replace")).digest(dimensions)
    return [(byte - 128) / 128 for byte in stream]
