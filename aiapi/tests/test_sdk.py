"""The SDK's half a second and 20 MB are paid only for a provider that it addresses: Azure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from aiapi.settings import BASE_DIR

#: Loads what a server and a worker use, and lists what was imported.
LOAD = "import sys; from aiapi.server import load; load(); print(*sys.modules)"


def test_a_server_does_not_import_the_sdk(tmp_path: Path) -> None:
    env = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": f"sqlite:///{tmp_path}/empty.sqlite3",
        "DJANGO_SETTINGS_MODULE": "aiapi.settings",
    }
    done = subprocess.run(
        [sys.executable, "-c", LOAD], env=env, cwd=BASE_DIR, capture_output=True, text=True, check=True
    )
    imported = set(done.stdout.split())
    assert "inference.upstream.client" in imported
    assert not {name for name in imported if name.split(".")[0] == "openai"}
