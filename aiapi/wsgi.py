"""The WSGI application: Django's handler, and a shorter one for model calls.

Pages need middleware for sessions, forms and browsers, which took a quarter of a model call's CPU time. Model calls
have the few of settings.MODEL_CALL_MIDDLEWARE, and none of Django's steps for cookies and script names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.handlers.exception import convert_exception_to_response
from django.core.handlers.wsgi import WSGIHandler, WSGIRequest
from django.core.wsgi import get_wsgi_application
from django.utils.module_loading import import_string

from aiapi.errors import MODEL_PATHS


def is_model_call(method: str | None, path: str) -> bool:
    """Return whether a request is a model call. OPTIONS is a preflight of CORS, for which pages have the middleware."""
    return path.startswith(MODEL_PATHS) and method != "OPTIONS"


def model_call_chain(get_response: Callable[..., Any]) -> Callable[..., Any]:
    """Build the chain of MODEL_CALL_MIDDLEWARE, none of which has hooks for views, templates or exceptions."""
    chain = convert_exception_to_response(get_response)
    for path in reversed(settings.MODEL_CALL_MIDDLEWARE):
        chain = convert_exception_to_response(import_string(path)(chain))
    return chain


class ModelCallHandler(WSGIHandler):
    """Django's handler for model calls."""

    def load_middleware(self, is_async: bool = False) -> None:
        """Build the chain."""
        self._view_middleware: list[Any] = []
        self._template_response_middleware: list[Any] = []
        self._exception_middleware: list[Any] = []
        self._middleware_chain = model_call_chain(self._get_response)  # type: ignore[attr-defined]  # not in the stubs

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        """Answer a request."""
        request = WSGIRequest(environ)
        response: Any = self._middleware_chain(request)
        response._handler_class = self.__class__  # the sender of the signal request_finished
        response._resource_closers.append(request.close)
        start_response(f"{response.status_code} {response.reason_phrase}", [*response.headers._store.values()])
        return response


pages = get_wsgi_application()
model_calls = ModelCallHandler()


def application(environ: dict[str, Any], start_response: Any) -> Any:
    """Answer a request by the handler for its path."""
    handler = model_calls if is_model_call(environ["REQUEST_METHOD"], environ["PATH_INFO"]) else pages
    return handler(environ, start_response)
