"""The worker: moves usage records into the database and, if it leads, sends alerts, prunes and checks.

Several may run. All ingest; one leads (operations.alerts.incidents). Ingesting runs in the main thread and everything
else in two further threads with their own database connections, so that nothing delays ingesting. In bin/run, with
any store, they are gevent's: there, ingesting waits while they compute, and for their queries of SQLite. An exception
in one part is logged; the others go on.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

import structlog
from django.conf import settings
from django.db import close_old_connections, transaction
from django.utils import timezone

from core.background import run_step
from monitoring.ingester import BATCH, Ingester
from monitoring.retention import prune_by_settings
from operations.alerts.conditions import (
    Condition,
    HealthWatch,
    ReconciliationWatch,
    budgets_used,
    error_rate,
    failing_deployments,
    missing_prices,
)
from operations.alerts.deliveries import deliveries_send
from operations.alerts.incidents import LeaderLock, incidents_update

log = structlog.get_logger(__name__)

#: Seconds between two reads of records: where they come slowly, where they come fast (in a batch of 300 a record costs
#: a third of the CPU of one of ten), and after a failed read.
IDLE_SECONDS, BATCH_SECONDS, RETRY_SECONDS = 0.2, 1.0, 1.0
#: Records of a read from which they come fast.
FAST = 20
PRUNE_SECONDS = 3600.0
#: When the nightly check begins (UTC), and how many seconds later it is tried again after a failure.
CHECK_AT, CHECK_AGAIN_SECONDS = (3, 17), 3600.0
#: Seconds between two checks whether pruning or the nightly check is due.
TICK = 1.0
#: Seconds for a round of alerts and a step of pruning to finish after a stop.
STOP_SECONDS = 5.0


@dataclass(slots=True)
class Round:
    """A worker's rounds, with the failed health checks in a row and the result of the last nightly check."""

    health: HealthWatch = field(default_factory=HealthWatch)
    reconciliation: ReconciliationWatch = field(default_factory=ReconciliationWatch)
    lock: LeaderLock = field(default_factory=LeaderLock)
    leads: bool | None = None  # None before the first round

    def run(self) -> tuple[int, int]:
        """Make a round; return how many incidents began and how many deliveries succeeded.

        If a source of conditions fails, no incident ends, and its error is raised afterwards.
        """
        try:
            leads = self.lock.take()
        except Exception:
            self.leads = False
            raise
        if leads is not self.leads:
            log.info("worker_leads" if leads else "worker_stands_by", worker=self.lock.name)
            self.health.forget()  # earlier results are too old to count
            if not leads:
                self.reconciliation.forget()
        self.leads = leads
        began = 0
        try:
            if leads:
                conditions, failure = self._conditions()
                with transaction.atomic():  # the conditions are slow at times: another process may lead by now
                    began = incidents_update(conditions, ends=failure is None) if self.lock.is_mine() else 0
                if failure is not None:
                    raise failure
        except Exception:
            self.lock.give_back()  # another may see more
            raise
        finally:
            sent = deliveries_send()
        return began, sent

    def _conditions(self) -> tuple[list[Condition], Exception | None]:
        """Return the conditions of all sources that work, and the last error of one that does not."""
        watched = (budgets_used, error_rate, self.health, failing_deployments, missing_prices, self.reconciliation)
        conditions: list[Condition] = []
        failure = None
        for source in watched:
            try:
                conditions += source()
            except Exception as error:  # noqa: BLE001  (of any kind; the caller raises it)
                failure = error
        return conditions, failure


class Worker:
    """One process's work until `stopping` is set."""

    def __init__(self, stopping: threading.Event) -> None:
        self.stopping = stopping
        self.round = Round()

    def run(self) -> None:
        """Run until `stopping` is set. Returns when the current batch is written and the leadership is given up."""
        threads = [threading.Thread(target=part, name=part.__name__, daemon=True) for part in (self.watch, self.tend)]
        for thread in threads:
            thread.start()
        self.ingest()
        ends = time.monotonic() + STOP_SECONDS
        for thread in threads:
            thread.join(max(0.0, ends - time.monotonic()))
        run_step(self.round.lock.give_back, event="watch_failed")

    def ingest(self) -> None:
        """Move records, batch after batch."""
        ingester = Ingester()
        wait = 0.0

        def move() -> None:
            nonlocal wait
            moved = ingester.run_once()
            wait = IDLE_SECONDS if moved < FAST else BATCH_SECONDS if moved < BATCH else 0.0

        while not self.stopping.wait(wait):
            close_old_connections()
            wait = RETRY_SECONDS
            run_step(move, event="ingest_failed")
        run_step(ingester.leave, event="ingest_failed")

    def watch(self) -> None:
        """Try to lead every WATCH_SECONDS; while leading, check all conditions and send alerts."""
        while not self.stopping.wait(settings.WATCH_SECONDS):
            close_old_connections()
            run_step(self.round.run, event="watch_failed")

    def tend(self) -> None:
        """Prune each hour and check each night, while this worker leads."""
        prune_at, check_at = time.monotonic() + PRUNE_SECONDS, next_night(timezone.now())
        while not self.stopping.wait(TICK):
            if not self.round.leads:
                continue
            close_old_connections()
            if time.monotonic() >= prune_at:
                run_step(partial(prune_by_settings, wait=self.stopping.wait), event="pruning_failed")
                prune_at = time.monotonic() + PRUNE_SECONDS
            if timezone.now() >= check_at:
                is_done = run_step(self.round.reconciliation.check, event="check_failed")
                again = timezone.now() + timedelta(seconds=CHECK_AGAIN_SECONDS)
                check_at = next_night(timezone.now()) if is_done else again


def next_night(now: datetime) -> datetime:
    """Return when the next nightly check begins."""
    hour, minute = CHECK_AT
    tonight = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return tonight if tonight > now else tonight + timedelta(days=1)
