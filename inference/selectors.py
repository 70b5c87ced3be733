"""Reads of models, past the catalog: of those that are switched off too, and as the database has them now."""

from __future__ import annotations

from inference.models import Model


def public_name_of(name: str) -> str | None:
    """Return the public name of the model that has the name or alias; None if there is none."""
    names = {each: public_name for public_name, aliases in _names() for each in (public_name, *aliases)}
    return names.get(name)


def _names() -> list[tuple[str, list[str]]]:
    return list(Model.objects.values_list("public_name", "aliases"))
