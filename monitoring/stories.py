"""A request as a story for operators: a sentence of what happened, its stages and attempts, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from core.errors import ApiError
from core.formats import milliseconds
from monitoring.models import Outcome, RequestRecord, outcome_of

#: Display names of the stages.
STAGES = {
    "limits": "Limits",
    "cache": "Cache",
    "flight": "Waiting for an identical request",
    "upstream": "Provider",
}


def _kinds(kind: type[ApiError]) -> Iterator[type[ApiError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _kinds(child)


#: The errors that callers get, by code.
KINDS = {kind.code: kind for kind in _kinds(ApiError)}
#: Messages of the error codes, also of those that only records have.
MESSAGES = {
    **{code: kind.message for code, kind in KINDS.items()},
    "upstream_busy": "No deployment took the call: see the failed attempts.",
    "client_left": "The client closed the connection before the answer was complete.",
    "interrupted": "The process ended while the call ran; it was charged its bound.",
}
FOR_CALLER = "The caller has to correct the request; there is nothing to do here."
WAIT = "The caller has to wait for the seconds in Retry-After."
#: What an operator can do about each error code.
ADVICE = {
    **dict.fromkeys(
        (
            *("invalid_request", "malformed_body", "api_key_required", "not_found", "method_not_allowed"),
            *("not_acceptable", "idempotency_in_progress", "idempotency_key_reused", "unsupported_media_type"),
        ),
        FOR_CALLER,
    ),
    **dict.fromkeys(
        ("not_authenticated", "invalid_api_key", "too_many_failures", "permission_denied"),
        "Check with the caller which key is sent; make a new one if it is lost, revoked or expired.",
    ),
    "bound_exceeds_limit": "Raise the tokens per minute of the key, account or tier if such long calls are intended.",
    "scope_denied": "Add the scope to the key if it should use this endpoint.",
    "address_denied": "Add the caller's address to the key's allowed addresses if it belongs to the customer.",
    "price_unknown": "Enter a price for the model's deployments, 0 if it is free.",
    "model_not_found": "Enable the model, or add it to the account's tier, if the caller should have it.",
    "request_timeout": "The caller's connection was too slow. If it happens to many, look at the proxy in front.",
    "body_too_large": "The caller has to send less, or the limit of the endpoint has to be raised.",
    "rate_limited": f"{WAIT} Raise the requests per minute of the key, account or tier if this use is intended.",
    "tokens_limited": f"{WAIT} Raise the tokens per minute of the key, account or tier if this use is intended.",
    "concurrency_limited": f"{WAIT} Raise the concurrent calls of the key, account or tier if this use is intended.",
    "budget_exhausted": "Raise the monthly budget of the key or account, or wait: it resets on the 1st (UTC).",
    "internal_error": "Search the server's log for this request id: it has the traceback.",
    "upstream_failed": "Test the provider on its page. A second deployment of the model would take its calls.",
    "content_filtered": "The provider's filter stopped the answer. Only another prompt or model helps.",
    "unavailable": "Look at the health on the dashboard: a part of the platform was down.",
    "dependency_unavailable": "Look at the health on the dashboard: the database or Redis could not be reached.",
    "service_busy": "If this lasts, add web workers (WEB_CONCURRENCY) or machines.",
    "upstream_busy": "The provider limits the rate, or its circuit breaker is open. A second deployment would help.",
    "upstream_timeout": "The provider was too slow. Longer answers need a higher UPSTREAM_TIMEOUT.",
    "client_left": "The caller hung up. If many do, compare the latency with their time-outs.",
    "interrupted": "A process ended during the call: search the server's log for a restart or a kill at that time.",
}
SAID = {
    "connection refused": "refused the connection",
    "connect timeout": "did not accept a connection in time",
    "timeout": "did not answer in time",
}
#: The time of each attempt follows the stages in RequestRecord.stages (inference.call writes it).
ATTEMPT = "attempt"
ANSWERED = "answered"
#: Milliseconds of the latency outside of stages that are worth a line.
LEAST_REST = 0.1
#: How an answer came about that no provider gave for this request.
HOW = {
    RequestRecord.Cache.HIT: "from the cache",
    RequestRecord.Cache.COALESCED: "with the answer to an identical request",
    RequestRecord.Cache.REPLAY: "again, with the answer under the same Idempotency-Key",
}
#: A failed call in RequestRecord.failures; anything else there is an obstacle without a call.
CALL = re.compile(r"([^\s/]+)(/\S+): (.*)\Z", re.DOTALL)
#: A deployment or provider that got no call because its breaker was open (inference.upstream.breaker writes it).
SKIPPED = re.compile(r"(?:provider|deployment) ([^\s/]+)(/\S+)? is not asked since ([\d :-]+) UTC: (.*)\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A call to a deployment that failed, or (without `provider`) a sentence on why none was made.

    `skipped_since`: no call was made because the breaker was open since then (UTC); `cause` is what opened it.
    """

    text: str
    provider: str = ""
    said: str = ""
    model: str = ""
    skipped_since: str = ""
    cause: str = ""

    @property
    def look(self) -> str:
        """Return the colour of its bar: that of the outcome."""
        return "ok" if self.said == ANSWERED else "failed"


def attempts_of(record: RequestRecord) -> list[Attempt]:
    """Return the failed attempts and obstacles of a request in their order."""
    parts = [part for part in record.failures.split("; ") if part]
    return [_attempt(part) for part in parts]


def _attempt(text: str) -> Attempt:
    if call := CALL.match(text):
        return Attempt(text, call[1], _said(call[3]), call[2][1:])
    if skipped := SKIPPED.match(text):
        provider, model, since, cause = skipped.groups("")
        status = cause.removeprefix("http ")
        why = f": {cause}" if status == cause else f" after HTTP {status}"
        return Attempt(
            text, provider, f"was skipped (circuit breaker open since {since} UTC{why})", model[1:], since, cause
        )
    return Attempt(text)


def _said(cause: str) -> str:
    """Return what a provider did, as the rest of a sentence."""
    if cause.startswith("http "):
        status, _, code = cause.removeprefix("http ").partition(" ")
        return f"answered {status}" + (f" ({code})" if code else "")
    if cause.startswith("connection: "):
        return f"could not be reached ({cause.removeprefix('connection: ')})"
    if cause.startswith("the credit is used up"):
        return "has no credit left"
    return SAID.get(cause, f"sent no valid answer ({cause})")


def headline(record: RequestRecord) -> str:
    """Return what happened in one sentence: `502 after 1 s: openai refused the connection twice`."""
    after, attempts = milliseconds(record.latency_ms), attempts_of(record)
    failed = _together([each for each in attempts if each.provider])
    notes = [each.text for each in attempts if not each.provider]
    if outcome_of(record.status) == Outcome.OK:
        how = HOW.get(RequestRecord.Cache(record.cache)) or (f"by {record.deployment}" if record.deployment else "")
        sentence = " ".join(filter(None, ("Answered", how, f"in {after}")))
        sentence += f", after {failed}" if failed else f" ({notes[0]})" if notes else ""
        return f"{sentence}; the answer broke off" if record.is_partial else sentence
    reason = failed or next(iter(notes), "") or _reason(record.error_code)
    if record.count > 1:
        return f"{record.count:,} requests got {record.status}: {reason}"
    return f"{record.status} after {after}: {reason}" if reason else f"{record.status} after {after}"


def cause(record: RequestRecord) -> str:
    """Return why a request failed, in the same words for requests that failed alike: `openai answered 502`."""
    first = next(iter(attempts_of(record)), None)
    if first is None:
        return _reason(record.error_code)
    return f"{first.provider} {first.said}" if first.provider else first.text


def _together(attempts: Sequence[Attempt]) -> str:
    """Tell of failed calls, repeated ones once: `openai refused the connection twice, then azure answered 503`."""
    told = []
    for (provider, said), group in groupby(attempts, key=lambda each: (each.provider, each.said)):
        number = len(list(group))
        often = {1: "", 2: " twice"}.get(number, f" {number} times")
        told.append(f"{provider} {said}{often}")
    return ", then ".join(told)


def _reason(code: str) -> str:
    kind = KINDS.get(code)
    text = (kind.cause if kind else "") or MESSAGES.get(code, code)
    return text[:1].lower() + text[1:].rstrip(".")


def advice(record: RequestRecord) -> str:
    """Return what an operator can do; "" for an answered request."""
    outcome = outcome_of(record.status)
    if outcome == Outcome.OK:
        return ""
    unknown = ADVICE["upstream_failed"] if outcome == Outcome.FAILED else FOR_CALLER
    return ADVICE.get(record.error_code, unknown)


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage's bar in the waterfall: where it begins and how long it is, in percent of the latency."""

    name: str
    time: str
    begin: float
    length: float


def stages_of(record: RequestRecord) -> list[Stage]:
    """Return the stages in the order in which they began, and the rest of the latency; empty if none was recorded.

    A stage that was entered several times, as limits are, is shown as one.
    """
    named = [part.partition("=") for part in record.stages.split() if not part.startswith(ATTEMPT)]
    times = [(STAGES.get(name, name), float(spent)) for name, _, spent in named]
    if not times:
        return []
    spent = sum(time for _, time in times)
    rest = "The rest of the answer, as a stream" if record.first_token_ms is not None else "Everything else"
    whole = max(record.latency_ms, spent) or 1.0
    found, begin = [], 0.0
    left = record.latency_ms - spent
    for name, time in [*times, *([(rest, left)] if left >= LEAST_REST else [])]:
        found.append(Stage(name, milliseconds(time), round(100 * begin / whole, 2), round(100 * time / whole, 2)))
        begin += time
    return found


def attempts_with_times(record: RequestRecord) -> list[tuple[Attempt, Stage | None]]:
    """Return the attempts and obstacles, and each call's bar, if its time was recorded: one after the other."""
    attempts = attempts_of(record)
    if record.attempts and record.deployment and outcome_of(record.status) == Outcome.OK and not record.is_partial:
        provider, _, model = record.deployment.partition("/")
        attempts.append(Attempt(record.deployment, provider, ANSWERED, model))
    times = iter([float(part.partition("=")[2]) for part in record.stages.split() if part.startswith(ATTEMPT)])
    begin = next((each.begin for each in stages_of(record) if each.name == STAGES["upstream"]), 0.0)
    shown: list[tuple[Attempt, Stage | None]] = []
    for attempt in attempts:
        time = next(times, None) if attempt.provider and not attempt.skipped_since else None
        if time is None:
            shown.append((attempt, None))
            continue
        length = round(min(100 * time / (record.latency_ms or 1.0), 100 - begin), 2)
        shown.append((attempt, Stage("", milliseconds(time), begin, length)))
        begin = round(begin + length, 2)
    return shown
