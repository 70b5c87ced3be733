"""What a provider's failure means to the caller (DESIGN.md, section 5).

No text, address or secret of the provider reaches the caller. The log gets status and error code, not the text: a
provider's message may quote the prompt.
"""

from __future__ import annotations

import re
from typing import Any

import httpx2
import openai
import structlog

from accounts.exceptions import ApiError, InvalidRequest, UpstreamBusy, UpstreamFailed, UpstreamTimeout

#: What may pass of a provider's `code` and `param`: names, not sentences.
SAFE_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,100}\Z")
DEFAULT_RETRY_AFTER = 5
LONGEST_RETRY_AFTER = 3600

log = structlog.get_logger(__name__)


def translate(error: Exception, *, route: str) -> ApiError:
    """Turn an exception of the client into the caller's, and log its cause; `route` names the deployment."""
    answer, cause = _classify(error)
    log.warning("upstream_failed", route=route, cause=cause, status=answer.status)
    return answer


def _classify(error: Exception) -> tuple[ApiError, str]:
    if isinstance(error, openai.APIStatusError):
        return _from_status(error)
    if isinstance(error, openai.APITimeoutError | httpx2.TimeoutException | TimeoutError):
        return UpstreamTimeout(), "timeout"
    if isinstance(error, openai.APIConnectionError | httpx2.TransportError):
        return UpstreamFailed(), f"connection: {type(error.__cause__ or error).__name__}"
    return UpstreamFailed(), type(error).__name__


def _from_status(error: openai.APIStatusError) -> tuple[ApiError, str]:
    status, code = error.status_code, _safe(error.code)
    cause = f"http {status} {code or ''}".strip()
    if status in (400, 422):
        text = "The model provider rejected the request."
        return InvalidRequest(text, param=_safe(error.param), code=code or "upstream_rejected"), cause
    if status == 429:
        return UpstreamBusy(retry_after=retry_after_seconds(error.response.headers.get("Retry-After"))), cause
    if status in (408, 504):
        return UpstreamTimeout(), cause
    return UpstreamFailed(), cause


def may_be_billed(error: Exception) -> bool:
    """Say whether a provider may have worked on a call that failed: not if it said no, or was never reached."""
    if isinstance(error, openai.APIStatusError):
        return False
    cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else error
    return not isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)


def retry_after_seconds(text: str | None) -> int:
    """Read a Retry-After header in seconds; DEFAULT_RETRY_AFTER when it is absent, a date or nonsense."""
    if text is None or not text.strip().isdecimal():
        return DEFAULT_RETRY_AFTER
    return min(max(1, int(text.strip()[:6])), LONGEST_RETRY_AFTER)


def _safe(name: Any) -> str | None:
    return name if isinstance(name, str) and SAFE_NAME.match(name) else None
