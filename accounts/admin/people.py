"""The admin of users and groups, and of the audit log.

Users and groups have Django's own pages, in unfold's look and under audit. Only a superuser grants permissions, and a
user can't change another who has permissions that they lack; otherwise anyone who may edit users could gain any
permission.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, Permission, User
from django.db import transaction
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from accounts.admin.base import AuditedAdmin, actor_of, column, display
from accounts.admin.lists import FieldFilter, KeysetAdmin, TextFilter, TimeFilter
from accounts.audit import audit_change, audit_record, stored_values
from accounts.models import AuditEntry
from core.formats import moment

if TYPE_CHECKING:
    GroupBase = DjangoGroupAdmin
    UserBase = DjangoUserAdmin[User]
else:
    GroupBase, UserBase = DjangoGroupAdmin, DjangoUserAdmin

POWERS = ("is_superuser", "is_staff", "groups", "user_permissions")


class RelationsAuditedAdmin(AuditedAdmin):
    """Audits a page as a whole, because its many-to-many fields are saved after the object."""

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Save the object and keep its previous values."""
        form.before = stored_values(obj)
        obj.save()

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """Save the relations, then write the audit entry."""
        super().save_related(request, form, formsets, change)
        audit_change(form.instance, before=form.before, actor=actor_of(request))


admin.site.unregister(User)
admin.site.unregister(Group)


@admin.register(User)
class UserAdmin(UserBase, RelationsAuditedAdmin):
    """The admin of users."""

    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("username", "email", "is_staff", "is_superuser", "is_active", "last_login")
    list_filter = ("is_staff", "is_superuser", "is_active", "groups")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """Reserve permissions for superusers."""
        own = ("last_login", "date_joined")
        return own if _is_superuser(request) else (*own, *POWERS)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Allow changes, of the password too, of users without permissions that the requesting user lacks."""
        return self._may_touch(request, obj) and bool(super().has_change_permission(request, obj))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Allow deletion of users without permissions that the requesting user lacks."""
        return self._may_touch(request, obj) and bool(super().has_delete_permission(request, obj))

    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> HttpResponse:  # noqa: A002  # Django's name
        """Change a user's password, and write an audit entry."""
        return audited_password(request, id, lambda: super(UserAdmin, self).user_change_password(request, id, form_url))

    def _may_touch(self, request: HttpRequest, obj: User | None) -> bool:
        """Return whether a user has no permission that the requesting user lacks; a new password would grant them."""
        if obj is None or _is_superuser(request):
            return True
        # Those of an inactive user as well, because an editor of the user may activate them.
        granted = Permission.objects.filter(Q(user=obj) | Q(group__user=obj))
        names = {f"{app}.{name}" for app, name in granted.values_list("content_type__app_label", "codename")}
        return not obj.is_superuser and names <= request.user.get_all_permissions()


@admin.register(Group)
class GroupAdmin(GroupBase, RelationsAuditedAdmin):
    """The admin of groups."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Reserve groups for superusers: deleting one removes permissions, too."""
        return _is_superuser(request)

    has_change_permission = has_delete_permission = has_add_permission


def audited_password(request: HttpRequest, user_id: Any, change: Callable[[], HttpResponse]) -> HttpResponse:
    """Return the response of a page that changes a user's password, and write an audit entry without its value."""
    with transaction.atomic():
        response = change()
        if request.method == "POST" and response.status_code == HTTPStatus.FOUND:
            audit_record(actor=actor_of(request), action="password", target=User.objects.get(pk=user_id))
        return response


def change_own_password(request: HttpRequest) -> HttpResponse:
    """Change the user's own password on the site's page, and write an audit entry."""
    return audited_password(request, request.user.pk, lambda: admin.site.password_change(request))


#: unfold's site calls this for URLs that precede its own.
admin.site.extra_urls = lambda: [  # type: ignore[attr-defined]  # unfold's
    path("password_change/", admin.site.admin_view(change_own_password), name="password_change")
]


def _is_superuser(request: HttpRequest) -> bool:
    return bool(getattr(request.user, "is_superuser", False))


ACTIONS = (
    "created", "changed", "deleted", "rotated", "revoked", "enabled", "disabled", "cleared", "exported", "password",
)  # fmt: skip
#: How many changed fields the list shows.
NAMED_FIELDS = 4


class ActorFilter(TextFilter):
    """Filter entries by actor."""

    title = "who"
    parameter_name = "who"
    placeholder = "admin:NAME, key:ACCOUNT/NAME"
    lookup = "actor__icontains"


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


@admin.register(AuditEntry)
class AuditEntryAdmin(KeysetAdmin):
    """The audit log, read-only."""

    list_display = ("when", "actor", "action", "target_type", "target", "fields_changed")
    list_filter = (ActionFilter, TargetFilter, ActorFilter, TimeFilter)
    search_fields = ("target", "actor")
    search_help_text = "What was changed, or who did it"
    when = column("when", lambda entry: moment(entry.at))
    fields = readonly_fields = ("when", "actor", "action", "target_type", "target_id", "target", "changed")

    @display(description="what changed")
    def fields_changed(self, entry: AuditEntry) -> str:
        """Show the names of the first changed fields."""
        if entry.action in ("created", "deleted"):
            return ""
        names = sorted({*entry.before, *entry.after})
        more = f" and {len(names) - NAMED_FIELDS} more" if len(names) > NAMED_FIELDS else ""
        return ", ".join(name.replace("_", " ") for name in names[:NAMED_FIELDS]) + more

    @display(description="changes")
    def changed(self, entry: AuditEntry) -> SafeString:
        """Show each field before and after."""
        cell = '<td class="align-top break-words py-1 pr-4">{}</td>'
        rows = format_html_join("", f"<tr>{cell * 3}</tr>", entry.changes)
        head = '<tr class="text-left"><th class="pr-4">Field</th><th class="pr-4">Before</th><th>After</th></tr>'
        return format_html('<table class="w-full">{}{}</table>', SafeString(head), rows)
