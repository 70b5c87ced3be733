"""The protocol of POST /embeddings.

An embeddings answer has one vector for each input, in the order of the inputs, in the form that the request asks for: a
list of numbers, or little-endian float32 in base64. Some providers ignore the requested form. OpenAI's clients would
decode a list as if it were base64 and silently return wrong numbers, so the vectors are converted here.
"""

from __future__ import annotations

import base64
import math
import struct
from typing import Any

from inference.protocols.base import (
    REQUEST_OVERHEAD,
    Body,
    Payload,
    UnfitAnswer,
    WireProtocol,
    count_prompts,
    json_bytes,
    prompts_in,
)
from inference.protocols.parameters import (
    MOST_DIMENSIONS,
    REFUSED,
    is_prompt,
    is_text,
    number,
    one_of,
    unsupported,
)
from inference.usage import Usage, is_count

FLOAT_BYTES = 4
#: Parameters of other servers that choose numbers other than float32; such vectors are not converted.
NUMBER_NAMES = ("output_dtype", "embedding_type", "embed_dtype", "endianness")
FLOAT32 = (None, "float", "float32", "little")


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
        "dimensions": number(1, MOST_DIMENSIONS),
    }

    def prompt_bound(self, payload: Payload) -> int:
        """Return one token a byte of the request's JSON."""
        return REQUEST_OVERHEAD + json_bytes(payload)

    def asked_output(self, payload: Payload) -> int | None:
        """Return 0: embeddings have no output tokens."""
        return 0

    def generates(self, payload: Payload) -> bool:
        """Return False: embeddings have no output tokens."""
        return False

    def count(self, payload: Payload, body: Body, *, model: str) -> Usage:
        """Count the input."""
        return Usage(count_prompts(prompts_in(payload.get("input")), model=model), 0, 0)

    def is_complete(self, body: Body) -> bool:
        """Return whether there are embeddings."""
        return isinstance(body.get("data"), list) and bool(body["data"])

    def is_finished(self, body: Body) -> bool:
        """Return True: an embeddings answer is never partial."""
        return True

    def shaping(self, payload: Payload) -> Payload:
        """Leave out the form of float32 vectors, since one form can be converted to the other."""
        if has_own_numbers(payload):
            return payload
        return {name: value for name, value in payload.items() if name != "encoding_format"}

    def answered(self, payload: Payload, body: Body) -> Body:
        """Return the vectors in the order of the inputs, as numbers or in base64.

        Raises UnfitAnswer for a wrong number, form or length of vectors.
        """
        data, inputs = body["data"], len(prompts_in(payload.get("input")))
        if len(data) != inputs or not all(isinstance(item, dict) for item in data):
            raise UnfitAnswer("not one vector for each input")
        indexes = [item.get("index") for item in data]
        if any(index is not None for index in indexes):
            if not all(map(is_count, indexes)) or sorted(indexes) != list(range(inputs)):
                raise UnfitAnswer("indexes that are not those of the inputs")
            data = sorted(data, key=lambda item: int(item["index"]))
        is_base64, keeps_numbers = payload.get("encoding_format") == "base64", has_own_numbers(payload)
        lengths, fitted = set[int](), []
        for index, item in enumerate(data):
            vector = item.get("embedding")
            if not keeps_numbers:
                packed = pack_vector(vector)
                lengths.add(len(packed) // FLOAT_BYTES)
                if isinstance(vector, str) is not is_base64:
                    vector = base64.b64encode(packed).decode() if is_base64 else list(unpack_vector(packed))
            elif not vector or not isinstance(vector, str if is_base64 else list):
                raise UnfitAnswer("no vector of the form that was asked for")
            fitted.append({"object": "embedding", **item, "index": index, "embedding": vector})
        wanted = payload.get("dimensions")
        if len(lengths) > 1 or (wanted is not None and lengths - {wanted}):
            raise UnfitAnswer("vectors of another length than was asked for, or than others")
        return {**body, "data": fitted}


embedding_protocol = EmbeddingProtocol()


def has_own_numbers(payload: Payload) -> bool:
    """Return whether a payload asks for numbers other than float32."""
    return any(payload.get(name) not in FLOAT32 for name in NUMBER_NAMES)


def pack_vector(vector: Any) -> bytes:
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
    if not packed or len(packed) % FLOAT_BYTES or not math.isfinite(sum(unpack_vector(packed))):
        raise UnfitAnswer("no vector of finite numbers")
    return packed


def unpack_vector(packed: bytes) -> tuple[float, ...]:
    """Return the numbers of little-endian float32."""
    return struct.unpack(f"<{len(packed) // FLOAT_BYTES}f", packed)
