"""Several web workers beside a worker: exact together, telling the same, and when some are killed."""

from __future__ import annotations

import json
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path

import pytest

from inference.fake_provider import FakeUpstream
from monitoring.tests.scraped import Growth, value
from tests.catalogue import Served
from tests.conftest import settings_of
from tests.ledgers import rows
from tests.processes import wait_until
from tests.running import CHAT, Platform, Reply, ScriptedProvider, chat, completion, event, running_platform
from tests.servers import Service, aiapi_server
from tests.sites import WORKERS, Site
from tests.streams import Stream, asked

MODEL = "gpt-3.5-turbo"
LEASE_SECONDS = 5
#: Slots of a provider, and clients that want one.
SLOTS, CLIENTS = 10, 40
#: Requests a minute, and those sent: many more than the 60 refusals that a key has records of its own for in each of
#: two minutes.
ALLOWED, ASKED = 20, 200
PLAIN, STREAMED = 40, 4
TOTALS = """
    SELECT sum(count), sum(input_tokens), sum(output_tokens), sum(cost), count(first_token_ms)
    FROM monitoring_requestrecord WHERE account_id = %s
"""
LIMIT = """
from inference.models import Deployment
from inference.services import catalog_save
provider = Deployment.objects.select_related("provider").get(model__public_name="bounded").provider
provider.concurrent_requests = SLOTS
catalog_save(row=provider, actor="command:test")
"""
FIRST = event({"id": "c", "choices": [{"index": 0, "delta": {"content": "Hello"}}]})


@pytest.fixture(scope="module")
def mortal(prepared: Callable[[], dict[str, str]], provider: ScriptedProvider) -> Iterator[Platform]:
    """Run a platform of two web workers, whose leases end soon, for tests that kill these."""
    env = {**prepared(), "LIMITS_LEASE_SECONDS": str(LEASE_SECONDS)}
    env["REDIS_TIMEOUT"] = "2"  # a store that a busy machine makes slow is not away: limits would go on by process
    with running_platform(env, [Served("bounded", [provider.base_url])], workers=2) as running:
        yield running


def kill_workers(service: Service) -> None:
    """Kill all web workers, and wait until there are as many others that can serve."""
    killed = service.worker_pids()
    for pid in killed:
        service.kill_worker(pid)
    asks = range(4 * len(killed))  # as good as surely, one of them reaches each worker

    def are_ready() -> bool:
        is_whole = len(service.worker_pids()) == len(killed)
        return is_whole and all(service.request("GET", "/health/ready").status == HTTPStatus.OK for _ in asks)

    wait_until(are_ready, "new workers with their connections")


def limit(service: Service, slots: int) -> None:
    """Let the provider of `bounded` have so many slots."""
    service.manage("shell", "-c", LIMIT.replace("SLOTS", str(slots)))
    time.sleep(1)  # a worker that has just read its catalog reads it again within a second


def opened(service: Service, key: str) -> tuple[int, Stream]:
    """Ask for a stream; return the status of the answer, with the stream."""
    stream = Stream(service, asked("bounded"), key=key)
    return stream.answer().status, stream


def test_it_admits_exactly_the_limit_over_all_workers_and_counts_each_refusal(site: Site) -> None:
    (owned,) = site.make(({}, {"requests_per_minute_override": ALLOWED}, 1))
    body, key = {"message": "the same for all"}, owned.key.plain
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: site.service.request("POST", "/chat", body, key=key), range(ASKED)))
    assert Counter(answer.status for answer in answers) == {200: ALLOWED, 429: ASKED - ALLOWED}
    assert all(0 < int(answer.headers["retry-after"]) <= 60 for answer in answers if answer.status == 429)
    query = "SELECT sum(count), count(*) FROM monitoring_requestrecord WHERE key_id = %s"
    wait_until(lambda: rows(site.service, query, owned.key.id)[0][0] == ASKED, "each refusal to be counted")
    assert rows(site.service, query, owned.key.id)[0][1] < ASKED, "many of them in one record"


def test_it_answers_the_same_statistics_on_every_worker_and_after_a_restart(site: Site) -> None:
    platform = Platform(site.service, "")
    key, other = (platform.add([], account=name) for name in ("busy", "idle"))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: platform.ask("/chat", {"message": f"question {n % 10}"}, key=key), range(40)))
    assert {answer.status for answer in answers} == {200}
    told = "SELECT sum(count) FROM monitoring_requestrecord WHERE account_name = 'busy'"
    wait_until(lambda: rows(site.service, told)[0][0] == 40, "the records")
    expected = platform.ask("/stats", key=key).json()
    assert expected["requests_by_key"] == {"e2e": 40}
    assert expected["cache_hits"] + expected["cache_misses"] == expected["total_requests"] == 40
    assert all(platform.ask("/stats", key=key).json() == expected for _ in range(4 * WORKERS))
    with platform.twin() as restarted:
        assert restarted.ask("/stats", key=key).json() == expected
        assert restarted.ask("/chat", {"message": "question 1"}, key=key).json()["cached"] is True
        assert restarted.ask("/chat", {"message": "question 1"}, key=other).json()["cached"] is False


def test_it_gives_exactly_a_provider_s_slots_over_four_processes_and_takes_them_back(site: Site) -> None:
    key = Platform(site.service, "").add([Served("bounded", [site.fake.base_url])], account="bounded")
    limit(site.service, SLOTS)
    assert len(site.service.worker_pids()) == WORKERS
    site.fake.set(chunk_interval_ms=400, tokens=12)
    with ThreadPoolExecutor(CLIENTS) as pool:
        streams = list(pool.map(lambda _: opened(site.service, key), range(CLIENTS)))
        assert Counter(status for status, _ in streams) == {200: SLOTS, 503: CLIENTS - SLOTS}
        refused = next(stream for status, stream in streams if status == 503)
        assert refused._answer.headers["Retry-After"] == "1"
        assert json.loads(refused.text())["error"]["code"] == "upstream_busy"
        going = [stream for status, stream in streams if status == 200]
        going.pop().leave()
        wait_until(lambda: opened(site.service, key)[0] == 200, "the slot of who left", 3)
        ended = list(pool.map(Stream.text, going))
    assert all(text.rstrip().endswith("[DONE]") for text in ended)
    site.fake.set(chunk_interval_ms=0)
    wait_until(lambda: opened(site.service, key)[0] == 200, "the slots of those that ended", 3)


def test_it_frees_a_provider_s_slots_of_killed_processes_when_their_leases_end(
    mortal: Platform, provider: ScriptedProvider
) -> None:
    limit(mortal.service, 2)
    provider.script("bounded", Reply(body=[FIRST, 60.0]))
    assert [opened(mortal.service, mortal.key)[0] for _ in range(3)] == [200, 200, 503]
    kill_workers(mortal.service)
    streams: list[Stream] = []

    def opens() -> bool:
        status, stream = opened(mortal.service, mortal.key)
        streams.append(stream)
        return status == 200

    for number in range(2):
        wait_until(opens, f"slot {number}", 20)
    assert not opens(), "exactly as many as before"
    for stream in streams:
        stream.leave()
    assert "The ledgers agree with the records." in mortal.manage("check_rollups")


def test_it_charges_the_bound_of_a_call_whose_worker_was_killed(mortal: Platform, provider: ScriptedProvider) -> None:
    limit(mortal.service, CLIENTS)
    key = mortal.add([], account="single", concurrent_requests=1)
    provider.script("bounded", Reply(delay=60))
    before = len(provider.calls)
    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(mortal.ask, CHAT, chat("bounded", "never answered"), key=key)
        wait_until(lambda: len(provider.calls) > before, "the call")
        assert mortal.ask(CHAT, chat("bounded", "meanwhile"), key=key).status == 429
        killed_at = time.monotonic()
        kill_workers(mortal.service)
        assert isinstance(lost.exception(), OSError | HTTPException)
    provider.script("bounded", completion("Hello"))
    wait_until(lambda: mortal.ask(CHAT, chat("bounded", "now"), key=key).status == 200, "the slot to be free", 30)
    assert LEASE_SECONDS - 2 < time.monotonic() - killed_at < LEASE_SECONDS + 15
    query = (
        "SELECT status, usage_source, input_tokens + output_tokens AS tokens FROM monitoring_requestrecord "
        "WHERE account_name = 'single' AND error_code = 'interrupted'"
    )
    wait_until(lambda: bool(mortal.rows(query)), "the record of the call that died")
    (record,) = mortal.rows(query)
    assert (record["status"], record["usage_source"]) == (500, "bound")
    assert record["tokens"] > 1024, "the prompt, and the longest answer of the tier"


def scrape(service: Service) -> str:
    """Read the metrics, on a connection of its own: of whichever worker takes it."""
    answer = service.request("GET", "/metrics")
    assert answer.status == 200
    return answer.body.decode()


def test_its_metrics_tell_what_the_log_has_on_each_worker_and_forget_nothing_when_these_die(site: Site) -> None:
    (owned,) = site.make(({}, {}, 1))
    service, key = site.service, owned.key.plain
    growth = Growth(lambda: scrape(service))

    def ask(number: int) -> int:
        return service.request("POST", "/chat", {"message": f"question {number}"}, key=key).status

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(PLAIN))) == {200}
    for number in range(STREAMED):
        stream = Stream(service, asked(MODEL, f"stream {number}"), key=key)
        stream.answer()
        stream.text()
    wait_until(lambda: rows(service, TOTALS, owned.id)[0][0] == PLAIN + STREAMED, "the records")
    ((_, given, written, cost, streams),) = rows(service, TOTALS, owned.id)

    def agrees() -> bool:
        return (
            growth("aiapi_requests_total") == growth("aiapi_request_seconds_count") == PLAIN + STREAMED
            and growth("aiapi_tokens_total", kind="input") == given
            and growth("aiapi_tokens_total", kind="output") == written
            and growth("aiapi_cost_usd_total") == float(cost)
            and growth("aiapi_first_token_seconds_count") == streams == STREAMED
        )

    assert all(agrees() for _ in range(2 * WORKERS)), "each worker tells the same"
    site.fake.set(chunk_interval_ms=100, tokens=200)
    left_open = Stream(service, asked(MODEL, "without end"), key=key)
    left_open.answer()
    assert value(scrape(service), "aiapi_open_streams") == value(scrape(service), "aiapi_upstream_calls") == 1
    kill_workers(service)
    assert value(scrape(service), "aiapi_open_streams") == value(scrape(service), "aiapi_upstream_calls") == 0
    left_open.leave()
    assert agrees()
    site.fake.reset()
    assert ask(PLAIN) == 200
    assert growth("aiapi_requests_total") == PLAIN + STREAMED + 1


def test_its_metrics_work_with_one_worker_and_leave_nothing_behind(fake: FakeUpstream, tmp_path: Path) -> None:
    env = {**settings_of(fake), "TMPDIR": str(tmp_path), "METRICS_TOKEN": "let-me-read"}
    with aiapi_server(env) as service:
        (folder,) = tmp_path.glob("aiapi-metrics-*")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert service.request("GET", "/metrics").status == 403
        answer = service.request("GET", "/metrics", headers={"Authorization": "Bearer let-me-read"})
        assert value(answer.body.decode(), "aiapi_build_info") == 1
        assert value(answer.body.decode(), "aiapi_http_responses_total", route="metrics", status="4xx") == 1
    assert not folder.exists()
