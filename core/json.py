"""Strict JSON parsing (RFC 8259). Python's parser also accepts NaN, and turns too large numbers into infinity."""

from __future__ import annotations

import json
import math
from typing import Any


def parse_strictly(text: str | bytes) -> Any:
    """Parse JSON with finite numbers only. Raises ValueError, or RecursionError for too deep nesting."""
    return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number too large")
    return number
