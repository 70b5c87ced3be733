"""The audit log in the admin: read-only, as sentences, and many changes of one actor in a minute as one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.text import Truncator

from accounts.admin.base import LINK, column, display
from accounts.admin.lists import FieldFilter, KeysetAdmin, KeysetChangeList, TextFilter, TimeFilter, chips, ranges
from accounts.models import AuditEntry
from core.formats import NOTHING, day_text, quantity, utc_text
from core.keyset import Place, stretch

ACTIONS = (
    "created", "changed", "deleted", "rotated", "revoked", "enabled", "disabled", "cleared", "exported", "password",
    "invited", "tested",
)  # fmt: skip
ONE_DAY = timedelta(days=1)
#: How many changed fields the list shows, and how many characters of each.
NAMED_FIELDS, SHOWN_CHANGE = 3, 60
#: Entries of one actor in one minute that are lines of their own; more are folded, and told by that many kinds.
UNFOLDED, TOLD = 3, 4


def actor_link(entry: AuditEntry) -> SafeString:
    """Return the actor of an audit entry with a link to all its changes."""
    url = f"{reverse('admin:accounts_auditentry_changelist')}?{urlencode({'who': entry.actor})}"
    return format_html(LINK, url, entry.by)


class ActorFilter(TextFilter):
    """Filter entries by actor."""

    title = "user or key"
    parameter_name = "who"
    placeholder = "a name, or a part of it"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Select by the whole actor if its kind is given, as in links; otherwise by a part."""
        self.lookup = "actor" if ":" in (self.value() or "") else "actor__icontains"
        return super().queryset(request, queryset)


class ActionFilter(FieldFilter):
    """Filter entries by action."""

    title = "action"
    parameter_name = "what"
    lookup = "action"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Return all actions."""
        return [(name, name.capitalize()) for name in ACTIONS]


class TargetFilter(FieldFilter):
    """Filter entries by the kind of object that was changed."""

    title = "kind"
    parameter_name = "kind"
    lookup = "target_type"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Return the kinds of objects that the admin can change."""
        kinds = {str(model._meta.verbose_name) for model in model_admin.admin_site._registry}
        return [(kind, kind[:1].upper() + kind[1:]) for kind in sorted(kinds - {"audit entry"})]


@dataclass(frozen=True, slots=True)
class Group:
    """Entries of one actor in one minute, the newest first."""

    entries: Sequence[AuditEntry]

    @property
    def is_folded(self) -> bool:
        """Return whether they are too many for lines of their own."""
        return len(self.entries) > UNFOLDED

    @property
    def summary(self) -> str:
        """Return what was done: `created 12 API keys, enabled 5 accounts and 3 more`."""
        numbers = Counter((entry.action, entry.target_type) for entry in self.entries).most_common()
        told = ", ".join(f"{action} {quantity(number, kind)}" for (action, kind), number in numbers[:TOLD])
        more = sum(number for _, number in numbers[TOLD:])
        return f"{told} and {more} more" if more else told


@admin.register(AuditEntry)
class AuditEntryAdmin(KeysetAdmin):
    """The audit log, read-only."""

    change_list_template = "admin/accounts/auditentry/log.html"
    change_form_before_template = "admin/accounts/auditentry/neighbours.html"
    list_before_template = "admin/accounts/auditentry/before.html"
    list_display = ("when",)  # rows.html has the lines
    list_per_page = 100
    list_filter = (TimeFilter, ActorFilter, ActionFilter, TargetFilter)
    search_fields = ("target", "actor")
    search_help_text = "What was changed, or who did it"
    when = column("when", lambda entry: utc_text(entry.at, seconds=True))
    kind = column("kind", lambda entry: entry.target_type)
    by = column("by", actor_link)
    fields = readonly_fields = ("when", "by", "action", "kind", "object_link", "changed")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Say of each entry whether its object has a page that the user may see: it was not deleted."""
        deleted = AuditEntry.objects.filter(
            action="deleted", target_type=OuterRef("target_type"), target_id=OuterRef("target_id")
        )
        kinds = [
            str(model._meta.verbose_name)
            for model, page in self.admin_site._registry.items()
            if page.has_view_permission(request)
        ]
        has_page = Q(target_type__in=kinds) & ~Q(target_id="") & ~Exists(deleted)
        entries: QuerySet[Any] = super().get_queryset(request).annotate(has_page=has_page)
        return entries

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        """Show the list, or say that nothing was changed."""
        response: Any = super().changelist_view(request, extra_context)
        changelist = getattr(response, "context_data", {}).get("cl")
        if changelist is None:  # invalid parameters were answered with a redirect
            return response
        for entry in changelist.result_list:
            entry.about = [actor_link(entry), self.object_link(entry), self.fields_changed(entry)]
        together = groupby(
            changelist.result_list, lambda entry: (entry.actor, entry.at.replace(second=0, microsecond=0))
        )
        response.context_data |= {
            "groups": [Group(list(entries)) for _, entries in together],
            "ranges": list(ranges(changelist)),
            "chips": list(chips(changelist)),
            "nothing": _nothing(changelist),
        }
        return response

    def change_view(self, request: HttpRequest, object_id: str, *args: Any, **kwargs: Any) -> Any:
        """Show an entry with links to the one before it and the one after it."""
        response: Any = super().change_view(request, object_id, *args, **kwargs)
        entry = getattr(response, "context_data", {}).get("original")
        if entry is not None:
            place = Place(entry.at, entry.pk)
            response.context_data |= {
                name: stretch(AuditEntry.objects.all(), "at", place, is_newer=is_newer).first()
                for name, is_newer in (("newer", True), ("older", False))
            }
        return response

    @display(description="object")
    def object_link(self, entry: Any) -> str:
        """Show the name of the object, with a link to its page; events such as exports have none."""
        if not entry.has_page:
            return entry.target if entry.target_id else NOTHING
        kinds = {str(model._meta.verbose_name): model._meta for model in self.admin_site._registry}
        kind = kinds[entry.target_type]
        url = reverse(f"admin:{kind.app_label}_{kind.model_name}_change", args=[entry.target_id])
        return format_html(LINK, url, entry.target)

    def fields_changed(self, entry: AuditEntry) -> str:
        """Show the first changed fields with their values, or the details of an event; the action says the others.

        The name and time of what was created are told already.
        """
        if entry.action in ("deleted", "enabled", "disabled"):
            return ""
        changes = [
            f"{name}: " + (f"{before} → {after}" if name.replace(" ", "_") in entry.before else after)
            for name, before, after in entry.changes
            if entry.action != "created" or name not in ("name", "created at")
        ]
        more = f" and {len(changes) - NAMED_FIELDS} more" if len(changes) > NAMED_FIELDS else ""
        return ", ".join(Truncator(each).chars(SHOWN_CHANGE) for each in changes[:NAMED_FIELDS]) + more

    @display(description="changes")
    def changed(self, entry: AuditEntry) -> SafeString:
        """Show each field before and after."""
        cell = '<td class="align-top break-words py-1 pr-4">{}</td>'
        rows = format_html_join("", f"<tr>{cell * 3}</tr>", entry.changes)
        head = '<tr class="text-left"><th class="pr-4">Field</th><th class="pr-4">Before</th><th>After</th></tr>'
        return format_html('<table class="w-full">{}{}</table>', SafeString(head), rows)


def _nothing(changelist: KeysetChangeList) -> str:
    """Return what an empty list says: `Nobody changed anything on 30 November.`"""
    time = next(each for each in changelist.filter_specs if isinstance(each, TimeFilter))
    begin, end = time.span()
    if changelist.query or any(each != "time" for each, *_ in chips(changelist)):
        return "No change fits these filters."
    if begin is None and end is None:
        return "Nothing was changed yet."
    chosen = next((text for text, _, is_set in ranges(changelist) if is_set), "")
    if begin and end and end - begin == ONE_DAY and begin == begin.replace(hour=0, minute=0, second=0):
        return f"Nobody changed anything on {day_text(begin)} {begin.year}."
    when = "today" if chosen == "Today" else f"in the {chosen.lower()}" if chosen else "in this time"
    return f"Nobody changed anything {when}."
