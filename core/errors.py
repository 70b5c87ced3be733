"""The exception tree of all API error responses.

ApiError
├── InvalidRequest                400
│   ├── MalformedBody
│   └── BoundExceedsLimit
├── NotAuthenticated              401
│   ├── KeyRequired
│   └── KeyInvalid
├── PermissionDenied              403
│   ├── ScopeDenied
│   ├── AddressDenied
│   └── PriceUnknown
├── NotFound                      404
│   └── ModelNotFound
├── MethodNotAllowed              405
├── NotAcceptable                 406
├── RequestTimeout                408
├── Conflict                      409
├── BodyTooLarge                  413
├── UnsupportedMediaType          415
├── IdempotencyKeyReused          422
├── LimitExceeded                 429
│   ├── RateLimited
│   ├── TokensLimited
│   ├── ConcurrencyLimited
│   ├── BudgetExhausted
│   └── TooManyFailures
├── InternalError                 500
├── UpstreamFailed                502
│   └── ContentFiltered
├── Unavailable                   503
│   ├── DependencyUnavailable
│   ├── ServiceBusy
│   └── UpstreamBusy
└── UpstreamTimeout               504

Each exception has an HTTP status, a stable `code`, a message for the caller, headers, and `extra` fields of the body.
Details for operators only belong in the exception's `__cause__` or in a log line, never in these fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from core.redaction import without_keys

#: Characters of a model's name that an error message quotes.
MOST_OF_A_NAME = 100


class ApiError(Exception):
    """An error response. Subclasses define status and code; instances may override message, code and extra fields."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    message: ClassVar[str] = "Internal server error"
    #: For key holders, on their pages: why, and what to do. Not inherited; empty for errors that need no explanation.
    cause: ClassVar[str] = ""
    remedy: ClassVar[str] = ""
    #: The accounts.limits Refusal behind the error; None for every other error.
    refusal: Any = None

    def __init__(
        self,
        message: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        self.detail = message or self.message
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})
        self.param = param
        self.error_code = code or self.code
        super().__init__(self.detail)


class InvalidRequest(ApiError):
    """The body or a parameter is invalid; `errors` maps a field to its messages."""

    status, code, message = 400, "invalid_request", "Invalid request."
    cause = "A field is missing, unknown, of the wrong type or out of bounds."
    remedy = "Correct the field that the error names."

    def __init__(
        self,
        message: str | None = None,
        *,
        errors: Mapping[str, list[str]] | None = None,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        extra = {"errors": {field: list(texts) for field, texts in errors.items()}} if errors else None
        super().__init__(message, extra=extra, param=param or next(iter(errors or ()), None), code=code)


class MalformedBody(InvalidRequest):
    """The body isn't valid JSON."""

    code, message = "malformed_body", "The body is not valid JSON."


class BoundExceedsLimit(InvalidRequest):
    """The request could use more than an entire limit, so a later retry would fail too."""

    code, message = "bound_exceeds_limit", "The request can never fit a limit of this key."
    cause = "The call could use more than an entire limit, so waiting would not help."
    remedy = "Shorten the prompt, ask for fewer tokens, or have the limit raised."


class NotAuthenticated(ApiError):
    """The request has no valid key; the response has WWW-Authenticate."""

    status, code, message = 401, "not_authenticated", "Invalid API key"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, headers={"WWW-Authenticate": 'Bearer realm="api"'})


class KeyRequired(NotAuthenticated):
    """The request has no key."""

    code, message = "api_key_required", "API key required. Include X-API-Key header."
    cause = "No key was sent."
    remedy = "Enter your key."


class KeyInvalid(NotAuthenticated):
    """The key is unknown, wrong, revoked, expired or disabled: one response for all, so that callers can't probe."""

    code, message = "invalid_api_key", "Invalid API key"
    cause = "The key is unknown, mistyped, revoked, expired or disabled."
    remedy = "Check that it is complete; if it is, ask your operator for a new one."


class PermissionDenied(ApiError):
    """The key is valid, but doesn't permit this request."""

    status, code, message = 403, "permission_denied", "This is not allowed."


class ScopeDenied(PermissionDenied):
    """The key lacks the scope of the endpoint."""

    code, message = "scope_denied", "This API key may not use this endpoint."
    cause = "The key lacks the scope of this endpoint."
    remedy = "Use another key, or have its scopes extended."


class AddressDenied(PermissionDenied):
    """The key is restricted to other IP addresses."""

    code, message = "address_denied", "This API key may not be used from this address."
    cause = "The key may not be used from your IP address."
    remedy = "Call from an allowed address."


class PriceUnknown(PermissionDenied):
    """The key has a budget in money, and the model has no price."""

    code = "price_unknown"
    message = "The model has no price, so a budget in money can't be enforced: an operator must enter one."

    def __init__(self) -> None:
        super().__init__(param="model")


class NotFound(ApiError):
    """The path or object doesn't exist."""

    status, code, message = 404, "not_found", "Not found."


class ModelNotFound(NotFound):
    """The model is unknown, disabled, or not in the account's tier: the same response for all three."""

    code, message = "model_not_found", "The default model does not exist or you do not have access to it."
    cause = "The model is unknown or disabled, or this key may not use it."
    remedy = "Use one of the models that GET /v1/models lists."

    def __init__(self, name: str | None = None) -> None:
        """Quote `name`, the requested model, in the message (shortened); None for the default model."""
        text = None
        if name is not None:
            line = " ".join(without_keys(name).split())
            text = f"The model `{line[:MOST_OF_A_NAME]}` does not exist or you do not have access to it."
        super().__init__(text, param="model")


class MethodNotAllowed(ApiError):
    """The path doesn't support the HTTP method."""

    status, code, message = 405, "method_not_allowed", "Method not allowed."


class NotAcceptable(ApiError):
    """The Accept header allows no format that the endpoint supports."""

    status, code, message = 406, "not_acceptable", "No acceptable representation: ask for application/json."


class RequestTimeout(ApiError):
    """The body did not arrive within the time allowed for its length."""

    status, code, message = 408, "request_timeout", "The body did not arrive in time. Send it again."
    cause = "The request came too slowly, or only in part."
    remedy = "Send it again."


class Conflict(ApiError):
    """The first request under this Idempotency-Key is still running."""

    status, code, message = 409, "idempotency_in_progress", "A request with this Idempotency-Key is in progress."


class BodyTooLarge(ApiError):
    """The body is over the endpoint's size limit."""

    status, code, message = 413, "body_too_large", "The request body is too large."
    cause = "The request is too large."
    remedy = "Send a smaller one."


class UnsupportedMediaType(ApiError):
    """The body isn't declared as JSON, or is compressed."""

    status, code, message = 415, "unsupported_media_type", "Send the body as application/json."


class IdempotencyKeyReused(ApiError):
    """The Idempotency-Key was used before for another request."""

    status, code, message = 422, "idempotency_key_reused", "This Idempotency-Key was used for another request."


class LimitExceeded(ApiError):
    """The request exceeds a limit. `retry_after` is in whole seconds, rounded up."""

    status, code, message = 429, "rate_limited", "Rate limit exceeded."

    def __init__(
        self, message: str | None = None, *, retry_after: int = 1, extra: Mapping[str, Any] | None = None
    ) -> None:
        self.retry_after = retry_after
        super().__init__(message, headers={"Retry-After": str(retry_after)}, extra=extra)


class RateLimited(LimitExceeded):
    """Too many requests in the last minute."""

    cause = "The limit of requests per minute is reached."
    remedy = "Wait for the number of seconds in Retry-After."

    def __init__(self, *, retry_after: int, extra: Mapping[str, Any] | None = None) -> None:
        text = f"Rate limit exceeded. Try again in {retry_after} seconds."
        super().__init__(text, retry_after=retry_after, extra=extra)


class TokensLimited(LimitExceeded):
    """Too many tokens in the last minute, running calls included."""

    code, message = "tokens_limited", "Token rate limit exceeded."
    cause = "The limit of tokens per minute is reached; running calls count."
    remedy = "Wait for the number of seconds in Retry-After, or ask for fewer tokens."


class ConcurrencyLimited(LimitExceeded):
    """Too many calls at the same time."""

    code, message = "concurrency_limited", "Too many concurrent requests."
    cause = "Too many calls are running at the same time."
    remedy = "Wait until one ends."


class BudgetExhausted(LimitExceeded):
    """The rest of the month's budget doesn't cover this call."""

    code, message = "budget_exhausted", "The monthly budget is exhausted."
    cause = "What is left of the month's budget does not cover this call."
    remedy = "Wait until the month ends (UTC), or have the budget raised."


class TooManyFailures(LimitExceeded):
    """Too many invalid keys or failed log-ins from one address; valid keys from there still work."""

    code, message = "too_many_failures", "Too many failed attempts. Try again later."
    cause = "Too many invalid keys came from your address. Valid keys still work."
    remedy = "Correct the key, and wait for the number of seconds in Retry-After."


class InternalError(ApiError):
    """An unexpected error of the platform; the log has the traceback under the request's id."""

    cause = "An error in the service."
    remedy = "Report the request id to your operator."


class UpstreamFailed(ApiError):
    """The provider refused the call, broke off, or sent an invalid response."""

    status, code, message = 502, "upstream_failed", "The model provider failed to answer."
    cause = "The model's provider refused the call, broke off or sent an invalid answer."
    remedy = "Try again. If it keeps failing, report the request id."


class ContentFiltered(UpstreamFailed):
    """The provider's content filter stopped the answer."""

    code, message = "content_filtered", "The model provider's content filter stopped the answer."
    cause = "The provider's content filter stopped the answer."
    remedy = "Ask something else."


class Unavailable(ApiError):
    """The request can't be answered now. `retry_after` is in whole seconds."""

    status, code, message = 503, "unavailable", "Temporarily unavailable."
    cause = "The service can't answer now."
    remedy = "Wait for the number of seconds in Retry-After."

    def __init__(self, message: str | None = None, *, retry_after: int = 1) -> None:
        self.retry_after = retry_after
        super().__init__(message, headers={"Retry-After": str(retry_after)})


class DependencyUnavailable(Unavailable):
    """A database or state store of the platform is unavailable."""

    code, message = "dependency_unavailable", "A dependency is temporarily unavailable."
    cause = "A dependency of the service is unavailable."


class ServiceBusy(Unavailable):
    """The web worker can't keep up, and refuses the call before it knows the caller."""

    code, message = "service_busy", "The service has more requests than it can answer at the moment."
    cause = "The service has more requests than it can answer."
    remedy = "Wait for the number of seconds in Retry-After, and longer after each refusal."


class UpstreamBusy(Unavailable):
    """The provider limits our rate, or no provider has capacity."""

    code, message = "upstream_busy", "The model provider has no capacity at the moment."
    cause = "The provider has no capacity for more calls."


class UpstreamTimeout(ApiError):
    """The provider didn't answer in time."""

    status, code, message = 504, "upstream_timeout", "The model provider did not answer in time."
    cause = "The provider took too long."
    remedy = "Try again, or ask for a shorter answer."
