"""A provider's own limits hold over all processes, and what streams took of them comes back however they end."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.catalogue import Served, set_up
from tests.processes import wait_until
from tests.running import Reply, event, running_platform, scripted_provider
from tests.servers import Service
from tests.sites import WORKERS, Site
from tests.streams import Stream, asked

MODEL = "bounded"
SLOTS, CLIENTS = 10, 40
LIMIT = """
from inference.models import Deployment
from inference.services import catalog_save
provider = Deployment.objects.select_related("provider").get(model__public_name="MODEL").provider
provider.concurrent_requests = SLOTS
catalog_save(row=provider, actor="command:test")
"""


@pytest.fixture(scope="module")
def key(shared_site: Site) -> str:
    """Make a model of a provider with so many slots, and a key without limits; return the key."""
    key = set_up(shared_site.service, [Served(MODEL, [shared_site.fake.base_url])], account="bounded")
    limit(shared_site.service, SLOTS)
    return key


def limit(service: Service, slots: int) -> None:
    """Let the model's provider have so many slots."""
    service.manage("shell", "-c", LIMIT.replace("MODEL", MODEL).replace("SLOTS", str(slots)))
    time.sleep(1)  # a worker that has just read its catalog reads it again within a second


def opened(service: Service, key: str) -> tuple[int, Stream]:
    """Ask for a stream; return the status of the answer, with the stream."""
    stream = Stream(service, asked(MODEL), key=key)
    return stream.answer().status, stream


def test_it_gives_exactly_its_slots_over_four_processes_and_takes_them_back(site: Site, key: str) -> None:
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


def test_it_frees_the_slots_of_killed_processes_when_their_leases_end(prepared: Callable[[], dict[str, str]]) -> None:
    env = {**prepared(), "LIMITS_LEASE_SECONDS": "5"}
    with (
        scripted_provider() as provider,
        running_platform(env, [Served(MODEL, [provider.base_url])], workers=2) as platform,
    ):
        limit(platform.service, 2)
        first = event({"id": "c", "choices": [{"index": 0, "delta": {"content": "Hello"}}]})
        provider.script(MODEL, Reply(body=[first, 60.0]))
        assert [opened(platform.service, platform.key)[0] for _ in range(3)] == [200, 200, 503]
        killed = platform.service.worker_pids()
        for pid in killed:
            platform.service.kill_worker(pid)
        wait_until(platform.service.is_live, "new workers")
        streams: list[Stream] = []

        def opens() -> bool:
            status, stream = opened(platform.service, platform.key)
            streams.append(stream)
            return status == 200

        for number in range(2):
            wait_until(opens, f"slot {number}", 20)
        assert not opens(), "exactly as many as before"
        for stream in streams:
            stream.leave()
        assert "The ledgers agree with the records." in platform.service.manage("check_rollups")
