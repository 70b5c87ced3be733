"""Retention: which rows may be deleted when, and their deletion in small steps that don't disturb requests.

Pruning deletes rows in the order of an indexed column. A step is a short transaction with a pause after it. It deletes
as many rows as fit into STEP_SECONDS, judging by the earlier steps; the database cancels it at STEP_LIMIT, and then the
next step is smaller. Pruning can be stopped after any step and started again.

Budgets, statistics and the seeding of ledgers use the rollups, which are kept longer than the records, so records of
this month may be deleted too. Records of the last two days always stay. While records wait for the ingester, so do
those of the two days before the oldest of them. The reason: a late settlement may replace a record and an ingester may
write one again; if it were deleted by then, it would be counted twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from django.conf import settings
from django.db import OperationalError, connection, transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from accounts.audit import audit_event
from accounts.models import AuditEntry, IdempotentAnswer
from core.keyset import closest_first
from monitoring.ingester import ingest_backlog
from monitoring.models import RequestContent, RequestRecord, Rollup
from monitoring.rollups.periods import DAY, ONE_DAY, floor, minute_of, month_begin

log = structlog.get_logger(__name__)

STEP_SECONDS = 0.03  # target duration of a step
STEP_LIMIT = 0.06  # most seconds for the statement of a step; the commit is extra
PAUSE_RATIO = 3  # the pause after a step is this many times as long as the step
SHORTEST_PAUSE = 0.02  # seconds: longer than the first sleeps of a SQLite writer that waits for the lock
FIRST_ROWS, MOST_ROWS = 100, 5_000
PROGRESS_OPCODES = 1000  # SQLite instructions between two checks of the deadline


@dataclass(slots=True)
class Pace:
    """The number of rows of the next step."""

    rows: int = FIRST_ROWS

    def learn(self, seconds: float) -> None:
        """Adapt to the duration of a step; at most double the number."""
        self._scale(STEP_SECONDS / max(seconds, 1e-6))

    def slow_down(self) -> bool:
        """Reduce the number to a quarter after a cancelled step; return False if it is 1 already."""
        was = self.rows
        self._scale(0.25)
        return self.rows < was

    def _scale(self, factor: float) -> None:
        self.rows = max(1, min(MOST_ROWS, int(self.rows * min(factor, 2.0))))


@dataclass(slots=True)
class Pruned:
    """The progress of a pruning."""

    rows: int = 0
    steps: int = 0
    longest: float = 0.0  # seconds
    was_stopped: bool = False

    def __str__(self) -> str:
        stopped = ", stopped before the end" if self.was_stopped else ""
        return f"{self.steps:,} steps, the longest {self.longest * 1000:.0f} ms{stopped}"


@dataclass(slots=True)
class Pruning:
    """Deletes the rows of a queryset in the order of an indexed column.

    `wait` pauses for a number of seconds and returns whether to stop.
    """

    doomed: QuerySet[Any]
    column: str
    wait: Callable[[float], bool]
    pace: Pace = field(default_factory=Pace)
    done: Pruned = field(default_factory=Pruned)

    def run(self) -> Pruned:
        """Delete until no row is left or `wait` returns true; raises OperationalError if a step of one row fails."""
        for seconds in self._steps():
            if self.wait(max(SHORTEST_PAUSE, seconds * PAUSE_RATIO)):
                self.done.was_stopped = True
                break
        return self.done

    def _steps(self) -> Iterator[float]:
        """Run the steps; yield the seconds that each took."""
        after: Any = None
        while (end := self._end(after)) is not None:
            began = time.perf_counter()
            try:
                rows = self._delete(after, end)
            except OperationalError:
                if not self.pace.slow_down():
                    raise
                yield time.perf_counter() - began
                continue
            after, seconds = end, time.perf_counter() - began
            self.pace.learn(seconds)
            self.done.rows += rows
            self.done.steps += 1
            self.done.longest = max(self.done.longest, seconds)
            yield seconds

    def _beyond(self, after: Any) -> QuerySet[Any]:
        rows = self.doomed.order_by(self.column)
        return rows if after is None else closest_first(rows.filter(**{f"{self.column}__gt": after}))

    def _end(self, after: Any) -> Any:
        """Return the column's value of the last row of the next step; None if no row is left."""
        keys = list(self._beyond(after).values_list(self.column, flat=True)[: self.pace.rows])
        return keys[-1] if keys else None

    def _delete(self, after: Any, end: Any) -> int:
        doomed = closest_first(self._beyond(after).filter(**{f"{self.column}__lte": end})).order_by()
        with transaction.atomic(), _bounded(is_free=self.pace.rows == 1):
            return doomed.delete()[0]


@contextmanager
def _bounded(*, is_free: bool) -> Iterator[None]:
    """Have the database cancel a statement after STEP_LIMIT, unless `is_free`: a step of one row must succeed."""
    if is_free:
        yield
    elif connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            # The commit does not wait for the disk: if a crash undoes a step, it is repeated.
            cursor.execute(f"SET LOCAL synchronous_commit = off; SET LOCAL statement_timeout = {STEP_LIMIT * 1000:.0f}")
        yield
    else:
        deadline = time.monotonic() + STEP_LIMIT
        connection.connection.set_progress_handler(lambda: time.monotonic() > deadline, PROGRESS_OPCODES)
        try:
            yield
        finally:
            connection.connection.set_progress_handler(None, 0)


#: Actor, action, kind and detail of the audit entry about deleted records.
PRUNER, PRUNED, KIND, BEFORE = "command:prune_logs", "pruned", str(RequestRecord._meta.verbose_name), "before"
#: Longer than the time after admission in which a record may be replaced: CHARGED_TTL in accounts/limits/lua plus
#: the longest call.
REPLACEABLE = timedelta(days=2)


@dataclass(frozen=True, slots=True)
class Cutoff:
    """Records admitted before `at` may be deleted. `wanted` is the cutoff by the setting; `at` is never later."""

    at: datetime
    wanted: datetime

    @property
    def is_protected(self) -> bool:
        """Return whether records older than `wanted` have to stay."""
        return self.at < self.wanted


def record_cutoff(days: float, *, now: datetime | None = None) -> Cutoff:
    """Return the cutoff for records if those of `days` days are kept.

    Raises redis.RedisError: without knowing which records wait for the ingester, nothing may be deleted.
    """
    moment = now or timezone.now()
    wanted = moment - timedelta(days=days)
    return Cutoff(min(wanted, moment - REPLACEABLE - timedelta(seconds=ingest_backlog().seconds)), wanted)


def old_records(cutoff: datetime) -> QuerySet[RequestRecord]:
    """Return the records admitted before `cutoff`."""
    return RequestRecord.objects.filter(admitted_at__lt=cutoff)


def oldest_admission() -> datetime | None:
    """Return when the oldest record was admitted; None if there is no record."""
    return RequestRecord.objects.order_by("admitted_at").values_list("admitted_at", flat=True).first()


def prune_records(cutoff: datetime, *, wait: Callable[[float], bool]) -> Pruned:
    """Delete the records admitted before `cutoff`, in small steps, and the keys' quarter hours of the days before it.

    If no rollups are older than the oldest record, an audit entry is written first: it shows that the log's first day
    may be incomplete. Afterwards the rollups of earlier days show it.
    """
    oldest = oldest_admission()
    if oldest is not None and oldest < cutoff and not has_earlier_rollups(oldest):
        audit_event(actor=PRUNER, action=PRUNED, kind=KIND, details={BEFORE: cutoff.astimezone(UTC).isoformat()})
    done = Pruning(old_records(cutoff), "admitted_at", wait).run()
    if not done.was_stopped:
        quarters = Rollup.objects.filter(grain=Rollup.Grain.KEY_QUARTER, start__lt=floor(cutoff, DAY))
        done.was_stopped = Pruning(quarters, "start", wait).run().was_stopped
    return done


def has_earlier_rollups(moment: datetime) -> bool:
    """Return whether there are rollups of days (UTC) before that of a datetime."""
    return Rollup.objects.filter(grain=Rollup.Grain.PLATFORM_DAY, start__lt=floor(moment, DAY)).exists()


def pruned_before() -> datetime | None:
    """Return the latest cutoff of deleted records in the audit log; None if it has none."""
    entries = AuditEntry.objects.filter(target_type=KIND, action=PRUNED).order_by()
    return max(
        (datetime.fromisoformat(after[BEFORE]) for after in entries.values_list("after", flat=True)), default=None
    )


def rollup_cutoff(days: int, *, now: datetime | None = None) -> datetime | None:
    """Return the beginning of the first month whose rollups stay if those of `days` days are kept; None if `days` is 0.

    Only whole months are deleted. Rollups of the days in the log stay, because they are compared with it. So does the
    day before: it shows that the log's first day may be incomplete.
    """
    if not days:
        return None
    cutoff = (now or timezone.now()) - timedelta(days=days)
    oldest = oldest_admission()
    return month_begin(min(cutoff, oldest - ONE_DAY) if oldest else cutoff)


def prune_rollups(cutoff: datetime, *, wait: Callable[[float], bool]) -> Pruned:
    """Delete the rollups before `cutoff`, in small steps."""
    total = Pruned()
    for grain in Rollup.Grain:
        old = Rollup.objects.filter(grain=grain, start__lt=minute_of(cutoff))
        done = Pruning(old, "start", wait, done=total).run()
        if done.was_stopped:
            break
    return total


def prune_content(*, wait: Callable[[float], bool]) -> Pruned:
    """Delete logged content that has expired by the present setting or by the one when it was written."""
    now = timezone.now()
    youngest = now - timedelta(hours=settings.CONTENT_RETENTION_HOURS)
    expired = RequestContent.objects.filter(Q(expires_at__lte=now) | Q(created_at__lte=youngest))
    return Pruning(expired, "expires_at", wait).run()


def prune_idempotent_answers(*, wait: Callable[[float], bool]) -> Pruned:
    """Delete expired claims on Idempotency-Keys and the answers stored under them."""
    old = IdempotentAnswer.objects.filter(until__lte=timezone.now())
    return Pruning(old, "until", wait).run()


def prune_by_settings(*, wait: Callable[[float], bool]) -> int:
    """Delete everything that the retention settings allow; log the numbers of rows and return their sum."""
    content = prune_content(wait=wait)
    answers = prune_idempotent_answers(wait=wait)
    days = settings.LOG_RETENTION_DAYS
    records = prune_records(record_cutoff(days).at, wait=wait) if days else Pruned()
    cutoff = rollup_cutoff(settings.ROLLUP_RETENTION_DAYS)
    rollups = prune_rollups(cutoff, wait=wait) if cutoff else Pruned()
    pruned = {"records": records, "contents": content, "idempotent_answers": answers, "rollups": rollups}
    if any(each.rows for each in pruned.values()):
        longest = max(each.longest for each in pruned.values())
        log.info("pruned", **{name: each.rows for name, each in pruned.items()}, longest_ms=round(longest * 1000))
    return sum(each.rows for each in pruned.values())
