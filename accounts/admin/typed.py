"""django-unfold's parts under the types that they lack: checkers see Django's classes, which unfold's derive from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from django.http import HttpRequest
from unfold.decorators import action as unfold_action
from unfold.decorators import display as unfold_display

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin as _ModelAdmin
    from django.contrib.admin import TabularInline as _TabularInline

    class ModelAdmin(_ModelAdmin[Any]):
        """What unfold adds to Django's, as far as it is used here."""

        def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
            """Return the actions of an object's page that the user may use."""

    TabularInline = _TabularInline[Any, Any]
else:
    from unfold.admin import ModelAdmin, TabularInline

__all__ = ["Fieldsets", "ModelAdmin", "TabularInline", "action", "display"]

#: A page's sections: title and options, as Django's ModelAdmin.fieldsets.
Fieldsets = tuple[tuple[str | None, Any], ...]
Function = TypeVar("Function", bound=Callable[..., Any])


def display(
    *, description: str, ordering: str | None = None, label: dict[str, str] | None = None, boolean: bool | None = None
) -> Callable[[Function], Function]:
    """Describe a column; `label` maps its values to badges: success, info, warning, danger, primary."""
    decorate: Callable[[Function], Function] = unfold_display(
        description=description, ordering=ordering, label=label, boolean=boolean
    )
    return decorate


def action(
    *, description: str, permissions: Sequence[str], icon: str | None = None, url_path: str | None = None
) -> Callable[[Function], Function]:
    """Describe an action: of a list where it takes a queryset, of an object's page where it takes its id."""
    decorate: Callable[[Function], Function] = unfold_action(
        description=description, permissions=permissions, icon=icon, url_path=url_path
    )
    return decorate
