"""Breakers that are open become alerts, which name the deployment."""

from __future__ import annotations

import pytest
from django.core.cache import caches

from inference.tests.samples import serve
from inference.upstream.alerts import open_breakers
from inference.upstream.breaker import _place
from inference.upstream.fake import FakeUpstream


def test_it_tells_of_each_open_breaker(upstream: FakeUpstream) -> None:
    opened, _closed = serve("small", upstream_name="small-1"), serve("large")
    caches["default"].set(_place(opened.pk), 1, 30)
    (condition,) = open_breakers()
    assert condition.subject == f"breaker:{opened.pk}"
    assert condition.title == "Provider openai fails: no calls go to openai/small-1"


@pytest.mark.parametrize("switched_off", ["deployment", "provider", "model"])
def test_it_says_nothing_of_what_is_switched_off(upstream: FakeUpstream, switched_off: str) -> None:
    deployment = serve("small")
    caches["default"].set(_place(deployment.pk), 1, 30)
    row = deployment if switched_off == "deployment" else getattr(deployment, switched_off)
    type(row).objects.filter(pk=row.pk).update(is_enabled=False)
    assert list(open_breakers()) == []
