"""The root endpoint, the documentation, and the HTML pages for key holders.

The pages' scripts call the API with the key that the user enters.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from csp.constants import SELF, UNSAFE_INLINE
from csp.decorators import csp_update
from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.decorators import method_decorator
from django.views.decorators.cache import cache_control
from django.views.generic import TemplateView
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.renderers import OpenApiJsonRenderer
from drf_spectacular.utils import extend_schema
from drf_spectacular.views import SpectacularRedocView
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.checks import DEMO_KEYS
from aiapi.guides import GUIDES, guide, guide_html
from core.errors import ApiError, DependencyUnavailable
from core.formats import exact_money
from inference.catalog import CatalogModel, catalog, uses_local_model
from inference.models import Model
from inference.upstream.local_model import MODEL_NAME
from monitoring.serializers import ServiceAnswer
from operations.views import AnyFormat, OpenView


def explained_errors(kind: type[ApiError] = ApiError) -> list[type[ApiError]]:
    """List the errors that have an explanation for key holders, in the order of their definition."""
    below = [each for child in kind.__subclasses__() for each in explained_errors(child)]
    return [kind, *below] if "cause" in vars(kind) and kind.cause else below


def page_context(current: str) -> dict[str, Any]:
    """Return a page's template variables; `demo_key` and `demo_model` are empty if there are none."""
    demo_key = DEMO_KEYS[0] if settings.ALLOW_PLAIN_KEYS else ""
    demo_model = MODEL_NAME if uses_local_model() else ""
    return {"name": settings.NAME, "current": current, "demo_key": demo_key, "demo_model": demo_model, "guides": GUIDES}


def public_models() -> list[dict[str, Any]]:
    """List the enabled models for visitors without a key; none unless PUBLIC_MODELS, or while the database is down."""
    return [public_model(model) for model in _callable_models()] if settings.PUBLIC_MODELS else []


def _callable_models() -> list[CatalogModel]:
    """List the enabled models that have a deployment, by name; none while the database is down."""
    try:
        return [model for _, model in sorted(catalog.models().items()) if model.routes]
    except DependencyUnavailable:
        return []


def first_request(request: HttpRequest | Request) -> dict[str, Any]:
    """Return what the pages for visitors show of models: the list, and a request to a chat model as curl."""
    name, code = first_call(request, is_public=settings.PUBLIC_MODELS)
    return {"models": public_models(), "code_model": name, "code": code}


def contact() -> dict[str, str]:
    """Return whom to ask for a key (AIAPI_CONTACT), as the text of the landing page and the address of its link."""
    is_web = settings.CONTACT.startswith(("https://", "http://"))
    url = settings.CONTACT if is_web else f"mailto:{settings.CONTACT}" if "@" in settings.CONTACT else ""
    return {"contact": settings.CONTACT, "contact_url": url}


def first_call(request: HttpRequest | Request, *, key: str = "", is_public: bool = True) -> tuple[str, str]:
    """Return the chat model to try first (`MODEL` unless models are public), and a request to it as curl."""
    chats = [model for model in _callable_models() if is_public and model.kind == Model.Kind.CHAT]
    first = min(chats, key=lambda model: model is not catalog.default(), default=None)
    chat = first.public_name if first else "MODEL"
    body = f"""{{
    "model": {json.dumps(chat)},
    "messages": [{{"role":"user","content":"What is the capital of France?"}}]
  }}"""
    code = f"""curl -sS {request.scheme}://{request.get_host()}/v1/chat/completions \\
  -H "Authorization: Bearer {key or "$AIAPI_KEY"}" \\
  -H 'Content-Type: application/json' \\
  -d '{body}'"""
    return chat, code


def public_model(model: CatalogModel) -> dict[str, Any]:
    """Return what visitors see of a model, with the prices at the provider that is asked first."""
    rates = model.routes[0].rates
    return {
        "name": model.public_name,
        "is_default": model is catalog.default(),
        "kind": model.kind,
        "aliases": model.aliases,
        "context_size": model.context_size,
        "input": exact_money(rates.input) if rates else "",
        "output": exact_money(rates.output) if rates else "",
    }


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
        codes = [
            {"status": each.status, "code": each.code, "cause": each.cause, "remedy": each.remedy}
            for each in explained_errors()
        ]
        return super().get_context_data(
            **extra, **page_context(self.current), codes=codes, **first_request(self.request)
        )


@revalidated
class GuideView(TemplateView):
    """GET /docs/{name}/: a guide or a reference."""

    http_method_names = ["get", "head", "options"]
    template_name = "guide.html"

    def get_context_data(self, **extra: Any) -> dict[str, Any]:
        """Return the guide with the service's own address in its examples; raises Http404 for an unknown name."""
        name = extra.pop("name")
        if name not in GUIDES:
            raise Http404
        page = page_context("docs")
        origin = f"{self.request.scheme}://{self.request.get_host()}"
        text = guide_html(name, origin=origin, demo_key=page["demo_key"])
        return super().get_context_data(**extra, **page, guide=guide(name), guide_name=name, text=text)


@revalidated
class RootView(OpenView):
    """GET /."""

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
        page = {**about, **page_context("landing"), **first_request(request), **contact()}
        response = render(request._request, "landing.html", page) if wants_page else Response(about)
        response["Vary"] = "Accept"
        return response


@cache
def openapi_document() -> bytes:
    """Return the OpenAPI document as JSON. It is generated once in each process, which takes most of a second."""
    document = SchemaGenerator().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    return OpenApiJsonRenderer().render(document)


@revalidated
class OpenAPIView(OpenView):
    """GET /openapi.json."""

    content_negotiation_class = AnyFormat
    schema = None

    def get(self, request: Request) -> HttpResponse:
        """Return the document, whatever the Accept header."""
        return HttpResponse(openapi_document(), content_type="application/json")


@revalidated
@method_decorator(csp_update({"style-src": [SELF, UNSAFE_INLINE]}), name="dispatch")
class DocsView(OpenView):
    """GET /docs: Swagger UI in the site's dress, from the project's own static files. It needs inline styles."""

    content_negotiation_class = AnyFormat
    schema = None

    def get(self, request: Request) -> HttpResponse:
        """Return the page."""
        return render(request._request, "docs.html", page_context("docs"))


@revalidated
@method_decorator(csp_update({"worker-src": [SELF, "blob:"], "style-src": [SELF, UNSAFE_INLINE]}), name="dispatch")
class RedocView(OpenView, SpectacularRedocView):
    """GET /redoc: ReDoc from the project's own static files. It needs inline styles and a web worker."""

    url_name = "openapi"
    template_name = "redoc.html"
