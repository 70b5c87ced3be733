"""GET /health and its probes, and GET /metrics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import serializers
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from core.errors import PermissionDenied
from operations.health import Health, health_report, readiness, recent_reports
from operations.scrape import may_scrape, metrics_text


class HealthAnswer(serializers.Serializer[Any]):
    """The answer of /health."""

    status = serializers.ChoiceField(choices=[str(state) for state in Health])
    checks = serializers.DictField(child=serializers.ChoiceField(choices=[str(state) for state in Health]))
    reasons = serializers.DictField(
        child=serializers.CharField(), required=False, help_text="Reasons by name of a failed check, if known."
    )
    response_time_ms = serializers.FloatField()


class ProbeAnswer(serializers.Serializer[Any]):
    """The answer of /health/live and /health/ready."""

    status = serializers.ChoiceField(choices=[str(state) for state in Health])


class OpenView(APIView):
    """A view without authentication: what may be read is decided by the view itself."""

    authentication_classes = []
    permission_classes = []


class HealthView(OpenView):
    """GET /health."""

    @extend_schema(
        operation_id="health",
        summary="See whether the service and its parts are healthy",
        description="`unhealthy` (503) if all calls get 503: the database is down, or the state store takes no writes. "
        "`degraded` (200) if anything else is wrong.",
        responses={200: HealthAnswer, 503: HealthAnswer},
    )
    def get(self, request: Request) -> Response:
        """Return the report of the checks, at most a second old; 503 if the service is unhealthy."""
        report = recent_reports.get(health_report)
        return Response(report, status=503 if report["status"] == Health.AWAY else 200)


class LiveView(OpenView):
    """GET /health/live: the process answers."""

    @extend_schema(operation_id="health_live", summary="See whether the process answers", responses=ProbeAnswer)
    def get(self, request: Request) -> Response:
        """Return OK."""
        return Response({"status": str(Health.OK)})


class ReadyView(OpenView):
    """GET /health/ready: requests can be answered."""

    @extend_schema(
        operation_id="health_ready",
        summary="See whether requests can be answered",
        responses={200: ProbeAnswer, 503: ProbeAnswer},
    )
    def get(self, request: Request) -> Response:
        """Return the readiness, at most a second old; 503 if the service is not ready."""
        state = recent_reports.get(readiness)
        return Response({"status": str(state)}, status=200 if state is Health.OK else 503)


class AnyFormat(BaseContentNegotiation):
    """Ignores the Accept header: the view chooses the format itself, and errors are JSON."""

    def select_parser(self, request: Request, parsers: Iterable[BaseParser]) -> BaseParser | None:
        """Return the first parser."""
        return next(iter(parsers), None)

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        """Return the first renderer."""
        renderer = next(iter(renderers))
        return renderer, renderer.media_type


class MetricsView(OpenView):
    """GET /metrics: Prometheus reads it, by METRICS_TOKEN or from METRICS_NETWORKS."""

    content_negotiation_class = AnyFormat

    @extend_schema(
        operation_id="metrics",
        summary="Read the metrics of this server, for Prometheus",
        description=(
            "In Prometheus's text format, or OpenMetrics if accepted. For addresses in METRICS_NETWORKS (loopback by "
            "default), or with `Authorization: Bearer METRICS_TOKEN`; API keys are not accepted."
        ),
        responses={
            (200, "text/plain"): OpenApiTypes.STR,
            (200, "application/openmetrics-text"): OpenApiTypes.STR,
            403: OpenApiResponse(description="Neither the token nor the address may read them."),
        },
    )
    def get(self, request: Request) -> HttpResponse:
        """Return all metrics; raises PermissionDenied without the token or an allowed address."""
        if not may_scrape(request._request):
            raise PermissionDenied
        text, content_type = metrics_text(request.headers.get("Accept", ""))
        return HttpResponse(text, content_type=content_type, headers={"Cache-Control": "no-store"})
