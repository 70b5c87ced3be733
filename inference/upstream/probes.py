"""Deployments that failed and that nobody calls any more: their provider is asked for its list of models instead.

That spends no token. Each process asks for what it has open itself, once a minute at most after a while, until the
list comes, a call does, or the deployment is not served any more. An answer of any kind counts that a call's would.
"""

from __future__ import annotations

from django.conf import settings

from accounts.connections import release_connections
from accounts.loops import WorkThread
from inference.catalog import Route, catalog
from inference.upstream.breaker import breakers
from inference.upstream.client import client
from monitoring.metrics import observe_breaker

#: Seconds between two looks whether a deployment waits for a call that does not come.
LOOK_SECONDS = 2.0
#: The longest that a list of models may take.
LISTING_SECONDS = 10.0


def listing_trouble(route: Route) -> str | None:
    """Ask for a provider's list of models; name what shows that calls would fail as well, or None."""
    failure = client.list_models(route, seconds=min(LISTING_SECONDS, settings.UPSTREAM_TIMEOUT))
    return failure.cause if failure is not None and failure.verdict.is_down else None


def served_routes() -> dict[int, Route]:
    """List the deployments that calls may go to, by id; raises DependencyUnavailable as the catalog does."""
    try:
        return {route.deployment_id: route for model in catalog.models().values() for route in model.routes}
    finally:
        release_connections()


def _probe_unasked() -> None:
    unasked = breakers.unasked()
    served = served_routes() if unasked else {}
    for deployment_id in unasked:
        route = served.get(deployment_id)
        if route is None:
            breakers.close(deployment_id)
            continue
        breakers.probed(deployment_id, listing_trouble(route))
        observe_breaker(route.name, breakers.state(deployment_id))


probes = WorkThread(
    _probe_unasked,
    has_work=breakers.has_open,
    seconds=lambda: LOOK_SECONDS,
    name="deployment-probe",
    event="deployments_not_probed",
)
