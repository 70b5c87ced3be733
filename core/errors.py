"""Every error that a caller can see, in one tree.

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
│   └── UpstreamBusy
└── UpstreamTimeout               504

Each carries its status, a stable `code`, a message that is safe to show, headers, and `extra` fields of the body.
What a log should know and a caller should not goes into the exception's `__cause__` or a log line, never in here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from core.redaction import without_keys

#: Characters of a model's name that an error repeats.
MOST_OF_A_NAME = 100


class ApiError(Exception):
    """An answer other than success; subclasses fix status and code, instances may narrow message and extra fields."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    message: ClassVar[str] = "Internal server error"
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
    """The body or a parameter can't be accepted; `errors` maps a field to its messages."""

    status, code, message = 400, "invalid_request", "Invalid request."

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
    """The body isn't JSON, or holds what no JSON text may hold."""

    code, message = "malformed_body", "The body is not valid JSON."


class BoundExceedsLimit(InvalidRequest):
    """The most this call could use is more than a whole limit, so waiting would never help."""

    code, message = "bound_exceeds_limit", "The request can never fit a limit of this key."


class NotAuthenticated(ApiError):
    """No usable key; answers with WWW-Authenticate."""

    status, code, message = 401, "not_authenticated", "Invalid API key"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, headers={"WWW-Authenticate": 'Bearer realm="api"'})


class KeyRequired(NotAuthenticated):
    """No key was sent."""

    code, message = "api_key_required", "API key required. Include X-API-Key header."


class KeyInvalid(NotAuthenticated):
    """Unknown, wrong, revoked, expired or disabled: one answer for all, so that none can be told from another."""

    code, message = "invalid_api_key", "Invalid API key"


class PermissionDenied(ApiError):
    """The key is good, but not for this."""

    status, code, message = 403, "permission_denied", "This is not allowed."


class ScopeDenied(PermissionDenied):
    """The key lacks the scope of the endpoint."""

    code, message = "scope_denied", "This API key may not use this endpoint."


class AddressDenied(PermissionDenied):
    """The key is restricted to other addresses."""

    code, message = "address_denied", "This API key may not be used from this address."


class PriceUnknown(PermissionDenied):
    """The call counts against a budget in money, and no operator has said what the model costs."""

    code = "price_unknown"
    message = "The model has no price, so that a budget in money can't be held: an operator has to enter one."

    def __init__(self) -> None:
        super().__init__(param="model")


class NotFound(ApiError):
    """Nothing here by that name."""

    status, code, message = 404, "not_found", "Not found."


class ModelNotFound(NotFound):
    """Unknown, disabled, or outside the tier: the same answer for all three."""

    code, message = "model_not_found", "The default model does not exist or you do not have access to it."

    def __init__(self, name: str | None = None) -> None:
        """Name the model that was asked for, as far as a line has room for it; None where the default was."""
        text = None
        if name is not None:
            line = " ".join(without_keys(name).split())
            text = f"The model `{line[:MOST_OF_A_NAME]}` does not exist or you do not have access to it."
        super().__init__(text, param="model")


class MethodNotAllowed(ApiError):
    """The path exists, the method doesn't."""

    status, code, message = 405, "method_not_allowed", "Method not allowed."


class NotAcceptable(ApiError):
    """Accept names nothing that the endpoint can make."""

    status, code, message = 406, "not_acceptable", "No acceptable representation: ask for application/json."


class RequestTimeout(ApiError):
    """The body did not come within the time that its length allows."""

    status, code, message = 408, "request_timeout", "The body did not come in time. Send it again."


class Conflict(ApiError):
    """The first request under this Idempotency-Key is still running."""

    status, code, message = 409, "idempotency_in_progress", "A request with this Idempotency-Key is in progress."


class BodyTooLarge(ApiError):
    """The body is over the endpoint's size limit."""

    status, code, message = 413, "body_too_large", "The request body is too large."


class UnsupportedMediaType(ApiError):
    """The body isn't declared as JSON, or is compressed."""

    status, code, message = 415, "unsupported_media_type", "Send the body as application/json."


class IdempotencyKeyReused(ApiError):
    """The Idempotency-Key was used before for another request."""

    status, code, message = 422, "idempotency_key_reused", "This Idempotency-Key was used for another request."


class LimitExceeded(ApiError):
    """A limit has no room now. `retry_after` is in whole seconds, rounded up."""

    status, code, message = 429, "rate_limited", "Rate limit exceeded."

    def __init__(
        self, message: str | None = None, *, retry_after: int = 1, extra: Mapping[str, Any] | None = None
    ) -> None:
        self.retry_after = retry_after
        super().__init__(message, headers={"Retry-After": str(retry_after)}, extra=extra)


class RateLimited(LimitExceeded):
    """Too many requests in the last minute."""

    def __init__(self, *, retry_after: int, extra: Mapping[str, Any] | None = None) -> None:
        text = f"Rate limit exceeded. Try again in {retry_after} seconds."
        super().__init__(text, retry_after=retry_after, extra=extra)


class TokensLimited(LimitExceeded):
    """Too many tokens in the last minute, open calls included."""

    code, message = "tokens_limited", "Token rate limit exceeded."


class ConcurrencyLimited(LimitExceeded):
    """Too many calls open at once."""

    code, message = "concurrency_limited", "Too many concurrent requests."


class BudgetExhausted(LimitExceeded):
    """The month's budget has no room for this call."""

    code, message = "budget_exhausted", "The monthly budget is exhausted."


class TooManyFailures(LimitExceeded):
    """Too many bad keys or log-ins from one address; good keys from there still pass."""

    code, message = "too_many_failures", "Too many failed attempts. Try again later."


class InternalError(ApiError):
    """A fault of ours; the traceback is in the log under the request's id."""


class UpstreamFailed(ApiError):
    """The provider refused, broke off or answered nonsense."""

    status, code, message = 502, "upstream_failed", "The model provider failed to answer."


class ContentFiltered(UpstreamFailed):
    """The provider's content filter stopped the answer."""

    code, message = "content_filtered", "The model provider's content filter stopped the answer."


class Unavailable(ApiError):
    """Nothing can answer now; `retry_after` is in whole seconds."""

    status, code, message = 503, "unavailable", "Temporarily unavailable."

    def __init__(self, message: str | None = None, *, retry_after: int = 1) -> None:
        self.retry_after = retry_after
        super().__init__(message, headers={"Retry-After": str(retry_after)})


class DependencyUnavailable(Unavailable):
    """A database or state store of ours is away."""

    code, message = "dependency_unavailable", "A dependency is temporarily unavailable."


class UpstreamBusy(Unavailable):
    """The provider asked us to slow down, or none has room."""

    code, message = "upstream_busy", "The model provider has no capacity at the moment."


class UpstreamTimeout(ApiError):
    """The provider didn't answer in time."""

    status, code, message = 504, "upstream_timeout", "The model provider did not answer in time."
