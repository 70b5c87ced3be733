"""bin/test: every check, side by side, then every test, step by step; all of them even when one fails."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from launch import system, venv
from launch.console import LaunchError, say
from launch.processes import Stopped, end_on_signals
from launch.steps import Results, Step

ROOT = Path(__file__).resolve().parents[2]
APPS = ["accounts", "aiapi", "core", "inference", "monitoring", "operations"]

#: What a step gets of the caller's environment; the platform's own settings stay outside.
KEPT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TERM",
    "CI",
    "LD_LIBRARY_PATH",
    "NODE_EXTRA_CA_CERTS",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "PIP_CERT",
    "TEST_DATABASE_URL",
    "TEST_REDIS_URL",
)

#: What production must be given, with secrets that are nobody's.
PRODUCTION = {
    "ENVIRONMENT": "production",
    "SECRET_KEY": "0123456789-of-the-checks-only-abcdefghijklmnopqrstuvwxyz-ABCDEFGH",
    "API_KEY_PEPPERS": "0123456789-of-the-checks-only-abcdefghijklmnopqrstuvwxyz",
    "ALLOWED_HOSTS": "api.example.com",
    "OPENAI_API_KEY": "sk-of-the-checks-only",
    "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
    "REDIS_URL": "redis://127.0.0.1:1/0",
}


def main(arguments: Sequence[str]) -> int:
    """Run the checks, or only pytest with the arguments given; return the exit status."""
    if arguments[:1] in (["-h"], ["--help"]):
        say((ROOT / "bin" / "test").read_text().split('"""')[1])
        return 0
    os.chdir(ROOT)
    end_on_signals()
    try:
        return _run([part for part in arguments if part != "--full"], full="--full" in arguments)
    except LaunchError as error:
        say(f"error: {error}")
        return 1
    except Stopped:
        say("\nStopped.")
        return 130


def _run(arguments: list[str], *, full: bool) -> int:
    results = Results()
    python = results.timed("install", lambda: _prepare(arguments))
    with _temporary_folder() as folder:
        env = {name: os.environ[name] for name in KEPT if name in os.environ}
        env |= {"TMPDIR": folder, "PYTHONUNBUFFERED": "1", "FULL": "1" if full else "0"}
        if arguments:
            results.run([Step("pytest", [python, "-m", "pytest", *arguments], live=True)], env)
        else:
            results.run(_static_steps(python, folder), env)
            _test_suites(results, python, folder, env)
    return results.summary()


def _prepare(arguments: list[str]) -> str:
    python = venv.ensure(ROOT, [venv.BASE, venv.DEVELOPMENT, venv.LOCAL, venv.EMBEDDED])
    system.ensure_libgomp(ROOT)
    if not arguments or any(part.startswith(("tests", "./tests")) for part in arguments):
        system.ensure_chromium(ROOT)
    return str(python)


def _static_steps(python: str, folder: str) -> list[Step]:
    """List what runs side by side: none of it needs another, and the types take as long as all others together."""
    manage, schema = [python, "manage.py"], f"{folder}/openapi.yaml"
    lint_imports = str(ROOT / ".venv" / "bin" / "lint-imports")
    return [
        Step("format", [python, "-m", "ruff", "format", "--check", "."]),
        Step("lint", [python, "-m", "ruff", "check", "."]),
        Step("types", [python, "-m", "mypy"]),
        Step("import direction", [python, lint_imports]),
        Step("requirements", [python, "-m", "launch.requirements"], {"PYTHONPATH": "bin"}),
        Step("migrations", [*manage, "makemigrations", "--check", "--dry-run"]),
        Step("production settings", [*manage, "check", "--deploy", "--fail-level", "WARNING"], PRODUCTION),
        Step("OpenAPI schema", [*manage, "spectacular", "--validate", "--fail-on-warn", "--file", schema]),
    ]


def _test_suites(results: Results, python: str, folder: str, env: dict[str, str]) -> None:
    """Run the tests, three at a time on two cores since each waits now and then."""
    pytest = [python, "-m", "pytest", "-q", "--durations=5"]
    unit = [*pytest, "-n", "3", *APPS]
    results.run([Step("unit tests on PostgreSQL and Valkey", unit, live=True)], env)
    sqlite = {"DATABASE_URL": f"sqlite:///{folder}/unit.sqlite3"}
    results.run([Step("those of SQL on SQLite", [*unit, "-m", "own_sql"], sqlite, live=True)], env)
    # A file's tests stay together, for its servers' sake, and files begin in conftest.py's order, the longest first.
    by_file = [*pytest, "-n", "3", "--dist", "loadfile", "--no-loadscope-reorder"]
    results.run([Step("end-to-end tests", [*by_file, "-m", "not timed", "tests"], live=True)], env)
    results.run([Step("proofs against the clock", [*by_file, "-m", "timed", "tests"], live=True)], env)


@contextmanager
def _temporary_folder() -> Iterator[str]:
    """Yield a folder for everything temporary, removed at the end whatever happens.

    It can be passed through by other users, because PostgreSQL runs as one of them.
    """
    folder = Path(tempfile.mkdtemp(prefix="aiapi-test-"))
    folder.chmod(0o711)
    try:
        yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
