"""Deletes many old rows without anybody noticing: in small steps, each a short transaction, with pauses in between.

Rows go in the order of a column that has an index. A step deletes as many as fit into STEP_SECONDS, by what
the steps before took, and is broken off by the database at STEP_LIMIT: then the next one is smaller. Pruning can be
stopped after any step, and begun again.

How long things are kept: what may go, and from when on.

Budgets, statistics and an emptied store of the limits are counted from the rollups, which outlive the records: so those
of the present month may go like all others. The last two days stay, however few are asked for, and while records wait
for the ingester the two days before the oldest of them: a late settlement may replace a record, and an ingester may
write one again. Were it gone by then, it would count twice.
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
from monitoring.rollups.periods import HOUR, hour_of, month_begin

STEP_SECONDS = 0.03  # what a step is meant to take
STEP_LIMIT = 0.06  # what its statement may take at most; its commit comes on top
PAUSE_RATIO = 3  # how many times as long as a step the pause after it is: others have the database to themselves
SHORTEST_PAUSE = 0.02  # seconds: longer than a writer of SQLite sleeps between its first tries for the lock
FIRST_ROWS, MOST_ROWS = 100, 5_000
PROGRESS_OPCODES = 1000  # of SQLite's machine, between two looks at the clock


@dataclass(slots=True)
class Pace:
    """How many rows the next step takes."""

    rows: int = FIRST_ROWS

    def learn(self, seconds: float) -> None:
        """Take more or fewer after a step that took so long, never more than twice as many."""
        self._scale(STEP_SECONDS / max(seconds, 1e-6))

    def slow_down(self) -> bool:
        """Take a quarter after a step that was broken off; False if a step can't be smaller."""
        was = self.rows
        self._scale(0.25)
        return self.rows < was

    def _scale(self, factor: float) -> None:
        self.rows = max(1, min(MOST_ROWS, int(self.rows * min(factor, 2.0))))


@dataclass(slots=True)
class Pruned:
    """What has been done so far."""

    rows: int = 0
    steps: int = 0
    longest: float = 0.0  # seconds
    was_stopped: bool = False

    def __str__(self) -> str:
        stopped = ", stopped before the end" if self.was_stopped else ""
        return f"{self.steps:,} steps, the longest {self.longest * 1000:.0f} ms{stopped}"


@dataclass(slots=True)
class Pruning:
    """Deletes the rows of a queryset, in the order of a column.

    `wait` pauses for so many seconds and answers whether to stop.
    """

    doomed: QuerySet[Any]
    column: str
    wait: Callable[[float], bool]
    pace: Pace = field(default_factory=Pace)
    done: Pruned = field(default_factory=Pruned)

    def run(self) -> Pruned:
        """Delete until nothing is left or `wait` says stop; raises the database's error where no step succeeds."""
        for seconds in self._steps():
            if self.wait(max(SHORTEST_PAUSE, seconds * PAUSE_RATIO)):
                self.done.was_stopped = True
                break
        return self.done

    def _steps(self) -> Iterator[float]:
        """Do one step after the other; yield what each took, in seconds."""
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
        """Find the last row of the next step; None where there is none."""
        keys = list(self._beyond(after).values_list(self.column, flat=True)[: self.pace.rows])
        return keys[-1] if keys else None

    def _delete(self, after: Any, end: Any) -> int:
        doomed = closest_first(self._beyond(after).filter(**{f"{self.column}__lte": end})).order_by()
        with transaction.atomic(), _bounded(is_free=self.pace.rows == 1):
            return doomed.delete()[0]


@contextmanager
def _bounded(*, is_free: bool) -> Iterator[None]:
    """Have the database break off what takes longer than STEP_LIMIT. The smallest step is free: it must succeed."""
    if is_free:
        yield
    elif connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            # Nor does its commit wait for the disk: a step that a crash undoes is done again.
            cursor.execute(f"SET LOCAL synchronous_commit = off; SET LOCAL statement_timeout = {STEP_LIMIT * 1000:.0f}")
        yield
    else:
        deadline = time.monotonic() + STEP_LIMIT
        connection.connection.set_progress_handler(lambda: time.monotonic() > deadline, PROGRESS_OPCODES)
        try:
            yield
        finally:
            connection.connection.set_progress_handler(None, 0)


log = structlog.get_logger(__name__)

#: What the audit log says of records that were deleted.
PRUNER, PRUNED, KIND, BEFORE = "command:prune_logs", "pruned", str(RequestRecord._meta.verbose_name), "before"
#: Longer than a record may be replaced after its call began: CHARGED_TTL in accounts/limits/lua, and the longest call.
REPLACEABLE = timedelta(days=2)


@dataclass(frozen=True, slots=True)
class Cutoff:
    """The moment before which records go; `wanted` is the one that was asked for, later where records have to stay."""

    at: datetime
    wanted: datetime

    @property
    def is_protected(self) -> bool:
        """Say whether records stay that are older than was asked for."""
        return self.at < self.wanted


def record_cutoff(days: float, *, now: datetime | None = None) -> Cutoff:
    """Find out which records may go if those of so many days are to be kept.

    Raises redis.RedisError: who can't tell what waits for the ingester must not delete anything.
    """
    moment = now or timezone.now()
    wanted = moment - timedelta(days=days)
    return Cutoff(min(wanted, moment - REPLACEABLE - timedelta(seconds=ingest_backlog().seconds)), wanted)


def old_records(cutoff: datetime) -> QuerySet[RequestRecord]:
    """Select the records that were admitted before a moment."""
    return RequestRecord.objects.filter(admitted_at__lt=cutoff)


def oldest_admission() -> datetime | None:
    """Return when the oldest record was admitted; None: there is no record."""
    return RequestRecord.objects.order_by("admitted_at").values_list("admitted_at", flat=True).first()


def prune_records(cutoff: datetime, *, wait: Callable[[float], bool]) -> Pruned:
    """Delete the records that were admitted before a moment, in small steps (see monitoring.retention).

    The audit log is told first that the log will not begin any more where the rollups do, so that nobody takes what is
    left of its first hour for all that there was. Later on the rollups of earlier hours say so.
    """
    oldest = oldest_admission()
    if oldest is not None and oldest < cutoff and not has_earlier_rollups(hour_of(oldest)):
        audit_event(actor=PRUNER, action=PRUNED, kind=KIND, details={BEFORE: cutoff.astimezone(UTC).isoformat()})
    return Pruning(old_records(cutoff), "admitted_at", wait).run()


def has_earlier_rollups(hour: int) -> bool:
    """Say whether rollups go back beyond an hour."""
    return Rollup.objects.filter(grain=Rollup.Grain.PLATFORM_HOUR, start__lt=hour).exists()


def pruned_before() -> datetime | None:
    """Return the moment before which records may have been deleted by the audit log; None: it knows of none."""
    entries = AuditEntry.objects.filter(target_type=KIND, action=PRUNED).order_by()
    return max(
        (datetime.fromisoformat(after[BEFORE]) for after in entries.values_list("after", flat=True)), default=None
    )


def rollup_cutoff(days: int, *, now: datetime | None = None) -> datetime | None:
    """Find the month before which rollups may go, if those of so many days are to be kept; None: days is 0, none may.

    Whole months only: hours, days and months of one time go together. What the log still holds stays in the rollups,
    which are compared with it, and so does the hour before: by that it is known that the log's first may lack records.
    """
    if not days:
        return None
    cutoff = (now or timezone.now()) - timedelta(days=days)
    oldest = oldest_admission()
    return month_begin(min(cutoff, oldest - HOUR) if oldest else cutoff)


def prune_rollups(cutoff: datetime, *, wait: Callable[[float], bool]) -> Pruned:
    """Delete the rollups of the time before a moment, in small steps."""
    total = Pruned()
    for grain in Rollup.Grain:
        old = Rollup.objects.filter(grain=grain, start__lt=hour_of(cutoff))
        done = Pruning(old, "start", wait, done=total).run()
        if done.was_stopped:
            break
    return total


def prune_content(*, wait: Callable[[float], bool]) -> Pruned:
    """Delete what was asked and answered once it has expired, by the setting of now or of when it was written."""
    now = timezone.now()
    youngest = now - timedelta(hours=settings.CONTENT_RETENTION_HOURS)
    expired = RequestContent.objects.filter(Q(expires_at__lte=now) | Q(created_at__lte=youngest))
    return Pruning(expired, "expires_at", wait).run()


def prune_idempotent_answers(*, wait: Callable[[float], bool]) -> Pruned:
    """Delete claims on Idempotency-Keys, and the answers kept under them, that have had their day."""
    old = IdempotentAnswer.objects.filter(until__lte=timezone.now())
    return Pruning(old, "until", wait).run()


def prune_by_settings(*, wait: Callable[[float], bool]) -> None:
    """Delete all that has had its time; log how much of it there was."""
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
