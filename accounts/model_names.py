"""How names of models are read here: the rooms above know the models, and say so when Django starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Reader = Callable[[str], str | None]


@dataclass(slots=True)
class _Known:
    read: Reader = str


_known = _Known()


def install_reader(read: Reader) -> None:
    """Install what gives the public name of a model by that name or an alias, None where there is no such model."""
    _known.read = read


def public_model_name(name: str) -> str | None:
    """Give the public name of the model that has the name or alias; None if there is none."""
    return _known.read(name)
