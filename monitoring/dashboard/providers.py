"""Where answers come from, as the room that knows tells: deployments and how their breakers stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class DeploymentState:
    """A deployment: `state` is closed, open or half_open, `open_since` when it opened as far as this process knows.

    `accounts` counts those whose own calls fail there so often that the breaker is open for them alone.
    """

    model: str
    provider: str
    name: str
    url: str
    is_enabled: bool
    state: str
    open_since: datetime | None
    accounts: int

    @property
    def is_troubled(self) -> bool:
        """Say whether somebody's calls don't go there although they should."""
        return self.is_enabled and (self.state != "closed" or self.accounts > 0)


Reader = Callable[[], Sequence[DeploymentState]]
_readers: list[Reader] = []


def register_deployment_states(reader: Reader) -> None:
    """Let the room that knows tell how deployments stand; a later one replaces it."""
    _readers[:] = [reader]


def deployment_states() -> list[DeploymentState]:
    """List all deployments, those in trouble first."""
    states = [state for reader in _readers for state in reader()]
    return sorted(states, key=lambda state: (not state.is_troubled, not state.is_enabled))
