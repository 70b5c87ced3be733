"""HTML pages for key holders. Their scripts call the API with the key that the user enters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.utils.decorators import method_decorator
from django.views.decorators.cache import cache_control
from django.views.generic import TemplateView

from accounts.checks import DEMO_KEYS
from core import errors
from core.errors import ApiError
from inference.catalog import uses_local_model
from inference.upstream.local_model import MODEL_NAME


@dataclass(frozen=True, slots=True)
class Meaning:
    """The cause of an error and its remedy, for key holders."""

    error: type[ApiError]
    cause: str
    mend: str

    @property
    def code(self) -> str:
        """Return the error's stable code."""
        return self.error.code

    @property
    def status(self) -> int:
        """Return the error's HTTP status."""
        return self.error.status


MEANINGS = [
    Meaning(
        errors.InvalidRequest,
        "A field is missing, unknown, of the wrong type or out of bounds.",
        "Correct the field that the answer names.",
    ),
    Meaning(
        errors.BoundExceedsLimit,
        "The call could use more than an entire limit, so waiting would not help.",
        "Shorten the prompt, ask for fewer tokens, or have the limit raised.",
    ),
    Meaning(errors.KeyRequired, "No key was sent.", "Enter your key."),
    Meaning(
        errors.KeyInvalid,
        "The key is unknown, mistyped, revoked, expired or disabled.",
        "Check that it is complete; if it is, ask your operator for a new one.",
    ),
    Meaning(errors.ScopeDenied, "The key lacks the scope for this.", "Use another key, or have its scopes extended."),
    Meaning(errors.AddressDenied, "The key may not be used from your IP address.", "Call from an allowed address."),
    Meaning(
        errors.ModelNotFound,
        "The model is unknown or disabled, or this key may not use it.",
        "Use one of the models that GET /v1/models lists.",
    ),
    Meaning(errors.RequestTimeout, "The request came too slowly, or only in part.", "Send it again."),
    Meaning(errors.BodyTooLarge, "The request is too large.", "Send a smaller one."),
    Meaning(errors.RateLimited, "The requests of the last minute are used up.", "Wait for the seconds of Retry-After."),
    Meaning(
        errors.TokensLimited,
        "The tokens of the last minute, running calls included, are used up.",
        "Wait for the seconds of Retry-After, or ask for fewer tokens.",
    ),
    Meaning(errors.ConcurrencyLimited, "Too many calls are running at the same time.", "Wait until one has ended."),
    Meaning(
        errors.BudgetExhausted,
        "The rest of the month's budget does not cover this call.",
        "Wait for the month's end (UTC), or have the budget raised.",
    ),
    Meaning(
        errors.TooManyFailures,
        "Too many invalid keys came from your address. Valid keys still work.",
        "Correct the key, and wait for the seconds of Retry-After.",
    ),
    Meaning(errors.InternalError, "An error of the service.", "Report the request id to your operator."),
    Meaning(
        errors.UpstreamFailed,
        "The model's provider refused the call, broke off or sent an invalid answer.",
        "Try again; if it lasts, report the request id.",
    ),
    Meaning(errors.ContentFiltered, "The provider's content filter stopped the answer.", "Ask something else."),
    Meaning(errors.Unavailable, "The service can't answer now.", "Wait for the seconds of Retry-After."),
    Meaning(
        errors.DependencyUnavailable,
        "A dependency of the service is unavailable.",
        "Wait for the seconds of Retry-After.",
    ),
    Meaning(
        errors.UpstreamBusy, "The provider has no capacity for more calls.", "Wait for the seconds of Retry-After."
    ),
    Meaning(errors.UpstreamTimeout, "The provider took too long.", "Try again, or ask for a shorter answer."),
]


def page_context(current: str) -> dict[str, Any]:
    """Return a page's template variables; `demo_key` and `demo_model` are empty if there are none."""
    demo_key = DEMO_KEYS[0] if settings.ALLOW_PLAIN_KEYS else ""
    demo_model = MODEL_NAME if uses_local_model() else ""
    return {"name": settings.NAME, "current": current, "demo_key": demo_key, "demo_model": demo_model}


#: For pages that are the same for all users: browsers store them, and ask each time whether they have changed.
revalidated = method_decorator(cache_control(no_cache=True), name="get")


@revalidated
class PageView(TemplateView):
    """GET a page. `current` is the name of the page and of its template."""

    http_method_names = ["get", "head", "options"]
    current = ""

    def get_template_names(self) -> list[str]:
        """Return the page's template."""
        return [f"{self.current}.html"]

    def get_context_data(self, **extra: Any) -> dict[str, Any]:
        """Return the page's template variables."""
        return super().get_context_data(**extra, **page_context(self.current), codes=MEANINGS)
