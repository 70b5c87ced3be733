"""Retention: which rows may be deleted when, and their deletion in small batches with pauses, beside requests.

A batch is a short transaction with a pause after it. Pruning can be stopped after any batch and started again.

Budgets, statistics and the seeding of ledgers use the rollups, which are kept longer than the records, so records of
this month may be deleted too. Records of the last two days always stay. While records wait for the ingester, so do
those of the two days before the oldest of them. The reason: a late settlement may replace a record and an ingester may
write one again; if it were deleted by then, it would be counted twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from django.conf import settings
from django.db.models import Q, QuerySet
from django.utils import timezone

from accounts.audit import audit_event
from accounts.models import AuditEntry, IdempotentAnswer
from core.keyset import closest_first
from monitoring.ingester import ingest_backlog
from monitoring.models import RequestContent, RequestRecord, Rollup
from monitoring.rollups.periods import DAY, ONE_DAY, floor, minute_of, month_begin

log = structlog.get_logger(__name__)

BATCH = 100  # rows: some milliseconds of work
PAUSE_RATIO = 3  # the pause after a batch is this many times as long as the batch took
SHORTEST_PAUSE = 0.02  # seconds: longer than the first sleeps of a SQLite writer that waits for the lock


@dataclass(slots=True)
class Pruned:
    """The progress of a pruning."""

    rows: int = 0
    batches: int = 0
    longest: float = 0.0  # seconds
    was_stopped: bool = False

    def __str__(self) -> str:
        stopped = ", stopped before the end" if self.was_stopped else ""
        return f"{self.batches:,} batches, the longest {self.longest * 1000:.0f} ms{stopped}"


def prune(doomed: QuerySet[Any], column: str, wait: Callable[[float], bool], done: Pruned | None = None) -> Pruned:
    """Delete the rows of a queryset in the order of an indexed column, and add to what was `done` before.

    `wait` pauses for a number of seconds and returns whether to stop.
    """
    done = done or Pruned()
    rest = doomed.order_by(column)
    while not done.was_stopped and (batch := list(rest.values_list("pk", column)[:BATCH])):
        began = time.perf_counter()
        done.rows += doomed.filter(pk__in=[pk for pk, _ in batch]).delete()[0]
        seconds = time.perf_counter() - began
        done.batches += 1
        done.longest = max(done.longest, seconds)
        # Without this bound, each batch would walk over the index entries of those before it.
        rest = closest_first(doomed.filter(**{f"{column}__gte": batch[-1][1]})).order_by(column)
        done.was_stopped = wait(max(SHORTEST_PAUSE, seconds * PAUSE_RATIO))
    return done


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
    now = now or timezone.now()
    wanted = now - timedelta(days=days)
    return Cutoff(min(wanted, now - REPLACEABLE - timedelta(seconds=ingest_backlog().seconds)), wanted)


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
    done = prune(old_records(cutoff), "admitted_at", wait)
    if not done.was_stopped:
        quarters = Rollup.objects.filter(grain=Rollup.Grain.KEY_QUARTER, start__lt=floor(cutoff, DAY))
        done.was_stopped = prune(quarters, "start", wait).was_stopped
    return done


def has_earlier_rollups(at: datetime) -> bool:
    """Return whether there are rollups of days (UTC) before that of a datetime."""
    return Rollup.objects.filter(grain=Rollup.Grain.PLATFORM_DAY, start__lt=floor(at, DAY)).exists()


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
    done = Pruned()
    for grain in Rollup.Grain:
        prune(Rollup.objects.filter(grain=grain, start__lt=minute_of(cutoff)), "start", wait, done)
    return done


def prune_content(*, wait: Callable[[float], bool]) -> Pruned:
    """Delete logged content that has expired by the present setting or by the one when it was written."""
    now = timezone.now()
    youngest = now - timedelta(hours=settings.CONTENT_RETENTION_HOURS)
    expired = RequestContent.objects.filter(Q(expires_at__lte=now) | Q(created_at__lte=youngest))
    return prune(expired, "expires_at", wait)


def prune_idempotent_answers(*, wait: Callable[[float], bool]) -> Pruned:
    """Delete expired claims on Idempotency-Keys and the answers stored under them."""
    return prune(IdempotentAnswer.objects.filter(expires_at__lte=timezone.now()), "expires_at", wait)


def prune_by_settings(*, wait: Callable[[float], bool]) -> int:
    """Delete everything that the retention settings allow; log the numbers of rows and return their sum."""
    days = settings.LOG_RETENTION_DAYS
    pruned = {
        "contents": prune_content(wait=wait),
        "idempotent_answers": prune_idempotent_answers(wait=wait),
        "records": prune_records(record_cutoff(days).at, wait=wait) if days else Pruned(),
    }
    cutoff = rollup_cutoff(settings.ROLLUP_RETENTION_DAYS)  # it depends on which records are left
    pruned["rollups"] = prune_rollups(cutoff, wait=wait) if cutoff else Pruned()
    if any(each.rows for each in pruned.values()):
        longest = max(each.longest for each in pruned.values())
        log.info("pruned", **{name: each.rows for name, each in pruned.items()}, longest_ms=round(longest * 1000))
    return sum(each.rows for each in pruned.values())
