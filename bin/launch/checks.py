"""bin/test: every check, side by side, then every test; all of them even when one fails."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch import LaunchError, install, say
from launch.processes import TICK, Group, Stopped, end_on_signals

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
#: Tests with time limits, which a busy machine would exceed.
TIMED = (
    "tests/test_key_lifecycle.py",
    "tests/test_limits_failures.py",
    "tests/test_limits_proofs.py",
    "tests/test_frozen_database.py",
    "tests/test_streams.py",
    "tests/test_flights.py",
    "tests/test_hostile_connections.py",
    "tests/test_leaving_clients.py",
    "tests/test_unreached.py",
)

#: What a step gets of the caller's environment; the platform's own settings stay outside.
KEPT = (
    "PATH", "HOME", "LANG", "LC_ALL", "TERM", "CI", "LD_LIBRARY_PATH", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE",
    "SSL_CERT_DIR", "PIP_CERT", "TEST_DATABASE_URL", "TEST_REDIS_URL",
)  # fmt: skip

#: The required settings of production, with dummy secrets.
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
        say(sys.modules["__main__"].__doc__ or "")
        return 0
    os.chdir(ROOT)
    end_on_signals()
    started = time.monotonic()
    chosen = [part for part in arguments if part != "--full"]
    try:
        files = [install.BASE, install.DEVELOPMENT, install.LOCAL, install.EMBEDDED, install.CLOUDS]
        python = install.ensure_environment(ROOT, files)
        needs_browser = not chosen or any(part.startswith(("tests", "./tests")) for part in chosen)
        for package in ("libgomp1", *(("libatomic1", "chromium") if needs_browser else ())):
            install.ensure_debian_package(ROOT, package)
        results = [Result("install", True, time.monotonic() - started)]
        with tempfile.TemporaryDirectory(prefix="aiapi-test-", ignore_cleanup_errors=True) as folder:
            Path(folder).chmod(0o711)  # passed through by other users, because PostgreSQL runs as one of them
            env = {name: os.environ[name] for name in KEPT if name in os.environ}
            env |= {"TMPDIR": folder, "PYTHONUNBUFFERED": "1", "FULL": "1" if "--full" in arguments else "0"}
            only = [[Step("pytest", [python, "-m", "pytest", *chosen], live=True)]]
            for steps in only if chosen else [_checks(python, folder), *([step] for step in _tests(python))]:
                results += run_steps(steps, env)
        return summary(results, time.monotonic() - started)
    except LaunchError as error:
        say(f"error: {error}")
        return 1
    except Stopped:
        say("\nStopped.")
        return 130


def _checks(python: str, folder: str) -> list[Step]:
    """List the checks. They run side by side: none depends on another, and mypy takes as long as the rest together."""
    manage, schema = [python, "manage.py"], f"{folder}/openapi.yaml"
    sqlite = {"DATABASE_URL": f"sqlite:///{folder}/unit.sqlite3"}
    lint_imports = str(ROOT / ".venv" / "bin" / "lint-imports")
    return [
        Step("format", [python, "-m", "ruff", "format", "--check", "."]),
        Step("lint", [python, "-m", "ruff", "check", "."]),
        Step("types", [python, "-m", "mypy"]),
        Step("import direction", [python, lint_imports]),
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


@dataclass(frozen=True)
class Step:
    """One command; `live` shows its output as it comes, else only when it fails."""

    name: str
    command: list[str]
    env: Mapping[str, str] = field(default_factory=dict)
    live: bool = False


@dataclass(frozen=True)
class Result:
    """How a step ended, after so many seconds."""

    name: str
    passed: bool
    seconds: float


def run_steps(steps: Sequence[Step], env: Mapping[str, str]) -> list[Result]:
    """Run steps side by side to their ends, tell of one after the other, and end whatever they left behind."""
    group, started = Group(grace=10), time.monotonic()
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="aiapi-steps-") as folder:
        logs = [None if step.live else Path(folder, str(number)) for number, step in enumerate(steps)]
        try:
            for step, log in zip(steps, logs, strict=True):
                group.start(step.name, step.command, {**env, **step.env}, log)
            results = []
            for member in group.members:
                say(f"\n== {member.name}")
                while member.name not in seconds:
                    time.sleep(TICK)
                    ended = [each.name for each in group.members if each.process.poll() is not None]
                    seconds = {name: time.monotonic() - started for name in ended} | seconds
                results.append(Result(member.name, member.process.returncode == 0, seconds[member.name]))
                if member.log and not results[-1].passed:
                    say(member.log.read_text(errors="replace").rstrip())
                say(f"   {'passed' if results[-1].passed else 'FAILED'} in {seconds[member.name]:.1f} s")
        finally:
            group.stop(signal.SIGTERM)
    return results


def summary(results: Sequence[Result], seconds: float) -> int:
    """Print every step with its time, and return the exit status: 0 when all passed.

    The seconds of all are those of the clock, fewer than the sum where steps ran side by side.
    """
    failed = sum(not each.passed for each in results)
    say(f"\n{'step':<38} {'result':<7} seconds")
    for each in [*results, Result("all", not failed, seconds)]:
        say(f"{each.name:<38} {'passed' if each.passed else 'FAILED':<7} {each.seconds:7.1f}")
    say(f"steps: {len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0
