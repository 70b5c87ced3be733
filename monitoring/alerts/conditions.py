"""What is watched apart from budgets: the share of failed requests, the health checks, and what rooms above add."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta

from django.conf import settings
from django.db.models import Sum
from django.utils import timezone

from monitoring.health import Health, check_each
from monitoring.models import Alert, RequestRecord
from monitoring.outcomes import OUTCOMES, Outcome

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


Source = Callable[[], Iterable[Condition]]
_sources: dict[str, Source] = {}


def register_source(name: str, source: Source) -> None:
    """Add a source of conditions; a later one of the same name replaces it."""
    _sources[name] = source


def sources() -> Iterable[Source]:
    """List what was registered."""
    return list(_sources.values())


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
