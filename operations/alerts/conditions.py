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
from core.formats import duration, money, percent, quantity, utc_text
from core.money import nano_dollars
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
    share = failed / requests if requests else 0.0
    if failed * 200 < limit * requests or not failed:
        return
    yield Condition(
        Alert.Kind.ERRORS,
        "errors",
        f"{percent(share)} of requests are failing",
        f"{failed:,} of {requests:,} requests in the last 5 minutes failed with a 5xx status "
        f"({percent(share)}; the alert is set to {limit:g} %).",
        is_on=failed * 100 >= limit * requests and requests >= FEWEST_REQUESTS,
    )


#: Percentages of a budget at which an alert begins.
LEVELS = (50, 80, 100)
PREFIX = "budget:"  # of an alert's subject
#: The consequence of a used-up budget, by what it counts.
REFUSED = {
    "tokens": "Further calls are refused. ",
    "cost": "Further calls are refused, except to free models. ",
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
        spent, tokens, cost = settled[subject], budget.monthly_token_budget, nano_dollars(budget.monthly_cost_budget)
        model = subject.model or ""
        if tokens:
            amounts = f"{spent.tokens:,} of {tokens:,} tokens"
            yield from _levels(holder, model, "tokens", spent.tokens, tokens, amounts, month)
        if cost:
            amounts = f"{money(spent.cost)} of {money(cost)}"
            yield from _levels(holder, model, "cost", spent.cost, cost, amounts, month)


def _levels(
    holder: Account | ApiKey, model: str, what: str, used: int, limit: int, amounts: str, month: int
) -> Iterator[Condition]:
    """Yield the highest level reached, and as not on those below it or within SLACK: their incidents stay open."""
    if isinstance(holder, ApiKey):
        name, slug = f"Key {holder.title}", f"key:{holder.limits_id}:{model}"
        contact = holder.account.contact
    else:
        name, slug, contact = f"Account {holder.title}", f"account:{holder.pk}:{model}", holder.contact
    name += f" for model {model}" if model else ""
    highest = max((level for level in LEVELS if used * 100 >= limit * level), default=0)
    used_percent = used * 100 // limit  # rounded down: 100 % is a budget that is used up
    renewed = EPOCH + timedelta(seconds=month_end(month) // SECOND)
    for level in LEVELS:
        if used * 100 >= limit * (level - SLACK):
            yield Condition(
                Alert.Kind.BUDGET,
                f"{PREFIX}{slug}:{what}:{level}:{month}",
                f"{name} has used {used_percent} % of its {what.removesuffix('s')} budget",
                f"{name} has used {amounts} of this month's budget ({used_percent} %). "
                f"{REFUSED[what] if used_percent >= 100 else ''}"
                f"The budget resets at {utc_text(renewed)}.",
                is_on=level == highest,
                contact=contact,
            )


def topic_of(subject: str) -> str:
    """Return what an alert is about: its subject; for a budget, without the level."""
    return subject.rsplit(":", 2)[0] if subject.startswith(PREFIX) else subject


def level_of(subject: str) -> int:
    """Return the level of a budget's alert; 0 for other alerts."""
    return int(subject.rsplit(":", 2)[1]) if subject.startswith(PREFIX) else 0


#: By health check: the kind of alert and its title. The database has none: it stores them.
ALERTS = {
    "llm": (Alert.Kind.PROVIDER, "The default model's provider does not answer"),
    "ingest": (Alert.Kind.INGEST, "Usage figures are late: records are waiting to be ingested"),
    "limits": (Alert.Kind.DEPENDENCY, "The state store is unhealthy"),
    "cache": (Alert.Kind.DEPENDENCY, "The cache store is down"),
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
                kind, title = ALERTS[name]
                text = f"The health check {name} reports: {found.health}. {found.reason}".strip()
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
            f"{quantity(rollups, 'row')} of the rollups and {quantity(ledgers, 'ledger')} disagree with the request "
            "log of the last two days. Run manage.py check_rollups --days 2, which lists them."
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
UNPRICED = "The cost of its calls is unknown, and keys under a cost budget can't use it."
ENTER_PRICE = "Enter a price in the admin, 0 if it is free."


def missing_prices() -> Iterator[Condition]:
    """Yield the models that calls may use although a deployment has no price."""
    for model, deployments in models_without_price().items():
        text = f"No price was entered for {deployments}, which serves model {model}. {UNPRICED}"
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
                yield replace(outage_condition(deployment, cause), is_on=False)
        return
    for deployment in deployments.filter(pk__in=causes):
        yield outage_condition(deployment, causes[deployment.pk])


#: What happens to the calls of a deployment that gets none.
MEANWHILE = "Until then the model's other deployments answer; if it has none, its calls fail."


def outage_condition(deployment: Deployment, cause: str) -> Condition:
    """Return the condition that a deployment gets no calls because of a cause ("" if it is not known)."""
    provider, model = str(deployment.provider), str(deployment.model)
    subject, credit_subject = alert_subjects(deployment.pk)
    text = (
        f"Calls to {deployment} (model {model}) kept failing: {shown_cause(cause) or 'the cause is not known'}. "
        f"No more calls are sent there until a trial call succeeds. {MEANWHILE}"
    )
    if cause.startswith(CREDIT_USED_UP):
        subject = credit_subject
        pause = duration(settings.UPSTREAM_CREDIT_PAUSE)
        text = f"{provider} refused a call to {deployment}: {cause}. It is tried again every {pause}. {MEANWHILE}"
    return Condition(Alert.Kind.PROVIDER, subject, outage_title(provider, model, cause), text)


def outage_title(provider: str, what: str, cause: str, *, is_over: bool = False) -> str:
    """Return the title of a provider's outage for a model: openai is down for gpt-5: HTTP 502."""
    if cause.startswith(CREDIT_USED_UP):
        return f"{provider} {'had' if is_over else 'has'} no credit left for {what}"
    return f"{provider} {'was' if is_over else 'is'} down for {what}" + (f": {shown_cause(cause)}" if cause else "")


def shown_cause(cause: str) -> str:
    """Return a cause as it is shown to people: HTTP 502, connection refused."""
    return f"HTTP {cause.removeprefix('http ')}" if cause.startswith("http ") else cause


def outage_cause(alert: Alert) -> str:
    """Return the cause of a provider's outage; "" if it is not known."""
    if alert.subject.startswith("credit:"):
        return CREDIT_USED_UP
    return alert.title.partition(" is down for ")[2].partition(": ")[2]


SECOND_DEPLOYMENT = "A second deployment of the model, at another provider, would take its calls."
#: What to do about an alert, by the beginning of its subject or by its kind.
ADVICE = {
    "health:llm": "Test the provider on its page: is its address right, its key valid, and its service up?",
    "health:limits": "Check the server at REDIS_URL: is it up, reachable, and does it have memory and disk left?",
    "health:cache": "Check the server at CACHE_URL. Calls are answered meanwhile, but nothing is cached.",
    "credit": "Top up the credit at the provider. " + SECOND_DEPLOYMENT,
    Alert.Kind.PROVIDER: "Test the provider on its page, and look at its status page. " + SECOND_DEPLOYMENT,
    Alert.Kind.ERRORS: "Open the failed requests: they say whether a provider, a store or the platform itself fails.",
    Alert.Kind.BUDGET: "If this usage is intended, raise the budget; if not, look at the requests and revoke the key.",
    Alert.Kind.INGEST: "Check that manage.py worker is running, and its log. No usage is lost: the records wait.",
    Alert.Kind.PRICE: ENTER_PRICE,
    Alert.Kind.RECONCILIATION: "Find out why they differ, and fix them as docs/operations.md says (Rollups).",
}


def advice(alert: Alert) -> str:
    """Return what an operator should do about an alert; "" for a test."""
    return ADVICE.get(alert.subject) or ADVICE.get(alert.subject.partition(":")[0]) or ADVICE.get(alert.kind, "")


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
