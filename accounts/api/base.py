"""The base of all endpoints behind an API key: authentication, scope, and the headers about limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from django.utils.cache import patch_vary_headers
from rest_framework.exceptions import NotAcceptable
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.authentication import calling_key
from accounts.idempotency import Replayed
from accounts.key_cache import AuthenticatedKey
from accounts.limit_usage import rate_headers
from accounts.limits import get_limits
from accounts.limits.types import Admission, LimitsUnavailable
from accounts.models import IdempotentAnswer
from core.errors import ApiError, ScopeDenied
from core.headers import set_headers


class KeyView(APIView):
    """A view behind an API key; `required_scope` is the scope that the key must have."""

    required_scope: str | None = None
    is_authenticated = False
    #: The calling key; None for a session of the admin, and before authentication.
    caller: AuthenticatedKey | None = None
    #: The same, for views that authenticate by a key only.
    identity: AuthenticatedKey
    #: The request as the limits counted it, and the error that answers it; None where there is none.
    admission: Admission | None = None
    error: ApiError | None = None
    replayed: IdempotentAnswer | None = None
    not_acceptable: NotAcceptable | None = None

    def perform_authentication(self, request: Request) -> None:
        """Authenticate, and note the success, because accessing request.user again would authenticate again."""
        super().perform_authentication(request)
        self.is_authenticated = request.user is not None
        self.caller = calling_key(request)
        if self.caller is not None:
            self.identity = self.caller

    def perform_content_negotiation(self, request: Request, force: bool = False) -> Any:
        """Use the first renderer if none is acceptable; `initial` refuses that later."""
        try:
            return super().perform_content_negotiation(request, force)
        except NotAcceptable as error:
            self.not_acceptable = error
            return super().perform_content_negotiation(request, force=True)

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Authenticate and count the request first; only then refuse its Accept header or a missing scope."""
        super().initial(request, *args, **kwargs)
        if self.not_acceptable is not None:
            raise self.not_acceptable
        if self.required_scope and self.caller is not None and self.required_scope not in self.caller.scopes:
            raise ScopeDenied

    def handle_exception(self, exc: Exception) -> Response:
        """Return the kept answer of a replayed request; pass other exceptions to the handler."""
        if not isinstance(exc, Replayed):
            return super().handle_exception(exc)
        self.replayed = exc.answer
        return cast("Response", exc.response())

    def finalize_response(self, request: Request, response: Response, *args: Any, **kwargs: Any) -> Response:
        """Add the headers of every authenticated answer, errors included."""
        response = super().finalize_response(request, response, *args, **kwargs)
        if self.caller is not None:
            set_headers(response, self.limit_headers(request, self.caller))
        if self.is_authenticated:
            set_headers(response, {"Cache-Control": "private, no-store"})
            patch_vary_headers(response, ["Authorization", "X-API-Key"])
        return response

    def limit_headers(self, request: Request, identity: AuthenticatedKey) -> dict[str, str]:
        """Return the rate headers: as counted for this request, or the current ones if it was not counted.

        The time of a count is moved forward by the duration of the request, because a model may have taken a while to
        answer.
        """
        admission, error = self.admission, self.error
        if admission is None:
            try:
                return self.rate_headers(get_limits().peek(identity.limits))
            except LimitsUnavailable:
                return {}
        if error is not None and error.refusal is not None:
            return self.rate_headers(admission.refused(error.refusal))
        elapsed = int(request._request.trace.elapsed_ms * 1000)  # type: ignore[attr-defined]
        return self.rate_headers(replace(admission, at=admission.at + elapsed))

    def rate_headers(self, admission: Admission) -> dict[str, str]:
        """Return an admission as headers."""
        return rate_headers(admission)
