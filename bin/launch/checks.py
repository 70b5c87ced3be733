"""bin/test: every check, side by side, then every test; all of them even when one fails."""

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
#: Files whose tests touch SQL of our own, which PostgreSQL and SQLite may take differently: they run on both.
OWN_SQL = (
    "aiapi/tests/test_connections.py",
    "aiapi/tests/test_sqlite.py",
    "monitoring/tests/test_bulk.py",
    "monitoring/tests/test_ingester.py",
    "monitoring/tests/test_ledger.py",
    "monitoring/tests/test_ledger_months.py",
    "monitoring/tests/test_pruning.py",
    "monitoring/tests/test_recorder.py",
    "monitoring/tests/test_rollup_rebuild.py",
    "monitoring/tests/test_rollup_selectors.py",
    "monitoring/tests/test_rollups.py",
    "operations/tests/test_dashboard.py",
)
#: Files that hold what they start to seconds which a machine that is busy does not keep.
TIMED = (
    "tests/test_key_lifecycle.py",
    "tests/test_limits_failures.py",
    "tests/test_limits_proofs.py",
    "tests/test_frozen_database.py",
    "tests/test_streams.py",
    "tests/test_flights.py",
    "tests/test_hostile_connections.py",
    "tests/test_leaving_clients.py",
    "tests/test_single_flight.py",
    "tests/test_unreached.py",
)

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
            results.run(_checks(python, folder), env)
            for step in _tests(python):
                results.run([step], env)
    return results.summary()


def _prepare(arguments: list[str]) -> str:
    python = venv.ensure(ROOT, [venv.BASE, venv.DEVELOPMENT, venv.LOCAL, venv.EMBEDDED])
    system.ensure_libgomp(ROOT)
    if not arguments or any(part.startswith(("tests", "./tests")) for part in arguments):
        system.ensure_chromium(ROOT)
    return str(python)


def _checks(python: str, folder: str) -> list[Step]:
    """List what runs side by side: none of it needs another, and the types take as long as all others together."""
    manage, schema = [python, "manage.py"], f"{folder}/openapi.yaml"
    sqlite = {"DATABASE_URL": f"sqlite:///{folder}/unit.sqlite3"}
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
        Step("tests of SQL on SQLite", [python, "-m", "pytest", "-q", *OWN_SQL], sqlite),
    ]


def _tests(python: str) -> list[Step]:
    """List what runs one after the other.

    A file's tests stay together, for its servers' sake, and files begin in conftest.py's order, the longest first. All
    but TIMED are one run of pytest, each worker of which collects every test at its start.
    """
    pytest = [python, "-m", "pytest", "-q", "--durations=20", "--dist", "loadfile", "--no-loadscope-reorder"]
    # Three at a time on two cores, since each waits now and then; the proofs against the clock wait most of the time.
    return [
        Step("tests on PostgreSQL and Valkey", [*pytest, "-n", "3", "-m", "not timed"], live=True),
        Step("proofs against the clock", [*pytest, "-n", "4", *TIMED], live=True),
    ]


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
