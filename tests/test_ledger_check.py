"""The nightly check on a platform at work: what is on its way is no fault, and a fault is found all the same."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

from tests.catalogue import Owned
from tests.ledgers import rows, waiting_records
from tests.manager import manager
from tests.processes import wait_until
from tests.servers import running_worker
from tests.sites import Site
from tests.traffic import Manner, Traffic

CLIENTS = 8
CHECK = ("check_rollups", "--days", "1")
AGREE = "The ledgers agree with the records."


def load(site: Site, callers: list[Owned]) -> Traffic:
    """Have eight clients ask anew, once they run."""
    manners = itertools.cycle(Manner(key.plain) for owned in callers for key in owned.keys)
    return Traffic(site.service.port, "gpt-3.5-turbo", list(itertools.islice(manners, CLIENTS)))


def checked(site: Site) -> tuple[int, str]:
    """Run the check; return its status, and what it finds."""
    status, _, errors = manager().run(site.service.env, *CHECK)
    return status, errors


def test_it_finds_nothing_wrong_while_calls_go_on(at_work: Site, tmp_path: Path) -> None:
    model_budget = {"model_budgets": {"gpt-3.5-turbo": [10_000_000, None]}}
    callers = at_work.make((model_budget, {}, 2), ({}, model_budget, 2))
    at_work.fake.set(latency_ms=20)
    with running_worker(at_work.service.env, tmp_path / "log"), load(at_work, callers).running() as traffic:
        traffic.wait_for(20)
        before = len(traffic.outcomes)
        assert AGREE in at_work.service.manage(*CHECK)
        assert len(traffic.outcomes) > before, "calls went on meanwhile"
    assert {each.status for each in traffic.outcomes} == {200}


def test_it_tells_a_fault_from_what_is_on_its_way(at_work: Site, tmp_path: Path) -> None:
    (owned, other) = at_work.make(({}, {}, 1), ({}, {}, 1))
    with load(at_work, [owned, other]).running() as traffic:
        traffic.wait_for(20)
    at_work.fake.set(latency_ms=5_000)
    body, more = {"message": "wait"}, {"key": owned.key.plain}
    hanging = threading.Thread(target=at_work.service.request, args=("POST", "/chat", body), kwargs=more)
    hanging.start()
    ledger = at_work.ledger(owned)
    wait_until(lambda: ledger.reserved.tokens > 0, "a call to be open")
    assert waiting_records(at_work.store) == len(traffic.outcomes)
    assert AGREE in at_work.service.manage(*CHECK)
    at_work.store.hincrby(ledger.name, "st", 7)
    status, found = checked(at_work)
    assert status == 1
    (line, _) = found.splitlines()
    assert line.endswith(f"(key:{owned.key.id}) was charged 7 tokens too much")
    hanging.join()
    with running_worker(at_work.service.env, tmp_path / "log"):
        wait_until(lambda: not waiting_records(at_work.store), "the records")
    assert rows(at_work.service, "SELECT count(*) FROM monitoring_requestrecord") == [(len(traffic.outcomes) + 1,)]
    assert checked(at_work)[1].splitlines()[0] == line
