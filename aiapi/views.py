"""The root endpoint, the OpenAPI document and the documentation pages."""

from __future__ import annotations

from functools import cache

from csp.constants import SELF, UNSAFE_INLINE
from csp.decorators import csp_update
from django.conf import settings
from django.http import HttpResponse
from django.shortcuts import render
from django.utils.decorators import method_decorator
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.renderers import OpenApiJsonRenderer
from drf_spectacular.utils import extend_schema
from drf_spectacular.views import SpectacularRedocView, SpectacularSwaggerSplitView
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from aiapi.pages import page_context, revalidated
from monitoring.serializers import ServiceAnswer
from operations.views import AnyFormat


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
