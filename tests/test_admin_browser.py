"""The admin in a real browser, against a real server: what an operator does on the first day.

The browser obeys the server's Content-Security-Policy, so these tests fail as well when that forbids what pages need.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from inference.fake_provider import FakeUpstream
from tests.catalogue import query_rows
from tests.conftest import settings_of
from tests.pages import grave_faults
from tests.processes import wait_until
from tests.servers import Service, aiapi_server

NAME, PASSWORD = "operator", "a password for the tests"
#: Seconds within which a change holds everywhere, and what this machine may add to a request.
EFFECT, SLACK = 1.0, 0.5
MESSAGE = {"message": "Hello!"}


@pytest.fixture(scope="module")
def platform(fake: FakeUpstream) -> Iterator[Service]:
    """Run a platform of this module's own, whose administrator is known."""
    own = {"ADMIN_USERNAME": NAME, "ADMIN_PASSWORD": PASSWORD, "ADMIN_LOGIN_RATE": "1000/m", "LOOPBACK_PROVIDERS": "1"}
    with aiapi_server({**settings_of(fake), **own}) as server:
        yield server


@pytest.fixture
def complaints(page: Page) -> list[str]:
    """Collect what the browser complains about: scripts that fail or are forbidden, files that are missing."""
    found: list[str] = []
    page.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: found.append(str(error)))
    return found


@pytest.fixture
def admin(page: Page, platform: Service, complaints: list[str]) -> Page:
    page.goto(f"{platform.base_url}/admin/")
    page.fill("[name=username]", NAME)
    page.fill("[name=password]", PASSWORD)
    page.click("[type=submit]")
    expect(page).to_have_url(f"{platform.base_url}/admin/")
    return page


def create_key(page: Page, service: Service, name: str, *, account: str) -> str:
    """Make a key of the tier free as an operator does, and return what the page shows."""
    page.goto(f"{service.base_url}/admin/accounts/apikey/add/")
    page.click(".select2-selection")
    page.fill(".select2-search__field", account)
    page.click(f".select2-results__option:has-text('{account}')")
    page.select_option("[name=tier]", label="free (5 requests/min)")
    page.fill("[name=name]", name)
    page.click("[name=_save]")
    expect(page.get_by_text("it will not be shown again")).to_be_visible()
    return page.input_value("#issued-key")


def chat(service: Service, key: str) -> int:
    """Send a chat message and return the status."""
    return service.request("POST", "/chat", MESSAGE, key=key).status


def seconds_until(service: Service, key: str, status: int) -> float:
    """Measure how long it takes until the key gets a status."""
    began = time.monotonic()
    while service.request("GET", "/stats", key=key).status != status:
        assert time.monotonic() - began < 10, f"no {status} in 10 s"
        time.sleep(0.02)
    return time.monotonic() - began


def test_it_refuses_a_wrong_password(page: Page, platform: Service) -> None:
    page.goto(f"{platform.base_url}/admin/")
    page.fill("[name=username]", NAME)
    page.fill("[name=password]", "wrong")
    page.click("[type=submit]")
    expect(page.get_by_text("Please enter the correct username and password")).to_be_visible()


def test_it_makes_a_key_that_works_until_it_is_revoked(admin: Page, platform: Service, complaints: list[str]) -> None:
    platform.create_key(account="acme", tier="free", name="first")
    key = create_key(admin, platform, "browser", account="acme")
    assert re.fullmatch(r"ak_dev_[0-9A-Za-z]{49}", key)
    assert chat(platform, key) == 200

    admin.click("a:has-text('Done')")
    assert key not in admin.content()
    admin.click("a[href$='/revoke/']")
    expect(admin.get_by_text("Every request with this key of account acme will get 401")).to_be_visible()
    assert chat(platform, key) == 200
    admin.click("button:has-text('Revoke browser')")
    assert seconds_until(platform, key, 401) < EFFECT + SLACK
    expect(admin.get_by_text("1 key revoked")).to_be_visible()
    assert not complaints


def test_it_adds_a_provider_whose_model_answers_at_once(
    admin: Page, platform: Service, complaints: list[str], fake: FakeUpstream
) -> None:
    key = platform.create_key(account="tester", tier="premium", name="first")
    admin.goto(f"{platform.base_url}/admin/inference/provider/add/")
    admin.click("a:has-text('vLLM')")
    expect(admin.locator("[name=name]")).to_have_value("vllm")
    admin.fill("[name=base_url]", "http://127.0.0.1:9/v1")
    admin.click("button:has-text('Test')")
    expect(admin.get_by_role("alert")).to_contain_text("connection refused")
    admin.fill("[name=base_url]", fake.base_url)
    admin.click("button:has-text('Test')")
    expect(admin.get_by_role("status")).to_contain_text("It answered with")
    admin.locator(".pv-line [type=checkbox]").first.check()
    admin.fill("[name=model-0-public_name]", "house model")
    admin.click("[name=_save]")
    expect(admin.get_by_text("Letters, digits and")).to_be_visible()
    assert grave_faults(admin) == []
    admin.fill("[name=model-0-public_name]", "house-model")
    admin.click("[name=_save]")
    expect(admin.get_by_text("vllm now serves house-model.")).to_be_visible()
    answer = platform.request("POST", "/chat", {**MESSAGE, "model": "house-model"}, key=key)
    assert (answer.status, answer.headers["x-cost-usd"]) == (200, "0.000000000")
    assert not complaints


def test_it_copies_the_key(admin: Page, platform: Service, complaints: list[str]) -> None:
    platform.create_key(account="copied", tier="free", name="first")
    key = create_key(admin, platform, "browser", account="copied")
    admin.click("#copy-key")
    expect(admin.locator("#copy-key")).to_have_text("Copied")
    admin.goto(f"{platform.base_url}/admin/accounts/apikey/")
    admin.click("#searchbar")
    admin.keyboard.press("Control+V")
    assert admin.input_value("#searchbar") == key[:12]
    admin.keyboard.press("Enter")
    admin.wait_for_url("**/?q=*")
    assert key[12:-4] not in admin.url
    expect(admin.locator("#result_list")).to_contain_text(key[:12])
    assert not complaints


def test_it_makes_no_other_key_by_going_back(admin: Page, platform: Service, complaints: list[str]) -> None:
    platform.create_key(account="backwards", tier="free", name="first")
    key = create_key(admin, platform, "browser", account="backwards")
    shown_at = admin.url
    admin.reload()
    expect(admin.get_by_text("A new key is shown only once")).to_be_visible()
    assert key not in admin.content()
    admin.go_back()
    admin.goto(shown_at)
    assert key not in admin.content()
    keys = query_rows(platform, "SELECT name FROM accounts_apikey WHERE name LIKE 'browser%' AND account_id IN "
                                "(SELECT id FROM accounts_account WHERE name = 'backwards')")  # fmt: skip
    assert [row["name"] for row in keys] == ["browser"]
    assert not complaints


def test_it_opens_an_account_on_its_overview_with_the_form_behind_a_tab(
    admin: Page, platform: Service, complaints: list[str]
) -> None:
    key = platform.create_key(account="viewed", tier="free", name="first")
    assert chat(platform, key) == 200
    platform.await_records()
    admin.goto(f"{platform.base_url}/admin/accounts/account/")
    admin.click("#result_list a:has-text('viewed')")
    expect(admin.locator("#overview-charts canvas").first).to_be_visible()
    expect(admin.locator("[name=contact]")).to_be_hidden()
    assert grave_faults(admin) == []
    admin.click("text=Change limits")
    admin.fill("[name=contact]", "no address")
    admin.click("[name=_save]")
    expect(admin.get_by_text("Enter a valid email address")).to_be_visible()
    assert grave_faults(admin) == []
    admin.fill("[name=contact]", "billing@viewed.test")
    admin.click("[name=_save]")
    expect(admin.get_by_text("was changed successfully")).to_be_visible()
    assert not complaints


def test_it_invites_staff_who_choose_their_password(
    admin: Page, platform: Service, chromium: Browser, complaints: list[str]
) -> None:
    admin.goto(f"{platform.base_url}/admin/auth/user/add/")
    admin.fill("[name=username]", "ada")
    admin.click("label:has-text('Viewer')")
    admin.click("label:has-text('by an invitation')")
    expect(admin.locator("[name=password1]")).to_be_hidden()
    admin.click("[name=_save]")
    admin.click("button:has-text('Create invitation link')")
    link = admin.inner_text("#invitation-link")
    assert grave_faults(admin) == []
    guest = chromium.new_page()
    guest.goto(link)
    assert grave_faults(guest) == []
    for name in ("new_password1", "new_password2"):
        guest.fill(f"[name={name}]", "a password of ada")
    guest.click("button:has-text('Set password')")
    guest.fill("[name=username]", "ada")
    guest.fill("[name=password]", "a password of ada")
    guest.click("[type=submit]")
    expect(guest).to_have_url(f"{platform.base_url}/admin/")
    expect(guest.get_by_role("link", name="Accounts")).to_be_visible()
    expect(guest.get_by_role("link", name="Staff")).to_be_hidden()
    guest.close()
    assert not complaints


def test_it_changes_a_limit_that_works_within_a_second(admin: Page, platform: Service) -> None:
    key = platform.create_key(account="limited", tier="premium", name="first")
    assert platform.request("GET", "/stats", key=key).headers["x-ratelimit-limit"] == "20"
    admin.goto(f"{platform.base_url}/admin/accounts/tier/")
    admin.click("#result_list a:has-text('premium')")
    admin.fill("[name=requests_per_minute]", "3")
    admin.click("[name=_save]")
    began = time.monotonic()
    while platform.request("GET", "/stats", key=key).headers["x-ratelimit-limit"] != "3":
        assert time.monotonic() - began < EFFECT + SLACK
        time.sleep(0.02)
    assert [chat(platform, key) for _ in range(4)] == [200, 200, 200, 429]


def test_it_disables_an_account_after_saying_what_stops(admin: Page, platform: Service) -> None:
    key = platform.create_key(account="closing", tier="free", name="first")
    admin.goto(f"{platform.base_url}/admin/accounts/account/")
    admin.click("#result_list a:has-text('closing')")
    admin.click("a[href$='/disable/']")
    expect(admin.get_by_text("1 key of closing will get 401 within a second")).to_be_visible()
    admin.click("button:has-text('Disable account')")
    assert seconds_until(platform, key, 401) < EFFECT + SLACK


def test_it_shows_in_the_logs_what_was_done_and_asked(admin: Page, platform: Service) -> None:
    key = platform.create_key(account="logged", tier="free", name="first")
    assert platform.request("POST", "/chat", {"message": ""}, key=key).status == 400
    platform.await_records()
    admin.goto(f"{platform.base_url}/admin/monitoring/requestrecord/?account=logged")
    expect(admin.locator("#result_list")).to_contain_text("400 invalid_request")
    admin.goto(f"{platform.base_url}/admin/accounts/auditentry/?who=command:key")
    expect(admin.locator("#result_list")).to_contain_text("logged")


def test_it_narrows_the_log_by_its_histogram_and_keeps_views(
    admin: Page, platform: Service, complaints: list[str]
) -> None:
    key = platform.create_key(account="charted", tier="free", name="first")
    assert chat(platform, key) == 200
    platform.await_records()
    log = f"{platform.base_url}/admin/monitoring/requestrecord/"
    admin.goto(f"{log}?account=charted&from=-24h")
    assert grave_faults(admin) == []
    bar = admin.locator("#log-histogram a").last
    expect(bar).to_have_attribute("aria-label", re.compile(r"UTC: 1 2xx$"))
    bar.focus()
    admin.keyboard.press("Enter")
    admin.wait_for_url(re.compile("until=.*Z"))
    expect(admin.locator("#result_list tbody tr")).to_have_count(1)

    admin.goto(f"{log}?account=charted&from=-24h")
    box = admin.locator("#log-histogram").bounding_box()
    assert box is not None
    admin.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + 40)
    admin.mouse.down()
    admin.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 40)
    admin.mouse.up()
    admin.wait_for_url(re.compile("until=.*Z"))
    assert "account=charted" in admin.url
    expect(admin.get_by_text("No request fits these filters")).to_be_visible()

    admin.click("#log-views summary")
    admin.fill("#log-view-name", "yesterday's")
    admin.click("#log-view-save")
    saved = admin.url
    admin.goto(log)
    admin.click("#log-views summary")
    admin.click('a:has-text("yesterday\'s")')
    expect(admin).to_have_url(saved)
    assert not complaints


def test_it_tells_a_request_and_prints_a_statement(admin: Page, platform: Service, complaints: list[str]) -> None:
    key = platform.create_key(account="told", tier="free", name="first")
    assert chat(platform, key) == 200
    platform.await_records()
    admin.goto(f"{platform.base_url}/admin/monitoring/requestrecord/?account=told")
    admin.click("#result_list tbody th a")
    expect(admin.locator(".rq-story h1")).to_contain_text("Answered by")
    assert grave_faults(admin) == []
    admin.click("[data-copy]")
    expect(admin.locator("[data-copy] + [role=status]")).not_to_be_empty()
    admin.click("a:has-text('Usage report')")
    assert grave_faults(admin) == []
    admin.click("tr:has-text('told') >> text=statement")
    expect(admin.locator("main")).to_contain_text("Agrees with the request log: 1 request,")
    assert grave_faults(admin) == []
    assert not complaints


def test_it_follows_new_requests_only_while_wanted(admin: Page, platform: Service, complaints: list[str]) -> None:
    key = platform.create_key(account="followed", tier="free", name="first")
    admin.goto(f"{platform.base_url}/admin/monitoring/requestrecord/?account=followed")
    expect(admin.get_by_text("No request fits these filters")).to_be_visible()
    admin.check("#log-live")
    assert chat(platform, key) == 200
    expect(admin.locator("#result_list tbody tr")).to_have_count(1, timeout=15_000)
    expect(admin.locator("#log-live-status")).to_contain_text("updated")
    admin.uncheck("#log-live")
    expect(admin.locator("#log-live-status")).to_be_empty()
    assert not complaints


def test_it_downloads_usage(admin: Page, platform: Service, complaints: list[str]) -> None:
    key = platform.create_key(account="billed", tier="free", name="first")
    assert chat(platform, key) == 200
    platform.await_records()
    admin.goto(f"{platform.base_url}/admin/monitoring/requestrecord/usage/")
    admin.click("a:has-text('Other exports')")
    assert grave_faults(admin) == []
    admin.fill("[name=account]", "billed")
    with admin.expect_download() as download:
        admin.click("button:has-text('Download')")
    head, row = Path(download.value.path()).read_text().splitlines()
    assert head.startswith("start,account,account_id,requests,")
    assert row.split(",")[1:4:2] == ["billed", "1"]
    assert not complaints


PAGES = [
    "",
    "accounts/apikey/",
    "accounts/apikey/add/",
    "accounts/account/1/change/",
    "accounts/tier/1/change/",
    "accounts/auditentry/",
    "auth/user/1/change/",
    "inference/provider/1/change/",
    "inference/model/1/change/",
    "inference/deployment/1/change/",
    "monitoring/requestrecord/",
    "monitoring/requestrecord/?from=-7d&status=failed&account=nobody",
    "monitoring/requestrecord/usage/export/",
    "monitoring/requestrecord/usage/",
    "monitoring/requestrecord/usage/1/",
]


@pytest.mark.parametrize("width", [360, 1440])
def test_it_shows_every_page_without_a_complaint_or_sideways_scrolling(
    admin: Page, platform: Service, complaints: list[str], width: int
) -> None:
    admin.set_viewport_size({"width": width, "height": 800})
    too_wide: list[Any] = []
    for path in PAGES:
        admin.goto(f"{platform.base_url}/admin/{path}")
        expect(admin.locator("body")).to_be_visible()
        excess = admin.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        too_wide += [(path, excess)] if excess > 0 else []
    assert not too_wide
    assert not complaints


@pytest.mark.parametrize("message", ["many words " * 50, "x" * 300], ids=["words", "one word"])
def test_it_shows_a_long_prompt_within_a_small_screen(
    admin: Page, platform: Service, complaints: list[str], message: str
) -> None:
    key = platform.create_key(account="logged", tier="free", name=f"of {len(message)}")
    code = "from accounts.models import Account; Account.objects.filter(name='logged').update(logs_content=True)"
    platform.manage("shell", "-c", code)
    time.sleep(EFFECT)
    assert platform.request("POST", "/chat", {"message": message}, key=key).status == 200
    platform.await_records()
    (newest,) = query_rows(platform, "SELECT id FROM monitoring_requestrecord ORDER BY admitted_at DESC LIMIT 1")
    admin.set_viewport_size({"width": 360, "height": 800})
    admin.goto(f"{platform.base_url}/admin/monitoring/requestrecord/{newest['id']}/change/")
    wait_until(lambda: _shows(admin, message.strip()), "the record's content")
    assert admin.evaluate("document.documentElement.scrollWidth - window.innerWidth") == 0
    assert not complaints


def _shows(page: Page, text: str) -> bool:
    """Load the page again, and say whether it shows a text by now: content is written a moment after the record."""
    page.reload()
    return text in page.content()
