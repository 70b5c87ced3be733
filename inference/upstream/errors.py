"""Failed calls to providers: the caller's error, the bill, and whether a retry or a fallback may follow.

No text, address or secret of a provider reaches the caller, except one line of its message about the caller's own
parameters. That line may name hosts, URLs, paths, keys and organisations; anything that looks like one is removed,
rather too much than too little. The log gets the status and the error code but not the text: it may quote the prompt.
"""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import ceil
from typing import TYPE_CHECKING, Any

import httpx2
import structlog

from core.errors import ApiError, InvalidRequest, UpstreamBusy, UpstreamFailed, UpstreamTimeout
from inference.protocols.base import UnfitAnswer, Usage
from inference.protocols.sse import ProviderError
from inference.upstream.sdk import sdk

log = structlog.get_logger(__name__)

if TYPE_CHECKING:
    import openai


@dataclass(frozen=True, slots=True)
class Verdict:
    """What may follow a failure.

    `may_be_billed`: the provider may have worked on the call. `goes_elsewhere`: another deployment may be tried.
    `returns`: the same deployment may be tried again after a pause. `is_down`: the provider itself failed, which its
    breaker counts. `is_unreached`: no connection could be made, which ejects its address. `is_empty`: the operator's
    credit at the provider is used up. `retry_after`: seconds that the provider asked to wait.
    """

    may_be_billed: bool
    goes_elsewhere: bool
    returns: bool
    is_down: bool
    is_unreached: bool = False
    is_empty: bool = False
    retry_after: float = 0.0


#: The provider rejected the request itself, as any other would.
REJECTED = Verdict(may_be_billed=False, goes_elsewhere=False, returns=False, is_down=False)


class AttemptFailed(Exception):
    """One call to one deployment failed: the caller's error, and what may follow.

    `usage` is None if unknown; `usage_source` is "provider" if the provider reported it, "estimated" if it was counted.
    """

    def __init__(
        self,
        error: ApiError,
        verdict: Verdict,
        *,
        cause: str = "",
        usage: Usage | None = None,
        usage_source: str = "provider",
    ) -> None:
        super().__init__(error.detail)
        self.error = error
        self.verdict = verdict
        self.usage = usage
        self.usage_source = usage_source
        #: The cause for operators, without any of the provider's text.
        self.cause = cause or error.error_code

    @property
    def tokens(self) -> int | None:
        """The tokens that the attempt used; None if unknown."""
        if self.usage is not None:
            return self.usage.input_tokens + self.usage.output_tokens
        return None if self.verdict.may_be_billed else 0


class Deadline:
    """The time by which a call must be finished, over all its attempts."""

    def __init__(self, seconds: float) -> None:
        self.ends = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left, at least a millisecond: some libraries read a timeout of 0 as none."""
        return max(0.001, self.ends - time.monotonic())

    @property
    def is_over(self) -> bool:
        """Return whether the deadline has passed."""
        return time.monotonic() >= self.ends


#: Error codes of a faulty or too long request, which any other deployment would refuse too.
CALLERS_CODES = frozenset(
    (
        "array_above_max_length", "array_below_min_length", "bio_policy", "content_filter", "content_policy_violation",
        "context_length_exceeded", "decimal_above_max_value", "decimal_below_min_value", "empty_array",
        "empty_image_file", "failed_to_download_image", "image_content_policy_violation", "image_file_not_found",
        "image_file_too_large", "image_parse_error", "image_too_large", "image_too_small", "integer_above_max_value",
        "integer_below_min_value", "invalid_base64", "invalid_base64_image", "invalid_encrypted_content",
        "invalid_function_parameters", "invalid_image", "invalid_image_format", "invalid_image_mode",
        "invalid_image_url", "invalid_json_schema", "invalid_prompt", "invalid_type", "invalid_value",
        "max_tokens_exceeded", "misalignment_policy_violation", "missing_required_parameter",
        "string_above_max_length", "string_below_min_length", "unknown_parameter", "unsupported_image_media_type",
        "unsupported_parameter", "unsupported_value",
    )
)  # fmt: skip
#: Codes or types of the error that the operator's credit is used up, which status 402 means too.
CREDIT_CODES = frozenset(
    {
        "billing_hard_limit_reached",
        "billing_not_active",
        "exceeded_current_quota_error",
        "insufficient_balance",
        "insufficient_quota",
    }
)
#: Codes of problems between the operator and the provider, with their statuses; callers don't see these codes.
OPERATORS_CODES = {
    **dict.fromkeys(CREDIT_CODES, 429),
    "access_terminated": 403,
    "account_deactivated": 403,
    "invalid_api_key": 401,
    "invalid_organization": 401,
    "model_not_found": 404,
    "unsupported_country_region_territory": 403,
}
#: Error types of a faulty request without a code: OpenAI's and vLLM's.
CALLERS_TYPES = ("invalid_request_error", "BadRequestError")


def status_of(error: Mapping[str, Any]) -> int:
    """Return the status that an error object in an answer of status 200 stands for; 500 if unknown.

    Some providers put the status in `code`.
    """
    code = str(error.get("code"))
    if code in CALLERS_CODES:
        return 400
    if code in OPERATORS_CODES:
        return OPERATORS_CODES[code]
    if code == "rate_limit_exceeded":
        return 429
    if code.isdecimal() and len(code) == 3 and int(code) >= 400:
        return int(code)
    return 400 if error.get("type") in CALLERS_TYPES else 500


#: Most characters of a message that are passed on, and that are read.
LONGEST, MOST_READ = 300, 1000
GAP = "[...]"
#: A run of characters too long for a word; removed first, because the search below slows down with its length.
TOO_LONG = re.compile(r"\S{80,}")
#: Shortest hidden text that is removed; a shorter one appears in too many texts by chance.
SHORTEST_SECRET = 4
#: Last labels of host names. Without this list, a parameter such as `text.format` would match.
TOP_LEVEL = (
    "ai app arpa biz br ca ch cloud cn co com corp de dev edu es eu example fr gov home host in info internal intranet "
    "invalid io jp kr lan local localdomain net nl online org pl private pro ru se sg site svc tech test tw uk us xyz"
).replace(" ", "|")
LEFT_OUT = re.compile(
    rf"""
    \b [a-z][a-z0-9+.-]* :// \S+                                   # URLs
    | \b www \. \S+
    | [\w.+-]+ @ [\w-]+ (?: \. [\w-]+ )+                           # addresses of people
    | (?<! [\w.] ) (?: \d{{1,3}} \. ){{3}} \d{{1,3}} (?! [\w.] \d ) (?: :\d+ )? (?: /\S* )?
    | \[? (?<! [\w:] ) (?: [0-9a-f]{{0,4}} : ){{2,7}} [0-9a-f]{{1,4}} (?! [\w:] ) \]? (?: :\d+ )?   # IPv6
    | \b localhost \b (?: :\d+ )? (?: /\S* )?
    | (?<! [\w.-] ) (?: [a-z0-9-]+ \. )+ (?: {TOP_LEVEL} ) (?! [\w-] ) (?: :\d+ )? (?: /\S* )?      # names of hosts
    | (?<! [\w.-] ) (?= [a-z0-9.-]* [a-z] ) [a-z0-9.-]* [.-] [a-z0-9.-]* : \d{{2,5}} \b (?: /\S* )?
    | (?<! [\w.)\]/] ) / [\w.-]+ (?: / [\w.-]* )+                    # paths
    | \b (?i: bearer | basic ) \s+ \S{{8,}}                        # keys, and who owns them
    | \b (?i: api[ _-]?key | secret | password | authorization ) ["']? \s* [:=] \s* \S+
    | \b (?i: sk | pk | rk | ak | gsk | hf | xai | ghp | org | proj | req | chatcmpl ) [_-] [A-Za-z0-9_*-]{{5,}}
    | \b (?: AKIA | AIza | eyJ ) [\w.+/=-]{{8,}}
    | \b [0-9a-f]{{8}} (?: - [0-9a-f]{{4}} ){{3}} - [0-9a-f]{{12}} \b
    | (?<! \w ) (?= [\w+/=-]* \d ) (?= [\w+/=-]* [a-z] ) (?= [\w+/=-]* [A-Z] ) [\w+/=-]{{20,}}
    | (?<! \w ) (?= [a-zA-Z]* \d ) [A-Za-z0-9]{{24,}}
    """,
    re.VERBOSE,
)


def passable(message: object, hidden: Iterable[str]) -> str:
    """Return the first line of a provider's message without private details; empty if nothing is left.

    `hidden` are texts to remove whatever they look like, such as the provider's secret.
    """
    if not isinstance(message, str) or "Traceback" in message:
        return ""
    line = next((line for line in message[:MOST_READ].splitlines() if line.strip()), "")
    if len(line) >= MOST_READ:
        line = line.rpartition(" ")[0]  # the last word may be half a secret, which would not be recognized
    line = " ".join("".join(each for each in line if each == "\t" or unicodedata.category(each)[0] != "C").split())
    for text in sorted(hidden, key=len, reverse=True):
        if len(text) >= SHORTEST_SECRET:
            line = re.sub(re.escape(text), GAP, line, flags=re.IGNORECASE)
    line = LEFT_OUT.sub(GAP, TOO_LONG.sub(GAP, line))
    if line.startswith("<") or not re.search(r"[^\W\d_]{2}", line.replace(GAP, "")):
        return ""
    return line if len(line) <= LONGEST else line[: LONGEST - 1].rstrip() + "…"


#: Values of a provider's `code` and `param` that are passed on: names, not sentences.
SAFE_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,50}\Z")
#: Statuses of a gateway that timed out (504, and Cloudflare's 524). The model may have gone on, and is billed.
GATEWAY_TIMEOUTS = (504, 524)
#: Statuses of a provider without capacity: 503, and Anthropic's 529.
OVERLOADED = (503, 529)
REJECTION = "The model provider rejected the request."
CREDIT_USED_UP = "the credit is used up"
DEFAULT_RETRY_AFTER = 5
#: Seconds or milliseconds in a header.
NUMBER = re.compile(r"\d{1,10}(?:\.\d+)?")

#: The provider was never reached.
UNREACHED = Verdict(may_be_billed=False, goes_elsewhere=True, returns=False, is_down=True, is_unreached=True)
#: The provider broke off or sent an invalid answer. It may have worked and bill it, so it is not tried again.
BROKEN = Verdict(may_be_billed=True, goes_elsewhere=True, returns=False, is_down=True)
#: The provider took longer than the call's deadline, so no time is left for another attempt.
TIMED_OUT = Verdict(may_be_billed=True, goes_elsewhere=False, returns=False, is_down=True)
#: The provider reported a failure.
FAILED = Verdict(may_be_billed=False, goes_elsewhere=True, returns=True, is_down=True)
#: The answer does not fit the request. The request may be the cause, for example a wrong length of vectors.
UNFIT = Verdict(may_be_billed=True, goes_elsewhere=True, returns=False, is_down=False)
BUSY = Verdict(may_be_billed=False, goes_elsewhere=True, returns=True, is_down=False)
#: The provider refused access or does not know the model; another deployment may work.
MISCONFIGURED = Verdict(may_be_billed=False, goes_elsewhere=True, returns=False, is_down=False)
#: The credit is used up: every call fails until an operator pays.
EMPTY = replace(MISCONFIGURED, is_empty=True)


def failures() -> tuple[type[Exception], ...]:
    """Return the exceptions of a failed call: the SDK's, the connection's, and those of error and invalid answers."""
    return sdk().OpenAIError, httpx2.HTTPError, ProviderError, ValueError, RecursionError, OSError


def failed_attempt(error: Exception, *, route: str, hidden: Iterable[str] = ()) -> AttemptFailed:
    """Turn an exception of the client into an AttemptFailed, and log its cause.

    `route` is the deployment's name; `hidden` are texts that callers must not see in the provider's message.
    """
    answer, verdict, cause = _classify(error, hidden)
    log.warning("upstream_failed", route=route, cause=cause, status=answer.status)
    if isinstance(error, ProviderError):
        return AttemptFailed(answer, verdict, cause=cause, usage=error.usage, usage_source=error.usage_source)
    return AttemptFailed(answer, verdict, cause=cause)


def unfit_attempt(error: UnfitAnswer, *, route: str, usage: Usage, usage_source: str) -> AttemptFailed:
    """Turn an answer that does not fit its request into an AttemptFailed, and log why; its usage is billed."""
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
        text = (
            "connection refused" if isinstance(root, ConnectionRefusedError) else f"connection: {type(root).__name__}"
        )
        return UpstreamFailed(), UNREACHED, text
    if isinstance(cause, httpx2.TimeoutException | TimeoutError) or isinstance(error, sdk().APITimeoutError):
        return UpstreamTimeout(), TIMED_OUT, "timeout"
    return UpstreamFailed(), BROKEN, name


def _root(error: BaseException) -> BaseException:
    """Return the first cause of an error, such as a refused connection, an unknown name or an untrusted certificate."""
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
    """Return the caller's 400, with the provider's message if it is about the caller's parameters."""
    code, param = _safe(error.code), _safe(error.param)
    if code is not None and code.isdecimal():  # the status again
        code = None
    said = error.body.get("message") if isinstance(error.body, dict) else None
    text = passable(said, hidden) if param or code in CALLERS_CODES else ""
    return InvalidRequest(text or REJECTION, param=param, code=code or "upstream_rejected")


def _from_answer(error: ProviderError, hidden: Iterable[str]) -> tuple[ApiError, Verdict, str]:
    """Judge an error with status 200 by the status that it stands for; the caller gets its code.

    Only the usage in the error is billed. If there is one, the deployment is not tried again, which would cost again.
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
    """Return the seconds to wait before the next request: the longer of a provider's two headers.

    Retry-After is a number or a date, Retry-After-Ms a number. 0 if both are absent, past or invalid.
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
    if date.tzinfo is None:  # asctime's format has no zone and means UTC
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _safe(name: Any) -> str | None:
    return name if isinstance(name, str) and SAFE_NAME.match(name) else None
