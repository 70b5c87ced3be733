"""What tests of checks of payloads share."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

from inference.protocols.base import Payload


def is_taken_as_it_is(check: Callable[[Payload], object], payload: Payload) -> bool:
    """Say whether a check that lets a payload pass leaves it as it was; raises what the check does."""
    before = deepcopy(payload)
    check(payload)
    return payload == before
