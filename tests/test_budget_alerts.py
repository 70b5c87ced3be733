"""Alerts on budgets: one that is set below what the month has used already is told of once, at what it has reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from tests.running import (
    CHAT,
    MODEL,
    Platform,
    ScriptedProvider,
    Served,
    chat,
    completion,
    running_platform,
    wait_until,
)

#: Of each call, at $2 and $10 a million tokens: $0.0012.
USED = {"prompt_tokens": 100, "completion_tokens": 100, "total_tokens": 200}

#: Of accounts, so that no name is part of another.
NUMBERS = count(100)


@pytest.fixture(scope="module")
def platform(prepared: Callable[[], dict[str, str]], provider: ScriptedProvider) -> Iterator[Platform]:
    """Run a platform on which nothing else is to be told of, so that a look is quick."""
    with running_platform(prepared(), [Served(MODEL, [provider.base_url])]) as running:
        yield running


@pytest.fixture
def account(platform: Platform, provider: ScriptedProvider) -> str:
    """Return the name of an account that has used 200 tokens this month, by a key named e2e."""
    provider.script(MODEL, completion("Hello", usage=USED))
    name = f"account-{next(NUMBERS)}"
    key = platform.add([], account=name)
    assert platform.ask(CHAT, chat(MODEL), key=key).status == 200
    wait_until(lambda: bool(records_of(platform, name)), "the record", 15)
    return name


def records_of(platform: Platform, account: str) -> list[dict[str, Any]]:
    return platform.rows(f"SELECT id FROM monitoring_requestrecord WHERE account_name = '{account}'")  # noqa: S608


def alerts(platform: Platform, account: str) -> list[str]:
    """Let a worker look, and list the titles of the account's alerts, those that are over as well."""
    platform.manage("worker", "--once", "watch")
    rows = platform.rows("SELECT title FROM monitoring_alert ORDER BY id")
    return [row["title"] for row in rows if account in row["title"]]


def budget(platform: Platform, account: str, *arguments: str) -> None:
    """Set a budget of the account for the model, as an operator does."""
    platform.manage("key", "budget", "--account", account, "--model", MODEL, *arguments)


def test_it_tells_once_of_a_budget_below_the_month_s_use(platform: Platform, account: str) -> None:
    budget(platform, account, "--tokens", "20")
    told = alerts(platform, account)
    assert told == [f"Account {account} for model {MODEL} has used 1000 % of its token budget"]
    assert alerts(platform, account) == told, "the next round has nothing to add"


def test_it_tells_once_of_each_kind_of_budget(platform: Platform, account: str) -> None:
    budget(platform, account, "--name", "e2e", "--tokens", "220", "--cost", "0.001")
    assert alerts(platform, account) == [
        f"Key {account} / e2e for model {MODEL} has used 90 % of its token budget",
        f"Key {account} / e2e for model {MODEL} has used 120 % of its cost budget",
    ]


def test_it_tells_once_of_a_budget_that_the_admin_lowers(platform: Platform, account: str) -> None:
    (row,) = platform.rows(f"SELECT id FROM accounts_account WHERE name = '{account}'")  # noqa: S608
    platform.admin.submit(f"/admin/accounts/account/{row['id']}/change/", monthly_token_budget="100")
    told = alerts(platform, account)
    assert told == [f"Account {account} has used 200 % of its token budget"]
    page = platform.admin.page("/admin/").words
    assert page.count(f"Account {account} has used") == 1


def test_it_still_tells_of_each_level_that_use_reaches(platform: Platform, account: str) -> None:
    budget(platform, account, "--tokens", "400")
    assert [title.partition(" used ")[2] for title in alerts(platform, account)] == ["50 % of its token budget"]
    budget(platform, account, "--tokens", "250")
    budget_of = [title.partition(" used ")[2] for title in alerts(platform, account)]
    assert budget_of == ["50 % of its token budget", "80 % of its token budget"]
