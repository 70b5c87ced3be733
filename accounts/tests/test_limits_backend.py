"""The process's one backend: which it is, when it is built, and that a fork does not share it."""

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from accounts import limits
from accounts.limits.types import Amount
from accounts.tests.limits_fixtures import Database, a_scope, an_operation, shared_redis_url
from core.redis import availability
from launch.environment import free_port
from tests.processes import wait_until


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(limits._installed, "seeder", Database())
    monkeypatch.setattr(limits._installed, "sink", lambda record: None)
    limits.reset_limits()
    yield
    limits.reset_limits()


def test_it_needs_the_store_that_the_settings_name(settings: Any) -> None:
    settings.REDIS_URL = ""
    with pytest.raises(ImproperlyConfigured, match="REDIS_URL"):
        limits.get_limits()


def test_it_is_one_a_process(settings: Any) -> None:
    backend = limits.get_limits()
    assert limits.get_limits() is backend
    assert backend.admit(a_scope(requests_per_minute=1), an_operation()).admitted


def test_it_takes_the_lease_from_the_settings(settings: Any) -> None:
    settings.LIMITS_LEASE_SECONDS = 11
    assert limits.get_limits().lease_seconds == 11


def test_it_waits_for_redis_as_long_as_the_settings_say_probe_included(settings: Any) -> None:
    settings.REDIS_URL, settings.REDIS_TIMEOUT = shared_redis_url(), 0.75
    backend = limits.get_limits()
    options = backend.store.wire._pool.connection_kwargs  # type: ignore[attr-defined]
    assert options["socket_timeout"] == pytest.approx(0.6)


def test_it_mends_no_more_once_it_is_replaced(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "PROBE_INTERVAL", 0.01)
    settings.REDIS_URL = f"redis://127.0.0.1:{free_port()}/0"
    before = set(threading.enumerate())
    assert limits.get_limits().admit(a_scope(requests_per_minute=1), an_operation()).admitted
    (mender,) = set(threading.enumerate()) - before
    assert mender.name == "store-prober"
    limits.reset_limits()
    wait_until(lambda: not mender.is_alive(), "the mender to end though Redis is still away")


def test_it_says_what_was_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits._installed, "seeder", None)
    monkeypatch.setattr(limits._installed, "sink", None)
    with pytest.raises(ImproperlyConfigured, match="seeder"):
        limits.get_limits()


def test_it_keeps_what_was_installed_before() -> None:
    seeder = Database()
    limits.install(seeder=seeder)
    limits.get_limits()
    assert limits._installed.seeder is seeder
    assert limits._installed.sink is not None


def test_it_is_built_anew_in_a_forked_process(settings: Any) -> None:
    settings.REDIS_URL = shared_redis_url()
    scope = a_scope(requests_per_minute=10)
    backend = limits.get_limits()
    backend.admit(scope, an_operation())
    child = os.fork()
    if child == 0:
        own = limits.get_limits()
        fresh = own is not backend and own.admit(scope, f"child-{os.getpid()}").admitted
        shared = backend.admit(scope, f"shared-{os.getpid()}").admitted  # a wire leaves its parent's sockets alone
        os._exit(0 if fresh and shared else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert backend.usage(scope)[0].requests == 3
    assert backend.usage(scope)[0].settled == Amount()
