"""A wrong price is put right while calls go on, by a command that is killed again and again."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.ledgers import rows, waiting_records
from tests.processes import wait_until
from tests.servers import ROOT, running_worker
from tests.sites import Site
from tests.traffic import Manner, Traffic

MODEL = "gpt-3.5-turbo"
PRICE = """
from datetime import timedelta
from django.utils import timezone
from inference.models import Deployment, Price
Price.objects.all().delete()
Price.objects.create(deployment=Deployment.objects.get(model__public_name="gpt-3.5-turbo"), input_per_million=2,
                     output_per_million=10, valid_from=timezone.now() - timedelta(hours=1))
"""


def span() -> list[str]:
    """Return the arguments for the last day."""
    now = datetime.now(UTC)
    return [f"--from={(now - timedelta(days=1)).isoformat()}", f"--to={now.isoformat()}", "--yes"]


def test_records_sums_and_ledgers_agree_however_often_it_is_killed(at_work: Site, tmp_path: Path) -> None:
    budgets = {"model_budgets": {MODEL: [10_000_000, "1000"]}}
    callers = at_work.make((budgets, {}, 2), ({}, budgets, 2))
    service, chance = at_work.service, random.Random(3)
    manners = itertools.cycle(Manner(key.plain) for owned in callers for key in owned.keys)
    traffic = Traffic(service.port, MODEL, list(itertools.islice(manners, 4)))
    at_work.fake.set(latency_ms=30)
    with running_worker(service.env, tmp_path / "log"):
        with traffic.running():
            traffic.wait_for(200)
            service.manage("shell", "-c", PRICE)
            for _ in range(4):
                command = [sys.executable, "manage.py", "reprice", *span()]
                killed = subprocess.Popen(command, cwd=ROOT, env=service.env, stdout=subprocess.DEVNULL)
                time.sleep(chance.uniform(1, 4))
                killed.kill()
                killed.wait()
        wait_until(lambda: not waiting_records(at_work.store), "the records")
        printed = service.manage("reprice", *span())
        again = service.manage("reprice", *span())
        assert "Every cost that can be computed is right." in again, printed
        checked = service.manage("check_rollups", "--days", "1")
    assert "The rollups agree with the log." in checked
    assert "The ledgers agree with the records." in checked
    wrong = "cost * 1000000 <> input_tokens * 2 + output_tokens * 10"
    assert rows(service, f"SELECT count(*) FROM monitoring_requestrecord WHERE {wrong}") == [(0,)]  # noqa: S608
    assert rows(service, "SELECT sum(cost) > 0 FROM monitoring_requestrecord") == [(True,)]
