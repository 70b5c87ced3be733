"""Steps of background loops: what they raise is logged, without its text, and the loop goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from accounts.limits import backend
from accounts.limits.pending import Pending
from accounts.limits.types import Amount
from accounts.tests.limits_fixtures import a_scope
from accounts.tests.test_limits_outage import Outage
from core.background import PeriodicThread, ProcessThread, run_step
from core.redis.leases import LeaseRenewer
from tests.processes import wait_until


def fail(*arguments: Any) -> Any:
    """Fail as nobody foresaw."""
    raise RuntimeError("secret")


def test_it_outlives_anything_and_tells_its_class_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_step(lambda: None, event="fine")
    assert not run_step(fail, event="step_failed")
    logged = capsys.readouterr().err
    assert "step_failed" in logged
    assert "RuntimeError" in logged
    assert "secret" not in logged


class Owners:
    """Leases that can't be renewed, and the shards of those that were to be."""

    lease_seconds = 0.0

    def __init__(self) -> None:
        self.renewed: list[int] = []

    def renew(self, shard: int, names: list[str]) -> None:
        self.renewed.append(shard)
        fail()


def test_it_renews_the_leases_of_others_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    owners, renewer = Owners(), LeaseRenewer()
    monkeypatch.setattr(renewer._thread, "begin", lambda: None)
    renewer.hold(owners, 1, "a")
    renewer.hold(owners, 2, "b")
    renewer.renew_due()
    assert owners.renewed == [1, 2]


def test_it_goes_on_mending_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    outage, mended = Outage(), []
    limits = outage.limits
    limits.pending.add(Pending(a_scope(), "op", 0, Amount(), 0, 0))
    flush = limits.refusal_counts.flush

    def fail_at_first() -> bool:
        mended.append(True)
        return fail() if len(mended) == 1 else flush()

    monkeypatch.setattr(limits.refusal_counts, "flush", fail_at_first)
    monkeypatch.setattr(backend, "REPAIR_INTERVAL", 0)
    limits._repairer.run()
    assert len(mended) == 2
    assert not limits.pending


def test_it_runs_a_thread_once_in_a_process() -> None:
    ran: list[int] = []
    thread = ProcessThread(lambda: ran.append(1), name="once")
    assert [thread.start() for _ in range(3)] == [True, False, False]
    wait_until(lambda: ran == [1], "the thread to have run")


class Work:
    """So many steps of work, of which the first fails if it is to; and the thread that does them."""

    def __init__(self, left: int, *, fails: bool = False) -> None:
        self.left, self.done, self.fails = left, 0, fails
        self.started: list[Callable[[], None]] = []
        self.thread = PeriodicThread(
            self.step,
            has_work=lambda: self.left > 0,
            seconds=lambda: 0.0,
            name="work",
            event="work_failed",
            start=self.started.append,
        )

    def step(self) -> None:
        """Do a part of it."""
        self.left -= 1
        self.done += 1
        if self.fails and self.done == 1:
            fail()


def test_it_works_until_nothing_is_left_whatever_fails_and_is_begun_once_for_all_of_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = Work(3, fails=True)
    for _ in range(3):
        work.thread.begin()
    (run,) = work.started
    run()
    assert work.done == 3
    assert "work_failed" in capsys.readouterr().err
    work.left = 1
    work.thread.begin()
    assert len(work.started) == 2, "it had ended"


def test_it_takes_no_step_once_it_is_ended() -> None:
    work = Work(3)
    work.thread.begin()
    (run,) = work.started
    work.thread.end()
    run()
    work.thread.begin()
    assert (work.done, work.left) == (0, 3)
    assert work.started == [run]


def test_it_is_ended_when_the_step_that_it_is_at_is_done_in_a_thread_of_its_own() -> None:
    begun, may_end = threading.Event(), threading.Event()
    steps: list[str] = []

    def step() -> None:
        begun.set()
        assert may_end.wait(10)
        steps.append(threading.current_thread().name)

    thread = PeriodicThread(step, has_work=lambda: True, seconds=lambda: 0.0, name="slow", event="failed")
    thread.begin()
    assert begun.wait(10)
    ender = threading.Thread(target=thread.end)
    ender.start()
    ender.join(0.1)
    assert ender.is_alive()
    may_end.set()
    ender.join(10)
    assert steps == ["slow"]


def test_it_begins_once_more_where_a_thread_could_not_be_started() -> None:
    started: list[Callable[[], None]] = []

    def start(run: Callable[[], None]) -> None:
        started.append(run)
        if len(started) == 1:
            raise RuntimeError("can't start new thread")

    loop = PeriodicThread(int, has_work=lambda: True, seconds=lambda: 1.0, name="loop", event="failed", start=start)
    with pytest.raises(RuntimeError):
        loop.begin()
    loop.begin()
    loop.begin()
    assert len(started) == 2
