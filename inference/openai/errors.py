"""Errors in OpenAI's shape (https://platform.openai.com/docs/guides/error-codes)."""

from __future__ import annotations

from typing import Any

from accounts.exceptions import ApiError

#: `error.type` by status, as OpenAI's clients expect it.
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
#: Our codes that OpenAI's clients know under another name.
_CODES = {"budget_exhausted": "insufficient_quota", "rate_limited": "rate_limit_exceeded"}


def is_openai_path(path: str) -> bool:
    """Say whether a path belongs to the OpenAI-compatible surface."""
    return path == "/v1" or path.startswith("/v1/")


def openai_error_body(error: ApiError) -> dict[str, Any]:
    """Make `{error: {message, type, param, code}}`; what else the error tells stands beside them."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    code = _CODES.get(error.error_code, error.error_code)
    extra = {name: value for name, value in error.extra.items() if name != "errors"}
    return {"error": {"message": _message(error), "type": kind, "param": error.param, "code": code, **extra}}


def _message(error: ApiError) -> str:
    """Put the first field's message into the one text that OpenAI's shape has."""
    for texts in error.extra.get("errors", {}).values():
        return str(texts[0])
    return error.detail
