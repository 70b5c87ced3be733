"""The admin of users and groups.

They have Django's own pages, in unfold's look and under audit. Only a superuser grants permissions, and a
user can't change another who has permissions that they lack; otherwise anyone who may edit users could gain any
permission.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from django.conf import settings
from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, Permission, User
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.loader import render_to_string
from django.urls import path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.widgets import UnfoldAdminRadioSelectWidget

from accounts.admin.base import LINK, AuditedAdmin, action, actor_of, column, display, found, relative
from accounts.admin.invitations import InvitationView, invitation_page
from accounts.audit import audit_change, audit_record, stored_values
from accounts.roles import ROLES
from core.formats import NOTHING

if TYPE_CHECKING:
    GroupBase = DjangoGroupAdmin
    UserBase = DjangoUserAdmin[User]
else:
    GroupBase, UserBase = DjangoGroupAdmin, DjangoUserAdmin

VERBS = ("view", "add", "change", "delete")
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
#: The names of their pages, as in the menu.
User._meta.verbose_name_plural, Group._meta.verbose_name_plural = "staff", "roles"


ADMINISTRATOR = "administrator"
INVITED, SET_HERE, CUSTOM = "false", "true", "custom"
#: The role of a new user unless another is chosen.
LEAST = "Viewer"


class NewUserForm(UserCreationForm):  # type: ignore[misc]  # unfold is untyped
    """The form of a new user, who is invited to choose a password unless it is set here."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        ways = [(INVITED, "The user chooses it, by an invitation"), (SET_HERE, "Set it here")]
        self.fields["usable_password"].label = "Password"
        self.fields["usable_password"].help_text = ""
        self.fields["usable_password"].choices = ways
        self.fields["usable_password"].initial = INVITED if settings.EMAIL_URL else SET_HERE


class RoleForm(forms.ModelForm):  # type: ignore[type-arg]  # Django's is not generic at run time
    """Offers one of the roles, or all permissions. Only superusers get a form with it.

    A choice replaces the user's groups. Without a change, groups stay as the rest of the form has them.
    """

    role = forms.ChoiceField(required=False, widget=UnfoldAdminRadioSelectWidget)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        user: User = self.instance
        groups = list(user.groups.all()) if user.pk else []
        named = [(str(group.pk), _role_text(group.name)) for group in Group.objects.order_by("name")]
        several = [(CUSTOM, "Several roles: see the permissions below")] if len(groups) > 1 else []
        all_of_it = (ADMINISTRATOR, "Administrator: everything, staff and roles too")
        self.fields["role"].choices = [("", "None"), *named, all_of_it, *several]  # type: ignore[attr-defined]
        of_group = CUSTOM if several else str(groups[0].pk) if groups else ""
        self.current_role = ADMINISTRATOR if user.is_superuser else of_group
        least = "" if user.pk else next((pk for pk, text in named if text == _role_text(LEAST)), "")
        self.fields["role"].initial = self.current_role or least

    @property
    def _chosen(self) -> str | None:
        """The role if it was changed, else None."""
        role = self.cleaned_data.get("role", "")
        is_offered = "role" in self.data and role != CUSTOM
        return role if is_offered and role != self.current_role else None

    def _post_clean(self) -> None:
        """Make an administrator a superuser, and let only those who have a role into the admin."""
        super()._post_clean()  # type: ignore[misc]  # Django's own hook, not in the stubs
        if self._chosen is not None:
            self.instance.is_superuser = self._chosen == ADMINISTRATOR
            self.instance.is_staff = bool(self._chosen)

    def _save_m2m(self) -> None:
        """Replace the groups by the role."""
        super()._save_m2m()  # type: ignore[misc]  # Django's own hook, not in the stubs
        if self._chosen is not None:
            self.instance.groups.set([int(self._chosen)] if self._chosen.isdecimal() else [])


class NewUserRoleForm(RoleForm, NewUserForm):
    """The form of a new user for superusers."""


class UserRoleForm(RoleForm, UserChangeForm):  # type: ignore[misc]  # unfold is untyped
    """The form of a user for superusers."""


def _role_text(name: str) -> str:
    return f"{name}: {ROLES[name][0]}" if name in ROLES else name


@admin.register(User)
class UserAdmin(UserBase, RelationsAuditedAdmin):
    """The admin of users."""

    change_password_form = AdminPasswordChangeForm
    list_display = ("username", "email", "role", "is_active", "last_seen")
    list_filter = ("is_staff", "is_superuser", "is_active", "groups")
    actions_detail = ("invite",)
    conditional_fields: ClassVar[dict[str, str]] = dict.fromkeys(
        ("password1", "password2"), f"usable_password == '{SET_HERE}'"
    )
    add_form_template = "admin/change_form.html"
    add_fieldsets = (
        (None, {"fields": ("username", "email", "role")}),
        (None, {"fields": ("usable_password", "password1", "password2")}),
    )
    fieldsets = (
        (None, {"fields": ("username", "email", "first_name", "last_name", "is_active", "role")}),
        ("Password", {"fields": ("password",), "classes": ("collapse",)}),
        ("Individual permissions", {"fields": POWERS, "classes": ("collapse",)}),
        ("Dates", {"fields": ("last_login", "date_joined"), "classes": ("collapse",)}),
    )

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """Return the form, for superusers one with roles: only they grant permissions."""
        forms_ = (NewUserRoleForm, UserRoleForm) if _is_superuser(request) else (NewUserForm, UserChangeForm)
        return super().get_form(request, obj, change=change, **{"form": forms_[bool(obj)], **kwargs})

    def get_queryset(self, request: HttpRequest) -> Any:
        """Read the groups of all rows in one query."""
        return super().get_queryset(request).prefetch_related("groups")

    @display(description="role")
    def role(self, user: User) -> str:
        """Show the roles, or that the user is an administrator."""
        if user.is_superuser:
            return "Administrator"
        return ", ".join(sorted(group.name for group in user.groups.all())) or NOTHING

    last_seen = column("last login", lambda user: relative(user.last_login), ordering="last_login")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """Reserve permissions for superusers."""
        own = ("last_login", "date_joined")
        return own if _is_superuser(request) else (*own, "role", *POWERS)

    def response_add(self, request: HttpRequest, obj: User, post_url_continue: str | None = None) -> HttpResponse:
        """Lead to the invitation of a user without a password."""
        if obj.has_usable_password():
            return super().response_add(request, obj, post_url_continue)
        return HttpResponseRedirect(reverse("admin:auth_user_invite", args=[obj.pk]))

    def has_invite_permission(self, request: HttpRequest, object_id: object = None) -> bool:
        """Return whether the user may invite others; has_change_permission says whom."""
        return request.user.has_perms(("auth.change_user",))

    @action(description="Invite", permissions=["invite"], icon="mail", url_path="invite")
    def invite(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then send or show a link to choose a password. Raises PermissionDenied."""
        user: User = found(self, request, object_id)
        if not self.has_change_permission(request, user):
            raise PermissionDenied
        return invitation_page(self, request, user)

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
    """The admin of groups, which are the roles of staff."""

    list_display = ("name", "purpose", "members")
    add_fieldsets = ((None, {"fields": ("name", "permissions")}),)
    fieldsets = (
        (None, {"fields": ("name", "purpose", "members", "powers")}),
        ("Change permissions", {"fields": ("permissions",), "classes": ("collapse",)}),
    )
    readonly_fields = ("purpose", "members", "powers")
    purpose = column("purpose", lambda group: ROLES[group.name][0] if group.name in ROLES else NOTHING)
    members = column(
        "staff",
        lambda group: format_html(
            LINK, f"{reverse('admin:auth_user_changelist')}?groups__id__exact={group.pk}", group.member_count
        ),
        ordering="member_count",
    )

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Render the form, whose buttons and title say "role": audit entries and permissions need "group"."""
        response: Any = super().render_change_form(request, context, *args, **kwargs)
        shown = copy(self.opts)
        shown.verbose_name = "role"
        response.context_data |= {"opts": shown, "title": str(context["title"]).replace("group", "role")}
        return response

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Count the users of each role in the same query."""
        counted: QuerySet[Any] = super().get_queryset(request).annotate(member_count=Count("user"))
        return counted

    @display(description="what it may do")
    def powers(self, group: Group) -> SafeString:
        """Show the permissions as a table: a row for each kind of object, a column for each verb, and the others."""
        verbs: dict[Any, set[str]] = {model: set() for model in self.admin_site._registry}
        for permission in group.permissions.select_related("content_type"):
            kind = permission.content_type
            verbs.setdefault(kind.model_class(), set()).add(permission.codename.removesuffix(f"_{kind.model}"))
        rows = [
            (capfirst(str(model._meta.verbose_name_plural)), [verb in held for verb in VERBS], sorted(held - {*VERBS}))
            for model, held in sorted(verbs.items(), key=lambda item: str(item[0]))
            if model
        ]
        return render_to_string("admin/auth/group/powers.html", {"verbs": VERBS, "rows": rows})

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
    path("password_change/", admin.site.admin_view(change_own_password), name="password_change"),
    path("invitation/<uidb64>/<token>/", InvitationView.as_view(), name="invitation"),
]


def _is_superuser(request: HttpRequest) -> bool:
    return bool(getattr(request.user, "is_superuser", False))
