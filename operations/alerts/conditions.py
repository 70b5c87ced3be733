"""Conditions for alerts: error rate, budgets, health checks, failing deployments, missing prices, and wrong sums."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta

import structlog
from django.conf import settings
from django.db.models import Sum
from django.utils import timezone
from redis.exceptions import RedisError

from accounts.key_cache import account_subject, key_ledger, model_subject
from accounts.limits.local import wall_clock
from accounts.limits.types import SECOND, Subject
from accounts.models import Account, ApiKey, Budgets
from accounts.selectors import HAS_BUDGET, api_keys_current, model_budgets_current
from core.money import NANO_DOLLARS, nano_dollars
from core.times import month_end, month_of
from inference.models import Deployment
from inference.selectors import models_without_price
from inference.upstream.breaker import failing, listing_trouble, publish, served_routes
from inference.upstream.errors import CREDIT_USED_UP
from monitoring.ledger import months_settled
from monitoring.models import OUTCOMES, Alert, Outcome, RequestRecord
from monitoring.reconciliation import ledger_differences, ledger_months
from monitoring.rollups.periods import EPOCH
from monitoring.rollups.verify import rollups_differences
from operations.health import Health, check_each

log = structlog.get_logger(__name__)

ERROR_WINDOW = timedelta(minutes=5)
FEWEST_REQUESTS = 20  # for a meaningful share of errors
#: Consecutive rounds after which a failed check counts, and after which a passed one does.
BAD_ROUNDS, GOOD_ROUNDS = 2, 4


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition that begins an incident, or keeps it open.

    `is_on`: it holds, and begins an incident if there is none. Otherwise it only keeps an open incident from ending. An
    incident whose condition is not yielded at all ends. `contact` is an e-mail address in addition to the operators'.
    """

    kind: Alert.Kind
    subject: str
    title: str
    text: str
    is_on: bool = True
    contact: str = ""


def error_rate() -> Iterator[Condition]:
    """Yield a condition if ALERT_ERROR_RATE percent or more of the last five minutes' requests failed (5xx).

    An incident ends when less than half of that fail.
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
        f"{percent:.0f} % of requests are failing",
        f"{failed:,} of {requests:,} requests of the last 5 minutes ended with a status of 500 or above "
        f"({percent:.1f} %; the alert is set to {limit} %). See the request log, outcome Failed.",
        is_on=percent >= limit and requests >= FEWEST_REQUESTS,
    )


#: Percentages of a budget at which an alert begins.
LEVELS = (50, 80, 100)
PREFIX = "budget:"  # of an alert's subject
#: The consequence of a used-up budget, by what it counts.
REFUSED = {
    "tokens": "Further calls are refused. ",
    "cost": "Further calls are refused, apart from those of models that are free. ",
}
SLACK = 5  # percentage points below a level at which its incident ends, as when the budget was raised


def budgets_used() -> Iterator[Condition]:
    """Yield the levels that budgets have reached this month: of accounts, of keys, and of either for one model."""
    month, now = month_of(wall_clock()), timezone.now()
    budgets: list[tuple[Budgets, Account | ApiKey, Subject]] = [
        *((each, each, account_subject(each)) for each in Account.objects.filter(HAS_BUDGET, is_active=True)),
        *((each, each, key_ledger(each)) for each in api_keys_current(at=now).filter(HAS_BUDGET)),
        *(
            (each, holder, model_subject(each))
            for each in model_budgets_current(at=now)
            if (holder := each.key or each.account) is not None
        ),
    ]
    settled = months_settled([subject for _, _, subject in budgets], month)
    for budget, holder, subject in budgets:
        spent, tokens, money = settled[subject], budget.monthly_token_budget, nano_dollars(budget.monthly_cost_budget)
        model = subject.model or ""
        if tokens:
            amounts = f"{spent.tokens:,} of {tokens:,} tokens"
            yield from _levels(holder, model, "tokens", spent.tokens, tokens, amounts, month)
        if money:
            amounts = f"${spent.cost / NANO_DOLLARS:,.2f} of ${money / NANO_DOLLARS:,.2f}"
            yield from _levels(holder, model, "cost", spent.cost, money, amounts, month)


def _levels(
    holder: Account | ApiKey, model: str, what: str, used: int, limit: int, amounts: str, month: int
) -> Iterator[Condition]:
    """Yield the highest level reached, and as not on those below it or within SLACK: their incidents stay open."""
    if isinstance(holder, ApiKey):
        name, slug = f"Key {holder.account.name}/{holder.name}", f"key:{holder.limits_id}:{model}"
        contact = holder.account.contact
    else:
        name, slug, contact = f"Account {holder.name}", f"account:{holder.pk}:{model}", holder.contact
    name += f" for model {model}" if model else ""
    highest = max((level for level in LEVELS if used * 100 >= limit * level), default=0)
    percent = used * 100 // limit
    renewed = EPOCH + timedelta(seconds=month_end(month) // SECOND)
    for level in LEVELS:
        if used * 100 >= limit * (level - SLACK):
            yield Condition(
                Alert.Kind.BUDGET,
                f"{PREFIX}{slug}:{what}:{level}:{month}",
                f"{name} has used {percent} % of its {what.removesuffix('s')} budget",
                f"{name} has used {amounts} of this month's budget ({percent} %). "
                f"{REFUSED[what] if percent >= 100 else ''}"
                f"The budget resets on {renewed:%Y-%m-%d} 00:00 UTC.",
                is_on=level == highest,
                contact=contact,
            )


def topic_of(subject: str) -> str:
    """Return what an alert is about: its subject; for a budget, without the level."""
    return subject.rsplit(":", 2)[0] if subject.startswith(PREFIX) else subject


def level_of(subject: str) -> int:
    """Return the level of a budget's alert; 0 for other alerts."""
    return int(subject.rsplit(":", 2)[1]) if subject.startswith(PREFIX) else 0


#: By health check: the kind of alert, its title, and advice. The database has none: it stores them.
ALERTS = {
    "llm": (Alert.Kind.PROVIDER, "The default model's provider does not answer", "See the providers in the admin."),
    "ingest": (Alert.Kind.INGEST, "Usage records are waiting to be ingested", "Is manage.py worker running?"),
    "limits": (Alert.Kind.DEPENDENCY, "The state store is not healthy", "See the state store (REDIS_URL) and the log."),
    "cache": (Alert.Kind.DEPENDENCY, "The cache store is down", "Nothing is cached; see CACHE_URL."),
}


def health_subject(check: str) -> str:
    """Return the subject of a health check's alert."""
    return f"health:{check}"


@dataclass(slots=True)
class HealthWatch:
    """Yields failed health checks: from BAD_ROUNDS failures in a row until GOOD_ROUNDS passes in a row.

    During its first rounds it yields all checks as not on: it does not know whether they failed before, and no incident
    must end because of that.
    """

    bad_rounds: int = BAD_ROUNDS
    good_rounds: int = GOOD_ROUNDS
    _bad: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _good: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def __call__(self) -> Iterator[Condition]:
        """Run the checks; yield those that fail or failed recently."""
        for name, found in check_each().items():
            is_bad = found.health is not Health.OK
            self._bad[name] = self._bad[name] + 1 if is_bad else 0
            self._good[name] = 0 if is_bad else self._good[name] + 1
            if name in ALERTS and self._good[name] < self.good_rounds:
                kind, title, advice = ALERTS[name]
                text = f"The health check {name} reports: {found.health}. {found.reason or advice}"
                yield Condition(kind, health_subject(name), title, text, is_on=self._bad[name] >= self.bad_rounds)

    def forget(self) -> None:
        """Forget the rounds so far."""
        self._bad.clear()
        self._good.clear()


#: How many days up to now the nightly check compares.
CHECKED = timedelta(days=2)


@dataclass(slots=True)
class ReconciliationWatch:
    """The last nightly check of rollups and ledgers.

    `wrong` is what it found, as a sentence; "" if all was right; None before the first check, when incidents neither
    begin nor end.
    """

    wrong: str | None = None

    def check(self) -> None:
        """Compare the rollups and the ledgers with the log. Raises redis.RedisError, TooManyWaiting, DatabaseError."""
        now = timezone.now()
        begin = now - CHECKED
        rollups = sum(1 for _ in rollups_differences(begin, now))
        ledgers = sum(1 for _ in ledger_differences(ledger_months(begin, now)))
        if not rollups and not ledgers:
            self.wrong = ""
            return
        log.error("books_disagree", rollups=rollups, ledgers=ledgers)
        self.wrong = (
            f"{rollups:,} rows of the rollups and {ledgers:,} ledgers disagree with the request log of the last two "
            "days. Run manage.py check_rollups --days 2: it names them. See docs/operations.md, Rollups."
        )

    def __call__(self) -> Iterator[Condition]:
        """Yield a condition if the last check found a difference."""
        if self.wrong != "":
            title = "Rollups or ledgers disagree with the request log"
            yield Condition(Alert.Kind.RECONCILIATION, "books", title, self.wrong or "", is_on=self.wrong is not None)

    def forget(self) -> None:
        """Forget the last check."""
        self.wrong = None


#: The consequence of a missing price, and what to do.
CONSEQUENCE = (
    "The cost of its calls is unknown, and no budget in money allows them. Enter a price in the admin, 0 if it is free."
)


def missing_prices() -> Iterator[Condition]:
    """Yield the models that calls may use although a deployment has no price."""
    for model, deployments in models_without_price().items():
        text = f"No price was entered for {deployments}, which serves model {model}. {CONSEQUENCE}"
        yield Condition(Alert.Kind.PRICE, f"price:{model}", f"Model {model} has no price", text)


#: The longest time after which a live process renews its notice of a failing deployment: longer than its pauses.
RENEWED = timedelta(seconds=180)
#: Most probes in a round: they run one after the other, and the watch does nothing else meanwhile.
A_ROUND = 3


def alert_subjects(deployment_id: int) -> tuple[str, str]:
    """Return the subjects of a deployment's alerts: that it fails, and that its provider's credit is used up."""
    return f"breaker:{deployment_id}", f"credit:{deployment_id}"


def failing_deployments() -> Iterator[Condition]:
    """Yield the enabled deployments that fail according to the notices of any process.

    A notice stays while a breaker is half-open, so no incident ends before the trial call has succeeded. While the
    state store is down, the conditions of all deployments are yielded as not on: no incident must end because of that.
    """
    usable = Deployment.objects.filter(is_enabled=True, provider__is_enabled=True, model__is_enabled=True)
    deployments = usable.select_related("provider", "model").order_by("pk")
    try:
        _probe_forgotten()
        causes = {notice.deployment_id: notice.cause for notice in failing()}
    except RedisError as error:
        log.warning("breakers_not_read", cause=type(error).__name__)
        for deployment in deployments:
            for cause in ("", CREDIT_USED_UP):
                yield replace(_condition(deployment, cause), is_on=False)
        return
    for deployment in deployments.filter(pk__in=causes):
        yield _condition(deployment, causes[deployment.pk])


def _condition(deployment: Deployment, cause: str) -> Condition:
    subject, credit_subject = alert_subjects(deployment.pk)
    provider, model = deployment.provider, deployment.model
    title = f"Provider {provider} fails: no calls go to {deployment}"
    text = (
        f"Calls to {deployment} for model {model} failed several times in a row, or did not reach it "
        f"({cause or 'the cause is not known'}). No calls go there until a trial succeeds; other deployments "
        "of the model answer, if any."
    )
    if cause.startswith(CREDIT_USED_UP):
        subject, title = credit_subject, f"The credit is used up at provider {provider}: no calls go to {deployment}"
        text = (
            f"Provider {provider} refused a call to {deployment} for model {model}: {cause}. "
            f"A call tries it again after {settings.UPSTREAM_CREDIT_PAUSE:g} seconds; until then, other deployments "
            "of the model answer, if any."
        )
    return Condition(Alert.Kind.PROVIDER, subject, title, text)


def _probe_forgotten() -> None:
    """Probe the deployments whose notices are old: the processes that had their breakers open have probably ended.

    The probe is the list of models. It does not show whether credit is used up, so such notices are left out.
    """
    long_ago = timezone.now() - RENEWED
    forgotten = [
        each
        for each in sorted(failing(), key=lambda notice: notice.seen_at)
        if each.seen_at <= long_ago and not each.is_open and not each.cause.startswith(CREDIT_USED_UP)
    ]
    served = {route.deployment_id: route for route in served_routes()} if forgotten else {}
    for notice in forgotten[:A_ROUND]:
        route = served.get(notice.deployment_id)
        trouble = listing_trouble(route) if route is not None else None
        seconds = None if trouble is None else 0
        publish(notice.deployment_id, seconds, trouble or "", since=notice.since, field=notice.field)
