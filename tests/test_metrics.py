"""GET /metrics of a whole server: any worker tells the sum of all, also after some have died."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path

from inference.fake_provider import FakeUpstream
from monitoring.tests.scraped import Growth, value
from tests.conftest import provider
from tests.ledgers import rows
from tests.processes import wait_until
from tests.servers import Service, aiapi_server
from tests.sites import WORKERS, Site
from tests.streams import Stream, asked

MODEL = "gpt-3.5-turbo"
PLAIN, STREAMED = 40, 4
TOTALS = """
    SELECT sum(count), sum(input_tokens), sum(output_tokens), sum(cost), count(first_token_ms)
    FROM monitoring_requestrecord WHERE account_id = %s
"""


def scrape(service: Service) -> str:
    """Read the metrics, on a connection of its own: of whichever worker takes it."""
    answer = service.request("GET", "/metrics")
    assert answer.status == 200
    return answer.body.decode()


def is_ready(service: Service) -> bool:
    """Say whether, as good as surely, every worker is ready."""
    return all(service.request("GET", "/health/ready").status == HTTPStatus.OK for _ in range(4 * WORKERS))


def test_it_tells_of_all_workers_what_the_log_has_and_forgets_nothing_when_they_die(site: Site) -> None:
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
    for pid in service.worker_pids():
        service.kill_worker(pid)
    wait_until(
        lambda: len(service.worker_pids()) == WORKERS and is_ready(service), "new workers with their connections"
    )
    assert value(scrape(service), "aiapi_open_streams") == value(scrape(service), "aiapi_upstream_calls") == 0
    left_open.leave()
    assert agrees()
    site.fake.reset()
    assert ask(PLAIN) == 200
    assert growth("aiapi_requests_total") == PLAIN + STREAMED + 1


def test_it_works_with_one_worker_and_leaves_nothing_behind(fake: FakeUpstream, tmp_path: Path) -> None:
    env = {**provider(fake), "TMPDIR": str(tmp_path), "METRICS_TOKEN": "let-me-read"}
    with aiapi_server(env) as service:
        (folder,) = tmp_path.glob("aiapi-metrics-*")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert service.request("GET", "/metrics").status == 403
        answer = service.request("GET", "/metrics", headers={"Authorization": "Bearer let-me-read"})
        assert value(answer.body.decode(), "aiapi_build_info") == 1
        assert value(answer.body.decode(), "aiapi_http_responses_total", route="metrics", status="4xx") == 1
    assert not folder.exists()
