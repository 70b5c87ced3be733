"""The bodies of /chat and /summarize as their own rules have it; test_chat and test_summarize hold the answers."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from inference.api.native import ChatRequest, SummarizeRequest
from inference.prompts import SENTENCES

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def is_text(value: Any, least: int, most: int) -> bool:
    """Say whether a value is a text of so many characters that is not blank."""
    return isinstance(value, str) and bool(value.strip()) and least <= len(value) <= most and "\x00" not in value


@given(ANYTHING)
def test_it_takes_a_message_exactly_if_it_is_one(value: Any) -> None:
    body = ChatRequest(data={"message": value})
    assert body.is_valid() == is_text(value, 1, 1000)
    if body.is_valid():
        assert body.validated_data == {"message": value, "temperature": 0.7, "stream": False}


@given(ANYTHING)
def test_it_takes_a_temperature_exactly_if_it_is_one(value: Any) -> None:
    body = ChatRequest(data={"message": "a", "temperature": value})
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    assert body.is_valid() == (is_number and not math.isnan(value) and 0 <= value <= 2)
    if body.is_valid():
        assert isinstance(body.validated_data["temperature"], float)


@given(ANYTHING)
def test_it_takes_a_switch_exactly_if_it_is_one(value: Any) -> None:
    assert ChatRequest(data={"message": "a", "stream": value}).is_valid() == isinstance(value, bool)


@given(ANYTHING)
def test_it_takes_a_models_name_exactly_if_it_can_be_one(value: Any) -> None:
    assert ChatRequest(data={"message": "a", "model": value}).is_valid() == is_text(value, 1, 100)


@given(ANYTHING)
def test_it_takes_a_text_exactly_if_it_is_one(value: Any) -> None:
    assert SummarizeRequest(data={"text": value}).is_valid() == is_text(value, 10, 5000)


@given(ANYTHING | st.sampled_from(sorted(SENTENCES)))
def test_it_takes_a_length_exactly_if_it_is_one(value: Any) -> None:
    body = SummarizeRequest(data={"text": "x" * 10, "length": value})
    assert body.is_valid() == (isinstance(value, str) and value in SENTENCES)
    if not body.is_valid() and value is not None:
        assert body.errors == {"length": ["Must be one of short, medium, long."]}


@settings(max_examples=30)
@given(st.dictionaries(st.text(), st.none(), min_size=1, max_size=30))
def test_it_names_at_most_twenty_unknown_fields_in_brief(fields: dict[str, Any]) -> None:
    body = ChatRequest(data={**fields, "message": "a"})
    unknown = set(fields) - {"message", "temperature", "model", "stream"}
    if unknown:
        assert not body.is_valid()
        assert {str(text) for texts in body.errors.values() for text in texts} == {"Unknown field."}
        assert len(body.errors) <= 20


def test_it_takes_no_body_that_is_no_object() -> None:
    bodies: list[Any] = [[], "text", 1, None]
    for data in bodies:
        assert not ChatRequest(data=data).is_valid()
