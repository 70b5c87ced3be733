"""The folder of the workers' metrics: private, new at each start, and gone after the last of its processes."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.telemetry.metrics_folder import VARIABLE, YOUNG_SECONDS, forget_worker, make_folder

LONG_AGO = time.time() - YOUNG_SECONDS - 60


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Let temporary files be in a folder of the test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv(VARIABLE, "")
    yield tmp_path
    os.environ.pop(VARIABLE, None)


def age(folder: Path) -> None:
    """Let a folder look as if it had been there for long."""
    os.utime(folder, (LONG_AGO, LONG_AGO))


def test_it_makes_a_folder_that_nobody_else_can_read(parent: Path) -> None:
    folder = make_folder()
    assert folder.parent == parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert os.environ[VARIABLE] == str(folder)


def test_it_leaves_the_folder_of_another_server_alone(parent: Path) -> None:
    first = make_folder()
    age(first)
    second = make_folder()
    assert first != second
    assert first.exists()


def test_it_removes_what_a_killed_server_left(parent: Path) -> None:
    make = "from core.telemetry.metrics_folder import make_folder; import os"
    script = f"{make}; print(make_folder(), flush=True); os._exit(9)"
    env = {**os.environ, "TMPDIR": str(parent)}
    run = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 9
    left = Path(run.stdout.strip())
    make_folder()
    assert left.exists(), "it may have just begun"
    age(left)
    make_folder()
    assert not left.exists()


def test_it_takes_what_only_the_living_have_off(parent: Path) -> None:
    folder = make_folder()
    for name in ("gauge_livesum_7.db", "gauge_livemax_7.db", "gauge_livesum_8.db", "counter_7.db"):
        (folder / name).touch()
    forget_worker(7)
    assert {path.name for path in folder.glob("*.db")} == {"gauge_livesum_8.db", "counter_7.db"}
