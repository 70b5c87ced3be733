"""Where answers come from, as the room that knows tells: deployments and how their breakers stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class DeploymentState:
    """A deployment: `state` is closed, open or half_open, `open_since` when it began to fail, and `cause` how.

    `accounts` counts those whose own calls fail there so often that the breaker is open for them alone.
    `alert_subjects` are those of alerts while it fails, `missing` names the variables of secrets that are not set, and
    `is_unlisted` says that there is an alert since its provider does not answer with its list of models. What
    calls cost where it is not `is_priced` is unknown.
    """

    model: str
    provider: str
    name: str
    url: str
    is_enabled: bool
    state: str
    open_since: datetime | None
    accounts: int
    cause: str = ""
    alert_subjects: tuple[str, ...] = ()
    missing: str = ""
    is_unlisted: bool = False
    is_priced: bool = True

    @property
    def is_failing(self) -> bool:
        """Say whether calls are kept away that should go there."""
        return self.is_enabled and self.state != "closed"

    @property
    def is_troubled(self) -> bool:
        """Say whether somebody's calls don't go there although they should, or are likely to fail."""
        return self.is_failing or (self.is_enabled and bool(self.accounts or self.missing or self.is_unlisted))


Reader = Callable[[], Sequence[DeploymentState]]
_readers: list[Reader] = []


def register_deployment_states(reader: Reader) -> None:
    """Let the room that knows tell how deployments stand; a later one replaces it."""
    _readers[:] = [reader]


def deployment_states() -> list[DeploymentState]:
    """List all deployments, those in trouble first, then those without a price."""
    states = [state for reader in _readers for state in reader()]
    return sorted(states, key=lambda state: (not state.is_troubled, state.is_priced, not state.is_enabled))
