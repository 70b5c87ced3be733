"""The SDK is imported by who asks a provider, and by nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from aiapi.settings import BASE_DIR


def test_no_command_pays_for_the_sdk(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "manage.py", "check"]  # which looks at all there is
    env = {"PATH": os.environ["PATH"], "DATABASE_URL": f"sqlite:///{tmp_path}/empty.sqlite3"}
    done = subprocess.run(command, env=env, cwd=BASE_DIR, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "inference.upstream.client" in imported
    assert not {name for name in imported if name.split(".")[0] == "openai"}
