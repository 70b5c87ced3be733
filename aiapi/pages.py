"""The root endpoint, the documentation, and the HTML pages for key holders.

The pages' scripts call the API with the key that the user enters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from csp.constants import SELF, UNSAFE_INLINE
from csp.decorators import csp_update
from django.conf import settings
from django.http import HttpResponse
from django.shortcuts import render
from django.utils.decorators import method_decorator
from django.views.decorators.cache import cache_control
from django.views.generic import TemplateView
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.renderers import OpenApiJsonRenderer
from drf_spectacular.utils import extend_schema
from drf_spectacular.views import SpectacularRedocView, SpectacularSwaggerSplitView
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.checks import DEMO_KEYS
from core import errors
from core.errors import ApiError
from inference.catalog import uses_local_model
from inference.upstream.local_model import MODEL_NAME
from monitoring.serializers import ServiceAnswer
from operations.views import AnyFormat


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


@revalidated
class RootView(APIView):
    """GET /."""

    authentication_classes = []
    permission_classes = []
    renderer_classes = [JSONRenderer]
    content_negotiation_class = AnyFormat

    @extend_schema(operation_id="root", summary="See what this service is", responses=ServiceAnswer)
    def get(self, request: Request) -> Response | HttpResponse:
        """Return the service's description as JSON, or the landing page for browsers."""
        about = {
            "name": settings.NAME,
            "version": settings.VERSION,
            "description": settings.DESCRIPTION,
            "docs": "/docs",
            "health": "/health",
        }
        wants_page = "text/html" in request.headers.get("Accept", "").lower()
        page = {**about, **page_context("landing")}
        response = render(request._request, "landing.html", page) if wants_page else Response(about)
        response["Vary"] = "Accept"
        return response


@cache
def openapi_document() -> bytes:
    """Return the OpenAPI document as JSON. It is generated once in each process, which takes most of a second."""
    document = SchemaGenerator().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    return OpenApiJsonRenderer().render(document)


@revalidated
class OpenAPIView(APIView):
    """GET /openapi.json."""

    authentication_classes = []
    permission_classes = []
    content_negotiation_class = AnyFormat
    schema = None

    def get(self, request: Request) -> HttpResponse:
        """Return the document, whatever the Accept header."""
        return HttpResponse(openapi_document(), content_type="application/json")


@revalidated
@method_decorator(csp_update({"style-src": [SELF, UNSAFE_INLINE]}), name="dispatch")
class SwaggerView(SpectacularSwaggerSplitView):
    """GET /docs: Swagger UI from the project's own static files, without an inline script."""

    authentication_classes = []
    permission_classes = []
    url_name = "openapi"
    url_self = "/docs"


@revalidated
@method_decorator(csp_update({"worker-src": [SELF, "blob:"], "style-src": [SELF, UNSAFE_INLINE]}), name="dispatch")
class RedocView(SpectacularRedocView):
    """GET /redoc: ReDoc from the project's own static files. It needs inline styles and a web worker."""

    authentication_classes = []
    permission_classes = []
    url_name = "openapi"
    template_name = "redoc.html"
