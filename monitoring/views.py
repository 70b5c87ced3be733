"""GET /stats, GET /usage, GET /requests and GET /requests/{id}."""

from __future__ import annotations

from typing import Any

from django.utils import timezone
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework.authentication import SessionAuthentication
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api.base import KeyView
from accounts.authentication import ApiKeyAuthentication
from accounts.limit_usage import get_limit_usage, month_text
from core.errors import NotFound, PermissionDenied
from monitoring.forecast import budget_forecasts
from monitoring.models import VIEW_RECORDS as SEES_RECORDS
from monitoring.selectors import account_usage, request_record, request_records, stats
from monitoring.serializers import (
    USAGE_PARAMETERS,
    RecordAnswer,
    RequestsAnswer,
    RequestsQuery,
    StatsAnswer,
    StatsQuery,
    UsageAnswer,
    UsageQuery,
)


class StaffSession(SessionAuthentication):
    """Authenticates staff by their admin session."""

    def authenticate(self, request: Request) -> Any:
        """Return the user of a staff session; None otherwise, so that the request needs a key."""
        found = super().authenticate(request)
        return found if found is not None and found[0].is_staff else None


class StatsView(KeyView):
    """GET /stats."""

    authentication_classes = [ApiKeyAuthentication, StaffSession]
    required_scope = "usage"
    query = StatsQuery

    @extend_schema(
        operation_id="stats",
        summary="Count requests, cache hits and keys",
        description=(
            "Over the model endpoints: of the key's account, or of all for a session of the admin whose user may view "
            "request records."
        ),
        responses=StatsAnswer,
    )
    def get(self, request: Request) -> Response:
        """Return the statistics of the caller's account, or of all for staff who may view the request log."""
        self.query(data=request.query_params.dict()).is_valid(raise_exception=True)
        account_id = self.caller.account_id if self.caller is not None else None
        if account_id is None and not request.user.has_perm(SEES_RECORDS):
            raise PermissionDenied
        return Response(stats(account_id=account_id))


class UsageView(KeyView):
    """GET /usage."""

    required_scope = "usage"
    query = UsageQuery

    @extend_schema(
        operation_id="usage",
        summary="See what is left of the key's limits, and what the account used",
        description="While the state store is down, the monthly amounts are those of the records.",
        parameters=USAGE_PARAMETERS,
        responses=UsageAnswer,
    )
    def get(self, request: Request) -> Response:
        """Return the usage of each limit of key and account, and the account's usage in the span."""
        query = self.query(data=request.query_params.dict())
        query.is_valid(raise_exception=True)
        identity = self.identity
        report = get_limit_usage(identity.every_limit)
        limited = [usage for usage in report.limits if usage.limit is not None]
        forecasts = budget_forecasts(limited, account_id=identity.account_id, now=timezone.now())
        return Response(
            {
                "account": identity.account_name,
                "key": identity.key_name,
                "tier": identity.tier_name,
                "expires_at": identity.ends_at,
                "scopes": sorted(identity.scopes),
                "month": month_text(report.at),
                "source": report.source,
                "limits": [
                    usage.as_json() | ({"forecast": forecasts[usage].as_json()} if usage in forecasts else {})
                    for usage in report.limits
                ],
                "usage": account_usage(identity.account_id, query.validated_data["span"]),
            }
        )


NO_REQUEST = OpenApiResponse(description="The account has no such request.")


class RequestsView(KeyView):
    """GET /requests."""

    required_scope = "usage"
    query = RequestsQuery

    @extend_schema(
        operation_id="requests_list",
        summary="List the account's latest requests",
        description="Of all keys of the account, the newest first.",
        parameters=[RequestsQuery],
        responses={200: RequestsAnswer, 404: NO_REQUEST},
    )
    def get(self, request: Request) -> Response:
        """Return a page of the records of the key's account, and where the next one begins.

        Raises NotFound if the account has no request `before`.
        """
        query = self.query(data=request.query_params.dict())
        query.is_valid(raise_exception=True)
        asked = query.validated_data
        records = request_records(account_id=self.identity.account_id, **asked)
        if records is None:
            raise NotFound
        has_more = len(records) == asked["limit"]
        return Response(RequestsAnswer({"requests": records, "next": records[-1].id if has_more else None}).data)


class RequestView(KeyView):
    """GET /requests/{id}."""

    required_scope = "usage"

    @extend_schema(
        operation_id="requests_read",
        summary="Read the record of a request",
        description="By its id or its X-Request-ID. Of the key's account only.",
        responses={200: RecordAnswer, 404: NO_REQUEST},
    )
    def get(self, request: Request, name: str) -> Response:
        """Return a record of the key's account; raises NotFound if the account has none by that name."""
        record = request_record(account_id=self.identity.account_id, name=name)
        if record is None:
            raise NotFound
        return Response(RecordAnswer(record).data)
