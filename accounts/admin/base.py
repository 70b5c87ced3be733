"""What the admin pages of all apps share: the audit of every change, pages that can't change anything, small marks."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from django.db.models import Field, JSONField, Model, QuerySet
from django.db.models.constants import LOOKUP_SEP
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.widgets import UnfoldAdminTextareaWidget

from accounts.admin.typed import ModelAdmin
from accounts.audit import audited_delete, audited_save

NEVER = "never"


def actor_of(request: HttpRequest) -> str:
    """Name who acts, for the audit log."""
    return f"admin:{request.user.get_username()}"


def change_url(instance: Model) -> str:
    """Return the address of an object's admin page."""
    return reverse(f"admin:{instance._meta.app_label}_{instance._meta.model_name}_change", args=[instance.pk])


def link(instance: Model, text: str = "") -> SafeString:
    """Make a link to an object's admin page, under its own name unless a text is given."""
    return format_html(
        '<a class="text-primary-600 dark:text-primary-500" href="{}">{}</a>',
        change_url(instance),
        text or str(instance),
    )


def moment(value: datetime | None, absent: str = NEVER) -> str:
    """Write a moment in UTC, to the minute."""
    return absent if value is None else value.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def found(model_admin: ModelAdmin, request: HttpRequest, object_id: str) -> Any:
    """Return the object that an address names; raises Http404 where there is none."""
    instance = model_admin.get_object(request, object_id)
    if instance is None:
        raise Http404
    return instance


class OfferedLookupsAdmin(ModelAdmin):
    """Selects by the filters that a list offers, and by nothing else of its rows.

    Django takes any look-up of the model's own fields from the address: `digest__startswith` would find a secret's
    digest letter by letter.
    """

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Return whether a parameter of the address belongs to a filter of the list, or to no column at all."""
        if any(lookup in _parameters_of(each) for each in self.get_list_filter(request)):
            return True
        name = lookup.partition(LOOKUP_SEP)[0]
        return name != "pk" and name not in {field.name for field in self.model._meta.get_fields()}


def _parameters_of(item: Any) -> tuple[str, ...]:
    """Return the parameters of an entry of `list_filter`: a field's path, or a class of our own."""
    if isinstance(item, str):
        return (item, f"{item}__exact", f"{item}__isnull", f"{item}__id__exact")
    if isinstance(item, tuple):
        return _parameters_of(item[0])
    return tuple(getattr(item, "parameters", ())) or (item.parameter_name,)


class AuditedAdmin(OfferedLookupsAdmin):
    """Saves and deletes only through the audit log; subclasses with services of their own override the two verbs."""

    warn_unsaved_form = True
    formfield_overrides: ClassVar[dict[type[Field[Any, Any]], Any]] = {
        JSONField: {"widget": UnfoldAdminTextareaWidget(attrs={"rows": 4})}
    }

    def write(self, instance: Any, *, actor: str) -> None:
        """Save an object, new or changed."""
        audited_save(instance, actor=actor)

    def erase(self, instance: Any, *, actor: str) -> None:
        """Delete an object."""
        audited_delete(instance, actor=actor)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Save what the page's form holds."""
        self.write(obj, actor=actor_of(request))

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        """Save what the page's inlines hold."""
        for instance in formset.save(commit=False):
            self.write(instance, actor=actor_of(request))
        for instance in formset.deleted_objects:
            self.erase(instance, actor=actor_of(request))

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        """Delete one object."""
        self.erase(obj, actor=actor_of(request))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Delete the selected objects, each with an entry of its own."""
        for instance in queryset:
            self.erase(instance, actor=actor_of(request))


class ReadOnlyAdmin(OfferedLookupsAdmin):
    """Pages for looking only; what a user may see, his view permission says."""

    actions = None

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the object, without a link to a history that it can't have."""
        context = {**(extra_context or {}), "show_history": False}
        response: HttpResponse = super().change_view(request, object_id, form_url, context)
        return response

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody adds."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody changes."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody deletes."""
        return False
