"""The usage report of the admin: periods, sums, change, forecast, CSV, statements, and the comparison with the log."""

from __future__ import annotations

import csv
import io
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from accounts.models import Account, AuditEntry
from accounts.tests.factories import Cast, logged_in, make_staff
from core.formats import NOTHING
from monitoring import usage_report as module
from monitoring.models import Alert, RequestRecord, Rollup
from monitoring.rollups.periods import minute_of, month_begin
from monitoring.tests.samples import micros, micros_at, recorded
from monitoring.usage_report import COLUMNS, PERIODS, Period, usage_report

pytestmark = pytest.mark.django_db
PAGE = "/admin/monitoring/requestrecord/usage/"
NOVEMBER = "?period=custom&first=2026-11-01&last=2026-11-30"


@pytest.fixture
def used(cast: Cast) -> None:
    """Have two accounts use two models in October and November 2026."""
    for issued, month, model, cost in (
        (cast.owner, 10, "gpt-4o", 2_000_000_000),
        (cast.owner, 11, "gpt-4o", 3_000_000_000),
        (cast.colleague, 11, "gpt-4o-mini", 500_000_000),
        (cast.stranger, 11, "gpt-4o", 1_000_000_001),
    ):
        recorded(issued, admitted_at=micros_at(month, 2, 3), model=model, cost=cost)


def words(site: Client, address: str = PAGE) -> str:
    """Open a page and return its text without markup."""
    response = site.get(address)
    assert response.status_code == 200
    return " ".join(re.sub(r"<[^>]+>", " ", response.content.decode()).split())


def rows_of(site: Client, query: str) -> list[dict[str, str]]:
    """Download the report and return its rows."""
    response: Any = site.get(f"{PAGE}{query}&format=csv")
    return list(csv.DictReader(io.StringIO(b"".join(response).decode(), newline="")))


@pytest.mark.parametrize(
    ("name", "begin", "end", "before", "text"),
    [
        ("this-month", (2026, 12), (2027, 1), (2026, 11), "1 to 31 December 2026"),
        ("last-month", (2026, 11), (2026, 12), (2026, 10), "1 to 30 November 2026"),
        ("this-quarter", (2026, 10), (2027, 1), (2026, 7), "1 October to 31 December 2026"),
        ("last-quarter", (2026, 7), (2026, 10), (2026, 4), "1 July to 30 September 2026"),
    ],
)
def test_it_knows_months_and_quarters(
    name: str, begin: tuple[int, int], end: tuple[int, int], before: tuple[int, int], text: str
) -> None:
    period = Period.named(name, datetime(2026, 12, 11, tzinfo=UTC))
    assert [(at.year, at.month, at.day) for at in (period.begin, period.end, period.before)] == [
        (*begin, 1),
        (*end, 1),
        (*before, 1),
    ]
    assert (period.text, period.is_running) == (text, name.startswith("this"))
    if name == "this-month":
        assert period.until_before == datetime(2026, 11, 11, tzinfo=UTC)


@pytest.mark.usefixtures("used")
class TestReport:
    def test_it_adds_up_accounts_and_models_beside_the_time_before(self, site: Client) -> None:
        text = words(site, PAGE + NOVEMBER)
        assert "acme Statement $3.50 $2.00 +75 %" in text
        assert "gpt-4o-mini $0.50 $0.00 new" in text
        assert "Total of 2 accounts $4.50 $2.00 +125 %" in text
        assert "Forecast" not in text

    def test_it_names_accounts_as_people_know_them(self, site: Client) -> None:
        Account.objects.filter(name="acme").update(display_name="Acme Corp")
        assert "Acme Corp Statement $3.50" in words(site, PAGE + NOVEMBER)
        assert [rows_of(site, NOVEMBER)[0][name] for name in ("account", "display_name")] == ["acme", "Acme Corp"]

    def test_it_gives_what_it_shows_as_csv_with_all_decimals(self, site: Client) -> None:
        rows = rows_of(site, NOVEMBER)
        assert tuple(rows[0]) == COLUMNS
        assert [(row["account"], row["model"], row["cost_usd"], row["change_percent"]) for row in rows] == [
            ("acme", "gpt-4o", "3.000000000", "50.0"),
            ("acme", "gpt-4o-mini", "0.500000000", ""),
            ("globex", "gpt-4o", "1.000000001", ""),
        ]

    def test_its_csv_needs_no_more_than_the_page_and_leaves_an_entry(self) -> None:
        finance = logged_in(make_staff("monitoring.view_rollup", name="finance"))
        assert len(rows_of(finance, NOVEMBER)) == 3
        entry = AuditEntry.objects.latest("pk")
        assert (entry.action, entry.actor, entry.after["begin"]) == (
            "exported",
            "admin:finance",
            "2026-11-01 00:00:00+00:00",
        )

    def test_it_lists_the_accounts_with_the_highest_cost_and_adds_up_the_rest(
        self, site: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "LISTED", 1)
        text = words(site, PAGE + NOVEMBER)
        assert "acme Statement $3.50 $2.00 +75 %" in text
        assert "1 more account $1.00 $0.00 new" in text
        assert "Total of 2 accounts $4.50 $2.00 +125 %" in text
        assert "globex" not in text
        assert [row["account"] for row in rows_of(site, NOVEMBER)] == ["acme", "acme", "globex"]

    def test_it_shows_no_change_from_a_time_of_another_length(self, cast: Cast) -> None:
        recorded(cast.owner, admitted_at=micros_at(10, 31))
        running = Period.named("this-month", datetime(2026, 11, 2, 12, tzinfo=UTC))
        assert usage_report(running).total.shown_change == "+125 %"
        kept = minute_of(running.begin - timedelta(days=1))
        Rollup.objects.filter(grain=Rollup.Grain.KEY_QUARTER, start__lt=kept).delete()
        report = usage_report(running)
        assert (report.total.shown_change, report.total.then.cost) == (NOTHING, 0)  # of 1 October alone
        assert "by whole days only" in report.period.unequal_note
        last_day = Period.named("this-month", datetime(2026, 12, 31, 12, tzinfo=UTC))  # November had 30 days
        assert usage_report(last_day).period.unequal_note == "The time before has fewer days."

    def test_its_columns_are_named_as_in_the_csv_of_a_key_s_holder(self) -> None:
        own = {"account", "display_name", "model", "previous_cost_usd", "change_percent", "forecast_cost_usd"}
        script = Path("static/site/csv.js").read_text()
        assert set(COLUMNS) - own <= set(re.findall(r"^  (\w+):", script, re.MULTILINE))

    def test_it_shows_one_account(self, site: Client) -> None:
        text = words(site, f"{PAGE}{NOVEMBER}&account=globex")
        assert "acme" not in text
        assert "Total of 1 account $1.00" in text
        assert [row["account"] for row in rows_of(site, f"{NOVEMBER}&account=globex")] == ["globex"]

    def test_it_agrees_with_the_log_or_names_the_difference(self, site: Client) -> None:
        assert "Agrees with the request log: 3 requests, $4.50, checked" in words(site, PAGE + NOVEMBER)
        RequestRecord.objects.filter(account_name="globex").delete()
        text = words(site, PAGE + NOVEMBER)
        assert "Differs from the request log, which has 2 requests and $3.50 instead of 3 and $4.500000001" in text

    def test_it_compares_a_long_log_on_request_only(self, site: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "CHECKED_AT_ONCE", 2)
        assert "Not compared with the request log yet. Compare now" in words(site, PAGE + NOVEMBER)
        assert "Agrees with the request log" in words(site, f"{PAGE}{NOVEMBER}&check=1")
        monkeypatch.setattr(module, "CHECKED_AT_MOST", 2)
        assert "run manage.py check_rollups" in words(site, f"{PAGE}{NOVEMBER}&check=1")

    def test_it_admits_that_the_log_is_gone(self, site: Client) -> None:
        RequestRecord.objects.filter(admitted_at__lt=datetime(2026, 11, 1, tzinfo=UTC)).delete()
        text = words(site, f"{PAGE}?period=custom&first=2026-10-01&last=2026-11-30")
        assert "the log no longer has all requests of this period" in text
        RequestRecord.objects.all().delete()
        assert "the log no longer has all requests of this period" in words(site, PAGE + NOVEMBER)

    def test_it_prints_a_statement_of_an_account(self, site: Client, cast: Cast) -> None:
        address = f"{PAGE}{cast.owner.key.account_id}/{NOVEMBER}"
        text = words(site, address)
        assert "Account acme" in text
        assert "gpt-4o 1 20 0 10 3.00 gpt-4o-mini 1 20 0 10 0.50 Total 2 40 0 20 3.50" in text
        assert "Agrees with the request log: 2 requests, $3.50" in text
        html = site.get(address).content.decode()
        assert "style=" not in html
        assert "<script>" not in html
        assert site.get(f"{PAGE}999999/").status_code == 404


def test_it_shows_sums_that_disagree(site: Client, cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LISTED", 1)
    for issued, cost in ((cast.owner, 2_000_000_000), (cast.stranger, 50_000_000)):
        recorded(issued, admitted_at=micros_at(11, 2), cost=cost)
    Rollup.objects.filter(grain=Rollup.Grain.PLATFORM_DAY).update(cost=1_750_000_001)
    page = site.get(PAGE + NOVEMBER).content.decode()
    assert '<td title="-$0.249999999">-$0.25</td>' in page


def test_it_says_how_much_of_this_month_s_budget_is_used(site: Client, cast: Cast) -> None:
    account = cast.owner.key.account
    Account.objects.filter(pk=account.pk).update(monthly_cost_budget="10")
    recorded(cast.owner, admitted_at=micros(timezone.now()), cost=9_996_000_000)
    statement = f"{PAGE}{account.pk}/"
    assert "10.00 99 % of the $10.00 budget" in words(site, statement)
    recorded(cast.owner, admitted_at=micros(timezone.now()), model="priceless", cost=None)
    assert "at least 99 % of the $10.00 budget" in words(site, statement)
    assert "budget" not in words(site, f"{statement}?period=last-month")


def test_it_never_shows_an_unknown_cost_as_zero(site: Client, cast: Cast) -> None:
    recorded(cast.owner, admitted_at=micros_at(11, 2), model="priceless", cost=None)
    recorded(cast.owner, admitted_at=micros_at(11, 2), cost=1_000_000_000)
    text = words(site, PAGE + NOVEMBER)
    assert "priceless unknown $0.00" in text
    assert "acme Statement at least $1.00" in text
    assert [row["cost_usd"] for row in rows_of(site, NOVEMBER)] == ["1.000000000", ""]
    assert "1 request went to a model without a price" in words(site, f"{PAGE}{cast.owner.key.account_id}/{NOVEMBER}")


@pytest.mark.parametrize(
    ("cost", "change"),
    [(3_000_000_000, "+50 %"), (1_000_000_000, "-50 %"), (48_000_000_000, "\N{MULTIPLICATION SIGN}24")],
)
def test_it_shows_a_change_so_that_it_can_be_read(site: Client, cast: Cast, cost: int, change: str) -> None:
    recorded(cast.owner, admitted_at=micros_at(10, 15), cost=2_000_000_000)
    recorded(cast.owner, admitted_at=micros_at(11, 15), cost=cost)
    assert f"$2.00 {change}" in words(site, PAGE + NOVEMBER)


def test_it_shows_a_change_from_less_than_a_dollar_as_an_amount(site: Client, cast: Cast) -> None:
    recorded(cast.owner, admitted_at=micros_at(10, 15), cost=999_000_000)
    recorded(cast.owner, admitted_at=micros_at(11, 15), cost=5_000_000_000)
    assert "$1.00 +$4.00" in words(site, PAGE + NOVEMBER)
    assert rows_of(site, NOVEMBER)[0]["change_percent"] == "400.5"


@pytest.mark.parametrize(
    ("name", "now", "text"),
    [
        ("this-month", 11, "Same period in November 2026"),
        ("last-month", 11, "October 2026"),
        ("this-quarter", 11, "Same period in Q3 2026"),
        ("last-quarter", 11, "Q2 2026"),
    ],
)
def test_it_names_the_time_before(name: str, now: int, text: str) -> None:
    assert Period.named(name, datetime(2026, 12, now, tzinfo=UTC)).before_text == text


def test_it_marks_who_will_exceed_a_budget(site: Client, cast: Cast) -> None:
    now = datetime(2026, 11, 21, tzinfo=UTC)
    Account.objects.filter(name="acme").update(monthly_cost_budget="25")
    for day in range(1, 21):
        recorded(cast.owner, admitted_at=micros_at(11, day, 12), cost=1_000_000_000)
    (line,) = usage_report(Period.named("this-month", now)).accounts
    assert line.shown_budget == "$25.00"
    assert re.fullmatch(r"\N{WARNING SIGN} \$25\.00, budget reached 2[5-7] Nov", line.shown_forecast)
    total = usage_report(Period.named("this-month", now)).total
    assert total.forecast == pytest.approx(25_000_000_000, abs=1_000), "calls above the budget are refused"
    assert sum(model.forecast or 0 for model in line.models) == pytest.approx(25_000_000_000, abs=1_000)
    Account.objects.filter(name="acme").update(monthly_cost_budget="20")
    (line,) = usage_report(Period.named("this-month", now)).accounts
    assert line.shown_forecast.endswith(", budget used up")
    Account.objects.filter(name="acme").update(monthly_cost_budget="99")
    (line,) = usage_report(Period.named("this-month", now)).accounts
    assert line.shown_forecast.startswith("$")
    (line,) = usage_report(Period.named("last-month", datetime(2026, 12, 2, tzinfo=UTC))).accounts
    assert line.budget is None
    recorded(cast.owner, admitted_at=micros(timezone.now() - timedelta(seconds=1)))
    assert "Budget Forecast" in words(site)
    assert "Budget" not in words(site, PAGE + NOVEMBER)


def test_it_forecasts_a_running_period_at_the_pace_of_the_last_week(site: Client, cast: Cast) -> None:
    now = datetime(2026, 11, 21, tzinfo=UTC)
    for day in range(1, 21):
        recorded(cast.owner, admitted_at=micros_at(11, day, 12), cost=1_000_000_000)
    report = usage_report(Period.named("this-month", now))
    assert report.total.now.cost == 20_000_000_000
    assert report.total.forecast == pytest.approx(30_000_000_000, rel=0.01)
    assert report.forecast_change == ""
    recorded(cast.owner, admitted_at=micros_at(10, 31, 12), cost=20_000_000_000)
    report = usage_report(Period.named("this-month", now))
    assert report.forecast_change == "October 2026: $20.00 (+50 %)"
    assert report.total.shown_change == "+$20.00"  # nothing was used until 21 October, but it is not new
    recorded(cast.stranger, admitted_at=micros_at(11, 20, 12), cost=1_000_000_000)  # its first day
    recorded(cast.owner, admitted_at=micros_at(11, 20, 12), model="new", cost=1_000_000_000)
    report = usage_report(Period.named("this-month", now))
    lines = [line.forecast or 0 for line in report.accounts]
    assert report.total.forecast == pytest.approx(sum(lines), abs=2)
    assert [sum(model.forecast or 0 for model in line.models) for line in report.accounts] == pytest.approx(
        lines, abs=2
    )
    recorded(cast.owner, admitted_at=micros(timezone.now() - timedelta(seconds=1)))
    assert "Forecast, " in words(site)


def test_it_has_figures_of_a_period_that_just_began(site: Client, cast: Cast) -> None:
    begin = month_begin(timezone.now())
    recorded(cast.owner, admitted_at=micros(begin - timedelta(days=1)), cost=1_000_000_000)
    report = usage_report(Period.named("this-month", begin + timedelta(minutes=20)))
    total, (line,) = report.total, report.accounts
    assert (total.now.requests, total.now.cost, report.number) == (0, 0, 1)
    assert total.forecast is not None
    assert total.forecast > 25_000_000_000
    assert total.forecast == line.forecast
    recorded(cast.stranger, admitted_at=micros(begin - timedelta(days=2)), cost=0)  # has no forecast
    assert usage_report(Period.named("this-month", begin + timedelta(minutes=20))).number == 1
    assert all("Usage report" in words(site, f"{PAGE}?period={name}") for name in PERIODS)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("?period=yesterday", "Select a valid choice"),
        ("?period=custom", "Give the first and the last day"),
        ("?period=custom&first=2026-12-01&last=2026-11-01", "Give the first and the last day"),
        ("?period=custom&first=soon&last=2026-11-01", "Enter a valid date"),
        ("?account=nobody", "There is no account nobody"),
        ("?account=nob%00ody", "Null characters are not allowed"),
        ("", "Nothing was used in this period"),
    ],
)
def test_it_says_what_it_can_t_show_and_shows_this_month(site: Client, query: str, told: str) -> None:
    text = words(site, PAGE + query)
    assert told in text
    assert Period.named("this-month", timezone.now()).text in text


def test_it_is_for_those_who_may_see_sums_or_requests(site: Client, cast: Cast) -> None:
    statement = f"{PAGE}{cast.owner.key.account_id}/"
    finance = logged_in(make_staff("monitoring.view_rollup", name="finance"))
    viewer = logged_in(make_staff("monitoring.view_requestrecord", name="viewer"))
    for each in (finance, viewer, site):
        assert [each.get(path).status_code for path in (PAGE, f"{PAGE}?format=csv", statement)] == [200] * 3
    assert finance.get("/admin/monitoring/requestrecord/").status_code == 403
    assert finance.get("/admin/")["Location"] == PAGE
    alert = Alert.objects.create(kind="books", subject="books", title="Sums differ", text="x", began_at=timezone.now())
    exporter = logged_in(make_staff("monitoring.view_rollup", "monitoring.export_requestrecord", name="exporter"))
    for each, is_linked in ((site, True), (exporter, False)):
        html = each.get(PAGE).content.decode()
        assert "Sums differ" in html
        assert ("Other exports" in html) is is_linked
        assert (f"/admin/monitoring/alert/{alert.pk}/" in html) is is_linked
    stranger = logged_in(make_staff("accounts.view_account", name="stranger"))
    assert [stranger.get(path).status_code for path in (PAGE, f"{PAGE}?format=csv", statement)] == [403] * 3
    assert PAGE not in stranger.get("/admin/").content.decode()
    assert Client().get(PAGE).status_code == 302


def test_it_asks_the_same_few_queries_whatever_the_log(
    site: Client, cast: Cast, django_assert_max_num_queries: Any
) -> None:
    for _ in range(30):
        recorded(cast.owner, cost=1)
    with django_assert_max_num_queries(25):
        site.get(f"{PAGE}?period=this-month")
