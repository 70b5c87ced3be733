"""The round of the leading worker, every WATCH_SECONDS: check conditions, begin and end incidents, send messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import structlog
from django.db import transaction

from operations.alerts.budgets import budgets_used
from operations.alerts.conditions import (
    BooksWatch,
    Condition,
    HealthWatch,
    error_rate,
    failing_deployments,
    missing_prices,
)
from operations.alerts.deliveries import deliveries_send
from operations.alerts.incidents import LeaderLock, incidents_update

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Round:
    """A worker's rounds, with the failed health checks in a row and the result of the last nightly check."""

    health: HealthWatch = field(default_factory=HealthWatch)
    books: BooksWatch = field(default_factory=BooksWatch)
    turn: LeaderLock = field(default_factory=LeaderLock)
    leads: bool | None = None  # None before the first round

    def run(self) -> tuple[int, int]:
        """Make a round; return how many incidents began and how many deliveries succeeded."""
        self._note(self.turn.take())
        try:
            began = self._follow() if self.leads else 0
        except Exception:
            self.turn.give_back()  # another may see more
            raise
        return began, deliveries_send()

    def _follow(self) -> int:
        conditions = list(self._conditions())  # slow at times: another process may lead afterwards
        with transaction.atomic():
            return incidents_update(conditions) if self.turn.is_mine() else 0

    def _conditions(self) -> Iterator[Condition]:
        watched = (budgets_used, error_rate, self.health, failing_deployments, missing_prices, self.books)
        for source in watched:
            yield from source()

    def _note(self, leads: bool) -> None:
        if leads is not self.leads:
            log.info("worker_leads" if leads else "worker_stands_by", worker=self.turn.name)
            self.health.forget()  # earlier results are too old to count
            if not leads:
                self.books.forget()
        self.leads = leads
