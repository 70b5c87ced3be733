"""What happened, and whether the service is well."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework.authentication import SessionAuthentication
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.authentication import ApiKeyAuthentication
from accounts.exceptions import NotFound, PermissionDenied
from accounts.snapshots import Identity
from accounts.usage import limits_standing, month_text
from accounts.views import KeyView
from monitoring.dashboard.views import PERMISSION as SEES_RECORDS
from monitoring.health import Health, recent_readiness, recent_report
from monitoring.rollups.query import USAGE_PARAMETERS, StatsQuery, UsageQuery
from monitoring.scrape import may_scrape, metrics_text
from monitoring.selectors import account_usage, request_record, stats
from monitoring.serializers import HealthAnswer, ProbeAnswer, RecordAnswer, StatsAnswer, UsageAnswer


class StaffSession(SessionAuthentication):
    """The admin's session, of staff only."""

    def authenticate(self, request: Request) -> Any:
        """Return the user of a staff session; None for any other, so that a key is asked for."""
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
        """Count the requests of the caller's account, or of all for staff who may see the request log."""
        self.query(data=request.query_params).is_valid(raise_exception=True)
        identity: Identity | None = getattr(request._request, "identity", None)
        account_id = identity.account_id if identity is not None else None
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
        description="While the store of the limits is away, the monthly amounts are those of the records so far.",
        parameters=USAGE_PARAMETERS,
        responses=UsageAnswer,
    )
    def get(self, request: Request) -> Response:
        """Tell where every limit of key and account stands, and add up what the account's keys did."""
        query = self.query(data=request.query_params)
        query.is_valid(raise_exception=True)
        identity: Identity = request._request.identity  # type: ignore[attr-defined]
        standing = limits_standing(identity.every_limit)
        return Response(
            {
                "account": identity.account_name,
                "key": identity.key_name,
                "tier": identity.tier_name,
                "month": month_text(standing.at),
                "source": standing.source,
                "limits": standing.states,
                "usage": account_usage(identity.account_id, query.validated_data["span"]),
            }
        )


class RequestView(KeyView):
    """GET /requests/{id}."""

    required_scope = "usage"

    @extend_schema(
        operation_id="requests_read",
        summary="See what became of a request",
        description="By its id, or by the X-Request-ID that it was sent with or answered. Of the key's account only.",
        responses={200: RecordAnswer, 404: OpenApiResponse(description="The account has no request by that name.")},
    )
    def get(self, request: Request, name: str) -> Response:
        """Show the account's own record; raises NotFound for any other."""
        identity: Identity = request._request.identity  # type: ignore[attr-defined]
        record = request_record(account_id=identity.account_id, name=name)
        if record is None:
            raise NotFound
        return Response(RecordAnswer(record).data)


class HealthView(APIView):
    """GET /health."""

    authentication_classes = []
    permission_classes = []

    @extend_schema(
        operation_id="health",
        summary="See whether the service and what it needs are well",
        description="`unhealthy` (503) where calls get nothing but 503: the database is away, or a store that each "
        "call writes to takes no writes. `degraded` when anything else is wrong.",
        responses={200: HealthAnswer, 503: HealthAnswer},
    )
    def get(self, request: Request) -> Response:
        """Tell what the checks said within the last second."""
        report = recent_report()
        return Response(report, status=503 if report["status"] == Health.AWAY else 200)


class LiveView(APIView):
    """GET /health/live: the process answers."""

    authentication_classes = []
    permission_classes = []

    @extend_schema(operation_id="health_live", summary="See whether the process answers", responses=ProbeAnswer)
    def get(self, request: Request) -> Response:
        """Answer."""
        return Response({"status": str(Health.OK)})


class ReadyView(APIView):
    """GET /health/ready: requests can be answered."""

    authentication_classes = []
    permission_classes = []

    @extend_schema(
        operation_id="health_ready",
        summary="See whether requests can be answered",
        responses={200: ProbeAnswer, 503: ProbeAnswer},
    )
    def get(self, request: Request) -> Response:
        """Ask the stores without which no call is answered."""
        state = recent_readiness()
        return Response({"status": str(state)}, status=200 if state is Health.OK else 503)


class AnyFormat(BaseContentNegotiation):
    """Whatever is accepted, the view's text is made by itself, and errors are JSON."""

    def select_parser(self, request: Request, parsers: Iterable[BaseParser]) -> BaseParser | None:
        """Take the first parser."""
        return next(iter(parsers), None)

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        """Take the first renderer."""
        renderer = next(iter(renderers))
        return renderer, renderer.media_type


class MetricsView(APIView):
    """GET /metrics: Prometheus reads it, by METRICS_TOKEN or from METRICS_NETWORKS."""

    authentication_classes = []
    permission_classes = []
    content_negotiation_class = AnyFormat

    @extend_schema(
        operation_id="metrics",
        summary="Read the metrics of this server, for Prometheus",
        description=(
            "In Prometheus's text format, or OpenMetrics where that is accepted. For addresses in METRICS_NETWORKS "
            "(loopback by default), or with `Authorization: Bearer METRICS_TOKEN`; a key opens nothing here."
        ),
        responses={
            (200, "text/plain"): OpenApiTypes.STR,
            (200, "application/openmetrics-text"): OpenApiTypes.STR,
            403: OpenApiResponse(description="Neither the token nor the address is one that may read them."),
        },
    )
    def get(self, request: Request) -> HttpResponse:
        """Write all metrics; raises PermissionDenied for everyone else."""
        if not may_scrape(request._request):
            raise PermissionDenied
        text, content_type = metrics_text(request.headers.get("Accept", ""))
        return HttpResponse(text, content_type=content_type, headers={"Cache-Control": "no-store"})
