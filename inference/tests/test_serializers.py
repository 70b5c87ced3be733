"""The bodies of /chat and /summarize as their own rules have it; test_chat and test_summarize hold the answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.api.native import ChatRequest, SharedSerializer, SummarizeRequest
from inference.prompts import SENTENCES

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(sorted(SENTENCES)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def a_text(least: int, most: int) -> Callable[[Any], bool]:
    """Return what tells a text of so many characters that is not blank."""
    return lambda value: (
        isinstance(value, str) and bool(value.strip()) and least <= len(value) <= most and "\x00" not in value
    )


def is_temperature(value: Any) -> bool:
    """Say whether a value is a number from 0 to 2."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and not math.isnan(value) and 0 <= value <= 2


@pytest.mark.parametrize(
    ("kind", "body", "field", "is_one"),
    [
        (ChatRequest, {}, "message", a_text(1, 1000)),
        (ChatRequest, {"message": "a"}, "temperature", is_temperature),
        (ChatRequest, {"message": "a"}, "stream", lambda value: isinstance(value, bool)),
        (ChatRequest, {"message": "a"}, "model", a_text(1, 100)),
        (SummarizeRequest, {}, "text", a_text(10, 5000)),
        (SummarizeRequest, {"text": "x" * 10}, "length", lambda value: isinstance(value, str) and value in SENTENCES),
    ],
)
@given(value=ANYTHING)
def test_it_takes_a_field_exactly_if_it_is_one(
    kind: type[SharedSerializer], body: dict[str, Any], field: str, is_one: Callable[[Any], bool], value: Any
) -> None:
    serializer = kind(data={**body, field: value})
    assert serializer.is_valid() == is_one(value)
    if serializer.is_valid():
        assert serializer.validated_data[field] == value
        assert serializer.validated_data.get("temperature", 0.7) == (value if field == "temperature" else 0.7)
    elif field == "length" and value is not None:
        assert serializer.errors == {"length": ["Must be one of short, medium, long."]}


@settings(max_examples=30)
@given(st.dictionaries(st.text(), st.none(), min_size=1, max_size=30))
def test_it_names_at_most_twenty_unknown_fields_in_brief(fields: dict[str, Any]) -> None:
    body = ChatRequest(data={**fields, "message": "a"})
    if set(fields) - {"message", "temperature", "model", "stream"}:
        assert not body.is_valid()
        assert {str(text) for texts in body.errors.values() for text in texts} == {"Unknown field."}
        assert len(body.errors) <= 20
    bodies: list[Any] = [[], "text", 1, None]
    assert not any(ChatRequest(data=data).is_valid() for data in bodies)
