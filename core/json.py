"""JSON: strict parsing (RFC 8259), and quick writing.

Python's parser also accepts NaN, and turns too large numbers into infinity. orjson writes in a tenth of json's time; it
does not parse, since it would make floats of integers beyond 64 bits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import orjson


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number too large")
    return number


_parse = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite).decode


def parse_strictly(text: str | bytes) -> Any:
    """Parse JSON with finite numbers only. Raises ValueError, or RecursionError for too deep nesting."""
    return _parse(text if isinstance(text, str) else text.decode(json.detect_encoding(text), "surrogatepass"))


def to_json(value: Any, *, default: Callable[[Any], Any] | None = None, sort_keys: bool = False) -> bytes:
    """Write a value as compact JSON in UTF-8; as ASCII with escapes if it contains half of a surrogate pair.

    `default` returns what is written for an object of another type. Raises TypeError for such an object without it.
    """
    try:
        return orjson.dumps(value, default, orjson.OPT_SORT_KEYS if sort_keys else None)
    except TypeError:  # also an integer beyond 64 bits, or a lone surrogate
        options: Any = {"default": default, "sort_keys": sort_keys, "separators": (",", ":")}
        try:
            return json.dumps(value, ensure_ascii=False, **options).encode()
        except UnicodeEncodeError:
            return json.dumps(value, **options).encode()
