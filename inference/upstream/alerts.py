"""Deployments that fail, as alerts to operators: open breakers, and addresses that can't be reached."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from django.conf import settings
from django.utils import timezone

from inference.models import Deployment
from inference.upstream.errors import CREDIT_USED_UP
from inference.upstream.notices import failing, publish
from inference.upstream.probes import listing_trouble, served_routes
from monitoring.alerts.conditions import Condition
from monitoring.models import Alert

#: For how long a process that lives says nothing of a deployment that fails at most: longer than its pauses.
RENEWED = timedelta(seconds=180)
#: The most that a round probes, one after the other: the watch looks at nothing else meanwhile.
A_ROUND = 3


def alert_subjects(deployment_id: int) -> tuple[str, str]:
    """Name what the alerts of a deployment are about: that it fails, or that the credit there is used up."""
    return f"breaker:{deployment_id}", f"credit:{deployment_id}"


def failing_deployments() -> Iterator[Condition]:
    """List the deployments that fail as far as processes have told, of those that calls may go to.

    Between a cool-down and the outcome of its trial nothing is over.
    """
    _probe_forgotten()
    usable = Deployment.objects.filter(is_enabled=True, provider__is_enabled=True, model__is_enabled=True)
    deployments = usable.select_related("provider", "model")
    notices = {notice.deployment_id: notice for notice in failing().order_by("pk")}
    for deployment in deployments.filter(pk__in=notices).order_by("pk"):
        yield _condition(deployment, notices[deployment.pk].cause)


def _condition(deployment: Deployment, cause: str) -> Condition:
    is_failing, is_empty = alert_subjects(deployment.pk)
    if cause.startswith(CREDIT_USED_UP):
        return Condition(
            Alert.Kind.PROVIDER,
            is_empty,
            f"The credit is used up at provider {deployment.provider}: no calls go to {deployment}",
            f"Provider {deployment.provider} refused a call to {deployment} for model {deployment.model}: {cause}. "
            f"It is left alone, and tried again by a call after {settings.UPSTREAM_CREDIT_PAUSE:g} seconds; others of "
            "the model answer, if any.",
        )
    return Condition(
        Alert.Kind.PROVIDER,
        is_failing,
        f"Provider {deployment.provider} fails: no calls go to {deployment}",
        f"Calls to {deployment} for model {deployment.model} failed several times in a row, or did not reach it "
        f"({cause or 'the cause is not known'}). They are kept away from it, and it is tried again by itself; others "
        "of the model answer, if any.",
    )


def _probe_forgotten() -> None:
    """Ask for the models of what no process has told of for long: those that had it open have ended, it seems.

    A list of models says nothing about credit.
    """
    long_ago = timezone.now() - RENEWED
    forgotten = failing().filter(seen_at__lte=long_ago, open_until__lte=timezone.now())
    forgotten = forgotten.exclude(cause__startswith=CREDIT_USED_UP).order_by("seen_at")[:A_ROUND]
    pks = list(forgotten.values_list("pk", flat=True))
    served = served_routes() if pks else {}
    for pk in pks:
        trouble = listing_trouble(served[pk]) if pk in served else None
        publish(pk, None if trouble is None else 0, trouble or "")
