"""The checks of OpenAI's parameters that the platform itself relies on; all others are the provider's to judge."""

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


def is_text(name: str, value: Any) -> None:
    """Accept a text that is not empty."""
    if not isinstance(value, str) or not value:
        raise _wrong_type(name, "a string")


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


def refused(reason: str) -> Check:
    """Make a check that accepts nothing."""

    def check(name: str, value: Any) -> None:
        if value not in (False, [], {}, ""):
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


#: Parameters of other servers that write more than the maximum, go to another model, or buy more than tokens.
_UNBOUNDED: dict[str, Check] = {
    name: refused("it could exceed what the call may use.")
    for name in (
        "n_predict",
        "min_tokens",
        "ignore_eos",
        "models",
        "route",
        "provider",
        "plugins",
        "transforms",
        "options",
        "extra_body",
        "chat_template",
    )
}
_SAMPLING: dict[str, Check] = {
    "model": is_text,
    "stream": is_boolean,
    "temperature": decimal(0, 2),
    "top_p": decimal(0, 1),
    "service_tier": one_of("auto", "default"),
}
_ANSWERS: dict[str, Check] = {
    "stream_options": is_object,
    "n": integer(1, MOST_ANSWERS),
    "max_tokens": integer(1, MOST_OUTPUT),
}
CHAT_CHECKS: dict[str, Check] = {
    **_UNBOUNDED,
    **_SAMPLING,
    **_ANSWERS,
    "messages": is_list_of_objects,
    "max_completion_tokens": integer(1, MOST_OUTPUT),
    "tools": is_objects,
    "functions": is_objects,
    "modalities": only_text,
    "audio": refused("its price can't be bounded."),
    "prediction": refused("its price can't be bounded."),
    "web_search_options": refused("its price can't be bounded."),
}
COMPLETION_CHECKS: dict[str, Check] = {
    **_UNBOUNDED,
    **_SAMPLING,
    **_ANSWERS,
    "prompt": is_prompt,
    "best_of": integer(1, MOST_ANSWERS),
}
EMBEDDING_CHECKS: dict[str, Check] = {
    "model": is_text,
    "input": is_prompt,
    "encoding_format": one_of("float", "base64"),
    "stream": refused("embeddings come all at once."),
    "dimensions": integer(1, 100_000),
}
RESPONSE_CHECKS: dict[str, Check] = {
    **_UNBOUNDED,
    **_SAMPLING,
    "input": is_input,
    "instructions": is_text,
    "max_output_tokens": integer(1, MOST_OUTPUT),
    "tools": is_objects,
}
