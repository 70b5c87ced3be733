"""A provider's own limits hold over all processes, and what streams took of them comes back however they end."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.catalogue import Served, set_up
from tests.processes import wait_until
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
    script = LIMIT.replace("MODEL", MODEL).replace("SLOTS", str(SLOTS))
    shared_site.service.manage("shell", "-c", script)
    return key


def opened(site: Site, key: str) -> tuple[int, Stream]:
    """Ask for a stream; return the status of the answer, with the stream."""
    stream = Stream(site.service, asked(MODEL), key=key)
    return stream.answer().status, stream


def test_it_gives_exactly_its_slots_over_four_processes_and_takes_them_back(site: Site, key: str) -> None:
    assert len(site.service.worker_pids()) == WORKERS
    site.fake.set(chunk_interval_ms=400, tokens=12)
    with ThreadPoolExecutor(CLIENTS) as pool:
        streams = list(pool.map(lambda _: opened(site, key), range(CLIENTS)))
        assert Counter(status for status, _ in streams) == {200: SLOTS, 503: CLIENTS - SLOTS}
        refused = next(stream for status, stream in streams if status == 503)
        assert refused._answer.headers["Retry-After"] == "1"
        assert json.loads(refused.text())["error"]["code"] == "upstream_busy"
        going = [stream for status, stream in streams if status == 200]
        going.pop().leave()
        wait_until(lambda: opened(site, key)[0] == 200, "the slot of who left", 3)
        ended = list(pool.map(Stream.text, going))
    assert all(text.rstrip().endswith("[DONE]") for text in ended)
    site.fake.set(chunk_interval_ms=0)
    wait_until(lambda: opened(site, key)[0] == 200, "the slots of those that ended", 3)
