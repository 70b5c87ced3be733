"""What a provider's failure means to the caller (DESIGN.md, section 5), and what may follow it.

No text, address or secret of the provider reaches the caller, apart from what it says about the caller's own parameters
(inference.upstream.messages). The log gets status and error code, not the text: it may quote the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import ceil
from typing import TYPE_CHECKING, Any

import httpx2
import structlog

from accounts.exceptions import ApiError, InvalidRequest, UpstreamBusy, UpstreamFailed, UpstreamTimeout
from inference.surfaces.base import UnfitAnswer, Usage
from inference.surfaces.provider_error import ProviderError
from inference.upstream.attempts import REJECTED, AttemptFailed, Verdict
from inference.upstream.codes import CALLERS_CODES, CREDIT_CODES, OPERATORS_CODES, status_of
from inference.upstream.messages import passable
from inference.upstream.sdk import sdk

if TYPE_CHECKING:
    import openai

#: What may pass of a provider's `code` and `param`: names, not sentences.
SAFE_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,50}\Z")
#: A gateway between gave the model up, which may have worked on, and is billed: 504, and Cloudflare's own.
GATEWAY_TIMEOUTS = (504, 524)
#: A provider that has no capacity now: 503, and what Anthropic says instead.
OVERLOADED = (503, 529)
REJECTION = "The model provider rejected the request."
CREDIT_USED_UP = "the credit is used up"
DEFAULT_RETRY_AFTER = 5
#: Seconds, or milliseconds, as headers name them.
NUMBER = re.compile(r"\d{1,10}(?:\.\d+)?")

#: The provider was never reached.
UNREACHED = Verdict(may_be_billed=False, goes_elsewhere=True, returns=False, is_down=True, is_unreached=True)
#: It was reached, and broke off or answered nonsense: it may have worked, and bill it; once is enough there.
BROKEN = Verdict(may_be_billed=True, goes_elsewhere=True, returns=False, is_down=True)
#: It took longer than the call may take: there is no time for another.
TIMED_OUT = Verdict(may_be_billed=True, goes_elsewhere=False, returns=False, is_down=True)
#: It said that it failed, or is busy.
FAILED = Verdict(may_be_billed=False, goes_elsewhere=True, returns=True, is_down=True)
#: It answered, but not to this question: the question may be to blame, as for a vector of another length than it has.
UNFIT = Verdict(may_be_billed=True, goes_elsewhere=True, returns=False, is_down=False)
BUSY = Verdict(may_be_billed=False, goes_elsewhere=True, returns=True, is_down=False)
#: It doesn't let us in, or doesn't know the model: another deployment may.
MISCONFIGURED = Verdict(may_be_billed=False, goes_elsewhere=True, returns=False, is_down=False)
#: It wants to be paid first: no call is answered before an operator has done that.
EMPTY = replace(MISCONFIGURED, is_empty=True)

log = structlog.get_logger(__name__)


def failures() -> tuple[type[Exception], ...]:
    """List how a call can fail: the SDK's errors, the connection's, an answer that is an error, no JSON or endless."""
    return sdk().OpenAIError, httpx2.HTTPError, ProviderError, ValueError, RecursionError, OSError


def failed_attempt(error: Exception, *, route: str, hidden: Iterable[str] = ()) -> AttemptFailed:
    """Judge an exception of the client, and log its cause; `route` names the deployment.

    `hidden` are texts that callers must not see in what the provider says.
    """
    answer, verdict, cause = _classify(error, hidden)
    log.warning("upstream_failed", route=route, cause=cause, status=answer.status)
    if isinstance(error, ProviderError):
        return AttemptFailed(answer, verdict, cause=cause, usage=error.usage, usage_source=error.usage_source)
    return AttemptFailed(answer, verdict, cause=cause)


def unfit_attempt(error: UnfitAnswer, *, route: str, usage: Usage, usage_source: str) -> AttemptFailed:
    """Judge an answer to another question than was asked, and log how it differs; what it used is billed."""
    answer = UpstreamFailed()
    log.warning("upstream_failed", route=route, cause=str(error), status=answer.status)
    return AttemptFailed(answer, UNFIT, cause=str(error), usage=usage, usage_source=usage_source)


def _classify(error: Exception, hidden: Iterable[str]) -> tuple[ApiError, Verdict, str]:
    if isinstance(error, sdk().APIStatusError):
        return _from_status(error, hidden)
    if isinstance(error, ProviderError):
        return _from_answer(error, hidden)
    cause = error.__cause__ if isinstance(error, sdk().APIConnectionError) and error.__cause__ else error
    name = type(cause).__name__
    if isinstance(cause, httpx2.ConnectTimeout):
        return UpstreamTimeout(), UNREACHED, "connect timeout"
    if isinstance(cause, httpx2.ConnectError | httpx2.PoolTimeout):
        root = _root(cause)
        told = (
            "connection refused" if isinstance(root, ConnectionRefusedError) else f"connection: {type(root).__name__}"
        )
        return UpstreamFailed(), UNREACHED, told
    if isinstance(cause, httpx2.TimeoutException | TimeoutError) or isinstance(error, sdk().APITimeoutError):
        return UpstreamTimeout(), TIMED_OUT, "timeout"
    return UpstreamFailed(), BROKEN, name


def _root(error: BaseException) -> BaseException:
    """Return what an error came from in the end: refused, no such name, or a certificate that is not trusted."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _from_status(error: openai.APIStatusError, hidden: Iterable[str]) -> tuple[ApiError, Verdict, str]:
    status, code = error.status_code, _safe(error.code)
    cause = f"http {status} {code or ''}".strip()
    if status == 402 or not CREDIT_CODES.isdisjoint((code, _safe(error.type))):
        return UpstreamFailed(), EMPTY, f"{CREDIT_USED_UP} ({cause})"
    if status in (400, 422):
        return _rejection(error, hidden), REJECTED, cause
    seconds = retry_after_seconds(error.response.headers)
    if status == 429 or (status in OVERLOADED and seconds):
        verdict = replace(BUSY if status == 429 else FAILED, retry_after=seconds)
        return UpstreamBusy(retry_after=ceil(seconds) or DEFAULT_RETRY_AFTER), verdict, cause
    if status in GATEWAY_TIMEOUTS:
        return UpstreamTimeout(), BROKEN, cause
    if status == 408:
        return UpstreamTimeout(), replace(FAILED, retry_after=seconds), cause
    return UpstreamFailed(), replace(FAILED, retry_after=seconds) if status >= 500 else MISCONFIGURED, cause


def _rejection(error: openai.APIStatusError, hidden: Iterable[str]) -> InvalidRequest:
    """Make the caller's 400: with the provider's message where that is about his own parameters."""
    code, param = _safe(error.code), _safe(error.param)
    if code is not None and code.isdecimal():  # the status, once more
        code = None
    said = error.body.get("message") if isinstance(error.body, dict) else None
    text = passable(said, hidden) if param or code in CALLERS_CODES else ""
    return InvalidRequest(text or REJECTION, param=param, code=code or "upstream_rejected")


def _from_answer(error: ProviderError, hidden: Iterable[str]) -> tuple[ApiError, Verdict, str]:
    """Judge an error inside a 200 as the status that it stands for; its own code is the answer's.

    Nothing is billed for it but what it says that was used. Then asking there again would cost as much again.
    """
    request = httpx2.Request("POST", "http://provider.invalid")  # the SDK's exception has one
    response, code = httpx2.Response(status_of(error.fields), request=request), _safe(error.fields.get("code"))
    code = None if code is None or code.isdecimal() else code
    body = {**error.fields, "code": code}
    answer, verdict, cause = _from_status(sdk().APIStatusError("", response=response, body=body), hidden)
    if code is not None and code not in OPERATORS_CODES:
        answer.error_code = code
    is_billed = error.usage is not None
    verdict = replace(verdict, may_be_billed=is_billed, returns=verdict.returns and not is_billed)
    return answer, verdict, f"{cause} inside a 200"


def retry_after_seconds(headers: Mapping[str, str]) -> float:
    """Return the seconds after which a provider wants to be asked again: the longest that its headers name.

    Retry-After is a number or a date, Retry-After-Ms a number; 0 where both are absent, over, or nonsense.
    """
    return max(_seconds(headers.get("Retry-After", "")), _seconds(headers.get("Retry-After-Ms", "")) / 1000)


def _seconds(text: str) -> float:
    text = text.strip()
    if NUMBER.fullmatch(text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if date.tzinfo is None:  # asctime's form names none, and means UTC
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _safe(name: Any) -> str | None:
    return name if isinstance(name, str) and SAFE_NAME.match(name) else None
