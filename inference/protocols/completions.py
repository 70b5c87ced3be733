"""POST /completions and POST /embeddings: a prompt without messages.

The vectors of an embeddings answer: as many as inputs, in their order, in the form that was asked for.

A form is a list of numbers, or little-endian float32 in base64. Providers give either, whatever was asked for; OpenAI's
clients decode what they take for base64, and make other numbers of a list without any error.
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
    Surface,
    UnfitAnswer,
    Usage,
    are_finished,
    choices_in,
    is_count,
    is_of_one_answer,
    json_bytes,
    read_openai_usage,
)
from inference.protocols.chat import UNCACHEABLE
from inference.protocols.events import ChunkReader, chunk_reader
from inference.protocols.tokens import count_tokens

#: OpenAI's own maximum where a completion names none.
DEFAULT_OUTPUT = 16


class CompletionSurface(Surface):
    """Completions of a bare prompt."""

    path = "/completions"

    def prompt_bound(self, payload: Payload) -> int:
        """Reckon one token a byte, for each prompt of a list. The suffix is read with each of them."""
        more = len(_prompts(payload.get("prompt"))) - 1
        return REQUEST_OVERHEAD + json_bytes(payload) + more * json_bytes(payload.get("suffix") or "")

    def asked_output(self, payload: Payload) -> int | None:
        """Return max_tokens, or what the provider takes for it: for none, vLLM generates a token all the same."""
        asked = payload.get("max_tokens")
        return DEFAULT_OUTPUT if asked is None else max(1, int(asked))

    def answers(self, payload: Payload) -> int:
        """Return how many are made: `n` or `best_of` of them for each prompt."""
        return max(int(payload.get("n") or 1), int(payload.get("best_of") or 1)) * len(_prompts(payload.get("prompt")))

    def with_output(self, payload: Payload, tokens: int, parameter: str) -> Body:
        """Set max_tokens; 0 stays what it is."""
        return {**payload, "max_tokens": 0 if _generates_nothing(payload) else tokens}

    def read_usage(self, body: Body) -> Usage | None:
        """Read `usage`; None for one that is not of all answers."""
        usage = read_openai_usage(body.get("usage"))
        return None if usage is not None and is_of_one_answer(usage.output_tokens, _texts(body)) else usage

    def used(self, payload: Payload, body: Body, *, model: str) -> tuple[Usage, str]:
        """Believe a usage of prompts that are only echoed: its output is 0 beside texts."""
        told = read_openai_usage(body.get("usage"))
        if told is not None and told.input_tokens and _generates_nothing(payload):
            return told, "provider"
        return super().used(payload, body, model=model)

    def estimate(self, payload: Payload, body: Body, *, model: str) -> Usage:
        """Count the prompts and the answers with a tokenizer; a prompt that is echoed was not generated."""
        prompts, texts = _prompts(payload.get("prompt")), _texts(body)
        read, written = count_prompts(prompts, model=model), count_tokens(texts, model=model)
        echoed = read * len(texts) // len(prompts) if payload.get("echo") else 0
        suffixes = [str(payload.get("suffix") or "")] * len(prompts)
        output = 0 if _generates_nothing(payload) else max(0, written - echoed)
        counted = Usage(read + count_tokens(suffixes, model=model), 0, output)
        return (read_openai_usage(body.get("usage")) or counted).at_least(counted)

    def is_complete(self, body: Body) -> bool:
        """Say whether there are choices."""
        return isinstance(body.get("choices"), list) and bool(body["choices"])

    def is_finished(self, body: Body) -> bool:
        """Return whether each choice says that it is."""
        return are_finished(choices_in(body))

    def is_cacheable(self, payload: Payload) -> bool:
        """Say whether the request is deterministic as far as it can be, and nobody's own."""
        return payload.get("temperature") == 0 and not any(payload.get(name) for name in UNCACHEABLE)

    def as_stream(self, payload: Payload) -> Body:
        """Ask for a stream with usage at its end, whether the caller wants that or not."""
        options = {**(payload.get("stream_options") or {}), "include_usage": True}
        return {**payload, "stream": True, "stream_options": options}

    def reader(self, payload: Payload) -> ChunkReader:
        """Follow chunks."""
        return chunk_reader(payload, answers=1 if _generates_nothing(payload) else self.answers(payload))


class EmbeddingSurface(Surface):
    """Embeddings: no output tokens, and the same for the same input."""

    path = "/embeddings"
    kind = "embedding"

    def prompt_bound(self, payload: Payload) -> int:
        """Reckon one token a byte of texts, or the tokens themselves, and whatever stands beside them."""
        return REQUEST_OVERHEAD + json_bytes(payload)

    def asked_output(self, payload: Payload) -> int | None:
        """Return 0."""
        return 0

    def read_usage(self, body: Body) -> Usage | None:
        """Read `usage`."""
        return read_openai_usage(body.get("usage"))

    def estimate(self, payload: Payload, body: Body, *, model: str) -> Usage:
        """Count the input with a tokenizer."""
        return Usage(count_prompts(_prompts(payload.get("input")), model=model), 0, 0)

    def is_complete(self, body: Body) -> bool:
        """Say whether there are embeddings."""
        return isinstance(body.get("data"), list) and bool(body["data"])

    def is_finished(self, body: Body) -> bool:
        """Return True: vectors are there or not."""
        return True

    def answered(self, payload: Payload, body: Body) -> Body:
        """Return the vectors in the order of the inputs, as numbers or in base64."""
        return {**body, "data": fitted_data(body["data"], payload, inputs=len(_prompts(payload.get("input"))))}

    def shaping(self, payload: Payload) -> Payload:
        """Leave out the form of the vectors: either can be made of the other."""
        if has_own_numbers(payload):
            return payload
        return {name: value for name, value in payload.items() if name != "encoding_format"}

    def is_cacheable(self, payload: Payload) -> bool:
        """Say whether the request is nobody's own."""
        return not any(payload.get(name) for name in UNCACHEABLE)


def _generates_nothing(payload: Payload) -> bool:
    """Say whether prompts are only to be echoed, to score them (`max_tokens: 0`)."""
    return payload.get("max_tokens") == 0


def _texts(body: Body) -> list[str]:
    return [str(choice.get("text") or "") for choice in choices_in(body)]


def count_prompts(prompts: list[Any], *, model: str) -> int:
    """Count prompts that are texts or lists of tokens."""
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    return count_tokens(texts, model=model) + sum(len(prompt) for prompt in prompts if isinstance(prompt, list))


def _prompts(value: Any) -> list[Any]:
    """Return the prompts of `prompt` or `input`: a text, a list of texts, a list of tokens, or a list of those."""
    if isinstance(value, list) and value and not all(isinstance(item, int) for item in value):
        return value
    return [value if value is not None else ""]


completion_surface = CompletionSurface()
embedding_surface = EmbeddingSurface()

FLOAT_BYTES = 4
#: Parameters of other servers by which numbers are something else than float32: the vectors are not looked into then.
NUMBER_NAMES = ("output_dtype", "embedding_type", "embed_dtype", "endianness")
FLOAT32 = (None, "float", "float32", "little")


def has_own_numbers(payload: Mapping[str, Any]) -> bool:
    """Return whether a payload asks for other numbers than float32."""
    return any(payload.get(name) not in FLOAT32 for name in NUMBER_NAMES)


def fitted_data(data: list[Any], payload: Mapping[str, Any], *, inputs: int) -> list[dict[str, Any]]:
    """Return an answer's `data` in the order of the inputs and in the form that the payload asks for.

    Raises UnfitAnswer.
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
    """Return the items by their index, or as they came where none has one. Raises UnfitAnswer."""
    if len(data) != inputs or not all(isinstance(item, dict) for item in data):
        raise UnfitAnswer("not one vector for each input")
    indexes = [item.get("index") for item in data]
    if all(index is None for index in indexes):
        return data
    if not all(map(is_count, indexes)) or sorted(indexes) != list(range(inputs)):
        raise UnfitAnswer("indexes that are not those of the inputs")
    return sorted(data, key=lambda item: int(item["index"]))


def _packed(vector: Any) -> bytes:
    """Return a vector as little-endian float32. Raises UnfitAnswer for what is none, or not of finite numbers."""
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
    """Return a vector in the form that was asked for; as it came where that is the one."""
    if asks_base64:
        return vector if isinstance(vector, str) else base64.b64encode(packed).decode()
    return vector if isinstance(vector, list) else list(_numbers(packed))


def _numbers(packed: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(packed) // FLOAT_BYTES}f", packed)
