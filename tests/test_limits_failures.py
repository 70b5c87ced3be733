"""Redis stopped, emptied, paused and slow; the database stopped: what is served on, what waits, and that nothing is
lost. No caller sees a 500 or, for a fault of ours, a 401.
"""

from __future__ import annotations

import json
import signal
import statistics
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis

from inference.upstream.fake import FakeUpstream
from tests.ledgers import Ledger, ingester, rows
from tests.processes import wait_until
from tests.proxy import SlowProxy, slow_proxy
from tests.servers import Answer, Postgres, Redis, Service, aiapi_server, redis_server

WORKERS = 2
RATE = 5
RECOVERY = 5.0  # seconds after which a store that is back is used again
SLACK = 0.35  # seconds that this machine, busy with other tests, may take for anything

SETUP = """
import json
from accounts.tests.factories import make_account, make_key, make_tier
tier = make_tier("open", requests_per_minute=None, max_output_tokens=50, cache_enabled=False)
wanted = {"plain": {}, "rated": {"requests_per_minute_override": RATE}, "budgeted": {"monthly_token_budget": 100_000}}
made = {}
for name, limits in wanted.items():
    issued = make_key(account=make_account(name), tier=tier, name=name, **limits)
    made[name] = [issued.plain, issued.key.pk, issued.key.account_id]
print(json.dumps(made))
"""


@dataclass
class Site:
    """The platform, its stores, and what was asked of it; keys by name with their ids and their accounts'."""

    service: Service
    fake: FakeUpstream
    redis: Redis
    postgres: Postgres
    keys: dict[str, tuple[str, int, int]]
    labels: list[str] = field(default_factory=list)

    def chat(self, key: str, service: Service | None = None) -> Answer:
        """Ask something new; whatever is wrong with the stores, it is neither a 500 nor the caller's fault."""
        label = uuid.uuid4().hex
        headers = {"X-Request-ID": label}
        answer = (service or self.service).request(
            "POST", "/chat", {"message": label}, key=self.keys[key][0], headers=headers
        )
        assert answer.status in (200, 429, 503), (answer.status, answer.body)
        if answer.status == 503:
            assert answer.json()["code"] == "dependency_unavailable"
            assert int(answer.headers["retry-after"]) > 0
        elif answer.status == 200:
            self.labels.append(label)
        return answer

    def timed(self, key: str, number: int, service: Service | None = None) -> list[float]:
        """Ask so many times, all of which are answered; return the seconds that each took."""
        times = []
        for _ in range(number):
            began = time.monotonic()
            assert self.chat(key, service).status == 200
            times.append(time.monotonic() - began)
        return times

    def usage(self, key: str) -> Any:
        """Ask for what a key has left."""
        answer = self.service.request("GET", "/usage", key=self.keys[key][0])
        assert answer.status == 200, answer.body
        return answer.json()

    def ledger(self, key: str) -> Ledger:
        """Return a key's ledger in Redis."""
        _, number, account = self.keys[key]
        return Ledger(redis.Redis.from_url(self.redis.url, socket_timeout=1), account, f"key:{number}")

    def health(self, check: str, service: Service | None = None) -> str:
        """Ask how one of the platform's dependencies is."""
        return str((service or self.service).request("GET", "/health").json()["checks"][check])

    @contextmanager
    def open_call(self, key: str) -> Iterator[list[Answer]]:
        """Have a call of a second and a half on its way while the block runs; its answer is there afterwards."""
        answers: list[Answer] = []
        self.fake.set(latency_ms=1_500)
        thread = threading.Thread(target=lambda: answers.append(self.chat(key)))
        thread.start()
        wait_until(lambda: self.fake.totals()["running"] == 1, "the call to reach the provider")
        self.fake.set(latency_ms=0)
        yield answers
        thread.join()

    def recover(self, service: Service | None = None) -> None:
        """Wait until calls under a budget are served by every worker, as long as that may take."""
        began = time.monotonic()
        wait_until(
            lambda: all(self.chat("budgeted", service).status == 200 for _ in range(4 * WORKERS)),
            "calls under a budget to be served",
            timeout=2 * RECOVERY,
        )
        assert time.monotonic() - began < RECOVERY + 2

    def check_books(self) -> None:
        """Wait until the ledgers agree with the log, and find exactly one record of each answer."""
        for key in self.keys:
            ledger = self.ledger(key)
            wait_until(lambda at=ledger: not at.exists or at.is_ingested(self.service), f"the books of {key}")  # type: ignore[misc]
        found = rows(
            self.service, "SELECT label, count(*) FROM monitoring_requestrecord WHERE status = 200 GROUP BY label"
        )
        assert Counter(dict(found)) == Counter(self.labels)


@pytest.fixture(scope="module")
def site(
    prepared: Callable[[], dict[str, str]],
    fake: FakeUpstream,
    postgres: Postgres,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """Run it on a Redis of its own, with an ingester."""
    fake.reset()
    log: Path = tmp_path_factory.mktemp("failures") / "ingester.log"
    with redis_server() as server:
        env = {**prepared(), "REDIS_URL": server.url}
        with aiapi_server(env, workers=WORKERS, prepare=False) as service, ingester(service, log):
            made = service.manage("shell", "-c", SETUP.replace("RATE", str(RATE)))
            keys = json.loads(made.strip().splitlines()[-1])
            yield Site(service, fake, server, postgres, {name: tuple(found) for name, found in keys.items()})
    fake.reset()


@pytest.fixture(autouse=True)
def _healthy(site: Site) -> Iterator[None]:
    """Begin and end with all that was spent before in Redis and in the database."""
    site.recover()
    site.check_books()
    yield
    site.recover()
    site.check_books()


def check_service_without_redis(site: Site, service: Service | None = None) -> None:
    """Hold the platform to what is promised while Redis is away."""
    first, later = site.timed("plain", 3, service), site.timed("plain", 12, service)
    assert max(first) < 2 * 0.25 + SLACK, "the state store and the cache each cost at most 250 ms, once a worker"
    assert statistics.median(later) < 0.05 + SLACK
    assert site.chat("budgeted", service).status == 503
    wrong = "ak_dev_" + "0" * 49
    assert (service or site.service).request("GET", "/stats", key=wrong).json()["code"] == "invalid_api_key"


def test_it_goes_on_without_redis_and_charges_what_it_served_when_that_is_back_empty(site: Site) -> None:
    spent = site.ledger("budgeted").settled
    assert spent.tokens > 0
    site.redis.kill()
    check_service_without_redis(site)
    admitted = sum(site.chat("rated").status == 200 for _ in range(4 * WORKERS * RATE))
    assert RATE <= admitted <= WORKERS * RATE
    usage = site.usage("budgeted")
    (tokens,) = [each for each in usage["limits"] if (each["owner"], each["name"]) == ("key", "monthly_tokens")]
    assert (usage["source"], tokens["used"]) == ("records", spent.tokens)
    assert site.health("limits") == "degraded"
    site.redis.restart()
    site.recover()
    assert site.ledger("budgeted").settled.tokens > spent.tokens


def test_it_waits_for_a_paused_redis_once_and_settles_later(site: Site) -> None:
    with site.open_call("budgeted") as answers:
        site.redis.process.send_signal(signal.SIGSTOP)
        try:
            check_service_without_redis(site)
            wait_until(lambda: bool(answers), "the call that was open")
        finally:
            site.redis.process.send_signal(signal.SIGCONT)
    assert answers[0].status == 200


@pytest.fixture
def slow(site: Site) -> Iterator[tuple[SlowProxy, Service]]:
    """Run one more server on the same stores, whose Redis can be made slow."""
    with slow_proxy(site.redis.port) as proxy:
        own = {"REDIS_URL": f"redis://127.0.0.1:{proxy.port}/0", "CACHE_URL": site.redis.url}
        kept = {name: value for name, value in site.service.env.items() if name not in ("PORT", "WEB_CONCURRENCY")}
        with aiapi_server({**kept, **own}, prepare=False) as service:
            yield proxy, service


def test_it_stands_a_slow_redis_and_does_without_one_that_is_too_slow(
    site: Site, slow: tuple[SlowProxy, Service]
) -> None:
    proxy, service = slow
    site.recover(service)
    proxy.delay = 0.03
    assert site.chat("budgeted", service).status == 200
    proxy.delay = 0.1
    assert site.chat("budgeted", service).status == 200
    assert site.health("limits", service) == "healthy", "slow is not away"
    proxy.delay = 1.0
    check_service_without_redis(site, service)
    proxy.delay = 0.0
    site.recover(service)


@pytest.fixture
def patient(site: Site) -> Iterator[Service]:
    """Run one more server on the same stores, which goes on with known keys while the database is away."""
    kept = {name: value for name, value in site.service.env.items() if name not in ("PORT", "WEB_CONCURRENCY")}
    with aiapi_server({**kept, "AUTH_STALE_SECONDS": "600"}, prepare=False) as service:
        yield service


def test_it_says_503_without_the_database_and_goes_on_with_known_keys_where_it_may(
    site: Site, patient: Service, scale: Callable[[int, int], int]
) -> None:
    site.recover(patient)
    assert site.chat("plain", patient).status == 200
    unknown, typo = _unknown_key(site), site.keys["plain"][0][:-1] + "-"
    try:
        with site.open_call("budgeted") as answers:
            site.postgres.kill()
            time.sleep(1.1)
            with ThreadPoolExecutor(8) as pool:  # each of the workers waits for a connection once
                refused = pool.map(site.chat, ("plain", "budgeted", "plain", "budgeted"))
                served = pool.map(site.chat, ("plain", "budgeted"), (patient, patient))
                strange = pool.submit(site.service.request, "GET", "/usage", key=unknown)
                health = pool.submit(site.service.request, "GET", "/health")
                assert {answer.status for answer in refused} == {503}
                assert {answer.status for answer in served} == {200}
                assert (strange.result().status, strange.result().json()["code"]) == (503, "dependency_unavailable")
                assert health.result().status == 503
        assert answers[0].status == 200, "what was admitted is answered and settled without the database"
        assert site.service.request("GET", "/usage", key=typo).status == 401, "a typo needs no database"
        assert site.service.request("GET", "/health/live").status == 200
        if scale(0, 1):
            check_service_without_any_store(site, patient)
    finally:
        site.postgres.restart()  # it is the other tests' as well
    site.recover(patient)


def check_service_without_any_store(site: Site, patient: Service) -> None:
    """Serve known keys without a budget; the record waits for either store."""
    site.redis.process.send_signal(signal.SIGSTOP)
    try:
        assert site.chat("plain", patient).status == 200
        assert site.chat("budgeted", patient).status == 503
    finally:
        site.redis.process.send_signal(signal.SIGCONT)


def _unknown_key(site: Site) -> str:
    """Make a key that is well formed and nobody's."""
    return site.service.manage("shell", "-c", "from accounts.keys import generate_key as new; print(new('x'))").split()[
        -1
    ]
