"""What somebody with few rights, or none, does not get: stronger users, digests, other limits, another's log-in."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator

import pytest

from tests.running import Answer, Platform, Served, command, running_platform, scripted_provider

PRODUCTION = {
    "ENVIRONMENT": "production",
    "SECRET_KEY": "0123456789-of-this-test-only-abcdefghijklmnopqrstuvwxyz-ABCDEFGH",
    "API_KEY_PEPPERS": "0123456789-also-of-this-test-only-abcdefgh",
    "METRICS_TOKEN": "0123456789-of-the-scraper-only-abcdefghijk",
    "ALLOWED_HOSTS": "api.example.com",
    "OPENAI_API_KEY": "sk-of-this-test-only",
}
PASSWORD_PAGE, CHANGE_PAGE = "/admin/auth/user/{}/password/", "/admin/auth/user/{}/change/"
KEY = "ak_live_" + "Z" * 49


@pytest.fixture(scope="module")
def platform(prepared: Callable[[], dict[str, str]]) -> Iterator[Platform]:
    """Run the platform, with a limit on log-ins of a day, whose turn hardly ever falls into a test."""
    with running_platform({**prepared(), "ADMIN_LOGIN_RATE": "20/d"}, []) as running:
        yield running


@pytest.mark.parametrize("is_active", [True, False])
def test_it_lets_nobody_touch_a_user_with_a_permission_that_he_lacks(platform: Platform, is_active: bool) -> None:
    editor = platform.staff(f"editor-{is_active}", "auth.change_user", "auth.view_user", "auth.delete_user")
    auditor = platform.staff(f"auditor-{is_active}", "accounts.view_auditentry")
    equal = platform.staff(f"equal-{is_active}", "auth.view_user")
    if not is_active:
        platform.admin.submit(CHANGE_PAGE.format(auditor.user_id), is_active=None)
    assert editor.status(PASSWORD_PAGE.format(equal.user_id)) == 200
    assert editor.status(PASSWORD_PAGE.format(auditor.user_id)) == 403
    assert "password1" not in editor.page(CHANGE_PAGE.format(auditor.user_id)).fields
    assert "email" not in editor.page(CHANGE_PAGE.format(auditor.user_id)).fields
    assert editor.status(f"/admin/auth/user/{auditor.user_id}/delete/") == 403
    assert platform.admin.status(PASSWORD_PAGE.format(auditor.user_id)) == 200


def test_it_leaves_groups_to_administrators(platform: Platform) -> None:
    platform.admin.submit("/admin/auth/group/add/", name="team")
    (group,) = platform.rows("SELECT id FROM auth_group WHERE name = 'team'")
    staff = platform.staff("team-editor", "auth.change_group", "auth.view_group", "auth.delete_group")
    assert staff.status(f"/admin/auth/group/{group['id']}/delete/") == 403
    assert "name" not in staff.page(f"/admin/auth/group/{group['id']}/change/").fields


@pytest.mark.parametrize(
    "lookup",
    ["digest__startswith=a", "digest=a", "pk__lt=2", "pepper_id__contains=a", "account__contact__startswith=a"],
)
def test_it_selects_by_no_column_that_no_filter_offers(platform: Platform, lookup: str) -> None:
    assert platform.admin.status(f"/admin/accounts/apikey/?{lookup}") == 400


def test_it_selects_by_what_filters_offer(platform: Platform) -> None:
    (tier,) = platform.rows("SELECT id FROM accounts_tier WHERE name = 'premium'")
    page = platform.admin.page(f"/admin/accounts/apikey/?tier__id__exact={tier['id']}&state=active&account=demo")
    assert "prod" in page.words


@pytest.mark.parametrize(
    "address",
    [
        "accounts/apikey/?tier__id__exact=",
        "inference/deployment/?provider__id__exact=",
        "accounts/auditentry/?older=",
        "monitoring/requestrecord/?status=",
        "monitoring/requestrecord/?slower=",
        "accounts/apikey/?id__exact=",
    ],
)
def test_it_finds_nothing_under_a_number_that_no_row_can_have(platform: Platform, address: str) -> None:
    assert platform.admin.status(f"/admin/{address}{'9' * 5000}") in (200, 302, 400)


def test_it_believes_no_header_about_where_it_is_mounted(platform: Platform) -> None:
    for path, mounted in (("/health", "/health"), ("/", "/x"), ("/admin/login/", "/admin")):
        assert platform.ask(path, headers={"SCRIPT_NAME": mounted}).status == platform.ask(path).status


def test_it_logs_no_key_that_came_as_a_host(platform: Platform) -> None:
    assert platform.ask("/health/ready", headers={"Host": f"{KEY}.example.com"}).status in (200, 400)
    assert platform.ask("/openapi.json", headers={"Host": f"{KEY}.example.com"}).status == 400
    assert "host_not_allowed" in platform.log
    assert KEY not in platform.log


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"SECRET_KEY": "a" * 60}, "SECRET_KEY"),
        ({"API_KEY_PEPPERS": "a" * 40}, "API_KEY_PEPPERS"),
        ({"API_KEY_PEPPERS": PRODUCTION["SECRET_KEY"]}, "API_KEY_PEPPERS and SECRET_KEY"),
        ({"METRICS_TOKEN": PRODUCTION["SECRET_KEY"]}, "METRICS_TOKEN and SECRET_KEY"),
    ],
)
def test_it_refuses_production_with_weak_or_shared_secrets(changes: dict[str, str], named: str) -> None:
    assert command(PRODUCTION, "check")[0] == 0
    status, text = command({**PRODUCTION, **changes}, "check")
    assert (status, named in text) == (1, True)
    assert not any(secret in text for secret in changes.values())


@pytest.fixture(scope="module")
def manager(platform: Platform) -> str:
    """Return a key that makes keys, of an account that has a stronger one."""
    for name, scopes in (("strong", ["keys:manage", "chat", "usage"]), ("weak", ["keys:manage", "chat"])):
        key = platform.service.create_key(account="keeper", tier="premium", name=name, scopes=scopes)
    return key


def test_it_lets_a_key_stop_only_what_may_do_no_more(platform: Platform, manager: str) -> None:
    listed = {each["name"]: each for each in platform.ask("/keys", key=manager).json()}
    refused = platform.ask(f"/keys/{listed['strong']['id']}/revoke", {}, key=manager)
    assert (refused.status, refused.json()["code"]) == (403, "permission_denied")
    made = platform.ask("/keys", {"name": "made"}, key=manager)
    assert platform.ask(f"/keys/{made.json()['id']}/revoke", {}, key=manager).status == 200


@pytest.mark.parametrize("name", ["a\u200bb", "a\u202eb", "a\u2066b", "a\u00adb", "a\u3164", "a\ufe0f", "a\x7fb"])
def test_it_refuses_names_with_characters_that_nobody_sees(platform: Platform, manager: str, name: str) -> None:
    refused = platform.ask("/keys", {"name": name}, key=manager)
    assert (refused.status, list(refused.json()["errors"])) == (400, ["name"])


def test_it_takes_names_that_look_the_same_for_the_same(platform: Platform, manager: str) -> None:
    name = "caf\u00e9"
    assert platform.ask("/keys", {"name": unicodedata.normalize("NFD", name)}, key=manager).json()["name"] == name
    assert platform.ask("/keys", {"name": name}, key=manager).status == 400


def test_it_sends_no_secret_to_an_address_that_staff_chose(platform: Platform) -> None:
    permissions = [f"inference.{verb}_provider" for verb in ("add", "change", "view")]
    staff = platform.staff("provider-editor", *permissions)
    fields = {"base_url": "https://203.0.113.9/v1", "api_key_variable": "OPENAI_API_KEY"}
    headers = {"extra_headers": '{"X-Token": "$OPENAI_API_KEY"}'}
    staff.submit("/admin/inference/provider/add/", name="mine", **fields, **headers)
    platform.admin.submit("/admin/inference/provider/add/", name="theirs", **fields)
    by_name = {row["name"]: row for row in platform.rows("SELECT * FROM inference_provider")}
    assert (by_name["mine"]["api_key_variable"], str(by_name["mine"]["extra_headers"])) == ("", "{}")
    page = f"/admin/inference/provider/{by_name['theirs']['id']}/change/"
    staff.submit(page, base_url="https://203.0.113.10/v1", requests_per_minute="7")
    (row,) = platform.rows("SELECT * FROM inference_provider WHERE name = 'theirs'")
    assert (row["base_url"], row["requests_per_minute"]) == (fields["base_url"], 7)


def test_it_asks_a_provider_at_the_press_of_a_button_only(platform: Platform) -> None:
    with scripted_provider() as provider:
        platform.add([Served("asked", [provider.base_url])], account="asked")
        (row,) = [
            row for row in platform.rows("SELECT * FROM inference_provider") if row["base_url"] == provider.base_url
        ]
        page = f"/admin/inference/provider/{row['id']}/test-connection/"
        before = provider.listings
        platform.admin.page(page)
        assert provider.listings == before
        assert "answered" in platform.admin.submit(page).words
        assert provider.listings == before + 1


def test_it_counts_log_ins_whatever_a_peer_says_of_its_mount(platform: Platform) -> None:
    def log_in(number: int) -> Answer:
        headers = {"SCRIPT_NAME": f"/{number}", "Content-Type": "application/x-www-form-urlencoded"}
        path = f"/{number}/admin/login/" if number % 2 else "/admin/login/"
        return platform.ask(path, b"username=root&password=guess", headers=headers)

    statuses = [log_in(number).status for number in range(0, 80, 2)]
    assert statuses[-1] == 429
