"""Model names, as far as accounts need them. The app that knows the models installs its readers when Django starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Reader = Callable[[str], str | None]


@dataclass(slots=True)
class _Known:
    read: Reader = str
    read_unpriced: Callable[[], list[str]] = list


_known = _Known()


def install_reader(read: Reader) -> None:
    """Install a function that returns the public name of a model by that name or an alias, or None."""
    _known.read = read


def install_unpriced_reader(read: Callable[[], list[str]]) -> None:
    """Install a function that lists the public names of the models without any price."""
    _known.read_unpriced = read


def unpriced_model_names() -> list[str]:
    """List the public names of the models without any price: budgets in money refuse calls of these."""
    return _known.read_unpriced()


def public_model_name(name: str) -> str | None:
    """Return the public name of the model with this name or alias; None if there is none."""
    return _known.read(name)
