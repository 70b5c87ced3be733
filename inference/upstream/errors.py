"""Failed calls to providers: one table says what follows each of them.

No text, address or secret of a provider reaches the caller, except one line of its message about the caller's own
parameters. That line may name hosts, URLs, paths, keys and organisations; anything that looks like one is removed,
rather too much than too little. The log gets the status and the error code but not the text: it may quote the prompt.
"""

from __future__ import annotations

import json
import re
import time
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from http.client import HTTPException, HTTPMessage
from math import ceil
from typing import Any
from urllib.parse import urlsplit

import structlog

from core.errors import ApiError, InvalidRequest, UpstreamBusy, UpstreamFailed, UpstreamTimeout
from inference.catalog import Route
from inference.protocols.base import ProviderError, UnfitAnswer
from inference.upstream.authentication import NoCredentials
from inference.upstream.transport import NotConnected
from inference.usage import Usage

log = structlog.get_logger(__name__)

#: A response's headers; their names in any case.
Headers = Mapping[str, str] | HTTPMessage


class Effect(StrEnum):
    """The effect of a failed attempt on the deployment's breaker."""

    EJECT = "ejects the address"
    COUNT = "counts"
    PAUSE = "opens at once"
    CLOSE = "closes"  # the provider answered, so it works
    NONE = "none"  # nothing was sent


@dataclass(frozen=True, slots=True)
class Verdict:
    """A row of the table of failures; docs/faults.md has the same table.

    `sees`: the error that the caller gets if no other attempt succeeds. `retry`: the same deployment may be tried again
    after a pause. `fallback`: another deployment may be tried at once. `breaker`: the effect on the breaker.
    `may_be_billed`: the provider may have worked on the call and bill it. `retry_after`: seconds that the provider
    asked to wait.
    """

    sees: type[ApiError]
    retry: bool
    fallback: bool
    breaker: Effect
    may_be_billed: bool
    retry_after: float = 0.0


# fmt: off
# No connection: refused, an unknown name, no TLS, or a forbidden address.
UNREACHED         = Verdict(UpstreamFailed,  retry=False, fallback=True,  breaker=Effect.EJECT, may_be_billed=False)
# No connection within UPSTREAM_CONNECT_TIMEOUT.
UNCONNECTED       = Verdict(UpstreamTimeout, retry=False, fallback=True,  breaker=Effect.EJECT, may_be_billed=False)
# No answer until the call's deadline, which leaves no time for another attempt.
TIMED_OUT         = Verdict(UpstreamTimeout, retry=False, fallback=False, breaker=Effect.COUNT, may_be_billed=True)
# The provider broke off or sent an invalid answer.
BROKEN            = Verdict(UpstreamFailed,  retry=False, fallback=True,  breaker=Effect.COUNT, may_be_billed=True)
# 504, and Cloudflare's 524: a gateway timed out, and the model may have gone on.
GATEWAY_TIMED_OUT = Verdict(UpstreamTimeout, retry=False, fallback=True,  breaker=Effect.COUNT, may_be_billed=True)
# Any other 5xx.
FAILED            = Verdict(UpstreamFailed,  retry=True,  fallback=True,  breaker=Effect.COUNT, may_be_billed=False)
# 503, and Anthropic's 529, with Retry-After.
OVERLOADED        = Verdict(UpstreamBusy,    retry=True,  fallback=True,  breaker=Effect.COUNT, may_be_billed=False)
# 408: the request did not arrive in time.
LATE              = Verdict(UpstreamTimeout, retry=True,  fallback=True,  breaker=Effect.COUNT, may_be_billed=False)
# 429.
BUSY              = Verdict(UpstreamBusy,    retry=True,  fallback=True,  breaker=Effect.CLOSE, may_be_billed=False)
# 402, or a code that says that the operator's credit is used up: every call fails until somebody pays.
NO_CREDIT         = Verdict(UpstreamFailed,  retry=False, fallback=True,  breaker=Effect.PAUSE, may_be_billed=False)
# Any other status, such as 401, 403, 404: the provider refuses access, or does not know the model.
MISCONFIGURED     = Verdict(UpstreamFailed,  retry=False, fallback=True,  breaker=Effect.CLOSE, may_be_billed=False)
# 400 and 422: the provider rejected the request, as any other would.
REJECTED          = Verdict(InvalidRequest,  retry=False, fallback=False, breaker=Effect.CLOSE, may_be_billed=False)
# The answer does not fit the request. The request may be the cause, for example a wrong length of vectors.
UNFIT             = Verdict(UpstreamFailed,  retry=False, fallback=True,  breaker=Effect.CLOSE, may_be_billed=True)
# A limit of the platform's own for the provider has no room; nothing was sent.
FULL              = Verdict(UpstreamBusy,    retry=False, fallback=True,  breaker=Effect.NONE,  may_be_billed=False)
# fmt: on

BY_STATUS = {400: REJECTED, 402: NO_CREDIT, 408: LATE, 422: REJECTED, 429: BUSY}
BY_STATUS |= {504: GATEWAY_TIMED_OUT, 524: GATEWAY_TIMED_OUT}


class AttemptFailed(Exception):
    """One call to one deployment failed. `error` is the caller's error, by default the one of the table.

    `usage` is None if unknown; `usage_source` is "provider" if the provider reported it, "estimated" if it was counted.
    `cause` is for operators and has none of the provider's text.
    """

    def __init__(
        self,
        verdict: Verdict,
        error: ApiError | None = None,
        *,
        cause: str = "",
        usage: Usage | None = None,
        usage_source: str = "provider",
    ) -> None:
        self.verdict = verdict
        self.error = error or verdict.sees()
        self.usage = usage
        self.usage_source = usage_source
        self.cause = cause or self.error.error_code
        super().__init__(self.error.detail)

    @property
    def tokens(self) -> int | None:
        """The tokens that the attempt used; None if unknown."""
        if self.usage is not None:
            return self.usage.tokens
        return None if self.verdict.may_be_billed else 0


class ErrorAnswer(Exception):
    """A provider's answer with an error status. `fields` is its error object, empty if there is none."""

    def __init__(self, status: int, headers: Headers, content: bytes) -> None:
        super().__init__(f"http {status}")
        self.status = status
        self.headers = headers
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            body = None
        found = body.get("error", body) if isinstance(body, dict) else None
        self.fields: dict[str, Any] = found if isinstance(found, dict) else {}


#: The exceptions of a failed call: those of the connection, of errors in answers, and of invalid answers.
ATTEMPT_EXCEPTIONS = (
    *(NotConnected, NoCredentials, OSError, HTTPException, ErrorAnswer, ProviderError, ValueError, RecursionError),
)


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
    (
        "billing_hard_limit_reached", "billing_not_active", "exceeded_current_quota_error", "insufficient_balance",
        "insufficient_quota",
    )
)  # fmt: skip
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
#: Anthropic's types of errors, with the statuses that it sends otherwise.
ANTHROPIC_TYPES = {
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}
#: What Anthropic says in a 400 when the credit is used up; and the parameter before its message about one.
NO_CREDIT_TEXT = "credit balance is too low"
PLACE = re.compile(r"([a-z_]+(?:\.[a-z0-9_]+)*): ")
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
    if error.get("type") in ANTHROPIC_TYPES:
        return ANTHROPIC_TYPES[error["type"]]
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


#: Values of a provider's `code` and `param` that are passed on: names, not sentences, and not the status again.
SAFE_NAME = re.compile(r"(?!\d+\Z)[A-Za-z0-9_.\[\]-]{1,50}\Z")
REJECTION = "The model provider rejected the request."
CREDIT_USED_UP = "the credit is used up"
DEFAULT_RETRY_AFTER = 5
#: Seconds or milliseconds in a header.
NUMBER = re.compile(r"\d{1,10}(?:\.\d+)?")


def failed_attempt(error: Exception, route: Route) -> AttemptFailed:
    """Turn an exception of an attempt at a deployment into an AttemptFailed, and log its cause."""
    if isinstance(error, ErrorAnswer):
        failed = _from_status(error.status, error.fields, error.headers, route)
    elif isinstance(error, ProviderError):
        # Status 200: judged by the status that the error stands for; the caller gets its code. Only the usage in the
        # error is billed. If there is one, the deployment is not tried again, which would cost again.
        failed = _from_status(status_of(error.fields), error.fields, {}, route)
        code, is_billed = _name(error.fields.get("code")), error.usage is not None
        if code is not None and code not in OPERATORS_CODES:
            failed.error.error_code = code
        failed.usage, failed.usage_source = error.usage, error.usage_source
        failed.verdict = replace(failed.verdict, may_be_billed=is_billed, retry=failed.verdict.retry and not is_billed)
        failed.cause += " inside a 200"
    elif isinstance(error, NotConnected):
        reason = error.__cause__ or error  # such as an unknown name or an untrusted certificate
        is_refused = isinstance(reason, ConnectionRefusedError)
        failed = AttemptFailed(
            UNREACHED, cause="connection refused" if is_refused else f"connection: {type(reason).__name__}"
        )
        if isinstance(reason, TimeoutError):
            failed = AttemptFailed(UNCONNECTED, cause="connect timeout")
    elif isinstance(error, NoCredentials):
        failed = AttemptFailed(MISCONFIGURED, cause=str(error))
    elif isinstance(error, TimeoutError):
        failed = AttemptFailed(TIMED_OUT, cause="timeout")
    else:
        failed = AttemptFailed(BROKEN, cause=type(error).__name__)
    return _logged(failed, route)


def unfit_attempt(error: UnfitAnswer, route: Route, *, usage: Usage, usage_source: str) -> AttemptFailed:
    """Turn an answer that does not fit its request into an AttemptFailed, and log why; its usage is billed."""
    return _logged(AttemptFailed(UNFIT, cause=str(error), usage=usage, usage_source=usage_source), route)


def _logged(failed: AttemptFailed, route: Route) -> AttemptFailed:
    log.warning("upstream_failed", route=route.name, cause=failed.cause, status=failed.error.status)
    return failed


def _from_status(status: int, fields: Mapping[str, Any], headers: Headers, route: Route) -> AttemptFailed:
    """Judge an error answer; the caller of a rejected request gets a message about his own parameters."""
    code, param, kind = (_name(fields.get(field)) for field in ("code", "param", "type"))
    cause = f"http {status} {code or ''}".strip()
    message = str(fields.get("message") or "")
    if route.is_anthropic and param is None and (place := PLACE.match(message)) is not None:
        param = _name(place[1])
    if status == 402 or NO_CREDIT_TEXT in message or not CREDIT_CODES.isdisjoint((code, kind)):
        return AttemptFailed(NO_CREDIT, cause=f"{CREDIT_USED_UP} ({cause})")
    seconds = retry_after_seconds(headers)
    verdict = BY_STATUS.get(status, FAILED if status >= 500 else MISCONFIGURED)
    if status in (503, 529) and seconds:
        verdict = OVERLOADED
    error: ApiError | None = None
    if verdict.sees is UpstreamBusy:
        error = UpstreamBusy(retry_after=ceil(seconds) or DEFAULT_RETRY_AFTER)
    elif verdict is REJECTED:
        hidden = (route.secret, *route.headers.values(), urlsplit(route.base_url).hostname or "")
        is_about_request = param or code in CALLERS_CODES or route.is_anthropic
        text = passable(fields.get("message"), hidden) if is_about_request else ""
        error = InvalidRequest(text or REJECTION, param=param, code=code or "upstream_rejected")
    return AttemptFailed(replace(verdict, retry_after=seconds) if verdict.retry else verdict, error, cause=cause)


def retry_after_seconds(headers: Headers) -> float:
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


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and SAFE_NAME.match(value) else None
