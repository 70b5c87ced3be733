"""The throttle class of model endpoints: counts a request against the rates of its key and account.

DRF's own SimpleRateThrottle reads, counts and writes in three steps and admits more than its limit under load; this
one is a single atomic call to accounts.limits.
"""

from __future__ import annotations

from typing import Any

from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from accounts.exceptions import DependencyUnavailable
from accounts.limits import get_limits
from accounts.limits.contract import Unavailable
from accounts.refusals import refusal_error


class RequestRateThrottle(BaseThrottle):
    """Admits a POST of a known key while its requests a minute last; other methods don't count."""

    def allow_request(self, request: Request, view: Any) -> bool:
        """Count the request once; raises RateLimited with the time of the next free slot."""
        if request.method != "POST":
            return True
        django_request = request._request
        trace = django_request.trace  # type: ignore[attr-defined]
        with trace.stage("limits"):
            try:
                admission = get_limits().admit(django_request.identity.limits, trace.id.hex)  # type: ignore[attr-defined]
            except Unavailable as error:
                raise DependencyUnavailable(retry_after=error.retry_after) from error
        django_request.admission = admission  # type: ignore[attr-defined]
        if admission.refusal is not None:
            raise refusal_error(admission.refusal)
        return True
