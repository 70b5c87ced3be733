"""Reads of models and deployments, without the catalog's delay of up to a second, and of their latest calls."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from http import HTTPStatus
from statistics import median

from django.db.models import Exists, OuterRef, QuerySet
from django.utils import timezone

from core.formats import milliseconds, money, percent
from core.money import nano_dollars
from inference.call import ANSWERED_BEFORE
from inference.models import Deployment, Price
from monitoring.models import RequestRecord

#: Latest requests from which the figures of deployments are made.
LATEST = 2_000


@dataclass(frozen=True, slots=True)
class RecentCalls:
    """A deployment's part in the latest requests.

    Of the `failed` calls, it was the last one that was tried. `share` is that of its model's calls, `milliseconds` the
    median to the first token of a stream or to a whole answer, `cost` in nano-dollars, `cached` the share of the input
    that the provider read from its cache. `last_failure` is the latest failed call.
    """

    calls: int
    failed: int
    share: float
    milliseconds: float
    cost: int
    cached: float
    last_failure: RequestRecord | None

    def __str__(self) -> str:
        figures = [
            milliseconds(self.milliseconds),
            money(self.cost),
            f"{percent(round(self.cached, 2))} of input cached",
        ]
        share = f"{percent(round(self.share, 2))} of the model's latest calls"
        return " · ".join([share, *([f"{self.failed} of {self.calls} failed"] if self.failed else []), *figures])


def deployments_without_price() -> QuerySet[Deployment]:
    """Return the enabled deployments without a price in force, ordered by model."""
    usable = Deployment.objects.filter(is_enabled=True, provider__is_enabled=True, model__is_enabled=True)
    begun = Price.objects.filter(deployment=OuterRef("pk"), valid_from__lte=timezone.now())
    return usable.filter(~Exists(begun)).select_related("model", "provider").order_by("model__public_name", "pk")


def models_without_price() -> dict[str, str]:
    """Return the models with deployments that lack a price, each with the names of these deployments."""
    found: dict[str, list[str]] = {}
    for deployment in deployments_without_price():
        found.setdefault(deployment.model.public_name, []).append(str(deployment))
    return {model: ", ".join(names) for model, names in found.items()}


def recent_calls() -> dict[tuple[str, str], RecentCalls]:
    """Return the figures of deployments with recent calls, by the names of model and deployment."""
    latest = RequestRecord.objects.order_by("-admitted_at", "-pk").only(
        "model",
        "deployment",
        "admitted_at",
        "failures",
        "error_code",
        "status",
        "cache",
        "first_token_ms",
        "latency_ms",
        "cost",
        "input_tokens",
        "cached_tokens",
    )[:LATEST]
    by_deployment: defaultdict[tuple[str, str], list[RequestRecord]] = defaultdict(list)
    failed: defaultdict[tuple[str, str], list[RequestRecord]] = defaultdict(list)
    for record in latest:
        if record.deployment and record.cache not in ANSWERED_BEFORE:
            by_deployment[record.model, record.deployment].append(record)
            if record.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                failed[record.model, record.deployment].append(record)
    of_model: Counter[str] = Counter()
    for (model, _), records in by_deployment.items():
        of_model[model] += len(records)
    return {
        (model, deployment): RecentCalls(
            calls=len(records),
            failed=len(failed[model, deployment]),
            share=len(records) / of_model[model],
            milliseconds=median(record.first_token_ms or record.latency_ms for record in records),
            cost=sum(nano_dollars(record.cost) or 0 for record in records),
            cached=sum(each.cached_tokens for each in records) / (sum(each.input_tokens for each in records) or 1),
            last_failure=next(iter(failed[model, deployment]), None),
        )
        for (model, deployment), records in by_deployment.items()
    }
