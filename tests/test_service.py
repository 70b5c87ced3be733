"""The whole service as bin/run starts it, with the real local model: what a caller, an operator and a browser see."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.sync_api import Page

from inference.fake_provider import FakeUpstream
from tests.servers import ROOT, Answer, Service, launched

FREE_KEY, FREE_LIMIT = "dev_key_123", 5
PREMIUM_KEY = "prod_key_456"
QUESTION = {"message": "What is the capital of France?", "temperature": 0}
TEXT = (
    "Tea is made from the leaves of an evergreen shrub that grows in the hills of Asia and Africa. The leaves are "
    "picked by hand, most often by women, who gather up to thirty kilograms a day. For green tea they are heated at "
    "once, so that they stay green; for black tea they are rolled and left to darken in moist air for some hours. "
    "Merchants brought tea to Europe in the seventeenth century, where it was at first a costly medicine and then a "
    "drink for everyone. Today it is, after water, the drink that people all over the world drink most, with or "
    "without milk and sugar."
)


@dataclass(frozen=True)
class Waited:
    """What a caller saw who used his limit up, was refused, waited as he was told, and asked again."""

    began_at: float
    admitted: list[Answer]
    refused: Answer
    asked_again_at: float
    again: Answer


def use_up_and_wait(service: Service) -> Waited:
    """Use the free key's minute up, and send the next request in the second that the refusal names."""
    began_at = time.time()
    admitted = [service.request("POST", "/chat", QUESTION, key=FREE_KEY) for _ in range(FREE_LIMIT)]
    refused = service.request("POST", "/chat", QUESTION, key=FREE_KEY)
    asked_again_at = time.time() + int(refused.headers["retry-after"])
    time.sleep(asked_again_at - time.time())
    return Waited(began_at, admitted, refused, asked_again_at, service.request("POST", "/chat", QUESTION, key=FREE_KEY))


@pytest.fixture(scope="module")
def local() -> Iterator[Service]:
    """Start the service by bin/run, with no setting of a provider."""
    with launched() as service:
        yield service


@pytest.fixture(scope="module", autouse=True)
def waiting(local: Service) -> Iterator[Future[Waited]]:
    """Wait out the free key's minute beside the other tests, which use another key."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(use_up_and_wait, local)


def ask(service: Service, message: str, **more: Any) -> Answer:
    """Chat with the premium key; the answer must be a 200."""
    answer = service.request("POST", "/chat", {"message": message, **more}, key=PREMIUM_KEY)
    assert answer.status == 200, answer.body
    return answer


def test_it_answers_a_question(local: Service) -> None:
    answer = ask(local, "Name three colours of the rainbow.", temperature=0)
    body = answer.json()
    assert set(body) == {"response", "tokens_used", "cached", "request_id"}
    assert re.search(r"\b(red|orange|yellow|green|blue|indigo|violet)\b", body["response"], re.IGNORECASE)
    assert body["tokens_used"] > 10
    assert body["cached"] is False
    assert answer.headers["x-cache"] == "MISS"
    assert answer.headers["x-model"] == "smollm2-135m-instruct"
    assert answer.headers["x-request-id"] == body["request_id"]
    assert re.fullmatch(r"\d+\.\d{3}", answer.headers["x-process-time"])
    assert answer.headers["cache-control"] == "private, no-store"


def test_it_answers_at_a_low_temperature_where_none_is_given(local: Service) -> None:
    """At 0.7 it rambles about other towns."""
    question = "What is the capital of France?"
    assert "Paris" in ask(local, question).json()["response"]
    body = {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": question}]}
    for _ in range(3):
        answer = local.request("POST", "/v1/chat/completions", body, key=PREMIUM_KEY)
        assert "Paris" in answer.json()["choices"][0]["message"]["content"]


def test_it_answers_the_same_question_from_the_cache(local: Service) -> None:
    first, second = ask(local, "What do bees eat?"), ask(local, "What do bees eat?")
    assert second.headers["x-cache"] == "HIT"
    assert second.json() == {**first.json(), "cached": True, "request_id": second.json()["request_id"]}
    assert second.headers["x-cost-usd"] == "0.000000000"
    other = ask(local, "What do bees eat?", temperature=1.5)
    assert other.headers["x-cache"] == "MISS"


@pytest.mark.parametrize("length", ["short", "medium", "long"])
def test_it_summarizes_in_fewer_words_than_the_text_has(local: Service, length: str) -> None:
    answer = local.request("POST", "/summarize", {"text": TEXT, "length": length}, key=PREMIUM_KEY)
    assert answer.status == 200, answer.body
    body = answer.json()
    assert body["original_length"] == len(TEXT)
    assert body["summary_length"] == len(body["summary"])
    assert 20 < body["summary_length"] < body["original_length"]
    assert "tea" in body["summary"].lower()


@pytest.mark.parametrize(
    ("headers", "detail"),
    [
        ({}, "API key required. Include X-API-Key header."),
        ({"X-API-Key": "nobody"}, "Invalid API key"),
        ({"Authorization": "Bearer ak_dev_nobody"}, "Invalid API key"),
    ],
)
def test_it_refuses_a_caller_without_a_good_key(local: Service, headers: dict[str, str], detail: str) -> None:
    answer = local.request("POST", "/chat", QUESTION, headers=headers)
    assert (answer.status, answer.json()["detail"]) == (401, detail)
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_it_takes_a_bearer_token(local: Service) -> None:
    headers = {"Authorization": f"Bearer {PREMIUM_KEY}"}
    assert local.request("POST", "/chat", {"message": "What do bees eat?"}, headers=headers).status == 200


def test_it_counts_in_the_statistics_what_was_asked(local: Service, waiting: Future[Waited]) -> None:
    key = local.create_key(account="acme", tier="premium", name="laptop")
    for _ in range(3):
        assert local.request("POST", "/chat", QUESTION, key=key).status == 200
    assert local.request("POST", "/chat", {"message": ""}, key=key).status == 400
    assert local.request("GET", "/stats", key=key).json() == {
        "total_requests": 4,
        "cache_hits": 2,
        "cache_misses": 1,  # its own: another account had asked the same, and that is nobody else's business
        "cache_hit_rate": 0.667,
        "total_api_keys": 1,
        "requests_by_key": {"laptop": 4},
    }


def test_it_answers_the_lines_of_the_readme(local: Service) -> None:
    blocks = re.findall(r"```sh\n(.+?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [block.replace("dev_key_123", PREMIUM_KEY) for block in blocks if "curl -s localhost:8000/" in block]
    script = "\n".join(lines).replace("localhost:8000", f"127.0.0.1:{local.port}").replace("\ncurl", "\necho; curl")
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    answers = [json.loads(line) for line in done.stdout.splitlines() if line]
    assert [next(iter(answer)) for answer in answers] == ["response", "summary", "account", "status"]


def test_it_is_healthy(local: Service) -> None:
    report = local.request("GET", "/health").json()
    assert report["status"] == "healthy"
    assert set(report["checks"]) == {"api", "database", "cache", "limits", "ingest", "llm"}


def test_it_asks_the_provider_rarely_whether_it_is_well_and_spends_no_token(
    service: Service, fake: FakeUpstream
) -> None:
    calls, asked = len(fake.billed), lists_of_models(fake)
    for _ in range(5):
        assert service.request("GET", "/health").json()["checks"]["llm"] == "healthy"
    assert lists_of_models(fake) - asked <= 1
    assert len(fake.billed) == calls


def lists_of_models(fake: FakeUpstream) -> int:
    """Count how often a provider was asked for its models."""
    return sum(received.path.endswith("/models") for received in fake.requests)


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/docs", "#operations-summarize-summarize"),
        ("/redoc", "h2:has-text('Ask a model one question')"),
        ("/", "code:has-text('/chat')"),
    ],
)
def test_it_shows_its_pages_in_a_browser_without_an_error_or_a_request_elsewhere(
    local: Service, page: Page, path: str, shown: str
) -> None:
    complaints: list[str] = []
    requests: list[str] = []
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"{local.base_url}{path}")
    page.locator(shown).first.wait_for(timeout=20_000)
    page.wait_for_load_state("networkidle")
    assert complaints == []
    assert [url for url in requests if not url.startswith((f"{local.base_url}/", "data:", "blob:"))] == []


def test_it_lets_a_developer_try_an_endpoint_in_the_browser(local: Service, page: Page) -> None:
    page.set_default_timeout(20_000)
    page.goto(f"{local.base_url}/docs")
    page.get_by_role("button", name="Authorize").first.click()
    scheme = page.locator(".auth-container", has_text="X-API-Key")
    scheme.locator("input").fill(PREMIUM_KEY)
    scheme.locator("button.authorize").click()
    page.locator(".btn-done").first.click()
    operation = page.locator("#operations-chat-chat")
    operation.locator(".opblock-summary-control").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_role("button", name="Execute").click()
    answer = operation.locator(".live-responses-table tr.response")
    answer.locator(".response-col_status", has_text="200").wait_for()
    assert '"request_id"' in answer.inner_text()


def test_it_admits_the_first_request_at_the_announced_time(local: Service, waiting: Future[Waited]) -> None:
    told = waiting.result(90)
    assert [answer.status for answer in told.admitted] == [200] * FREE_LIMIT
    assert [int(answer.headers["x-ratelimit-remaining"]) for answer in told.admitted] == [4, 3, 2, 1, 0]
    assert told.refused.status == 429
    seconds = int(told.refused.headers["retry-after"])
    assert told.refused.json()["detail"] == f"Rate limit exceeded. Try again in {seconds} seconds."
    assert told.refused.json()["limit"]["used"] == FREE_LIMIT
    assert int(told.refused.headers["x-ratelimit-reset"]) == pytest.approx(told.asked_again_at, abs=1.5)
    assert told.asked_again_at - told.began_at == pytest.approx(60, abs=2.5), "a minute after the first, not later"
    assert told.again.status == 200, told.again.body
