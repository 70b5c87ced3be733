"""Errors in OpenAI's shape (https://platform.openai.com/docs/guides/error-codes), and in Anthropic's.

Anthropic's is documented at https://docs.anthropic.com/en/api/errors.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from core.errors import ApiError

#: Codes of the platform that OpenAI's clients know under another name.
_CODES = {
    "api_key_required": "invalid_api_key",
    "rate_limited": "rate_limit_exceeded",
    "tokens_limited": "rate_limit_exceeded",
    "concurrency_limited": "rate_limit_exceeded",
    "budget_exhausted": "insufficient_quota",
}
#: `error.type` of a 429 by the platform's code: the kind of limit. All others are limits on requests.
_LIMIT_TYPES = {"tokens_limited": "tokens", "budget_exhausted": "insufficient_quota"}


def is_openai_path(path: str) -> bool:
    """Return whether a path belongs to the OpenAI-compatible API."""
    return path == "/v1" or path.startswith("/v1/")


def is_anthropic_path(path: str) -> bool:
    """Return whether a path belongs to Anthropic's API."""
    return path.startswith("/v1/messages")


#: Anthropic's `error.type` by status; of other statuses, that of 400 or 500.
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def anthropic_error_body(error: ApiError, request_id: str | None) -> dict[str, Any]:
    """Return `{type, error: {type, message}, request_id}`, with the platform's code and extra fields in `error`."""
    is_callers = error.status < HTTPStatus.INTERNAL_SERVER_ERROR
    kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error" if is_callers else "api_error")
    fields = {"type": kind, "message": error.detail, "code": error.error_code, "param": error.param, **error.extra}
    return {"type": "error", "error": fields, "request_id": request_id}


def openai_error_body(error: ApiError) -> dict[str, Any]:
    """Return `{error: {message, type, param, code}}`, with the error's extra fields beside these."""
    code = _CODES.get(error.error_code, error.error_code)
    kind = "invalid_request_error" if error.status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    if error.status == HTTPStatus.TOO_MANY_REQUESTS:
        kind = _LIMIT_TYPES.get(error.error_code, "requests")
    # OpenAI's shape has one text: that of the first invalid field, or the error's own.
    invalid = [str(texts[0]) for texts in error.extra.get("errors", {}).values()]
    extra = {name: value for name, value in error.extra.items() if name != "errors"}
    fields = {"message": (invalid or [error.detail])[0], "type": kind, "param": error.param, "code": code}
    return {"error": {**fields, **extra}}
