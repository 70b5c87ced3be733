"""A model without a price is not free: what its calls cost is unknown, everywhere, and no budget in money allows them.

A price of 0 says that a model is free: then a spent budget in money does not stop it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.client import HTTPException
from typing import Any

import pytest

from tests.running import (
    CHAT,
    EMBEDDINGS,
    ENDPOINTS,
    SHORT,
    AdminPage,
    Answer,
    Platform,
    Reply,
    ScriptedProvider,
    Served,
    answered,
    asking,
    chat,
    completion,
    running_platform,
    scripted_provider,
    wait_until,
)

USED = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
CACHED = {**USED, "prompt_tokens_details": {"cached_tokens": 600}}
#: What USED costs in nano-dollars at the prices of Served, $2 and $10 per million tokens.
COST = 1000 * 2_000 + 100 * 10_000
SAID, STREAMED = (answered(prompt=1000, output=100, is_stream=is_stream) for is_stream in (False, True))
#: Where calls go, with their bodies.
CALLS = [(path, asking(path, "unpriced-vectors" if path == EMBEDDINGS else "unpriced")) for path in ENDPOINTS]
CALLS.append((CHAT, chat("unpriced", stream=True)))


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    """Run a provider that answers what tests script."""
    with scripted_provider() as running:
        yield running


@pytest.fixture(scope="module")
def other() -> Iterator[ScriptedProvider]:
    """Run another provider, which is paid for `mixed`."""
    with scripted_provider() as running:
        yield running


@pytest.fixture(scope="module")
def platform(
    prepared: Callable[[], dict[str, str]], provider: ScriptedProvider, other: ScriptedProvider
) -> Iterator[Platform]:
    """Run a platform with models that have a price, none, one of 0, and one at a single of two deployments."""
    at = [provider.base_url]
    served = [
        Served("priced", at),
        *(Served(name, at, input=None) for name in ("unpriced", "cached", "half", "own", "alerted", "mixed")),
        Served("unpriced-vectors", at, kind="embedding", input=None),
        Served("free", at, input=0, cached=0, output=0),
        Served("mixed", [other.base_url]),
    ]
    with running_platform({**prepared(), **SHORT}, served) as running:
        yield running


@pytest.fixture(scope="module")
def budgeted(platform: Platform) -> str:
    """Make a key that has a large budget in money."""
    return platform.add([], account="budgeted", monthly_cost_budget="1000000")


@pytest.fixture(scope="module")
def summed(platform: Platform, provider: ScriptedProvider) -> str:
    """Make a key that has asked a model with a price once, and twice one without."""
    script_all(provider)
    key = platform.add([], account="summed")
    for model in ("priced", "unpriced", "unpriced"):
        platform.record(platform.ask(CHAT, chat(model), key=key))
    return key


@pytest.fixture(autouse=True)
def answers(provider: ScriptedProvider) -> None:
    """Begin each test with the usual answers."""
    script_all(provider)


def script_all(provider: ScriptedProvider) -> None:
    """Let every model answer with USED tokens, unless a test scripts something else."""
    for model in ("priced", "unpriced", "free"):
        provider.script(model, SAID)


def deployment_id(platform: Platform, model: str) -> int:
    (row,) = platform.rows(f"SELECT id FROM inference_deployment WHERE upstream_name = '{model}'")  # noqa: S608
    return int(row["id"])


def enter_price(platform: Platform, model: str, **amounts: str) -> AdminPage:
    """Enter a price as an operator does, in dollars per million tokens, and return the page that follows."""
    fields = {f"{name}_per_million": amount for name, amount in amounts.items()}
    return platform.admin.submit(f"/admin/inference/price/add/?deployment={deployment_id(platform, model)}", **fields)


def account_id(platform: Platform, name: str) -> int:
    (row,) = platform.rows(f"SELECT id FROM accounts_account WHERE name = '{name}'")  # noqa: S608
    return int(row["id"])


def give_account_budget(platform: Platform, name: str, dollars: str) -> None:
    """Give an account a month's budget in money."""
    page = f"/admin/accounts/account/{account_id(platform, name)}/change/"
    platform.admin.submit(page, monthly_cost_budget=dollars)
    (row,) = platform.rows(f"SELECT monthly_cost_budget AS budget FROM accounts_account WHERE name = '{name}'")  # noqa: S608
    assert float(row["budget"]) == float(dollars)


def usage(platform: Platform, key: str) -> dict[str, Any]:
    """Add up what the account of a key used of each model: the totals under an empty name."""
    told = platform.ask("/usage?group_by=model", key=key).json()["usage"]
    return {"": told["totals"], **{entry["model"]: entry for entry in told["series"]}}


def assert_refused(answer: Answer) -> None:
    """See that a call was refused because its model has no price."""
    body = answer.json()
    error = body.get("error", body)
    assert (answer.status, error["code"]) == (403, "price_unknown")
    assert "no price" in error.get("message", error.get("detail"))


def test_it_bills_cached_tokens_as_input_where_their_price_was_left_empty(
    platform: Platform, provider: ScriptedProvider
) -> None:
    provider.script("cached", completion("Hello", usage=CACHED))
    enter_price(platform, "cached", input="2", output="10")
    record = platform.record(platform.ask(CHAT, chat("cached")))
    assert (record.cached_tokens, record.cost) == (600, COST)


def test_it_takes_no_price_for_0_that_was_not_entered(platform: Platform) -> None:
    assert "This field is required" in enter_price(platform, "half", input="2").words
    of_half = f"SELECT 1 FROM inference_price WHERE deployment_id = {deployment_id(platform, 'half')}"  # noqa: S608
    assert platform.rows(of_half) == []


def test_it_begins_with_a_price_of_0_for_what_the_fake_provider_serves(
    platform: Platform, prepared: Callable[[], dict[str, str]]
) -> None:
    new = {**platform.service.env, **prepared(), "OPENAI_MODEL": "unlisted"}
    installed = Platform(replace(platform.service, env=new), key="")
    installed.manage("bootstrap")
    (price,) = installed.rows(
        "SELECT input_per_million + output_per_million AS both, cached_input_per_million AS cached "  # noqa: S608
        f"FROM inference_price WHERE deployment_id = {deployment_id(installed, 'unlisted')}"
    )
    assert (float(price["both"]), price["cached"]) == (0, None)


@pytest.mark.parametrize(("path", "body"), CALLS)
def test_it_records_an_unknown_cost_and_sends_none(
    platform: Platform, provider: ScriptedProvider, path: str, body: Any
) -> None:
    provider.script(body["model"], answered(path, prompt=1000, output=100, is_stream="stream" in body))
    answer = platform.ask(path, body)
    assert answer.status == 200
    assert "x-cost-usd" not in answer.headers
    record = platform.record(answer)
    assert (record.input_tokens, record.cost, record.usage_source) == (1000, None, "provider")
    assert platform.ask(f"/requests/{answer.label}").json()["cost"] is None


def test_it_costs_nothing_to_get_such_an_answer_again(platform: Platform) -> None:
    body = {"model": "unpriced", "message": "the same again"}
    once = {"Idempotency-Key": "unpriced"}
    assert platform.ask("/chat", body, headers=once).headers["x-cache"] == "MISS"
    for headers, outcome in ((once, "replay"), ({}, "hit")):
        again = platform.ask("/chat", body, headers=headers)
        assert (again.status, again.headers["x-cost-usd"]) == (200, "0.000000000")
        record = platform.record(again)
        assert (record.cache, record.cost) == (outcome, 0)


def test_it_records_an_unknown_cost_of_a_call_that_is_charged_its_bound(
    platform: Platform, provider: ScriptedProvider
) -> None:
    provider.script("unpriced", Reply(body=b'{"choices"', breaks_off=True))
    failed = platform.record(platform.ask(CHAT, chat("unpriced")))
    assert (failed.status, failed.usage_source) == (502, "bound")
    assert (failed.input_tokens > 0, failed.cost) == (True, None)


def test_it_records_a_cost_of_0_where_the_provider_did_nothing(platform: Platform, provider: ScriptedProvider) -> None:
    provider.script("unpriced", Reply(429, {"Retry-After": "30"}, b"{}"))
    refused = platform.record(platform.ask(CHAT, chat("unpriced")))
    assert (refused.input_tokens, refused.cost) == (0, 0)


def test_it_records_an_unknown_cost_of_a_call_whose_process_died(
    platform: Platform, provider: ScriptedProvider
) -> None:
    provider.script("unpriced", Reply(body=[60.0]))
    before = len(provider.calls)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(platform.ask, CHAT, chat("unpriced", "die"))
        wait_until(lambda: len(provider.calls) > before, "the call")
        (pid,) = platform.service.worker_pids()
        platform.service.kill_worker(pid)
        assert isinstance(asking.exception(), OSError | HTTPException)
    provider.script("unpriced", SAID)
    died = "SELECT cost, input_tokens FROM monitoring_requestrecord WHERE error_code = 'interrupted'"
    wait_until(lambda: bool(platform.rows(died)), "the record of the call that died", 60)
    (row,) = platform.rows(died)
    assert (row["input_tokens"] > 0, row["cost"]) == (True, None)


def test_it_tells_sums_as_known_in_part(platform: Platform, summed: str) -> None:
    told = usage(platform, summed)
    assert {name: (each["cost"], each["unpriced_requests"]) for name, each in told.items()} == {
        "": ("0.003000000", 2),
        "priced": ("0.003000000", 0),
        "unpriced": (None, 2),
    }


@pytest.mark.usefixtures("summed")
def test_it_leaves_an_unknown_cost_empty_in_files(platform: Platform) -> None:
    lines = platform.manage("export_log", "--format", "jsonl", "--account", "summed").splitlines()
    assert [json.loads(line)["cost"] for line in lines] == ["0.003000000", None, None]
    rows = csv.DictReader(io.StringIO(platform.manage("export_log", "--account", "summed")))
    assert [row["cost"] for row in rows] == ["0.003000000", "", ""]
    usage_file = platform.manage("export_usage", "--unit", "month", "--by", "account")
    (row,) = [row for row in csv.DictReader(io.StringIO(usage_file)) if row["account"] == "summed"]
    assert (row["cost"], row["unpriced_requests"]) == ("0.003000000", "2")


@pytest.mark.parametrize(("path", "body"), CALLS)
def test_it_refuses_a_call_whose_cost_nobody_can_bound(
    platform: Platform, provider: ScriptedProvider, budgeted: str, path: str, body: Any
) -> None:
    asked = len(provider.calls)
    answer = platform.ask(path, body, key=budgeted)
    assert_refused(answer)
    record = platform.record(answer)
    assert (record.error_code, record.input_tokens, record.cost) == ("price_unknown", 0, 0)
    assert len(provider.calls) == asked


@pytest.mark.parametrize("whose", ["account", "account model", "key model"])
def test_it_refuses_it_whoever_has_the_budget(platform: Platform, whose: str) -> None:
    name = whose.replace(" ", "-")
    key = platform.add([], account=name)
    assert platform.ask(CHAT, chat("unpriced"), key=key).status == 200
    if whose == "account":
        give_account_budget(platform, name, "5")
    else:
        of_key = ["--name", "e2e"] if whose == "key model" else []
        platform.manage("key", "budget", "--account", name, *of_key, "--model", "unpriced", "--cost", "5")
    wait_until(lambda: platform.ask(CHAT, chat("unpriced"), key=key).status == 403, "the budget", 5)
    assert_refused(platform.ask(CHAT, chat("unpriced", stream=True), key=key))
    assert platform.ask(CHAT, chat("priced"), key=key).status == 200


def test_it_takes_it_once_a_price_of_0_was_entered(
    platform: Platform, provider: ScriptedProvider, budgeted: str
) -> None:
    provider.script("own", SAID)
    assert_refused(platform.ask(CHAT, chat("own"), key=budgeted))
    enter_price(platform, "own", input="0", output="0")
    wait_until(lambda: platform.ask(CHAT, chat("own"), key=budgeted).status == 200, "the price", 5)


def test_it_passes_by_a_deployment_without_a_price(
    platform: Platform, provider: ScriptedProvider, other: ScriptedProvider, budgeted: str
) -> None:
    provider.script("mixed", SAID)
    other.script("mixed", SAID)
    for _ in range(8):
        answer = platform.ask(CHAT, chat("mixed"), key=budgeted)
        assert (answer.status, answer.headers["x-cost-usd"]) == (200, "0.003000000")
    other.script("mixed", Reply(500, body=b"{}"))
    assert platform.ask(CHAT, chat("mixed"), key=budgeted).status == 502
    assert provider.calls_of("mixed") == []
    assert platform.ask(CHAT, chat("mixed")).status == 200, "without a budget it may go there"


def test_it_answers_from_a_free_model_when_a_budget_is_overspent(
    platform: Platform, provider: ScriptedProvider
) -> None:
    key = platform.add([], account="overspent", monthly_cost_budget="0.1", max_output_tokens=500)
    provider.script("priced", completion("Hello", usage={**USED, "prompt_tokens": 1_000_000}))
    assert platform.ask(CHAT, chat("priced"), key=key).status == 200
    refused = platform.ask(CHAT, chat("priced"), key=key)
    assert (refused.status, refused.error["code"]) == (429, "insufficient_quota")
    for body in (chat("free"), chat("free", stream=True)):
        provider.script("free", STREAMED if "stream" in body else SAID)
        answer = platform.ask(CHAT, body, key=key)
        assert answer.status == 200
        assert platform.record(answer).cost == 0
        assert provider.calls_of("free")[-1].payload["max_tokens"] == 500, "its answer is not cut short"


def test_it_answers_from_a_free_model_when_a_budget_was_lowered(platform: Platform) -> None:
    key = platform.add([], account="lowered")
    assert platform.ask(CHAT, chat("priced"), key=key).status == 200
    give_account_budget(platform, "lowered", "0.002")
    wait_until(lambda: platform.ask(CHAT, chat("priced"), key=key).status == 429, "the budget", 5)
    assert platform.ask(CHAT, chat("free"), key=key).status == 200


def test_it_holds_models_without_a_price_and_free_ones_to_a_budget_in_tokens(platform: Platform) -> None:
    key = platform.add([], account="in-tokens", monthly_token_budget=1_150, max_output_tokens=100)
    assert platform.ask(CHAT, chat("unpriced"), key=key).status == 200
    for model in ("free", "unpriced"):
        refused = platform.ask(CHAT, chat(model), key=key)
        assert (refused.status, refused.error["code"]) == (429, "insufficient_quota")


def test_it_keeps_log_and_sums_alike(platform: Platform) -> None:
    assert platform.manage("check_rollups").splitlines()[0] == "The rollups agree with the log."


def test_it_names_models_without_a_price_in_the_doctors_lines(platform: Platform) -> None:
    told = platform.manage("doctor").splitlines()
    missing = [line.split() for line in told if line.startswith("prices")]
    assert {"unpriced", "unpriced-vectors", "mixed"} <= {line[3] for line in missing}
    assert not {"priced", "free", "gpt-3.5-turbo"} & {line[3] for line in missing}


def test_it_raises_an_alert_for_each_until_a_price_is_entered(platform: Platform) -> None:
    platform.manage("worker", "--once", "watch")
    (alert,) = platform.rows("SELECT title, ended_at FROM monitoring_alert WHERE subject = 'price:alerted'")
    assert (alert["title"], alert["ended_at"]) == ("Model alerted has no price", None)
    assert platform.rows("SELECT 1 FROM monitoring_alert WHERE subject IN ('price:priced', 'price:free')") == []
    enter_price(platform, "alerted", input="0", output="0")
    platform.manage("worker", "--once", "watch")
    (alert,) = platform.rows("SELECT ended_at FROM monitoring_alert WHERE subject = 'price:alerted'")
    assert alert["ended_at"]


@pytest.mark.usefixtures("summed")
def test_it_shows_them_on_the_dashboard_with_sums_that_are_at_least(platform: Platform) -> None:
    for span in ("24h", "1h"):
        words = platform.admin.page(f"/admin/?range={span}&account=summed").words
        assert "at least $0.003" in words
        assert "2 without a price" in words
        assert "No price, so the cost of calls is unknown" in words


def test_it_keeps_the_state_of_health(platform: Platform) -> None:
    told = platform.ask("/health")
    assert (told.status, told.json()["status"]) == (200, "healthy")


def test_it_explains_which_models_a_budget_rules_out(platform: Platform, budgeted: str) -> None:
    told = platform.manage("key", "explain", "--account", "budgeted", "--name", "e2e")
    assert "Calls of unpriced would be refused (403 price_unknown)" in told
    assert "Calls of priced would" not in told
    listed = {each["id"] for each in platform.ask("/v1/models", key=budgeted).json()["data"]}
    assert {"priced", "free"} <= listed
    assert "unpriced" not in listed
    assert "unpriced" in {each["id"] for each in platform.ask("/v1/models").json()["data"]}
