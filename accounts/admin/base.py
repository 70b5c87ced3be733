"""Shared parts of all admin pages: typed django-unfold, audit of every change, read-only pages, and confirmations.

Type checkers see Django's classes, from which unfold's untyped ones derive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db.models import Field, JSONField, Model, Q, QuerySet
from django.db.models.constants import LOOKUP_SEP
from django.forms import Form
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from unfold.widgets import UnfoldAdminTextareaWidget

from accounts.audit import audited_delete, audited_save
from accounts.models import AuditEntry
from core.formats import ago, utc_text

Function = TypeVar("Function", bound=Callable[..., Any])

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin as _ModelAdmin
    from django.contrib.admin import StackedInline as _StackedInline
    from django.contrib.admin import TabularInline as _TabularInline

    class ModelAdmin(_ModelAdmin[Any]):
        """Django's ModelAdmin with the additions of unfold that are used here."""

        def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
            """Return the actions of an object's page that the user may use."""

    StackedInline = _StackedInline[Any, Any]
    TabularInline = _TabularInline[Any, Any]

    def display(
        *, description: str, ordering: str | None = None, label: dict[str, str] | None = None, boolean: bool = False
    ) -> Callable[[Function], Function]:
        """Describe a column; `label` maps its values to badges: success, info, warning, danger, primary."""

    def action(
        *, description: str, permissions: Sequence[str], icon: str | None = None, url_path: str | None = None
    ) -> Callable[[Function], Function]:
        """Describe an action: on a list it gets a queryset, on an object's page the object's id."""
else:
    from unfold.admin import ModelAdmin, StackedInline, TabularInline
    from unfold.decorators import action, display

__all__ = ["Fieldsets", "ModelAdmin", "StackedInline", "TabularInline", "action", "display"]

#: The sections of a page, as in Django's ModelAdmin.fieldsets.
Fieldsets = tuple[tuple[str | None, Any], ...]


def column(
    description: str, value: Callable[[Any], Any], *, ordering: str | None = None, label: dict[str, str] | None = None
) -> Callable[[Any, Any], Any]:
    """Return a column that shows a value of each row."""

    @display(description=description, ordering=ordering, label=label)
    def shown(model_admin: Any, row: Any) -> Any:
        return value(row)

    return shown


def actor_of(request: HttpRequest) -> str:
    """Return the actor for the audit log."""
    return f"admin:{request.user.get_username()}"


def change_url(instance: Model) -> str:
    """Return the URL of an object's admin page."""
    return reverse(f"admin:{instance._meta.app_label}_{instance._meta.model_name}_change", args=[instance.pk])


#: A link of a URL and a text.
LINK = '<a class="text-primary-600 dark:text-primary-500" href="{}">{}</a>'


def link(instance: Model, text: str = "") -> SafeString:
    """Return a link to an object's admin page, labelled with its name unless a text is given."""
    return format_html(LINK, change_url(instance), text or str(instance))


def relative(at: datetime | None) -> SafeString:
    """Return a time as people say it, `in 12 days` or `3 h ago`, with the exact time on hover; None: never."""
    return format_html('<span title="{}">{}</span>', utc_text(at), ago(at, timezone.now()))


def found(model_admin: ModelAdmin, request: HttpRequest, object_id: str) -> Any:
    """Return the object with this id; raises Http404 if there is none."""
    instance = model_admin.get_object(request, object_id)
    if instance is None:
        raise Http404
    return instance


class OfferedLookupsAdmin(ModelAdmin):
    """Accepts only those look-ups in the URL that the list's filters offer.

    By default Django accepts look-ups of all of the model's own fields: `digest__startswith` would reveal a secret's
    digest letter by letter.
    """

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the list under its name in the menu."""
        title = capfirst(str(self.opts.verbose_name_plural))
        return super().changelist_view(request, {"title": title, **(extra_context or {})})

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Return whether a URL parameter belongs to a filter of the list, or to no field at all."""
        if any(lookup in _parameters_of(each) for each in self.get_list_filter(request)):
            return True
        name = lookup.partition(LOOKUP_SEP)[0]
        return name != "pk" and name not in {field.name for field in self.model._meta.get_fields()}


def _parameters_of(item: Any) -> tuple[str, ...]:
    """Return the URL parameters of an entry of `list_filter`: a field's path, or a filter class of ours."""
    if isinstance(item, str):
        return (item, f"{item}__exact", f"{item}__isnull", f"{item}__id__exact")
    if isinstance(item, tuple):
        return _parameters_of(item[0])
    return tuple(getattr(item, "parameters", ())) or (item.parameter_name,)


#: Audit entries on one page of an object's history.
HISTORY = 50


class AuditedAdmin(OfferedLookupsAdmin):
    """Saves and deletes through the audit log; subclasses with their own services override `write` and `erase`.

    The history of an object is its audit entries. Django's own log lacks values, commands and calls of the API, so
    nothing is written to it.
    """

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
        """Save the object of the page's form."""
        self.write(obj, actor=actor_of(request))

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        """Save and delete the objects of the page's inlines."""
        for instance in formset.save(commit=False):
            self.write(instance, actor=actor_of(request))
        for instance in formset.deleted_objects:
            self.erase(instance, actor=actor_of(request))

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        """Delete one object."""
        self.erase(obj, actor=actor_of(request))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Delete the selected objects, with an audit entry for each."""
        for instance in queryset:
            self.erase(instance, actor=actor_of(request))

    def log_addition(self, *_: Any) -> None:  # type: ignore[override]  # Django's returns its entry
        """Write nothing: the audit log has the change."""

    log_change = log_deletion = log_deletions = log_addition  # type: ignore[assignment]

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the audit entries about an object, newest first; raises PermissionDenied.

        Who changed what is for those who may read the audit log.
        """
        instance = found(self, request, unquote(object_id))
        if not self.has_view_or_change_permission(request, instance):
            raise PermissionDenied
        entries = AuditEntry.objects.filter(self.history_of(request, instance))
        shown = self.get_paginator(request, entries, HISTORY).get_page(request.GET.get("p"))
        context = {"object": instance, "entries": shown, "may_audit": request.user.has_perm("accounts.view_auditentry")}
        return page(self, request, "admin/object_history.html", f"History of {instance}", context)

    def history_of(self, request: HttpRequest, instance: Any) -> Q:
        """Return the condition of the audit entries of an object's history."""
        return Q(target_type=str(self.opts.verbose_name), target_id=str(instance.pk))


class OverviewAdmin(AuditedAdmin):
    """Pages of objects that open on an overview, with the form behind the tab Settings (admin/overviewed.html).

    The overview is the component OverviewTab of `operations`, since it shows usage and requests.
    """

    change_form_template = "admin/overviewed.html"


class ReadOnly:
    """Refuses to add, change and delete rows."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse."""
        return False

    has_change_permission = has_delete_permission = has_add_permission


class ReadOnlyAdmin(ReadOnly, OfferedLookupsAdmin):
    """Read-only pages, for users with the view permission."""

    actions = None

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the object without a link to its history, which is always empty."""
        return super().change_view(request, object_id, form_url, {**(extra_context or {}), "show_history": False})


#: How many affected objects a confirmation lists; further ones are only counted.
NAMED = 20
CONFIRMED = "confirmed"


@dataclass(frozen=True)
class Confirmation:
    """The content of a confirmation page. `hidden` are the fields that it sends back with `confirmed`."""

    title: str
    consequences: Sequence[str]
    submit: str
    affected: Sequence[Any] = ()
    form: Form | None = None
    is_dangerous: bool = True
    cancel_url: str = ""
    hidden: Mapping[str, Sequence[str]] = field(default_factory=dict)


def is_confirmed(request: HttpRequest) -> bool:
    """Return whether the request was sent by the confirmation's button."""
    return request.method == "POST" and CONFIRMED in request.POST


def page(
    model_admin: ModelAdmin, request: HttpRequest, template: str, title: str, context: Mapping[str, Any]
) -> TemplateResponse:
    """Return a page of the admin with a template of ours."""
    own = {"opts": model_admin.model._meta, "title": title, **context}
    return TemplateResponse(request, template, {**model_admin.admin_site.each_context(request), **own})


def ask(model_admin: ModelAdmin, request: HttpRequest, question: Confirmation) -> TemplateResponse:
    """Return the confirmation page."""
    affected = question.affected
    named = {"named": affected[:NAMED], "unnamed": max(0, len(affected) - NAMED), "confirmed": CONFIRMED}
    return page(model_admin, request, "admin/confirmation.html", question.title, {"question": question, **named})
