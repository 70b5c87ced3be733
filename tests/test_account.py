"""The account page in a real browser: its states, with answers of GET /usage made up here for what takes a month."""

from __future__ import annotations

import csv
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.catalogue import make
from tests.pages import Watched, grave_faults, watch
from tests.servers import Service

KEY = "made-up-key"
SENTENCE = "At this pace about $18 of $25 by 30 November."
FORECAST = {"forecast": {"expected": "17.700000000", "reached": None, "text": SENTENCE}}
FORMULA = '=HYPERLINK("http://evil.example")'
DAY = timedelta(days=1)


def figures(requests: int) -> dict[str, Any]:
    """Make the figures of so many requests."""
    times = {"p50": 340.0, "p95": 1250.0, "p99": 3000.0} if requests else None
    return {
        "requests": requests,
        "errors": {"invalid": 0, "limited": requests // 10, "failed": 0},
        "cache_hits": requests // 4,
        "cache_misses": requests // 2,
        "cache_hit_rate": 0.333 if requests else 0.0,
        "input_tokens": 200 * requests,
        "cached_tokens": 20 * requests,
        "output_tokens": 100 * requests,
        "cost": f"{requests / 1000:.9f}",
        "saved_cost": f"{requests / 4000:.9f}",
        "latency_ms": times,
        "first_token_ms": times,
    }


def limit(name: str, bound: Any, used: Any, left: Any, seconds: int | None, **more: str) -> dict[str, Any]:
    """Make the state of a limit that is whole again in so many seconds."""
    reset = None if seconds is None else int(datetime.now(UTC).timestamp()) + seconds
    state = {"name": name, "owner": "key", "limit": bound, "used": used, "remaining": left, "reset": reset}
    return {**state, **more}


def usage(address: str, requests: int, used: int = 20) -> dict[str, Any]:
    """Answer GET /usage: so many requests each day and model, none on the second day, and a limit of 20."""
    asked = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
    begin, end = (datetime.fromisoformat(asked[name]) for name in ("from", "to"))
    by = asked["group_by"].split(",")
    groups: list[dict[str, Any]] = (
        [{"model": name} for name in ("gpt-large", FORMULA)] if "model" in by else [{"key": "laptop"}]
    )
    days = [begin + DAY * n for n in range((end - begin).days) if n != 1] if "day" in by else [None]
    series = [
        {**({"start": day.isoformat()} if day else {}), **group, **figures(requests)}
        for day in days
        for group in groups
    ]
    limits = [
        limit("requests_per_minute", 20, used, 20 - used, 42),
        limit("tokens_per_minute", None, None, None, None),
        limit("monthly_cost", "25.000000000", "4.312000000", "20.688000000", 500_000, owner="account") | FORECAST,
        limit("monthly_tokens", 1000, 900, 100, 500_000, owner="account model", model="gpt-large"),
    ]
    return {
        "account": "acme",
        "key": "laptop",
        "tier": "premium",
        "expires_at": "2099-01-01T12:00:00Z",
        "scopes": ["chat", "usage"],
        "month": "2026-11",
        "source": "limits",
        "limits": limits,
        "usage": {"totals": figures(requests * len(days)), "series": series if requests else []},
    }


def listed(address: str) -> dict[str, Any]:
    """Answer GET /requests: two pages of requests, of which one was refused."""
    is_first = "before" not in address
    names = {
        "id": f"0000000{int(is_first)}",
        "label": "mine",
        "key": "laptop",
        "endpoint": "/chat",
        "model": "gpt-large",
    }
    figures = {"input_tokens": 40, "cached_tokens": 0, "output_tokens": 2, "cost": "0.001250000", "latency_ms": 1250.0}
    answered = {**names, **figures, "admitted_at": "2026-11-24T10:00:00Z", "status": 200, "error_code": "", "count": 1}
    refused = {**answered, "status": 429, "error_code": "rate_limited", "count": 7}
    return {"requests": [refused, answered], "next": names["id"] if is_first else None}


def asked(watched: Watched) -> dict[str, list[str]]:
    """Return the parameters of the latest question for usage."""
    return parse_qs(urlsplit([address for address in watched.requests if "/usage?" in address][-1]).query)


Opener = Callable[..., Watched]


@pytest.fixture
def opened(chromium: Browser, service: Service) -> Any:
    """Return what opens the page in a browser of its own, with answers of so many requests, and enters a key."""
    contexts = []

    def open_page(requests: int, *, answer: Callable[[Route], None] | None = None, **options: Any) -> Watched:
        usual = {"timezone_id": "Europe/Berlin", "viewport": {"width": 1440, "height": 900}}
        context = chromium.new_context(**{**usual, **options})
        contexts.append(context)
        watched = watch(context.new_page())
        made_up = answer or (lambda route: route.fulfill(json=usage(route.request.url, requests)))
        watched.page.route("**/usage?*", made_up)
        watched.page.route("**/requests?*", lambda route: route.fulfill(json=listed(route.request.url)))
        watched.page.goto(f"{service.base_url}/account/")
        watched.page.focus("#key")
        watched.page.keyboard.insert_text(KEY)
        watched.page.keyboard.press("Enter")
        return watched

    yield open_page
    for context in contexts:
        context.close()


def is_current(page: Page) -> None:
    """Wait until the page shows an answer."""
    expect(page.locator("#status")).to_contain_text("As of")


def test_it_says_first_what_is_left_and_until_when(opened: Opener, service: Service) -> None:
    watched = opened(100)
    page = watched.page
    is_current(page)
    expect(page.locator("#left-summary")).to_contain_text(
        "Limit reached: requests per minute (this key), all 20 are available again in"
    )
    expect(page.locator("#left-summary")).to_contain_text("You have used $4.31 of $25.00 this month; resets on ")
    cards = page.locator("#limits .card")
    told = [" ".join(card.inner_text().split()) for card in cards.all()]
    assert [text.split(" left")[0] for text in told] == [
        "Requests per minute this key 0",
        "Tokens this month the whole account, gpt-large 100",
        "Spend this month the whole account $20.69",
    ]
    assert "Close to the limit. You have used 900 of 1,000 tokens with gpt-large this month" in told[1]
    assert cards.nth(2).locator(".left").get_attribute("title") == "$4.312 of $25.00 used, $20.688 left"
    expect(cards.nth(0)).to_be_in_viewport()
    expect(page.locator("#unlimited")).to_have_text("Nothing else is limited.")
    expect(page.locator("#whose")).to_contain_text("expires 1 Jan 2099")
    assert watched.hosts() == {f"127.0.0.1:{service.port}"}
    assert watched.keeps(KEY) == []
    assert KEY not in page.content()
    assert page.input_value("#key") == ""
    assert not watched.complaints


def test_it_draws_each_chart_with_a_table_behind_it(opened: Opener) -> None:
    watched = opened(100)
    page = watched.page
    is_current(page)
    plots = page.locator("#charts figure")
    expect(plots).to_have_count(6)
    for plot in plots.all():
        label = plot.get_by_role("img").get_attribute("aria-label") or ""
        assert "The table below has all values" in label
        plot.locator("summary").click()
        expect(plot.locator("tbody tr")).to_have_count(7)
    latency = plots.nth(3).locator("tbody tr")
    assert [cell.inner_text() for cell in latency.nth(1).locator("td").all()] == ["\N{EN DASH}"] * 2
    assert [cell.inner_text() for cell in latency.nth(2).locator("td").all()] == ["~1.3 s", "~340 ms"]
    assert page.inner_text("#parts tbody th >> nth=1") == FORMULA
    assert page.inner_text("#tiles dd >> nth=0").startswith("600")
    assert not watched.complaints


def test_it_gives_a_file_that_no_spreadsheet_calculates(opened: Opener, tmp_path: Path) -> None:
    page = opened(100).page
    is_current(page)
    with page.expect_download() as download:
        page.click("#csv")
    assert download.value.suggested_filename.startswith("usage-acme-by-model-")
    download.value.save_as(tmp_path / "usage.csv")
    with (tmp_path / "usage.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert {row["model"] for row in rows} == {"gpt-large", f"'{FORMULA}"}
    assert rows[0]["requests"] == "100"
    assert rows[0]["cost_usd"] == "0.100000000"
    assert rows[0]["latency_p95_ms"] == "1250"


def test_it_lists_the_latest_requests_with_what_became_of_each(opened: Opener) -> None:
    watched = opened(100)
    page = watched.page
    is_current(page)
    rows = page.locator("#records tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text("7 rate_limited")
    page.click("#older")
    expect(rows).to_have_count(4)
    expect(page.locator("#older")).to_be_hidden()
    rows.nth(1).get_by_role("button").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("GET /requests/00000001")
    expect(dialog).to_contain_text("$0.00125")
    assert grave_faults(page) == []
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    rows.nth(0).get_by_role("link").click()
    expect(page.locator("#code-rate_limited")).to_be_in_viewport()
    assert not watched.complaints


def test_it_says_what_a_budget_will_have_used_at_the_end_of_the_month(opened: Opener) -> None:
    watched = opened(1000)
    is_current(watched.page)
    budget = watched.page.locator("#limits .card").nth(2)
    expect(budget).to_contain_text(SENTENCE)


def test_it_says_what_is_unknown_while_the_counters_are_away(opened: Opener) -> None:
    def answer(route: Route) -> None:
        body = usage(route.request.url, 10) | {"source": "records"}
        body["limits"][0] |= {"used": None, "remaining": None, "reset": None}
        route.fulfill(json=body)

    page = opened(10, answer=answer).page
    is_current(page)
    rate = page.locator("#limits .card", has_text="Requests per minute")
    expect(rate).to_contain_text("Unknown now.")
    expect(rate).not_to_contain_text("You have used")


def test_it_says_what_to_do_where_nothing_was_asked(opened: Opener) -> None:
    watched = opened(0)
    page = watched.page
    is_current(page)
    expect(page.locator("#empty")).to_contain_text("curl -sS http://127.0.0.1")
    expect(page.locator("#filled")).to_be_hidden()
    expect(page.locator("#csv")).to_be_disabled()
    assert grave_faults(page) == []
    assert len([address for address in watched.requests if "/usage?" in address]) == 1


def test_it_says_what_to_do_instead_of_drawing_empty_axes(opened: Opener) -> None:
    def answer(route: Route) -> None:
        body = usage(route.request.url, 10)
        for each in (body["usage"]["totals"], *body["usage"]["series"]):
            each["saved_cost"] = "0.000000000"
        route.fulfill(json=body)

    page = opened(10, answer=answer).page
    is_current(page)
    plots = page.locator("#charts figure")
    expect(plots.nth(5)).to_contain_text("Send the same request to /chat twice")
    expect(plots.nth(5).locator("canvas")).to_be_hidden()
    expect(plots.nth(0).locator("canvas")).to_be_visible()


def test_it_asks_for_a_range_and_a_group_of_ones_own(opened: Opener) -> None:
    watched = opened(10)
    page = watched.page
    is_current(page)
    page.select_option("#group", "key")
    expect(page.locator("#parts-title")).to_have_text("By key")
    page.click('[data-range="own"]')
    page.fill("#own-from", "2026-03-28")
    page.fill("#own-to", "2026-03-20")
    page.click("#own button")
    expect(page.locator("#own-problem")).to_contain_text("the earlier one first")
    page.fill("#own-to", "2026-04-02")
    page.click("#own button")
    expect(page.locator("#range-text")).to_contain_text("28 Mar 2026 to 2 Apr 2026")
    question = asked(watched)
    assert question["time_zone"] == ["Europe/Berlin"]
    assert (question["from"], question["to"]) == (["2026-03-27T23:00:00.000Z"], ["2026-04-02T22:00:00.000Z"])


def test_it_tells_usage_in_a_zone_whose_hours_begin_in_between(opened: Opener) -> None:
    watched = opened(10, timezone_id="Asia/Kolkata")
    page = watched.page
    is_current(page)
    expect(page.locator("#range-text")).to_contain_text("all keys of the account, by day (Asia/")
    assert asked(watched)["time_zone"][0].startswith("Asia/")
    assert asked(watched)["from"][0].endswith("T18:30:00.000Z")
    expect(page.locator("#charts figure").first.locator("summary")).to_be_visible()
    page.locator("#charts summary").first.click()
    expect(page.locator("#charts figure").first.locator("tbody tr")).to_have_count(7)
    page.click('[data-range="24h"]')
    is_current(page)
    assert asked(watched)["from"][0].endswith(":30:00.000Z")


def usages(watched: Watched) -> int:
    """Count how often a page asked for the usage."""
    return sum("/usage?" in address for address in watched.requests)


def test_it_refreshes_by_one_request_and_says_since_when_it_is_stale(opened: Opener) -> None:
    refused = {"detail": "The service is unavailable.", "code": "unavailable", "request_id": "label-1"}
    well = [True]

    def answer(route: Route) -> None:
        if well[0]:
            route.fulfill(json=usage(route.request.url, 100))
        else:
            route.fulfill(status=503, json=refused, headers={"Retry-After": "7"})

    watched = opened(100, answer=answer)
    page = watched.page
    is_current(page)
    before = usages(watched)
    page.click("#refresh")
    is_current(page)
    assert usages(watched) == before + 1
    well[0] = False
    page.click("#refresh")
    expect(page.locator("#status")).to_contain_text("not refreshed since")
    expect(page.get_by_role("alert").first).to_contain_text("503 unavailable: The service is unavailable.")
    expect(page.locator("#tiles")).to_contain_text("600")
    assert grave_faults(page) == []
    well[0] = True
    page.click("#refresh")
    expect(page.locator("#stale")).to_be_empty()


def test_it_asks_nothing_while_nobody_can_see_it(opened: Opener) -> None:
    watched = opened(100)
    page = watched.page
    page.clock.install()
    is_current(page)
    page.click("#refresh")
    hide = "Object.defineProperty(document, 'hidden', {{value: {0}, configurable: true}});"
    event = "document.dispatchEvent(new Event('visibilitychange'))"
    page.evaluate(hide.format("true") + event)
    before = len(watched.requests)
    page.clock.fast_forward(600_000)
    assert len(watched.requests) == before
    with page.expect_request("**/usage?*"):
        page.evaluate(hide.format("false") + event)


def test_it_tells_a_wrong_key_and_asks_for_another(page: Page, service: Service) -> None:
    watched = watch(page)
    page.goto(f"{service.base_url}/account/")
    page.fill("#key", "ak_dev_wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").first).to_contain_text("401 invalid_api_key: Invalid API key")
    expect(page.locator("#content")).to_be_hidden()
    page.fill("#key", "no key")
    page.keyboard.press("Enter")
    assert (
        page.evaluate("document.querySelector('#key').validationMessage") == "A key has no spaces or special letters."
    )
    assert not watched.complaints


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_it_has_no_grave_fault_in_any_width_and_light(opened: Opener, scheme: str, width: int) -> None:
    watched = opened(100, color_scheme=scheme, viewport={"width": width, "height": 800})
    page = watched.page
    is_current(page)
    page.locator("#charts summary").first.click()
    page.click("#codes summary")
    assert watched.excess_width() <= 0
    assert grave_faults(page) == []
    assert not watched.complaints


def test_it_shows_the_landing_page_to_all(chromium: Browser, service: Service) -> None:
    context = chromium.new_context(viewport={"width": 360, "height": 740}, color_scheme="dark")
    watched = watch(context.new_page())
    watched.page.goto(service.base_url)
    assert watched.excess_width() <= 0
    assert grave_faults(watched.page) == []
    assert not watched.complaints
    watched.page.click("text=What you have left")
    expect(watched.page.locator("h1")).to_have_text("Account")
    context.close()


def test_it_shows_what_the_platform_counted(chromium: Browser, service: Service) -> None:
    (owned,) = make(service, [], ("holder", {}, {"holder": {"requests_per_minute": 7}, "other": {}}))
    keys = owned.plain
    for message in ("one", "one", "two"):
        assert service.request("POST", "/chat", {"message": message}, key=keys["holder"]).status == 200
    assert service.request("POST", "/chat", {"message": ""}, key=keys["other"]).status == 400
    context = chromium.new_context(timezone_id="America/New_York")
    watched = watch(context.new_page())
    page = watched.page
    page.goto(f"{service.base_url}/account/")
    page.fill("#key", keys["holder"])
    page.keyboard.press("Enter")
    is_current(page)
    expect(page.locator("#limits .card").first).to_contain_text("4 left of 7")
    expect(page.locator("#tiles div").first).to_contain_text("4")
    for choice in ("24h", "30d"):
        page.click(f'[data-range="{choice}"]')
        is_current(page)
        expect(page.locator("#tiles div").first).to_contain_text("3 answered")
        expect(page.locator("#tiles")).to_contain_text("1 hit")
    page.select_option("#group", "key")
    expect(page.locator("#parts-title")).to_have_text("By key")
    rows = page.locator("#parts tbody tr")
    expect(rows).to_have_count(2)
    told = [row.inner_text().split() for row in rows.all()]
    assert [row[:3] for row in told] == [["holder", "3", "0"], ["other", "1", "1"]]
    page.click('[data-range="own"]')
    page.fill("#own-from", "2001-01-01")
    page.fill("#own-to", "2026-01-01")
    page.click("#own button")
    expect(page.locator("#usage-problem")).to_contain_text("from: At most")
    assert not watched.complaints
    assert watched.keeps(keys["holder"]) == []
    context.close()


def test_it_manages_the_accounts_keys_for_a_key_that_may(page: Page, service: Service) -> None:
    fields = {"scopes": ["chat", "usage", "keys:manage"]}
    (owned,) = make(service, [], ("managed", {}, {"manager": fields, "laptop": {}}))
    watched = watch(page)
    page.goto(f"{service.base_url}/account/")
    page.fill("#key", owned.plain["manager"])
    page.keyboard.press("Enter")
    keys = page.locator("#key-list tbody tr")
    expect(keys).to_have_count(2)
    page.click("#keys summary")
    page.fill("#new-name", "made")
    page.fill("#new-budget", "5")
    page.click("#new-key button")
    expect(page.locator("#key-change")).to_contain_text("it is not shown again")
    made = page.inner_text("#key-change code")
    assert service.request("POST", "/chat", {"message": "Hello!"}, key=made).status == 200
    row = keys.filter(has_text="made")
    row.get_by_role("button", name="Rotate").click()
    page.get_by_role("dialog").get_by_role("button", name="Stop it now").click()
    expect(page.locator("#key-change")).not_to_contain_text(made)
    successor = page.inner_text("#key-change code")
    assert service.request("POST", "/chat", {"message": "Hello!"}, key=successor).status == 200
    keys.filter(has_text=successor[-4:]).get_by_role("button", name="Revoke").click()
    assert grave_faults(page) == []
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert service.request("GET", "/v1/models", key=successor).status == 200
    keys.filter(has_text=successor[-4:]).get_by_role("button", name="Revoke").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(keys.filter(has_text=successor[-4:])).to_contain_text("revoked")
    assert not watched.complaints
    assert [place for secret in (made, successor) for place in watched.keeps(secret)] == []
    page.goto(f"{service.base_url}/account/")
    page.fill("#key", owned.plain["laptop"])
    page.keyboard.press("Enter")
    is_current(page)
    expect(page.locator("#keys")).to_be_hidden()
