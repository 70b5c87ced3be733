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
    kind = "invalid_request_error" if error.status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    if error.status == HTTPStatus.TOO_MANY_REQUESTS:
        kind = _LIMIT_TYPES.get(error.error_code, "requests")
    # OpenAI's shape has one text: that of the first invalid field, or the error's own.
    invalid = [str(texts[0]) for texts in error.extra.get("errors", {}).values()]
    extra = {name: value for name, value in error.extra.items() if name != "errors"}
    fields = {"message": (invalid or [error.detail])[0], "type": kind, "param": error.param, "code": code}
    return {"error": {**fields, **extra}}
