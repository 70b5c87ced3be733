"""Users and groups of the admin: audited, and no way to more power than one has."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.test import Client

from accounts.models import AuditEntry
from accounts.tests.factories import PASSWORD, latest, logged_in, make_admin, make_staff

pytestmark = pytest.mark.django_db

USERS, GROUPS = "/admin/auth/user/", "/admin/auth/group/"


def user_manager() -> Client:
    """Return a browser of somebody who may manage users and is no superuser."""
    return logged_in(make_staff(*(f"auth.{verb}_user" for verb in ("view", "add", "change", "delete"))))


def form(user: User, **changes: Any) -> dict[str, Any]:
    """Return what the page of a user sends."""
    powers = {name: "on" for name in ("is_active", "is_staff", "is_superuser") if getattr(user, name)}
    return {"username": user.username, **powers, **changes}


def test_it_makes_a_user_and_keeps_the_password_out_of_the_log(admin_site: Client) -> None:
    passwords = {"password1": PASSWORD, "password2": PASSWORD, "usable_password": "true"}
    admin_site.post(f"{USERS}add/", {"username": "ada", **passwords})
    assert User.objects.get(username="ada").check_password(PASSWORD)
    assert (latest().actor, latest().action, latest().target) == ("admin:root", "created", "ada")
    assert "password" not in latest().after


def test_it_audits_powers(admin_site: Client) -> None:
    user, group = make_staff(name="ada"), Group.objects.create(name="finance")
    admin_site.post(f"{USERS}{user.pk}/change/", form(user, is_superuser="on", groups=[group.pk]))
    assert (latest().before, latest().after) == (
        {"is_superuser": False, "groups": []},
        {"is_superuser": True, "groups": ["finance"]},
    )


def test_it_audits_a_changed_password_without_telling_it(admin_site: Client) -> None:
    user = make_staff(name="ada")
    for password, entries in (("short", 0), (PASSWORD, 1)):
        admin_site.post(f"{USERS}{user.pk}/password/", {"password1": password, "password2": password})
        assert AuditEntry.objects.count() == entries
    assert User.objects.get(pk=user.pk).check_password(PASSWORD)
    assert (latest().action, latest().target, latest().before, latest().after) == ("password", "ada", {}, {})


def test_it_audits_that_one_changes_one_s_own_password() -> None:
    client, user = Client(), make_admin("ada", password=PASSWORD)
    client.force_login(user)
    new = {"new_password1": PASSWORD[::-1], "new_password2": PASSWORD[::-1]}
    client.post("/admin/password_change/", {"old_password": "wrong", **new})
    assert not AuditEntry.objects.exists()
    client.post("/admin/password_change/", {"old_password": PASSWORD, **new})
    assert User.objects.get().check_password(PASSWORD[::-1])
    assert (latest().actor, latest().action, latest().target, latest().after) == ("admin:ada", "password", "ada", {})


def test_it_audits_the_deletion_of_a_user_and_the_permissions_of_a_group(admin_site: Client) -> None:
    user, permission = make_staff(name="ada"), Permission.objects.get(codename="view_requestrecord")
    admin_site.post(f"{USERS}{user.pk}/delete/", {"post": "yes"})
    assert (latest().action, latest().target) == ("deleted", "ada")
    admin_site.post(f"{GROUPS}add/", {"name": "finance", "permissions": [permission.pk]})
    assert latest().action == "created"
    assert "Can view request record" in latest().after["permissions"][0]


def test_it_lets_nobody_hand_out_powers_but_a_superuser() -> None:
    client, user = user_manager(), make_staff(name="ada")
    permission = Permission.objects.get(codename="change_apikey")
    changes = form(user, is_superuser="on", user_permissions=[permission.pk], first_name="Ada")
    client.post(f"{USERS}{user.pk}/change/", changes)
    user.refresh_from_db()
    assert (user.first_name, user.is_superuser, user.user_permissions.count()) == ("Ada", False, 0)


def test_it_lets_nobody_touch_superusers_and_groups_but_a_superuser() -> None:
    client, root, group = user_manager(), make_admin(), Group.objects.create(name="finance")
    for url, data in (
        (f"{USERS}{root.pk}/password/", {"password1": PASSWORD, "password2": PASSWORD}),
        (f"{USERS}{root.pk}/change/", form(root, username="mine")),
        (f"{USERS}{root.pk}/delete/", {"post": "yes"}),
        (f"{GROUPS}{group.pk}/change/", {"name": "mine"}),
        (f"{GROUPS}add/", {"name": "mine"}),
    ):
        assert client.post(url, data).status_code == 403, url
    assert User.objects.get(pk=root.pk).username == "root"


@pytest.mark.parametrize("url", [USERS, GROUPS, f"{USERS}add/", f"{GROUPS}add/"])
def test_it_shows_its_pages(admin_site: Client, url: str) -> None:
    assert admin_site.get(url).status_code == 200
