"""Users and groups of the admin: audited, and no way to more power than one has."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.core.mail import EmailMessage
from django.test import Client
from pytest_django import Settings

from accounts.models import AuditEntry
from accounts.roles import ROLES, roles_ensure
from accounts.tests.factories import PASSWORD, latest, logged_in, make_admin, make_staff, stored_text
from core.formats import NOTHING

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


def test_it_makes_the_roles_once_and_leaves_them_to_superusers() -> None:
    roles_ensure(actor="command:bootstrap")
    assert set(Group.objects.values_list("name", flat=True)) == set(ROLES)
    for name, (_, permissions) in ROLES.items():
        assert Group.objects.get(name=name).permissions.count() == len(permissions), "each permission exists"
        assert not [each for each in permissions if each.endswith("requestcontent") or "change_user" in each]
    support = Group.objects.get(name="Support")
    support.permissions.clear()
    entries = AuditEntry.objects.count()
    roles_ensure(actor="command:bootstrap")
    assert (support.permissions.count(), AuditEntry.objects.count()) == (0, entries)


def checked(client: Client, url: str) -> dict[str, str]:
    """Return the radio buttons that a page shows as chosen."""
    page = client.get(url).content.decode()
    return dict(re.findall(r'<input type="radio" name="([^"]+)" value="([^"]*)"[^>]* checked[ >]', page))


def test_a_role_s_page_says_what_it_may_do(admin_site: Client) -> None:
    roles_ensure(actor="command:bootstrap")
    page = admin_site.get(f"{GROUPS}{Group.objects.get(name='Operator').pk}/change/").content.decode()
    rows = {
        cells[0]: cells[1:]
        for cells in re.findall(r"<tr[^>]*><th[^>]*>([^<]+)</th>" + "<td[^>]*>([^<]*)</td>" * 5, page)
    }
    assert rows["Requests"] == ("yes", NOTHING, NOTHING, NOTHING, "export")
    assert rows["Accounts"] == ("yes", "yes", "yes", "yes", "")
    assert rows["Staff"] == ("yes", NOTHING, NOTHING, NOTHING, "")
    assert "usage reports, statements, prices and budgets; no requests" in admin_site.get(GROUPS).content.decode()


def test_it_gives_a_role_by_one_choice(admin_site: Client) -> None:
    roles_ensure(actor="command:bootstrap")
    groups = {group.name: str(group.pk) for group in Group.objects.all()}
    assert checked(admin_site, f"{USERS}add/") == {"usable_password": "true", "role": groups["Viewer"]}
    new = {"username": "ada", "email": "", "usable_password": "false", "role": groups["Support"]}
    response = admin_site.post(f"{USERS}add/", new)
    ada = User.objects.get(username="ada")
    assert response.headers["Location"] == f"{USERS}{ada.pk}/invite/"
    assert (ada.is_staff, ada.is_superuser, ada.has_usable_password()) == (True, False, False)
    assert [group.name for group in ada.groups.all()] == ["Support"]
    assert latest().after["groups"] == ["Support"]
    assert checked(admin_site, f"{USERS}{ada.pk}/change/") == {"role": groups["Support"]}
    admin_site.post(f"{USERS}add/", {**new, "username": "eve", "role": groups["Viewer"]})
    assert [group.name for group in User.objects.get(username="eve").groups.all()] == ["Viewer"]
    url = f"{USERS}{ada.pk}/change/"
    for role, expected in ((groups["Finance"], (["Finance"], False)), ("administrator", ([], True)), ("", ([], False))):
        admin_site.post(url, form(User.objects.get(pk=ada.pk), role=role))
        ada.refresh_from_db()
        assert ([group.name for group in ada.groups.all()], ada.is_superuser) == expected
    assert "Select a valid choice" in admin_site.post(url, form(ada, role="4711")).content.decode()


def test_it_gives_no_role_for_those_who_may_not_grant_it() -> None:
    roles_ensure(actor="command:bootstrap")
    client, user = user_manager(), make_staff(name="ada")
    operator = str(Group.objects.get(name="Operator").pk)
    for role in ("administrator", operator):
        client.post(f"{USERS}{user.pk}/change/", form(user, role=role, first_name="Ada"))
        new = {"username": f"new-{role}", "email": "", "usable_password": "false", "role": role}
        client.post(f"{USERS}add/", new)
    for each in User.objects.filter(username__in=["ada", "new-administrator", f"new-{operator}"]):
        assert (each.is_superuser, each.groups.count()) == (False, 0), each
    assert User.objects.get(username="ada").first_name == "Ada"
    assert User.objects.filter(username__startswith="new-", is_staff=False).count() == 2


def invited(client: Client, user: User) -> str:
    """Invite a user, and return the link that the page shows."""
    page = client.post(f"{USERS}{user.pk}/invite/", {"confirmed": "yes"}).content.decode()
    link = re.search(r'id="invitation-link">([^<]+)<', page)
    assert link, page
    return link[1]


def test_it_invites_a_user_to_choose_a_password_once(admin_site: Client, capsys: pytest.CaptureFixture[str]) -> None:
    user = make_staff(name="ada")
    assert "Invite ada?" in admin_site.get(f"{USERS}{user.pk}/invite/").content.decode()
    link = invited(admin_site, user)
    assert (latest().action, latest().target, latest().actor) == ("invited", "ada", "admin:root")
    token = link.rstrip("/").rpartition("/")[2]
    assert token not in stored_text()
    guest = Client()
    form_url = guest.get(link).headers["Location"]
    page = guest.get(form_url)
    assert "Set password" in page.content.decode()
    assert "no-store" in page.headers["Cache-Control"]
    short = {"new_password1": "short", "new_password2": "short"}
    assert "too short" in guest.post(form_url, short).content.decode()
    done = guest.post(form_url, {"new_password1": PASSWORD, "new_password2": PASSWORD})
    assert done.headers["Location"] == "/admin/login/"
    assert User.objects.get(pk=user.pk).check_password(PASSWORD)
    assert (latest().action, latest().actor, latest().after) == ("password", "admin:ada", {})
    for old in (link, form_url, link.replace(token, "nonsense")):
        assert "too old" in Client().get(old, follow=True).content.decode()
    logged = capsys.readouterr()
    assert token not in logged.out + logged.err


def test_an_invitation_ends_when_the_user_gains_powers(admin_site: Client) -> None:
    user = make_staff(name="ada")
    link = invited(admin_site, user)
    User.objects.filter(pk=user.pk).update(is_superuser=True)
    assert "too old" in Client().get(link, follow=True).content.decode()


def test_it_mails_an_invitation_or_shows_its_link_instead(
    admin_site: Client, settings: Settings, mailoutbox: list[EmailMessage], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.EMAIL_URL = "smtp://mail.test"
    user = make_staff(name="ada")
    User.objects.filter(pk=user.pk).update(email="ada@acme.test")
    page = admin_site.post(f"{USERS}{user.pk}/invite/", {"confirmed": "yes"}, follow=True).content.decode()
    assert "The invitation was sent to ada@acme.test." in page
    (mail,) = mailoutbox
    assert mail.to == ["ada@acme.test"]
    assert "http://testserver/admin/invitation/" in mail.body

    def fail(*_: object) -> None:
        raise OSError("no mail server")

    monkeypatch.setattr("accounts.admin.invitations.send_mail", fail)
    assert "/admin/invitation/" in invited(admin_site, user)


def test_it_lets_nobody_invite_a_stronger_user() -> None:
    client, root, equal = user_manager(), make_admin(), make_staff(name="ada")
    assert client.post(f"{USERS}{root.pk}/invite/", {"confirmed": "yes"}).status_code == 403
    assert client.get(f"{USERS}{equal.pk}/invite/").status_code == 200
    viewer = logged_in(make_staff("auth.view_user", name="viewer"))
    assert viewer.post(f"{USERS}{equal.pk}/invite/", {"confirmed": "yes"}).status_code == 403
    assert AuditEntry.objects.count() == 0
