"""Errors in OpenAI's shape (https://platform.openai.com/docs/guides/error-codes)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from core.errors import ApiError

#: Our codes that OpenAI's clients know under another name.
_CODES = {
    "api_key_required": "invalid_api_key",
    "rate_limited": "rate_limit_exceeded",
    "tokens_limited": "rate_limit_exceeded",
    "concurrency_limited": "rate_limit_exceeded",
    "budget_exhausted": "insufficient_quota",
}
#: `error.type` of a 429 by our code: what there is too much of. Everything else that is refused counts requests.
_LIMIT_TYPES = {"tokens_limited": "tokens", "budget_exhausted": "insufficient_quota"}


def is_openai_path(path: str) -> bool:
    """Say whether a path belongs to the OpenAI-compatible surface."""
    return path == "/v1" or path.startswith("/v1/")


def openai_error_body(error: ApiError) -> dict[str, Any]:
    """Make `{error: {message, type, param, code}}`; what else the error tells stands beside them."""
    code = _CODES.get(error.error_code, error.error_code)
    extra = {name: value for name, value in error.extra.items() if name != "errors"}
    return {"error": {"message": _message(error), "type": _type(error), "param": error.param, "code": code, **extra}}


def _type(error: ApiError) -> str:
    if error.status == HTTPStatus.TOO_MANY_REQUESTS:
        return _LIMIT_TYPES.get(error.error_code, "requests")
    return "invalid_request_error" if error.status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"


def _message(error: ApiError) -> str:
    """Put the first field's message into the one text that OpenAI's shape has."""
    for texts in error.extra.get("errors", {}).values():
        return str(texts[0])
    return error.detail
