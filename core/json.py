"""JSON as RFC 8259 has it: Python's own parser also takes NaN, and makes infinities of numbers too large for it."""

from __future__ import annotations

import json
import math
from typing import Any


def parse_strictly(text: str | bytes) -> Any:
    """Parse JSON whose numbers can all be written again. Raises ValueError, or RecursionError for too many levels."""
    return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number too large")
    return number
