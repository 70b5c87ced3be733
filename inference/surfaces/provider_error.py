"""An error that a provider sends inside an answer of status 200: as a body, as an event, or as a failed response."""

from __future__ import annotations

from typing import Any

from inference.surfaces.base import Body, Usage, choices_in, read_openai_usage, read_response_usage


class ProviderError(Exception):
    """What a provider said instead of an answer, or in the middle of one.

    `fields` is its error object (code, param, type, and a message that must not be passed on), `response` the failed
    response that it is part of, empty where there is none. `usage` is what the call used; None where nobody knows, or
    nothing was generated.
    """

    def __init__(self, fields: Body, *, response: Body, usage: Usage | None) -> None:
        super().__init__("the answer is an error")
        self.fields = fields
        self.response = response
        self.usage = usage
        self.usage_source = "provider"


def find_error(body: Body, *, is_named: bool = False) -> ProviderError | None:
    """Return the error that a body or an event's data are, or None. `is_named`: the event's name says so already."""
    response = body.get("response") if body.get("type") == "response.failed" else body
    if not isinstance(response, dict):
        response = {}
    error = response.get("error") or _error_of_a_choice(response)
    is_failed = response is not body or body.get("status") == "failed"
    is_error = is_named or is_failed or body.get("type") == "error" or body.get("object") == "error"
    if not error and not is_error:
        return None
    fields = error if isinstance(error, dict) else {} if error or is_failed else body
    told = response.get("usage")
    usage = read_openai_usage(told) or read_response_usage(told)
    return ProviderError(
        fields, response=response if is_failed else {}, usage=usage if usage != Usage(0, 0, 0) else None
    )


def _error_of_a_choice(body: Body) -> Any:
    """Return the error that one of several answers ended with: OpenRouter tells it there."""
    return next(filter(None, (choice.get("error") for choice in choices_in(body))), None)
