"""Steps of background loops: what they raise is logged, without its text, and outlived."""

from __future__ import annotations

from typing import Any

import pytest

from accounts.idempotency.claims import Claim, Claims
from accounts.idempotency.store import Lease
from accounts.limits import failover
from accounts.limits.bounds import Amount
from accounts.limits.leases import LeaseKeeper
from accounts.limits.pending import Pending
from accounts.loops import ProcessThread, outlived
from accounts.tests.limits_fixtures import a_scope
from accounts.tests.test_limits_failover import Outage
from tests.processes import wait_until


def fail(*arguments: Any) -> Any:
    """Fail as nobody foresaw."""
    raise RuntimeError("secret")


def test_it_outlives_anything_and_tells_its_class_alone(caplog: pytest.LogCaptureFixture) -> None:
    assert outlived(lambda: None, event="fine")
    assert not outlived(fail, event="step_failed")
    logged = caplog.text
    assert "step_failed" in logged
    assert "RuntimeError" in logged
    assert "secret" not in logged


def test_it_tends_the_limits_though_leases_could_not_be_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    tended: list[bool] = []
    renewed: list[int] = []

    def renew(owner: int, operations: list[str]) -> None:
        renewed.append(owner)
        fail()

    keeper: LeaseKeeper[int] = LeaseKeeper(renew=renew, tend=lambda: tended.append(True))
    monkeypatch.setattr(keeper._thread, "start", lambda: False)
    keeper.hold(1, "a")
    keeper.hold(2, "b")
    keeper.keep_once(0)
    assert (renewed, tended) == ([1, 2], [True])
    LeaseKeeper(renew=renew, tend=fail).keep_once(0)


@pytest.mark.django_db
def test_it_renews_other_claims_after_one_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    claims, renewed = Claims(start=lambda _: None), []

    def renew(claim: Claim) -> None:
        renewed.append(claim)
        fail()

    monkeypatch.setattr(claims, "_renew_one", renew)
    both = [Claim(Lease(name, "f", "t", 7), claims) for name in "ab"]
    claims.renew_each(both)
    assert renewed == both


def test_it_goes_on_mending_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    outage, mended = Outage(), []
    limits = outage.limits
    limits.pending.add(Pending(a_scope(), "op", 0, Amount(), 0, 0))
    mend = limits.mend_once

    def mend_badly_at_first() -> bool:
        mended.append(True)
        return fail() if len(mended) == 1 else mend()

    monkeypatch.setattr(limits, "mend_once", mend_badly_at_first)
    monkeypatch.setattr(failover, "MEND_INTERVAL", 0)
    limits._mend()
    assert len(mended) == 2
    assert not limits.pending


def test_it_runs_a_thread_once_in_a_process() -> None:
    ran: list[int] = []
    thread = ProcessThread(lambda: ran.append(1), name="once")
    assert [thread.start() for _ in range(3)] == [True, False, False]
    wait_until(lambda: ran == [1], "the thread to have run")
