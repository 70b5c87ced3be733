"""bin/run: from nothing to real answers in one command, and back to nothing.

First with the local model: what a caller, an operator and a browser see; then with a fake provider.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from inference.fake_provider import FakeUpstream
from launch.environment import free_port
from tests.answers import Answer
from tests.catalogue import query_rows
from tests.conftest import settings_of
from tests.pages import watch
from tests.processes import wait_until
from tests.servers import ROOT, Service, clean_environment, launched
from tests.stores import Redis

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
    asked = [local.request("POST", "/v1/chat/completions", body, key=PREMIUM_KEY) for _ in range(3)]
    answers = [answer.json()["choices"][0]["message"]["content"] for answer in asked]
    assert sum("Paris" in answer for answer in answers) >= 2, answers  # it is small, and rarely wrong even then


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
        ("/docs", "[id$='-summarize']"),
        ("/redoc", "h2:has-text('Ask a model one question')"),
        ("/", "code:has-text('/chat')"),
    ],
)
def test_it_shows_its_pages_in_a_browser_without_an_error_or_a_request_elsewhere(
    local: Service, page: Page, path: str, shown: str
) -> None:
    watched = watch(page, allowed=lambda text: False)
    page.goto(f"{local.base_url}{path}")
    page.locator(shown).first.wait_for(timeout=20_000)
    page.wait_for_load_state("networkidle")
    assert watched.complaints == []
    assert watched.hosts() == {f"127.0.0.1:{local.port}"}


def test_it_lets_a_developer_try_an_endpoint_in_the_browser(local: Service, page: Page) -> None:
    page.set_default_timeout(20_000)
    page.goto(f"{local.base_url}/docs")
    page.fill("#key", PREMIUM_KEY)
    page.click("#use-key")
    operation = page.locator(".opblock[id$='-chat']").first
    operation.locator(".opblock-summary-control").click()
    operation.get_by_role("button", name="Execute").click()
    answer = operation.locator(".live-responses-table tr.response")
    answer.locator(".response-col_status", has_text="200").wait_for()
    assert '"request_id"' in answer.inner_text()
    curl = operation.locator(".curl-command").inner_text()
    assert f"X-API-Key: {PREMIUM_KEY}" in curl
    assert not re.search("X-CSRFTOKEN|Authorization", curl)
    assert page.get_by_role("button", name="Authorize").count() == 0


def test_it_keeps_its_state_through_a_kill_and_ledger_and_log_agree_after_it(
    fake: FakeUpstream, tmp_path: Path
) -> None:
    env = {**settings_of(fake), "DATABASE_URL": f"sqlite:///{tmp_path}/kept.sqlite3"}
    with launched(env) as first:
        assert "shown this once" in first.log.read_text()
        key = first.create_key(account="acme", tier="premium", name="kept")
        answers = [first.request("POST", "/chat", {"message": f"Question {n}"}, key=key) for n in range(3)]
        first.process.kill()
        wait_until(lambda: all("valkey-server" in each for each in members(first)), "all but Valkey to follow")
        assert len(members(first)) == 2
        with launched(env) as second:
            assert "shown this once" not in second.log.read_text(), "the administrator's password"
            assert [pid for pid in pids(second) if "valkey-server" in command(pid)] == [], "it took those over"
            answers += [second.request("POST", "/chat", {"message": f"More {n}"}, key=key) for n in range(2)]
            tokens = sum(answer.json()["tokens_used"] for answer in answers)
            wait_until(lambda: recorded_tokens(second) == tokens, "the records")
            limits = second.request("GET", "/usage", key=key).json()["limits"]
            used = {(limit["owner"], limit["name"]): limit["used"] for limit in limits}
            assert used["key", "requests_per_minute"] == 5, "the minute's requests are known"
            told = run(second.env, "check_rollups").stdout
            assert told.splitlines() == ["The rollups agree with the log.", "The ledgers agree with the records."]
        wait_until(lambda: members(first) == [], "Valkey to end with the second")


def test_it_begins_anew_with_another_database_after_a_kill(fake: FakeUpstream, tmp_path: Path) -> None:
    env = {**settings_of(fake), "DATABASE_URL": f"sqlite:///{tmp_path}/one.sqlite3"}
    with launched(env) as first:
        assert first.request("POST", "/chat", {"message": "Hello"}, key=FREE_KEY).status == 200
        first.process.kill()
        wait_until(lambda: all("valkey-server" in each for each in members(first)), "all but Valkey to follow")
        with launched({**env, "DATABASE_URL": f"sqlite:///{tmp_path}/two.sqlite3"}) as second:
            answer = second.request("POST", "/chat", {"message": "Hello"}, key=FREE_KEY)
            assert (answer.headers["x-cache"], answer.headers["x-ratelimit-remaining"]) == ("MISS", "4")
            assert second.ingested != first.ingested, "what is left of the first can't reach the second's ledgers"
            assert len(members(first)) == 2, "the first's wait for its next start"


def test_it_works_alone_in_its_folder_and_ends_the_rest_when_one_process_dies(
    fake: FakeUpstream, tmp_path: Path
) -> None:
    folder = tmp_path / ("long" * 30)  # too long for the path of a socket
    with launched({**settings_of(fake), "DATABASE_URL": f"sqlite:///{folder}/kept.sqlite3"}) as service:
        assert service.request("POST", "/chat", {"message": "Hello"}, key="dev_key_123").status == 200
        assert service.request("GET", "/health").json()["checks"]["limits"] == "healthy"
        twice = run({**service.env, "PORT": str(free_port())})
        assert (twice.returncode, twice.stdout) == (
            1,
            f"error: another bin/run works in {folder}: stop it, or name another database by DATABASE_URL\n",
        )
        (arbiter,) = servers(service)
        os.kill(arbiter, signal.SIGKILL)
        assert service.process.wait(40) == 1
        assert "error: the server ended by itself with status -9" in service.log.read_text()
        wait_until(lambda: members(service) == [], "every process to end")


def test_it_uses_the_store_that_the_settings_name(fake: FakeUpstream, own_redis: Redis) -> None:
    with launched({**settings_of(fake), "REDIS_URL": own_redis.url}) as service:
        commands = members(service)
        assert len(commands) == 4, "the launcher, the worker, gunicorn's master and its worker"
        assert not any("valkey-server" in each for each in commands)
        wait_until(lambda: "worker_leads" in service.log.read_text(), "the worker to work")


@pytest.mark.parametrize("arguments", [[], ["check"]])
def test_it_says_what_is_wrong_with_an_env_file_in_one_line(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "env").write_text("PORT 8000\n")
    done = run({"ENV_FILE": str(tmp_path / "env")}, *arguments)
    assert (done.returncode, done.stdout) == (1, "error: env, line 1: write it as NAME=value\n")


def test_it_says_in_one_line_that_the_port_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run({"PORT": str(port), "ENV_FILE": os.devnull})
    assert done.returncode == 1
    assert done.stdout == f"error: port {port} is in use: stop what listens there, or choose another by PORT\n"


def test_it_runs_management_commands_with_the_settings_of_the_env_file(tmp_path: Path) -> None:
    (tmp_path / "env").write_text(f"DATABASE_URL=sqlite:///{tmp_path}/named.sqlite3\n")
    done = run({"ENV_FILE": str(tmp_path / "env")}, "migrate", "--verbosity=0")
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "named.sqlite3").exists()
    assert "bin/run COMMAND" in run({}, "--help").stdout


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


def test_it_says_where_it_is_and_ends_with_its_terminal(local: Service, waiting: Future[Waited]) -> None:
    waiting.result(90)
    told = local.log.read_text()
    assert told.count("small demo model") == 2  # while it starts, and where the addresses are
    for line in ("dev_key_123 (free)", f"{local.base_url}/docs", f"{local.base_url}/admin/", "curl -s"):
        assert line in told
    assert len(members(local)) >= 4, "the launcher, the model, the arbiter and a worker"
    local.process.send_signal(signal.SIGHUP)  # the terminal is closed
    assert local.process.wait(20) == 0
    wait_until(lambda: members(local) == [], "every process to end")
    assert "Traceback" not in local.log.read_text()


def run(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "bin/run", *arguments]
    return subprocess.run(
        command, env={**clean_environment(), **env}, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


def recorded_tokens(service: Service) -> int:
    """Return the tokens that were used, by the log."""
    query = "SELECT coalesce(sum(input_tokens + output_tokens), 0) AS used FROM monitoring_requestrecord"
    return int(query_rows(service, query)[0]["used"])


def servers(service: Service) -> list[int]:
    """List the launcher's forks that have forks: gunicorn's master."""
    parents = {parent(pid) for pid in pids(service)}
    return [pid for pid in pids(service) if pid in parents and parent(pid) == service.process.pid]


def pids(service: Service) -> list[int]:
    """List the living processes of the launcher's session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (fields := stat(int(entry.name))) and fields[3] == str(service.process.pid):
            found += [int(entry.name)] if fields[0] != "Z" else []
    return found


def members(service: Service) -> list[str]:
    """List the command lines of the launcher's session."""
    return [command(pid) for pid in pids(service)]


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def parent(pid: int) -> int:
    """Return a process's parent, 0 if it is gone."""
    fields = stat(pid)
    return int(fields[1]) if fields else 0


def stat(pid: int) -> list[str]:
    """Return state, parent, group, session and the following fields of proc(5)'s stat; empty if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
