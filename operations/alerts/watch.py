"""The round that the leading worker makes every WATCH_SECONDS: look, begin and end incidents, tell of them."""

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
    """Looks at everything while it leads; remembers how often a health check was bad in a row, and the last check."""

    health: HealthWatch = field(default_factory=HealthWatch)
    books: BooksWatch = field(default_factory=BooksWatch)
    turn: LeaderLock = field(default_factory=LeaderLock)
    leads: bool | None = None  # None: it has not gone round yet

    def run(self) -> tuple[int, int]:
        """Go round once; return how many incidents began and how many deliveries arrived."""
        self._note(self.turn.take())
        try:
            began = self._follow() if self.leads else 0
        except Exception:
            self.turn.give_back()  # another may see more
            raise
        return began, deliveries_send()

    def _follow(self) -> int:
        conditions = list(self._conditions())  # this may take long: the turn may have gone to another meanwhile
        with transaction.atomic():
            return incidents_update(conditions) if self.turn.is_mine() else 0

    def _conditions(self) -> Iterator[Condition]:
        watched = (budgets_used, error_rate, self.health, failing_deployments, missing_prices, self.books)
        for source in watched:
            yield from source()

    def _note(self, leads: bool) -> None:
        if leads is not self.leads:
            log.info("worker_leads" if leads else "worker_stands_by", worker=self.turn.name)
            self.health.forget()  # what was seen before is too long ago to count
            if not leads:
                self.books.forget()
        self.leads = leads
