"""The audit log in the admin: to read, to filter by who, what and when."""

from __future__ import annotations

import json
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from accounts.admin.base import moment
from accounts.admin.filters import TextFilter, TimeFilter
from accounts.admin.keyset import KeysetAdmin
from accounts.admin.typed import display
from accounts.models import AuditEntry

ACTIONS = (
    "created",
    "changed",
    "deleted",
    "rotated",
    "revoked",
    "enabled",
    "disabled",
    "cleared",
    "exported",
    "password",
)
#: How many changed fields the list names.
NAMED_FIELDS = 4


class ActorFilter(TextFilter):
    """Entries by who did it."""

    title = "who"
    parameter_name = "who"
    placeholder = "admin:NAME, key:ACCOUNT/NAME"

    def queryset(self, request: HttpRequest, queryset: QuerySet[AuditEntry]) -> QuerySet[AuditEntry]:
        """Select by part of the actor's name."""
        text = self.value()
        return queryset.filter(actor__icontains=text) if text else queryset


class ActionFilter(admin.SimpleListFilter):
    """Entries by what was done."""

    title = "action"
    parameter_name = "what"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Offer the actions that there are."""
        return [(name, name.capitalize()) for name in ACTIONS]

    def queryset(self, request: HttpRequest, queryset: QuerySet[AuditEntry]) -> QuerySet[AuditEntry]:
        """Select by the action."""
        return queryset.filter(action=self.value()) if self.value() else queryset


class TargetFilter(admin.SimpleListFilter):
    """Entries by what kind of thing was changed."""

    title = "kind"
    parameter_name = "kind"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Offer the kinds that the admin can change."""
        kinds = {str(model._meta.verbose_name) for model in model_admin.admin_site._registry}
        return [(kind, kind[:1].upper() + kind[1:]) for kind in sorted(kinds - {"audit entry"})]

    def queryset(self, request: HttpRequest, queryset: QuerySet[AuditEntry]) -> QuerySet[AuditEntry]:
        """Select by the kind."""
        return queryset.filter(target_type=self.value()) if self.value() else queryset


@admin.register(AuditEntry)
class AuditEntryAdmin(KeysetAdmin):
    """The log. Nobody changes it."""

    list_display = ("when", "actor", "action", "target_type", "target", "fields_changed")
    list_filter = (ActionFilter, TargetFilter, ActorFilter, TimeFilter)
    search_fields = ("target", "actor")
    search_help_text = "What was changed, or who did it"
    fields = readonly_fields = ("when", "actor", "action", "target_type", "target_id", "target", "changes")

    @display(description="when")
    def when(self, entry: AuditEntry) -> str:
        """Show the moment."""
        return moment(entry.at)

    @display(description="what changed")
    def fields_changed(self, entry: AuditEntry) -> str:
        """Name the fields that changed, the first of them."""
        if entry.action in ("created", "deleted"):
            return ""
        names = sorted({*entry.before, *entry.after})
        more = f" and {len(names) - NAMED_FIELDS} more" if len(names) > NAMED_FIELDS else ""
        return ", ".join(name.replace("_", " ") for name in names[:NAMED_FIELDS]) + more

    @display(description="changes")
    def changes(self, entry: AuditEntry) -> SafeString:
        """Show each field before and after."""
        names = [name for name in {**entry.before, **entry.after} if name in entry.before or entry.after[name]]
        cell = '<td class="align-top break-words py-1 pr-4">{}</td>'
        rows = format_html_join(
            "",
            f"<tr>{cell * 3}</tr>",
            ((name.replace("_", " "), _written(entry.before, name), _written(entry.after, name)) for name in names),
        )
        head = '<tr class="text-left"><th class="pr-4">Field</th><th class="pr-4">Before</th><th>After</th></tr>'
        return format_html('<table class="w-full">{}{}</table>', SafeString(head), rows)


def _written(values: dict[str, Any], name: str) -> str:
    if name not in values or values[name] is None:
        return "—"
    value = values[name]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
