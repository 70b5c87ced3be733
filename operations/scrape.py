"""The metrics for Prometheus: those of all workers of this server, and those measured at each scrape."""

from __future__ import annotations

import hmac
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_network

import django
import structlog
from django.conf import settings
from django.http import HttpRequest
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from core.errors import DependencyUnavailable
from core.network import client_address, is_within
from core.telemetry import metrics
from core.telemetry.metrics_folder import VARIABLE
from inference.catalog import deployment_names
from monitoring.ingester import ingest_backlog

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))

log = structlog.get_logger(__name__)


def may_scrape(request: HttpRequest) -> bool:
    """Return whether a request may read the metrics: with METRICS_TOKEN, or from an address in METRICS_NETWORKS.

    Without either setting, only loopback may. If X-Forwarded-For does not fit TRUSTED_PROXIES (none is trusted, or the
    header has fewer entries), the client's address is unknown and the token is needed.
    """
    token: str = settings.METRICS_TOKEN
    scheme, _, given = str(request.META.get("HTTP_AUTHORIZATION", "")).partition(" ")
    given = given.strip() if scheme.lower() == "bearer" else ""
    if token and hmac.compare_digest(given.encode(), token.encode()):
        return True
    forwarded = request.META.get("HTTP_X_FORWARDED_FOR")
    if forwarded is not None and not 0 < settings.TRUSTED_PROXIES <= len(forwarded.split(",")):
        return False
    networks = settings.METRICS_NETWORKS or (() if token else LOOPBACK)
    return is_within(client_address(request), networks)


def metrics_text(accept: str) -> tuple[bytes, str]:
    """Return all metrics in the format that an Accept header asks for, and the content type."""
    encode, content_type = choose_encoder(accept)
    registry = CollectorRegistry()
    registry.register(ServerCollector())
    return encode(registry), content_type


def metric_names() -> list[str]:
    """List the names of all metrics as alert rules use them: counters end in `_total`."""
    families = [*metrics.REGISTRY.collect(), *measured_now()]
    return sorted(f"{each.name}_total" if each.type == "counter" else each.name for each in families)


class ServerCollector(Collector):
    """Collects the metrics of all workers, including those without a series yet, and what is measured now."""

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics in the order of their definition."""
        # Those of the folder that all workers share; without one, those of this process.
        is_shared = bool(os.environ.get(VARIABLE))
        shared = MultiProcessCollector(None).collect() if is_shared else metrics.REGISTRY.collect()  # type: ignore[no-untyped-call]
        found = {each.name: each for each in shared}
        for own in metrics.REGISTRY.collect():
            metric = found.get(own.name) or Metric(own.name, own.documentation, own.type)
            if own.name == "aiapi_breaker_state":
                with suppress(DependencyUnavailable):  # then those of deleted deployments stay
                    present = set(deployment_names())
                    metric.samples = [each for each in metric.samples if each.labels["deployment"] in present]
            yield metric
        yield from measured_now()


def measured_now() -> Iterator[Metric]:
    """Yield what is measured at each scrape: the queue of records (no value while Redis is down), and the build."""
    try:
        backlog = ingest_backlog()
    except RedisError as error:
        log.warning("backlog_not_read", cause=type(error).__name__)
        backlog = None
    seconds, records = (backlog.seconds, backlog.records) if backlog else (None, None)
    waited = "Seconds that the oldest record has waited to be ingested."
    yield GaugeMetricFamily("aiapi_state_store_up", "Whether the state store answers.", int(backlog is not None))
    yield GaugeMetricFamily("aiapi_ingest_lag_seconds", waited, seconds)
    yield GaugeMetricFamily("aiapi_ingest_queue_records", "Records that wait to be ingested.", records)
    build = GaugeMetricFamily("aiapi_build_info", "What is running.", labels=["version", "python", "django"])
    build.add_metric([settings.VERSION, platform.python_version(), django.get_version()], 1)
    yield build
