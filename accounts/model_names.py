"""How names of models are read here: the rooms above know the models, and say so when Django starts."""

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
    """Install what gives the public name of a model by that name or an alias, None where there is no such model."""
    _known.read = read


def install_unpriced_reader(read: Callable[[], list[str]]) -> None:
    """Install what lists the public names of the models that have no price anywhere."""
    _known.read_unpriced = read


def unpriced_model_names() -> list[str]:
    """List the public names of the models that have no price anywhere: no budget in money allows a call of them."""
    return _known.read_unpriced()


def public_model_name(name: str) -> str | None:
    """Give the public name of the model that has the name or alias; None if there is none."""
    return _known.read(name)
