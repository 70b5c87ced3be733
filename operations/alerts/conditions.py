"""What is watched apart from budgets: the share of failed requests, the health checks, deployments and prices.

Models without a price, as alerts to operators.

Deployments that fail, as alerts to operators: open breakers, and addresses that can't be reached.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

from django.conf import settings
from django.db.models import Sum
from django.utils import timezone

from inference.models import Deployment
from inference.selectors import models_without_price
from inference.upstream.breaker import failing, listing_trouble, publish, served_routes
from inference.upstream.errors import CREDIT_USED_UP
from monitoring.models import Alert, RequestRecord
from monitoring.records import OUTCOMES, Outcome
from operations.health import Health, check_each

ERROR_WINDOW = timedelta(minutes=5)
FEWEST_REQUESTS = 20  # of which the share of errors says something
#: Rounds in a row after which a bad check counts, and after which a good one does.
BAD_ROUNDS, GOOD_ROUNDS = 2, 4


@dataclass(frozen=True, slots=True)
class Condition:
    """Something to know of. `is_on`: it holds; else it holds no more, but not so clearly that an episode ends.

    What is not listed at all is over. `contact`: an e-mail address to be told beside the operators.
    """

    kind: Alert.Kind
    subject: str
    title: str
    text: str
    is_on: bool = True
    contact: str = ""


def error_rate() -> Iterator[Condition]:
    """Look whether more than ALERT_ERROR_RATE percent of the last five minutes' requests failed (5xx).

    An episode ends when it is less than half of that.
    """
    now = timezone.now()
    recent = RequestRecord.objects.filter(admitted_at__range=(now - ERROR_WINDOW, now)).order_by()
    sums = recent.aggregate(requests=Sum("count"), failed=Sum("count", filter=OUTCOMES[Outcome.FAILED]))
    requests, failed = sums["requests"] or 0, sums["failed"] or 0
    limit = settings.ALERT_ERROR_RATE
    percent = 100 * failed / requests if requests else 0.0
    if percent < limit / 2 or not failed:
        return
    yield Condition(
        Alert.Kind.ERRORS,
        "errors",
        f"{percent:.0f} % of requests fail",
        f"{failed:,} of {requests:,} requests of the last 5 minutes ended with a status of 500 or above "
        f"({percent:.1f} %; the alert is set to {limit} %). See the request log, outcome Failed.",
        is_on=percent >= limit and requests >= FEWEST_REQUESTS,
    )


#: By check: the kind of alert, its title, and what to do.
CHECKS = {
    "llm": (Alert.Kind.PROVIDER, "The model provider does not answer", "See the providers in the admin."),
    "ingest": (Alert.Kind.INGEST, "Usage records wait for the ingester", "Is manage.py ingest_usage running?"),
    "limits": (Alert.Kind.DEPENDENCY, "The store of the limits is not well", "Limits are kept per process; see Redis."),
    "cache": (Alert.Kind.DEPENDENCY, "The cache of answers is away", "Nothing is cached; see CACHE_URL."),
}


def health_subject(check: str) -> str:
    """Name what the alert of a health check is about."""
    return f"health:{check}"


@dataclass(slots=True)
class HealthWatch:
    """Watches the health checks: one that is bad for BAD_ROUNDS in a row counts, until good for GOOD_ROUNDS.

    Who has only begun to watch can't tell whether one was bad a moment ago: they linger, so no episode ends by that.
    """

    bad_rounds: int = BAD_ROUNDS
    good_rounds: int = GOOD_ROUNDS
    _bad: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _good: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def __call__(self) -> Iterator[Condition]:
        """Run the checks and list those that are, or only just were, bad."""
        for name, found in check_each().items():
            is_bad = found.health is not Health.OK
            self._bad[name] = self._bad[name] + 1 if is_bad else 0
            self._good[name] = 0 if is_bad else self._good[name] + 1
            if name in CHECKS and self._good[name] < self.good_rounds:
                kind, title, advice = CHECKS[name]
                text = f"The health check {name} says: {found.health}. {found.reason or advice}"
                yield Condition(kind, health_subject(name), title, text, is_on=self._bad[name] >= self.bad_rounds)

    def forget(self) -> None:
        """Begin anew."""
        self._bad.clear()
        self._good.clear()


#: What it means for a model, and what to do about it.
CONSEQUENCE = (
    "What calls cost there is unknown, and no budget in money allows them. "
    "Enter a price in the admin, 0 for what is free."
)


def missing_prices() -> Iterator[Condition]:
    """List the models that calls may go to without a price."""
    for model, deployments in models_without_price().items():
        text = f"No price was entered for {deployments}, which serves model {model}. {CONSEQUENCE}"
        yield Condition(Alert.Kind.PRICE, f"price:{model}", f"Model {model} has no price", text)


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
