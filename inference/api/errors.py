"""Errors in OpenAI's shape (https://platform.openai.com/docs/guides/error-codes)."""

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


def openai_error_body(error: ApiError) -> dict[str, Any]:
    """Return `{error: {message, type, param, code}}`, with the error's extra fields beside these."""
    code = _CODES.get(error.error_code, error.error_code)
    extra = {name: value for name, value in error.extra.items() if name != "errors"}
    return {"error": {"message": _message(error), "type": _type(error), "param": error.param, "code": code, **extra}}


def _type(error: ApiError) -> str:
    if error.status == HTTPStatus.TOO_MANY_REQUESTS:
        return _LIMIT_TYPES.get(error.error_code, "requests")
    return "invalid_request_error" if error.status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"


def _message(error: ApiError) -> str:
    """Return the message of the first invalid field, or the error's detail: OpenAI's shape has one text."""
    for texts in error.extra.get("errors", {}).values():
        return str(texts[0])
    return error.detail
