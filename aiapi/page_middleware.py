"""Middleware for pages, mainly of the admin. Model calls skip it, because it took a quarter of their CPU time.

The classes are subclasses of Django's (or django-csp's), because Django's system checks look for those.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from csp.constants import UNSAFE_EVAL, UNSAFE_INLINE
from csp.middleware import CSPMiddleware
from django.conf import settings
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.middleware.http import ConditionalGetMiddleware
from django.utils.deprecation import MiddlewareMixin

from accounts.authentication import count_attempt
from aiapi.error_pages import error_answer
from core.errors import TooManyFailures

GetResponse = Callable[[HttpRequest], HttpResponseBase]


class PagesOnly(MiddlewareMixin):
    """Mixin that makes model calls skip a middleware."""

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Run the middleware for pages only."""
        # Set by RequestMiddleware, the outermost middleware.
        respond = self.get_response if request.is_model_call else super().__call__  # type: ignore[attr-defined]
        return cast("HttpResponseBase", respond(request))  # nothing here is asynchronous


class PageSessions(PagesOnly, SessionMiddleware):
    """Sessions of the users of the admin and of GET /stats."""


class PageRevalidation(PagesOnly, ConditionalGetMiddleware):
    """ETags for responses with Cache-Control, and 304 responses to browsers that have them already."""

    def needs_etag(self, response: HttpResponseBase) -> bool:
        """Return whether a response may be stored. Those without Cache-Control get no-store later."""
        return response.has_header("Cache-Control") and super().needs_etag(response)


class PageUsers(PagesOnly, AuthenticationMiddleware):
    """The logged-in user of a session."""


class PageMessages(PagesOnly, MessageMiddleware):
    """Messages for the next page of the admin."""


class PagePolicy(PagesOnly, CSPMiddleware):
    """Content-Security-Policy. On /admin/ it permits eval (for Alpine) and inline styles, which unfold needs."""

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        """Add the header."""
        if request.path_info.startswith("/admin/"):
            response._csp_update = {"script-src": [UNSAFE_EVAL], "style-src": [UNSAFE_INLINE]}  # type: ignore[attr-defined]
        answer: HttpResponseBase = super().process_response(request, response)
        return answer


class AdminLoginLimit:
    """Limits log-in attempts in the admin by address (ADMIN_LOGIN_RATE)."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer log-in attempts over the rate with 429."""
        if request.method == "POST" and request.path_info == "/admin/login/":
            try:
                count_attempt(request, group="admin-login", rate=settings.ADMIN_LOGIN_RATE)
            except TooManyFailures as error:
                return error_answer(request, error)
        return self.get_response(request)
