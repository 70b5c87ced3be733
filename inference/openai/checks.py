"""Checks of single parameters, and OpenAI's own way to say what is wrong with one (inference.openai.parameters)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from accounts.exceptions import InvalidRequest

MOST_ANSWERS = 128
MOST_OUTPUT = 10_000_000

Check = Callable[[str, Any], None]


def check_payload(payload: Mapping[str, Any], checks: Mapping[str, Check], *, required: tuple[str, ...]) -> None:
    """Check the parameters of a payload; raises InvalidRequest with `param` and `code` for the first that fails."""
    for name in required:
        if payload.get(name) is None:
            raise InvalidRequest(
                f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
            )
    for name, check in checks.items():
        if payload.get(name) is not None:
            check(name, payload[name])


def is_string(name: str, value: Any) -> None:
    """Accept a text, the empty one too."""
    if not isinstance(value, str):
        raise _wrong_type(name, "a string")


def is_text(name: str, value: Any) -> None:
    """Accept a text that is not empty."""
    is_string(name, value)
    if not value:
        raise InvalidRequest(f"Invalid '{name}': empty string.", param=name, code="empty_string")


def is_boolean(name: str, value: Any) -> None:
    """Accept true and false."""
    if not isinstance(value, bool):
        raise _wrong_type(name, "a boolean")


def is_object(name: str, value: Any) -> None:
    """Accept an object."""
    if not isinstance(value, dict):
        raise _wrong_type(name, "an object")


def is_list_of_objects(name: str, value: Any) -> None:
    """Accept a list of objects, one at least."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise _wrong_type(name, "an array of objects")
    if not value:
        raise InvalidRequest(f"Invalid '{name}': empty array.", param=name, code="empty_array")


def is_objects(name: str, value: Any) -> None:
    """Accept a list of objects, which may be empty."""
    if value != []:
        is_list_of_objects(name, value)


def is_prompt(name: str, value: Any) -> None:
    """Accept a text, or a list of texts, of token numbers, or of lists of those."""
    if isinstance(value, str):
        return
    if not isinstance(value, list) or not value:
        raise _wrong_type(name, "a string or an array that is not empty")
    kinds = {type(item) for item in value}
    if kinds == {list}:
        kinds = {int} if all(value) and {type(item) for tokens in value for item in tokens} == {int} else set()
    if kinds not in ({str}, {int}):
        raise _wrong_type(name, "a string or an array of strings, of token numbers, or of arrays of those")


def is_input(name: str, value: Any) -> None:
    """Accept a text, or a list of objects, one at least."""
    if not isinstance(value, str):
        is_list_of_objects(name, value)


def integer(minimum: int, maximum: int) -> Check:
    """Make a check for whole numbers within bounds."""

    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong_type(name, "an integer")
        _within(name, value, minimum, maximum, "integer")

    return check


def decimal(minimum: float, maximum: float) -> Check:
    """Make a check for numbers within bounds."""

    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong_type(name, "a number")
        _within(name, value, minimum, maximum, "decimal")

    return check


def refused(reason: str, *, off: Any = None) -> Check:
    """Make a check that accepts nothing but `off`, the one value that switches the parameter off (None: no such).

    An empty object is not off: OpenAI begins a search for `web_search_options: {}`.
    """

    def check(name: str, value: Any) -> None:
        if off is None or type(value) is not type(off) or value != off:
            raise InvalidRequest(f"'{name}' is not supported here: {reason}", param=name, code="unsupported_parameter")

    return check


def one_of(*accepted: str) -> Check:
    """Make a check for one of a few words."""

    def check(name: str, value: Any) -> None:
        if value not in accepted:
            text = f"Invalid value for '{name}': expected one of {', '.join(accepted)}."
            raise InvalidRequest(text, param=name, code="invalid_value")

    return check


def only_text(name: str, value: Any) -> None:
    """Accept modalities without audio, whose price is another."""
    if value != ["text"]:
        raise InvalidRequest(f"'{name}' can be [\"text\"] only here.", param=name, code="unsupported_parameter")


def _within(name: str, value: float, minimum: float, maximum: float, kind: str) -> None:
    if value < minimum:
        text = f"Invalid '{name}': expected a value of {minimum} or more."
        raise InvalidRequest(text, param=name, code=f"{kind}_below_min_value")
    if value > maximum:
        text = f"Invalid '{name}': expected a value of {maximum} or less."
        raise InvalidRequest(text, param=name, code=f"{kind}_above_max_value")


def _wrong_type(name: str, wanted: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid type for '{name}': expected {wanted}.", param=name, code="invalid_type")
