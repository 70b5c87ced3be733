"""A key's life on the real platform: made, rotated, restricted, revoked; every worker knows within a second."""

from __future__ import annotations

import http
import itertools
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from accounts.keys import generate_key
from tests.answers import Answer
from tests.catalogue import Owned, OwnKey
from tests.ledgers import rows
from tests.servers import PEPPER
from tests.sites import WORKERS, Site

#: Requests that reach every worker, as good as surely.
EVERYWHERE = 5 * WORKERS
WITHIN = 1.0  # seconds in which a change takes effect
GRACE = 4
_addresses = (f"198.18.{number // 250}.{number % 250}" for number in itertools.count())
OFFICE, STREET = "203.0.113.7", "198.51.100.9"


class Holder:
    """Somebody with keys of one account."""

    def __init__(self, site: Site, owned: Owned) -> None:
        self.site, self.owned = site, owned

    def ask(self, key: str = "", *, path: str = "/usage", address: str = STREET, **headers: str) -> Answer:
        """Ask for the usage, as the proxy in front passes it on."""
        sent = {"X-Forwarded-For": address, **headers}
        return self.site.service.request("GET", path, key=key or self.owned.key.plain, headers=sent)

    def statuses(self, key: str = "", *, number: int = EVERYWHERE) -> set[int]:
        """Ask often enough to meet every worker, from many addresses; return what they answered."""
        return {self.ask(key, address=next(_addresses)).status for _ in range(number)}

    def manage(self, *command: str) -> Any:
        """Run `manage.py key`, in a process of its own, and return what it tells."""
        return json.loads(self.site.service.manage("key", *command, "--json").strip().splitlines()[-1])

    @property
    def named(self) -> tuple[str, str, str, str]:
        """Return the arguments that name the account's first key."""
        return ("--account", self.owned.name, "--name", self.owned.key.name)


@pytest.fixture(scope="module")
def holders(shared_site: Site) -> Iterator[Holder]:
    made = shared_site.make(*(({}, {}, 2) for _ in range(7)))
    return iter([Holder(shared_site, owned) for owned in made])


@pytest.fixture
def holder(site: Site, holders: Iterator[Holder]) -> Holder:
    return next(holders)


@contextmanager
def redis_paused(site: Site) -> Iterator[None]:
    site.redis.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        site.redis.process.send_signal(signal.SIGCONT)


def test_it_lets_both_keys_work_until_the_grace_period_is_over(holder: Holder) -> None:
    old = holder.owned.key.plain
    new = holder.manage("rotate", *holder.named, "--grace", str(GRACE))["key"]
    rotated = time.monotonic()
    assert holder.statuses(old) == holder.statuses(new) == {200}
    assert time.monotonic() - rotated < GRACE
    time.sleep(GRACE)
    assert holder.statuses(old) == {401}
    assert holder.statuses(new) == {200}


def test_it_knows_of_a_change_on_every_worker_within_a_second(holder: Holder) -> None:
    site, (first, second) = holder.site, holder.owned.keys
    assert holder.statuses(first.plain) == holder.statuses(second.plain) == {200}
    change(site, "UPDATE accounts_apikey SET revoked_at = now() WHERE id = %s", first.id)
    assert holder.statuses(first.plain) == {401}
    assert holder.statuses(second.plain) == {200}
    change(site, "UPDATE accounts_account SET is_active = false WHERE id = %s", holder.owned.id)
    assert holder.statuses(second.plain) == {401}
    change(site, "UPDATE accounts_account SET is_active = true WHERE id = %s", holder.owned.id)
    assert holder.statuses(second.plain) == {200}
    change(site, "UPDATE accounts_apikey SET expires_at = now() WHERE id = %s", second.id)
    assert holder.statuses(second.plain) == {401}


def test_it_knows_of_it_without_redis_as_well(holder: Holder) -> None:
    first, second = holder.owned.keys
    assert holder.statuses(first.plain) == {200}
    with redis_paused(holder.site):
        change(holder.site, "UPDATE accounts_apikey SET revoked_at = now() WHERE id = %s", first.id)
        assert holder.statuses(first.plain, number=WORKERS) == {401}
        assert holder.statuses(second.plain) == {200}


def change(site: Site, statement: str, *arguments: Any) -> None:
    """Change the database, as another node would, and wait for as long as that may go unnoticed."""
    rows(site.service, f"{statement} RETURNING id", *arguments)
    time.sleep(WITHIN)


def test_it_believes_no_address_that_a_caller_can_forge(holder: Holder) -> None:
    """The proxy writes the last entry; all before it is what the caller sent."""
    change(
        holder.site,
        "UPDATE accounts_apikey SET allowed_ips = %s WHERE id = %s",
        json.dumps([f"{OFFICE}/32", "2001:db8::/32"]),
        holder.owned.key.id,
    )
    assert holder.ask(address=OFFICE).status == holder.ask(address="2001:db8::7").status == 200
    assert holder.ask(address=f"{STREET}, ::ffff:{OFFICE}").status == 200
    for forged in (STREET, f"{OFFICE}, {STREET}", f"{OFFICE},{OFFICE},{STREET}", "2001:db9::1", "unknown", ""):
        answer = holder.ask(address=forged)
        assert (answer.status, answer.json()["code"]) == (403, "address_denied"), forged
    answer = holder.ask(address=STREET, Forwarded=f"for={OFFICE}", **{"X-Real-IP": OFFICE})
    assert answer.status == 403


def test_it_asks_the_database_at_most_once_a_second_for_a_key_in_each_worker(holder: Holder) -> None:
    assert holder.statuses() == {200}, "which also writes down that it is used"
    before, began = scans(holder.site), time.monotonic()
    asked = 0
    while time.monotonic() - began < 2.5:
        asked += holder.ask().status == 200
    at_most = WORKERS * (int(time.monotonic() - began) + 1)
    assert asked > at_most
    assert 0 < scans(holder.site) - before <= at_most


def scans(site: Site) -> int:
    """Return how often the table of keys was searched; sessions report that when they end, so they are ended."""
    rows(
        site.service,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid()",
    )
    time.sleep(0.5)
    query = "SELECT seq_scan + coalesce(idx_scan, 0) FROM pg_stat_user_tables WHERE relname = 'accounts_apikey'"
    ((count,),) = rows(site.service, query)
    return int(count)


def test_it_keeps_old_keys_working_when_the_pepper_changes(site: Site, holder: Holder) -> None:
    """The site makes keys under the first of its two peppers; the other was its only one before."""
    new = holder.owned.key
    old = made_under(site, PEPPER)
    for key in (old, new):
        assert site.service.request("GET", "/usage", key=key.plain).status == 200
    ids = rows(site.service, "SELECT pepper_id FROM accounts_apikey WHERE id IN (%s, %s)", old.id, new.id)
    assert len(set(ids)) == 2


def made_under(site: Site, peppers: str) -> OwnKey:
    """Make a key in a process with these peppers."""
    env = dict(site.service.env)
    site.service.env["API_KEY_PEPPERS"] = peppers
    try:
        (owned,) = site.make(({}, {}, 1))
    finally:
        site.service.env.update(env)
    return owned.key


def test_it_blocks_bad_keys_from_an_address_and_never_a_good_one(holder: Holder) -> None:
    typo = holder.owned.key.plain[:-1] + "-"
    refused = [holder.ask(key, address="192.0.2.50") for key in [generate_key("development"), typo] * 20]
    assert [answer.status for answer in refused[:30]] == [401] * 30
    assert {answer.json()["detail"] for answer in refused[:30]} == {"Invalid API key"}
    assert {answer.status for answer in refused[30:]} == {http.HTTPStatus.TOO_MANY_REQUESTS}
    assert {answer.json()["code"] for answer in refused[30:]} == {"too_many_failures"}
    assert int(refused[-1].headers["retry-after"]) > 0
    assert holder.ask(address="192.0.2.50").status == 200, "a good key behind the same address"
    assert holder.ask(typo, address="192.0.2.51").status == 401, "a neighbour"
    assert holder.ask(typo, address="192.0.2.51, 192.0.2.50").status == 429, "whatever the caller claims before it"
