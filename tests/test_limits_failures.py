"""Redis stopped, emptied, paused and slow; the database stopped: what is served on, what waits, and that nothing is
lost. No caller sees a 500 or, for a fault of ours, a 401.
"""

from __future__ import annotations

import signal
import statistics
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from accounts.keys import generate_key
from tests.answers import Answer
from tests.catalogue import Owned
from tests.ledgers import Ledger, rows
from tests.network import Balancer, balancer
from tests.processes import wait_until
from tests.servers import Service, aiapi_server
from tests.sites import WORKERS, Site

RATE = 5
RECOVERY = 5.0  # seconds after which a store that is back is used again
SLACK = 0.35  # seconds that this machine, busy with other tests, may take for anything

WANTED = {"plain": {}, "rated": {"requests_per_minute_override": RATE}, "budgeted": {"monthly_token_budget": 100_000}}


@dataclass
class Trial:
    """The platform, the accounts that ask it, by the name of what is special about them, and what they asked."""

    site: Site
    accounts: dict[str, Owned]
    labels: list[str] = field(default_factory=list)

    def chat(self, key: str, service: Service | None = None, *, headers: Mapping[str, str] | None = None) -> Answer:
        """Ask something new; whatever is wrong with the stores, it is neither a 500 nor the caller's fault."""
        label = uuid.uuid4().hex
        sent = {"X-Request-ID": label, **(headers or {})}
        answer = (service or self.site.service).request(
            "POST", "/chat", {"message": label}, key=self.accounts[key].key.plain, headers=sent
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
        answer = self.site.service.request("GET", "/usage", key=self.accounts[key].key.plain)
        assert answer.status == 200, answer.body
        return answer.json()

    def ledger(self, key: str) -> Ledger:
        """Return a key's ledger in Redis."""
        return self.site.ledger(self.accounts[key])

    def health(self, check: str, service: Service | None = None) -> str:
        """Ask how one of the platform's dependencies is."""
        return str((service or self.site.service).request("GET", "/health").json()["checks"][check])

    @contextmanager
    def open_call(self, key: str) -> Iterator[list[Answer]]:
        """Have a call of a second and a half on its way while the block runs; its answer is there afterwards."""
        answers: list[Answer] = []
        self.site.fake.set(latency_ms=1_500)
        thread = threading.Thread(target=lambda: answers.append(self.chat(key)))
        thread.start()
        wait_until(lambda: self.site.fake.totals()["running"] == 1, "the call to reach the provider")
        self.site.fake.set(latency_ms=0)
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
        service = self.site.service
        for key in self.accounts:
            ledger = self.ledger(key)
            try:
                wait_until(lambda at=ledger: not at.exists or at.is_ingested(service), key, timeout=20)  # type: ignore[misc]
            except AssertionError:
                told = f"the books of {key}: {ledger.read()} in Redis, {ledger.recorded(service)} in the database"
                raise AssertionError(told) from None
        accounts = [owned.id for owned in self.accounts.values()]
        query = (
            "SELECT label, count(*) FROM monitoring_requestrecord WHERE status = 200 AND account_id = ANY(%s) "
            "GROUP BY label"
        )
        found = rows(service, query, accounts)
        assert Counter(dict(found)) == Counter(self.labels)


@dataclass(frozen=True)
class Second:
    """A second server, and what stands between it and Redis."""

    service: Service
    proxy: Balancer


@pytest.fixture(scope="module")
def shared_trial(shared_site: Site) -> Trial:
    """Make the accounts."""
    made = shared_site.make(*(({}, limits, 1) for limits in WANTED.values()))
    return Trial(shared_site, dict(zip(WANTED, made, strict=True)))


@pytest.fixture
def trial(site: Site, shared_trial: Trial) -> Iterator[Trial]:
    """Begin and end with all that was spent before in Redis and in the database."""
    shared_trial.recover()
    shared_trial.check_books()
    yield shared_trial
    shared_trial.recover()
    shared_trial.check_books()


def check_service_without_redis(trial: Trial, service: Service | None = None) -> None:
    """Hold the platform to what is promised while Redis is down."""
    first, later = trial.timed("plain", 3, service), trial.timed("plain", 12, service)
    assert max(first) < 2 * 0.25 + SLACK, "the state store and the cache each cost at most 250 ms, once a worker"
    assert statistics.median(later) < 0.05 + SLACK
    assert trial.chat("budgeted", service).status == 503
    began = time.monotonic()
    refused = [trial.chat("plain", service, headers={"Idempotency-Key": uuid.uuid4().hex}) for _ in range(12)]
    assert {answer.status for answer in refused} == {503}
    assert time.monotonic() - began < 12 * (0.05 + SLACK), "nobody waits for a store that is known to be down"
    wrong = "ak_dev_" + "0" * 49
    assert (service or trial.site.service).request("GET", "/stats", key=wrong).json()["code"] == "invalid_api_key"


def test_it_goes_on_without_redis_and_charges_what_it_served_when_that_is_back_empty(trial: Trial) -> None:
    spent = trial.ledger("budgeted").settled
    assert spent.tokens > 0
    trial.site.redis.kill()
    check_service_without_redis(trial)
    admitted = sum(trial.chat("rated").status == 200 for _ in range(4 * WORKERS * RATE))
    assert RATE <= admitted <= WORKERS * RATE
    usage = trial.usage("budgeted")
    (tokens,) = [each for each in usage["limits"] if (each["owner"], each["name"]) == ("key", "monthly_tokens")]
    assert (usage["source"], tokens["used"]) == ("records", spent.tokens)
    assert trial.health("limits") == "degraded"
    trial.site.redis.restart()
    trial.recover()
    assert trial.ledger("budgeted").settled.tokens > spent.tokens


def test_it_waits_for_a_paused_redis_once_and_settles_later(trial: Trial) -> None:
    with trial.open_call("budgeted") as answers:
        trial.site.redis.process.send_signal(signal.SIGSTOP)
        try:
            check_service_without_redis(trial)
            wait_until(lambda: bool(answers), "the call that was open")
        finally:
            trial.site.redis.process.send_signal(signal.SIGCONT)
    assert answers[0].status == 200


@pytest.fixture(scope="module")
def second(shared_site: Site) -> Iterator[Second]:
    """Run one more server on the same stores; its Redis can be made slow, and it outlasts the database."""
    env = {name: value for name, value in shared_site.service.env.items() if name not in ("PORT", "WEB_CONCURRENCY")}
    with balancer(shared_site.redis.port) as proxy:
        own = {"REDIS_URL": f"redis://127.0.0.1:{proxy.port}/0", "AUTH_STALE_SECONDS": "600"}
        with aiapi_server({**env, "CACHE_URL": shared_site.redis.url, **own}, prepare=False) as service:
            yield Second(service, proxy)


def test_it_stands_a_slow_redis_and_does_without_one_that_is_too_slow(trial: Trial, second: Second) -> None:
    proxy, service = second.proxy, second.service
    trial.recover(service)
    proxy.delay = 0.03
    assert trial.chat("budgeted", service).status == 200
    proxy.delay = 0.1
    assert trial.chat("budgeted", service).status == 200
    assert trial.health("limits", service) == "healthy", "slow is not away"
    proxy.delay = 1.0
    check_service_without_redis(trial, service)
    proxy.delay = 0.0
    trial.recover(service)


def test_it_says_503_without_the_database_and_goes_on_with_known_keys_where_it_may(
    trial: Trial, second: Second, scale: Callable[[int, int], int]
) -> None:
    patient = second.service
    trial.recover(patient)
    unknown, typo = generate_key("development"), trial.accounts["plain"].key.plain[:-1] + "-"
    try:
        with trial.open_call("budgeted") as answers:
            trial.site.postgres.stop()
            time.sleep(1.1)
            with ThreadPoolExecutor(8) as pool:  # each of the workers waits for a connection once
                refused = pool.map(trial.chat, ("plain", "budgeted"))
                strange = pool.submit(trial.site.service.request, "GET", "/usage", key=unknown)
                health = pool.submit(trial.site.service.request, "GET", "/health")
                assert {answer.status for answer in refused} == {503}
                assert (strange.result().status, strange.result().json()["code"]) == (503, "dependency_unavailable")
                assert health.result().status == 503
        assert answers[0].status == 200, "what was admitted is answered and settled without the database"
        assert trial.site.service.request("GET", "/usage", key=typo).status == 401, "a typo needs no database"
        assert trial.site.service.request("GET", "/health/live").status == 200
        if scale(0, 1):
            assert {trial.chat(key, patient).status for key in ("plain", "budgeted")} == {200}
            check_service_without_any_store(trial, patient)
    finally:
        trial.site.postgres.restart()  # it is the other tests' as well
    trial.recover(patient)


def check_service_without_any_store(trial: Trial, patient: Service) -> None:
    """Serve known keys without a budget; the record waits for either store."""
    trial.site.redis.process.send_signal(signal.SIGSTOP)
    try:
        assert trial.chat("plain", patient).status == 200
        assert trial.chat("budgeted", patient).status == 503
    finally:
        trial.site.redis.process.send_signal(signal.SIGCONT)
