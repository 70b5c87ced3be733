"""Breakers that are open, and addresses that can't be reached, as alerts to operators."""

from __future__ import annotations

from collections.abc import Iterator

from inference.models import Deployment
from inference.upstream.notices import failing_anywhere, open_anywhere
from monitoring.alerts.conditions import Condition
from monitoring.models import Alert


def open_breakers() -> Iterator[Condition]:
    """List the deployments to which some process lets no calls pass, as far as they have told.

    Between a cool-down and the outcome of its trial nothing is over.
    """
    usable = Deployment.objects.filter(is_enabled=True, provider__is_enabled=True, model__is_enabled=True)
    deployments = {deployment.pk: deployment for deployment in usable.select_related("provider", "model")}
    opened = open_anywhere(deployments)
    for pk in sorted(failing_anywhere(deployments)):
        deployment = deployments[pk]
        yield Condition(
            Alert.Kind.PROVIDER,
            f"breaker:{pk}",
            f"Provider {deployment.provider} fails: no calls go to {deployment}",
            f"Calls to {deployment} for model {deployment.model} failed several times in a row, or did not reach it. "
            "They are kept away from it, and it is tried again by itself; others of the model answer, if any.",
            is_on=pk in opened,
        )
