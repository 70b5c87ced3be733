"""What happens to requests for pages, the admin's above all. Calls to models pass it by: it took a fourth of their CPU.

Each is Django's own (or django-csp's), which Django's checks recognise by its class; PagesOnly lets model calls past.
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
    """Let calls to models past a middleware that only pages need."""

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer the request."""
        # Set by RequestMiddleware, which is outside of all.
        respond = self.get_response if request.is_model_call else super().__call__  # type: ignore[attr-defined]
        return cast("HttpResponseBase", respond(request))  # nothing here is asynchronous


class PageSessions(PagesOnly, SessionMiddleware):
    """Sessions, which the admin and GET /stats know their users by."""


class PageRevalidation(PagesOnly, ConditionalGetMiddleware):
    """ETags of what says that it may be stored, and 304 to a browser that has it already."""

    def needs_etag(self, response: HttpResponseBase) -> bool:
        """Say whether an answer may be stored: one that says nothing of it may not (RequestMiddleware)."""
        return response.has_header("Cache-Control") and super().needs_etag(response)


class PageUsers(PagesOnly, AuthenticationMiddleware):
    """The user of a session."""


class PageMessages(PagesOnly, MessageMiddleware):
    """What the admin has to say on the next page."""


class PagePolicy(PagesOnly, CSPMiddleware):
    """The Content-Security-Policy, relaxed on /admin/ by what unfold needs: Alpine evaluates, and it styles inline."""

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        """Add the header."""
        if request.path_info.startswith("/admin/"):
            response._csp_update = {"script-src": [UNSAFE_EVAL], "style-src": [UNSAFE_INLINE]}  # type: ignore[attr-defined]
        answer: HttpResponseBase = super().process_response(request, response)
        return answer


class AdminLoginLimit:
    """Limit log-in attempts in the admin by address (ADMIN_LOGIN_RATE)."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer 429 to an attempt over the rate."""
        if request.method == "POST" and request.path_info == "/admin/login/":
            try:
                count_attempt(request, group="admin-login", rate=settings.ADMIN_LOGIN_RATE)
            except TooManyFailures as error:
                return error_answer(request, error)
        return self.get_response(request)
