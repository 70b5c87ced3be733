"""The protocols of POST /completions and POST /embeddings: a prompt without messages.

An embeddings answer has one vector for each input, in the order of the inputs, in the form that the request asks for: a
list of numbers, or little-endian float32 in base64. Some providers ignore the requested form. OpenAI's clients would
decode a list as if it were base64 and silently return wrong numbers, so the vectors are converted here.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping
from typing import Any

from inference.protocols.base import (
    REQUEST_OVERHEAD,
    Body,
    Payload,
    UnfitAnswer,
    Usage,
    WireProtocol,
    choices_in,
    count_tokens,
    is_count,
    json_bytes,
    read_openai_usage,
)
from inference.protocols.chat import ChoicesProtocol, ChunkReader
from inference.protocols.parameters import (
    ANSWER_NAMES,
    MOST_ANSWERS,
    MOST_DIMENSIONS,
    MOST_OUTPUT,
    OUTPUT_NAMES,
    REFUSED,
    SAMPLING,
    UNCACHEABLE,
    integer,
    is_prompt,
    is_string,
    is_text,
    one_of,
    others,
    unsupported,
)

#: OpenAI's maximum for a completion that names none.
DEFAULT_OUTPUT = 16


class CompletionProtocol(ChoicesProtocol):
    """Completions of a bare prompt."""

    path = "/completions"
    prompt_parameter = "prompt"
    refused = {
        **REFUSED,
        **others(OUTPUT_NAMES, "max_tokens"),
        **others(ANSWER_NAMES, "n", reads=["best_of"]),
        "prompt_embeds": unsupported("send texts or tokens as the prompt."),
        "tools": unsupported("completions call none.", off=[]),
        "functions": unsupported("completions call none.", off=[]),
    }
    checks = {
        **refused,
        **SAMPLING,
        "prompt": is_prompt,
        "suffix": is_string,
        "max_tokens": integer(0, MOST_OUTPUT),
        "n": integer(1, MOST_ANSWERS),
        "best_of": integer(0, MOST_ANSWERS),
    }

    def prompt_bound(self, payload: Payload) -> int:
        """Return one token a byte of the request's JSON; the suffix counts once for each prompt."""
        more = len(_prompts(payload.get("prompt"))) - 1
        return REQUEST_OVERHEAD + json_bytes(payload) + more * json_bytes(payload.get("suffix") or "")

    def asked_output(self, payload: Payload) -> int | None:
        """Return max_tokens or its default; at least 1, since vLLM generates a token even for 0."""
        asked = payload.get("max_tokens")
        return DEFAULT_OUTPUT if asked is None else max(1, int(asked))

    def answers(self, payload: Payload) -> int:
        """Return the number of answers generated: the higher of `n` and `best_of`, for each prompt."""
        return max(int(payload.get("n") or 1), int(payload.get("best_of") or 1)) * len(_prompts(payload.get("prompt")))

    def with_output(self, payload: Payload, tokens: int, parameter: str) -> Body:
        """Set max_tokens; 0 stays 0."""
        return {**payload, "max_tokens": 0 if _generates_nothing(payload) else tokens}

    def used(self, payload: Payload, body: Body, *, model: str) -> tuple[Usage, str]:
        """Return the usage and its source. For prompts that are only echoed, an output of 0 beside texts is right."""
        reported = read_openai_usage(body.get("usage"))
        if reported is not None and reported.input_tokens and _generates_nothing(payload):
            return reported, "provider"
        return super().used(payload, body, model=model)

    def estimate(self, payload: Payload, body: Body, *, model: str) -> Usage:
        """Count the prompts and the answers, without the prompts echoed in them."""
        prompts, texts = _prompts(payload.get("prompt")), self.texts(body)
        read, written = count_prompts(prompts, model=model), count_tokens(texts, model=model)
        echoed = read * len(texts) // len(prompts) if payload.get("echo") else 0
        suffixes = [str(payload.get("suffix") or "")] * len(prompts)
        output = 0 if _generates_nothing(payload) else max(0, written - echoed)
        counted = Usage(read + count_tokens(suffixes, model=model), 0, output)
        return (read_openai_usage(body.get("usage")) or counted).at_least(counted)

    def texts(self, body: Body) -> list[str]:
        """Return the texts of the answers."""
        return [str(choice.get("text") or "") for choice in choices_in(body)]

    def reader(self, payload: Payload) -> ChunkReader:
        """Return a reader of chunks; the usage of prompts that are only scored is not compared with answers."""
        reader = super().reader(payload)
        reader.answers = 1 if _generates_nothing(payload) else reader.answers
        return reader


class EmbeddingProtocol(WireProtocol):
    """Embeddings: no output tokens, and equal vectors for equal inputs."""

    path = "/embeddings"
    kind = "embedding"
    prompt_parameter = "input"
    refused = {
        **REFUSED,
        "messages": unsupported("send texts or tokens as the input."),
        "images": unsupported("send texts or tokens as the input.", off=[]),
        "stream": unsupported("embeddings come all at once.", off=False),
    }
    checks = {
        **refused,
        "model": is_text,
        "input": is_prompt,
        "encoding_format": one_of("float", "base64"),
        "dimensions": integer(1, MOST_DIMENSIONS),
    }

    def prompt_bound(self, payload: Payload) -> int:
        """Return one token a byte of the request's JSON."""
        return REQUEST_OVERHEAD + json_bytes(payload)

    def asked_output(self, payload: Payload) -> int | None:
        """Return 0: embeddings have no output tokens."""
        return 0

    def read_usage(self, body: Body) -> Usage | None:
        """Return the usage in `usage`."""
        return read_openai_usage(body.get("usage"))

    def estimate(self, payload: Payload, body: Body, *, model: str) -> Usage:
        """Count the input."""
        return Usage(count_prompts(_prompts(payload.get("input")), model=model), 0, 0)

    def is_complete(self, body: Body) -> bool:
        """Return whether there are embeddings."""
        return isinstance(body.get("data"), list) and bool(body["data"])

    def is_finished(self, body: Body) -> bool:
        """Return True: an embeddings answer is never partial."""
        return True

    def answered(self, payload: Payload, body: Body) -> Body:
        """Return the vectors in the order of the inputs, as numbers or in base64."""
        return {**body, "data": fitted_data(body["data"], payload, inputs=len(_prompts(payload.get("input"))))}

    def shaping(self, payload: Payload) -> Payload:
        """Leave out the form of float32 vectors, since one form can be converted to the other."""
        if has_own_numbers(payload):
            return payload
        return {name: value for name, value in payload.items() if name != "encoding_format"}

    def is_cacheable(self, payload: Payload) -> bool:
        """Return whether the request has no personal parameters."""
        return not any(payload.get(name) for name in UNCACHEABLE)


def _generates_nothing(payload: Payload) -> bool:
    """Return whether the prompts are only scored and nothing is generated (`max_tokens: 0`)."""
    return payload.get("max_tokens") == 0


def count_prompts(prompts: list[Any], *, model: str) -> int:
    """Count the tokens of prompts, each a text or a list of tokens."""
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    return count_tokens(texts, model=model) + sum(len(prompt) for prompt in prompts if isinstance(prompt, list))


def _prompts(value: Any) -> list[Any]:
    """Return the prompts of `prompt` or `input`: a text, a list of texts, a list of tokens, or a list of those."""
    if isinstance(value, list) and value and not all(isinstance(item, int) for item in value):
        return value
    return [value if value is not None else ""]


completion_protocol = CompletionProtocol()
embedding_protocol = EmbeddingProtocol()

FLOAT_BYTES = 4
#: Parameters of other servers that choose numbers other than float32; such vectors are not converted.
NUMBER_NAMES = ("output_dtype", "embedding_type", "embed_dtype", "endianness")
FLOAT32 = (None, "float", "float32", "little")


def has_own_numbers(payload: Mapping[str, Any]) -> bool:
    """Return whether a payload asks for numbers other than float32."""
    return any(payload.get(name) not in FLOAT32 for name in NUMBER_NAMES)


def fitted_data(data: list[Any], payload: Mapping[str, Any], *, inputs: int) -> list[dict[str, Any]]:
    """Return an answer's `data` in the order of the inputs and in the form that the payload asks for.

    Raises UnfitAnswer for a wrong number, form or length of vectors.
    """
    asks_base64 = payload.get("encoding_format") == "base64"
    items, lengths = _in_order(data, inputs), set()
    fitted: list[dict[str, Any]] = []
    for index, item in enumerate(items):
        vector = item.get("embedding")
        if has_own_numbers(payload):
            if not vector or not isinstance(vector, str if asks_base64 else list):
                raise UnfitAnswer("no vector of the form that was asked for")
        else:
            packed = _packed(vector)
            lengths.add(len(packed) // FLOAT_BYTES)
            vector = _written(vector, packed, asks_base64=asks_base64)
        fitted.append({"object": "embedding", **item, "index": index, "embedding": vector})
    wanted = payload.get("dimensions")
    if len(lengths) > 1 or (wanted is not None and lengths - {wanted}):
        raise UnfitAnswer("vectors of another length than was asked for, or than others")
    return fitted


def _in_order(data: list[Any], inputs: int) -> list[dict[str, Any]]:
    """Return the items sorted by index, or unchanged if none has one; raises UnfitAnswer for wrong indexes."""
    if len(data) != inputs or not all(isinstance(item, dict) for item in data):
        raise UnfitAnswer("not one vector for each input")
    indexes = [item.get("index") for item in data]
    if all(index is None for index in indexes):
        return data
    if not all(map(is_count, indexes)) or sorted(indexes) != list(range(inputs)):
        raise UnfitAnswer("indexes that are not those of the inputs")
    return sorted(data, key=lambda item: int(item["index"]))


def _packed(vector: Any) -> bytes:
    """Return a vector as little-endian float32; raises UnfitAnswer if it is no vector of finite numbers."""
    try:
        if isinstance(vector, str):
            packed = base64.b64decode(vector, validate=True)
        elif isinstance(vector, list) and set(map(type, vector)) <= {int, float}:
            packed = struct.pack(f"<{len(vector)}f", *vector)
        else:
            raise UnfitAnswer("no vector of numbers")
    except (ValueError, OverflowError, struct.error) as error:
        raise UnfitAnswer("no vector of float32") from error
    if not packed or len(packed) % FLOAT_BYTES or not math.isfinite(sum(_numbers(packed))):
        raise UnfitAnswer("no vector of finite numbers")
    return packed


def _written(vector: Any, packed: bytes, *, asks_base64: bool) -> str | list[float]:
    """Return a vector in the requested form, unchanged if it has that form."""
    if asks_base64:
        return vector if isinstance(vector, str) else base64.b64encode(packed).decode()
    return vector if isinstance(vector, list) else list(_numbers(packed))


def _numbers(packed: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(packed) // FLOAT_BYTES}f", packed)
