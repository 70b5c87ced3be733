"""Django's SQLite backend as it waits here: for its turn, in Python, and not for ever."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connections, transaction
from django.db.utils import load_backend

from core.database import query_timeout, repeatable_read
from core.env import database_settings
from core.sqlite import base
from tests.processes import wait_until

pytestmark = pytest.mark.django_db


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Make a file with a table."""
    with sqlite3.connect(tmp_path / "file.sqlite3") as made:
        made.executescript("PRAGMA journal_mode=WAL; CREATE TABLE written (number INTEGER)")
    return tmp_path / "file.sqlite3"


@pytest.fixture
def ours(path: Path) -> Iterator[Any]:
    """Connect to it as the platform does."""
    settings = {**connections["default"].settings_dict, **database_settings(f"sqlite:///{path}", pool_size=1)}
    wrapper = load_backend("core.sqlite").DatabaseWrapper({**settings, "AUTOCOMMIT": True}, "ours")
    wrapper.inc_thread_sharing()
    yield wrapper
    wrapper.close()


@pytest.fixture
def writer(path: Path) -> Iterator[sqlite3.Connection]:
    """Write to it, until a commit."""
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    yield other
    other.close()


@pytest.mark.parametrize("statements", [["INSERT INTO written VALUES (1)"], ["BEGIN IMMEDIATE", "COMMIT"]])
def test_it_waits_for_its_turn(
    ours: Any, writer: sqlite3.Connection, statements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[float] = []

    def pause(seconds: float) -> None:
        tries.append(seconds)
        threading.Event().wait(seconds)

    monkeypatch.setattr("core.sqlite.base.time.sleep", pause)

    def run() -> None:
        with ours.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    waiting = threading.Thread(target=run)
    waiting.start()
    wait_until(lambda: len(tries) > 3, "some tries")
    assert waiting.is_alive()
    writer.execute("COMMIT")
    waiting.join(10)
    assert not waiting.is_alive()


def test_it_reads_beside_a_writer(ours: Any, writer: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "BUSY_SECONDS", 0.0)
    with ours.cursor() as cursor:
        assert cursor.execute("SELECT COUNT(*) FROM written").fetchone() == (0,)


def test_it_reads_a_snapshot_without_the_lock_of_writers(ours: Any, path: Path) -> None:
    def count() -> int:
        with connections["default"].cursor() as cursor:
            return int(cursor.execute("SELECT COUNT(*) FROM written").fetchone()[0])

    tested, connections["default"] = connections["default"], ours
    try:
        with sqlite3.connect(path, isolation_level=None, timeout=0) as other:
            with repeatable_read():
                assert count() == 0
                other.execute("INSERT INTO written VALUES (1)")
                assert count() == 0
            assert count() == 1
            with transaction.atomic(), pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("INSERT INTO written VALUES (2)")
    finally:
        connections["default"] = tested


@pytest.mark.parametrize(("busy", "patience"), [(0.1, None), (60.0, 0.1)])
def test_it_gives_up_in_the_end(
    ours: Any, writer: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, busy: float, patience: float | None
) -> None:
    monkeypatch.setattr(base, "BUSY_SECONDS", busy)
    given = query_timeout(patience) if patience else nullcontext()
    with given, ours.cursor() as cursor, pytest.raises(OperationalError, match="locked"):
        cursor.execute("INSERT INTO written VALUES (1)")


def test_it_waits_for_nothing_else(ours: Any) -> None:
    with pytest.raises(OperationalError, match="no such table"), ours.cursor() as cursor:
        cursor.execute("INSERT INTO unknown VALUES (1)")


def test_it_does_not_wait_for_its_own_reading_to_end(ours: Any, path: Path) -> None:
    with ours.cursor() as cursor, sqlite3.connect(path) as other:
        cursor.executemany("INSERT INTO written VALUES (%s)", [(number,) for number in range(3)])
        reading = cursor.execute("SELECT number FROM written")
        assert reading.fetchone() == (0,)
        other.execute("INSERT INTO written VALUES (3)")
        other.commit()
        started = time.monotonic()
        with pytest.raises(OperationalError, match="locked"), ours.cursor() as second:
            second.execute("INSERT INTO written VALUES (4)")
        assert time.monotonic() - started < base.BUSY_SECONDS / 2
