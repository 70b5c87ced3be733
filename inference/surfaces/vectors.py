"""The vectors of an embeddings answer: as many as inputs, in their order, in the form that was asked for.

A form is a list of numbers, or little-endian float32 in base64. Providers give either, whatever was asked for; OpenAI's
clients decode what they take for base64, and make other numbers of a list without any error.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping
from typing import Any

from inference.surfaces.base import UnfitAnswer, is_count

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
