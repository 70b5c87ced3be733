"""The form of /v1/embeddings: numbers that depend on the input alone, as lists or in base64."""

import base64
import struct
from typing import Any

from .answer import Answer, BadRequest, Json, Surface, openai_error_body, openai_error_frame
from .text import Prompt, read_prompt, vector

DIMENSIONS = 64
"""Length of a vector if the call does not ask for another; short, so that a benchmark measures no arithmetic."""


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
    # No choices is how the fault empty_choices arrives here.
    texts = [prompt.text for prompt in _prompts(answer.body)] if answer.choices else []
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector(text, dimensions), encoding)}
        for index, text in enumerate(texts)
    ]
    body: Json = {"object": "list", "data": data, "model": answer.model}
    if answer.usage_told:
        body["usage"] = {"prompt_tokens": answer.prompt_tokens, "total_tokens": answer.prompt_tokens}
    return body


EMBEDDINGS = Surface("embd-", _prompts, _plain, None, openai_error_body, openai_error_frame)
