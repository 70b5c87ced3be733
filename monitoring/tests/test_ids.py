"""Ids of records: by RFC 9562, and of the clock's own time also after it was set back."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime

import pytest

from core.times import new_id


def test_it_makes_version_7_of_the_present_time() -> None:
    before = time.time_ns() // 1_000_000
    made = new_id()
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert before <= made.int >> 80 <= time.time_ns() // 1_000_000
    assert len({new_id() for _ in range(1000)}) == 1000


def test_it_follows_a_clock_that_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    future = datetime(2030, 1, 1, tzinfo=UTC)
    monkeypatch.setattr(time, "time_ns", lambda: int(future.timestamp()) * 10**9)
    assert new_id().int >> 80 == future.timestamp() * 1000
    monkeypatch.undo()
    assert new_id().int >> 80 < future.timestamp() * 1000
