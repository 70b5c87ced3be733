"""Deployments that fail, as alerts to operators: open breakers, and addresses that can't be reached."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from django.utils import timezone

from inference.models import Deployment
from inference.upstream.notices import failing, publish
from inference.upstream.probes import listing_trouble, served_routes
from monitoring.alerts.conditions import Condition
from monitoring.models import Alert

#: For how long a process that lives says nothing of a deployment that fails at most: longer than its pauses.
RENEWED = timedelta(seconds=180)
#: The most that a round probes, one after the other: the watch looks at nothing else meanwhile.
A_ROUND = 3


def breaker_subject(deployment_id: int) -> str:
    """Name what the alert of a deployment is about."""
    return f"breaker:{deployment_id}"


def failing_deployments() -> Iterator[Condition]:
    """List the deployments that fail as far as processes have told, of those that calls may go to.

    Between a cool-down and the outcome of its trial nothing is over.
    """
    _probe_forgotten()
    usable = Deployment.objects.filter(is_enabled=True, provider__is_enabled=True, model__is_enabled=True)
    deployments = usable.select_related("provider", "model")
    notices = {notice.deployment_id: notice for notice in failing().order_by("pk")}
    for deployment in deployments.filter(pk__in=notices).order_by("pk"):
        notice = notices[deployment.pk]
        yield Condition(
            Alert.Kind.PROVIDER,
            breaker_subject(deployment.pk),
            f"Provider {deployment.provider} fails: no calls go to {deployment}",
            f"Calls to {deployment} for model {deployment.model} failed several times in a row, or did not reach it "
            f"({notice.cause or 'the cause is not known'}). They are kept away from it, and it is tried again by "
            "itself; others of the model answer, if any.",
        )


def _probe_forgotten() -> None:
    """Ask for the models of what no process has told of for long: those that had it open have ended, it seems."""
    forgotten = failing().filter(seen_at__lte=timezone.now() - RENEWED).order_by("seen_at")[:A_ROUND]
    pks = list(forgotten.values_list("pk", flat=True))
    served = served_routes() if pks else {}
    for pk in pks:
        trouble = listing_trouble(served[pk]) if pk in served else None
        publish(pk, None if trouble is None else 0, trouble or "")
