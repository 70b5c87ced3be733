"""Whether the default model's provider answers: its list of models is asked for, which spends no token."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from inference.catalog import CatalogModel, catalog
from inference.upstream.client import client
from monitoring.health import Health

#: Seconds for which an answer is believed, so that health checks cost the provider next to nothing.
BELIEVED_SECONDS = 30
PROBE_SECONDS = 2.0


@dataclass(slots=True)
class _Belief:
    health: Health = Health.AWAY
    until: float = float("-inf")


class ModelHealth:
    """Remembers the last answer of each provider's address."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beliefs: dict[str, _Belief] = {}

    def __call__(self) -> Health:
        """Say whether the default model can be reached, asking at most every BELIEVED_SECONDS."""
        model = catalog.default()
        if model is None or not model.routes:
            return Health.AWAY
        belief = self._beliefs.setdefault(model.routes[0].base_url, _Belief())
        if belief.until <= self._clock():
            belief.until = self._clock() + BELIEVED_SECONDS
            belief.health = self._ask(model)
        return belief.health

    def forget(self) -> None:
        """Ask again the next time."""
        self._beliefs.clear()

    def _ask(self, model: CatalogModel) -> Health:
        return Health.OK if client.is_reachable(model.routes[0], seconds=PROBE_SECONDS) else Health.AWAY


llm_health = ModelHealth()
