"""The round that `manage.py watch` makes: look, begin and end episodes, tell of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from monitoring.alerts.budgets import budgets_used
from monitoring.alerts.conditions import Condition, HealthWatch, Source, error_rate, sources
from monitoring.alerts.deliveries import deliveries_send
from monitoring.alerts.episodes import episodes_follow


@dataclass(slots=True)
class Round:
    """Looks at everything; remembers only how often a health check was bad in a row."""

    health: HealthWatch = field(default_factory=HealthWatch)

    def run(self) -> tuple[int, int]:
        """Go round once; return how many episodes began and how many deliveries arrived."""
        return episodes_follow(self._conditions()), deliveries_send()

    def _conditions(self) -> Iterator[Condition]:
        watched: tuple[Source, ...] = (budgets_used, error_rate, self.health, *sources())
        for source in watched:
            yield from source()
